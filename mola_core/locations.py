"""Where the workflow's files are: beside the package in a checkout, inside it in an installed wheel."""

from pathlib import Path

from mola_core.errors import MolaError

PACKAGE = Path(__file__).parent
STUDIES = PACKAGE / "studies"
"""The studies that come with the package; in a checkout `workflow/studies` is a link to them."""


def workflow_root() -> Path:
    """The folder that holds `Snakefile` and `workflow/`. Raises `MolaError` where neither place has them."""
    for folder in (PACKAGE, PACKAGE.parent):
        if (folder / "Snakefile").is_file() and (folder / "workflow" / "rules").is_dir():
            return folder
    raise MolaError(f"{PACKAGE}: no Snakefile in it or beside it; install mola-core again")


def snakefile() -> Path:
    """The workflow, for `snakemake --snakefile` and `module:`."""
    return workflow_root() / "Snakefile"


def profiles() -> Path:
    """Snakemake profiles: `default`, `local-gpu`, `slurm`, `kubernetes`."""
    return workflow_root() / "workflow" / "profiles"


def schema() -> Path:
    """The JSON schema of study files."""
    return workflow_root() / "workflow" / "schemas" / "study.json"
