import shlex

from snakemake.exceptions import WorkflowError

from mola_core.tasks.rows import rows_identity
from mola_core.files import locked
from mola_core.models.loading import model_identity
from mola_core.records import digest

# What every rule uses: the `mola` command of this environment, the study's options and paths.
# A path that a user gives may hold anything that a shell would read; names of a study hold letters, digits, ._- only.
mola = shlex.join([sys.executable, "-m", "mola_core.cli"])
options = shlex.join(
    ["--study", str(config.get("study", "quickstart")), "--results", str(layout.root)]
    + (
        ["--data-root", str(config["data_root"])]
        if config.get("data_root") is not None
        else []
    )
)
compute = study.compute


def folder(name):
    """A file of this study's results."""
    return str(layout.folder / name)


def named_cell(wildcards):
    return study.cell(wildcards.task, wildcards.method, wildcards.seed)


wildcard_constraints:
    task="|".join(sorted({*study.rows(), *(cell.task for cell in study.all_cells())})),
    method="|".join(method.label for method in study.methods),
    seed=r"\d+",


# One run at a time works on a study. The kernel holds this lock for the process: unlike Snakemake's own, which the
# default profile switches off, a killed run leaves none behind. Jobs do not take it, nor do dry runs.
one_run = locked(layout.folder / ".lock", wait=False)


onstart:
    if workflow.is_main_process:
        try:
            one_run.__enter__()
        except MolaError as error:
            raise WorkflowError(str(error))
