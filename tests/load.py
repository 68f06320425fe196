"""Load: `python tests/load.py [planning aggregation worker]` prints seconds and memory. No test: takes minutes.

planning     `snakemake -n` on a study of 1,000 cells, none of them done
aggregation  10 million score rows (1,000 simulated cells of 10,000 documents): gathering, and the verdict
worker       30 tiny cells in one process: memory and open files after each
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
CELLS = {"tasks": ["cola", "scienceqa"], "methods": ["mola-2468", "mola-8642"], "seeds": list(range(250))}


def measured(name: str, command: list[str]) -> None:
    """Run a command and print its wall time and the largest memory of any of its processes."""
    started = time.monotonic()
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    # The peak is that of all children so far, so the smaller steps come first.
    print(f"{name}: {seconds:.1f} s, {peak:.0f} MiB", flush=True)


def planning(folder: Path) -> None:
    content = (
        yaml.safe_load((ROOT / "workflow/studies/smoke.yaml").read_text()) | CELLS | {"name": "thousand"}
    )
    study = folder / "thousand.yaml"
    study.write_text(yaml.safe_dump(content))
    config = ["--config", f"study={study}", f"results={folder / 'results'}"]
    measured("planning 1,000 cells", [sys.executable, "-m", "snakemake", "-n", "--quiet", "all", *config])


def aggregation(folder: Path) -> None:
    from simulated_study import make_study, simulate

    study = make_study(**CELLS)
    file = folder / "simulated.yaml"
    file.write_text(yaml.safe_dump(study.model_dump(mode="json", exclude_none=True)))
    simulate(folder / "results", study, documents=10_000)
    options = ["--study", str(file), "--results", str(folder / "results")]
    for verb in ("collect", "verdict"):
        measured(f"{verb} of 10 million rows", [sys.executable, "-m", "mola_core.cli", verb, *options])


def worker(folder: Path) -> None:
    from mola_core.cells import Workbench
    from mola_core.data import prepare_task
    from mola_core.layout import Layout
    from mola_core.models import prepare_model
    from mola_core.study import Study, load_study

    content = load_study("smoke").model_dump(mode="json", exclude_none=True)
    content |= {"tasks": ["cola"], "methods": [{"method": "mola-2468"}], "seeds": list(range(30))}
    layout = Layout(Study.model_validate(content), folder / "results")
    prepare_model(layout.study.model, layout.model)
    prepare_task("cola", layout.study.data, layout.data("cola"))
    bench = Workbench(layout)
    page = os.sysconf("SC_PAGE_SIZE")
    for number, cell in enumerate(layout.study.cells(), 1):
        started = time.monotonic()
        bench.run(cell)
        if number in (1, 2, 5, 10, 20, 30):
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * page / 2**20
            files = len(os.listdir("/proc/self/fd"))
            seconds = time.monotonic() - started
            print(
                f"cell {number}: {seconds:.1f} s, {resident:.0f} MiB resident, {files} open files", flush=True
            )


if __name__ == "__main__":
    for part in sys.argv[1:] or ["planning", "aggregation", "worker"]:
        with tempfile.TemporaryDirectory() as place:
            {"planning": planning, "aggregation": aggregation, "worker": worker}[part](Path(place))
