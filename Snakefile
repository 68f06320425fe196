# One study from its base model to its verdict:
#   snakemake --cores N [--config study=NAME-or-file data_root=DIR results=DIR include=DIR]
# The rules only wire; every one is a call of `mola <verb>`, and all logic is in mola_core.
import sys

from snakemake.utils import min_version

from mola_core.errors import MolaError
from mola_core.runs.plan import plan

min_version("9.27")

try:
    planned = plan(dict(config), fresh=workflow.is_main_process)
except MolaError as error:
    sys.exit(f"snakemake: {error}")
layout, study = planned.layout, planned.layout.study


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/cells.smk"
include: "workflow/rules/tuning.smk"
include: "workflow/rules/results.smk"
include: "workflow/rules/analysis.smk"


rule all:
    default_target: True
    input:
        rules.collect.output,
        rules.tables.output,
        rules.figures.output,
        rules.verdict.output,
        rules.summary.output,
        rules.reanalysis.output,
