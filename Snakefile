# One study from its base model to its verdict:
#   snakemake --cores N [--config study=NAME-or-file data_root=DIR results=DIR]
# The rules only wire; every one is a call of `mola <verb>`, and all logic is in mola_core.
import sys
from pathlib import Path

from snakemake.utils import min_version

from mola_core.runs import cell as cells
from mola_core.errors import MolaError
from mola_core.runs.layout import Layout
from mola_core.study.study import load_study

min_version("9.27")

try:
    for key, value in config.items():
        if key not in ("study", "data_root", "results"):
            raise MolaError(
                f"--config {key}: unknown; give study, data_root or results"
            )
        if set(str(value)) & set("{}"):
            raise MolaError(
                f"--config {key}: {value}: braces have a meaning for Snakemake; rename it"
            )
    layout = Layout(
        load_study(str(config.get("study", "quickstart")), config.get("data_root")),
        Path(str(config.get("results", "results"))),
    )
    study = layout.study
    digests = {cell: cells.digests(study, cell) for cell in study.all_cells()}
except MolaError as error:
    sys.exit(f"snakemake: {error}")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/cells.smk"
include: "workflow/rules/results.smk"
include: "workflow/rules/analysis.smk"


rule all:
    default_target: True
    input:
        folder("summary.md"),
        rules.figures.output,
        rules.verdict.output,
        rules.reanalysis.output,
