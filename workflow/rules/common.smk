from mola_core.data import rows_identity
from mola_core.models import model_identity
from mola_core.provenance import digest

# What every rule uses: the `mola` command of this environment, the study's options and paths.
mola = f"{sys.executable} -m mola_core.cli"
options = f"--study {config.get('study', 'quickstart')} --results {layout.root}"
if "data_root" in config:
    options += f" --data-root {config['data_root']}"
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
