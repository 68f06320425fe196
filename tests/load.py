"""Load: `python tests/load.py [dag aggregation worker]` prints seconds and memory. No test: takes minutes.

dag          a study of 1,000 cells run to its summary by Snakemake: jobs of cells copy records that were simulated before,
             collecting and the rest as always; memory and open files of Snakemake on the way
aggregation  10 million score rows (1,000 simulated cells of 10,000 documents): gathering, and the verdict
worker       30 tiny cells in one process: memory and open files after each

`mola benchmark --part planning` has the dry run of as many cells.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from simulated_study import make_study, simulate
from smoke_study import smoke

from mola_core.locations import profiles, snakefile
from mola_core.runs.layout import Layout

CELLS = {"tasks": ["cola", "scienceqa"], "methods": ["mola-2468", "mola-8642"], "seeds": list(range(250))}
MARKS = (100, 250, 500, 750, 1000)
"""Cells after which memory is read."""
JOB = """\
import os, shutil, sys
from pathlib import Path

if sys.orig_argv[1:4] == ["-m", "mola_core.cli", "cell"]:
    task, method, seed = sys.orig_argv[-3:]
    place = Path("thousand/cells", task, method, "seed" + seed)
    target = Path(sys.orig_argv[sys.orig_argv.index("--results") + 1], place)
    shutil.copytree(Path(os.environ["SIMULATED"], place), target, dirs_exist_ok=True)
    for name in ("training.key", "evaluation.key"):
        (target / name).touch()
    os._exit(0)
"""
"""`sitecustomize`, which Python runs before anything else: in a cell's job, instead of the job."""


def written(study, folder: Path) -> Path:
    file = folder / f"{study.name}.yaml"
    file.write_text(yaml.safe_dump(study.model_dump(mode="json", exclude_none=True)))
    return file


def standing(process: int) -> str:
    """Memory and open files of a process."""
    place = Path("/proc") / str(process)
    resident = int((place / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return f"{resident:.0f} MiB, {len(os.listdir(place / 'fd'))} open files"


def dag(folder: Path) -> None:
    study = make_study(**CELLS, name="thousand")
    simulated = simulate(folder / "simulated", study, documents=100)
    results = Layout(study, folder / "results")
    for prepared in ("models", "data", "thousand/examples"):
        shutil.copytree(simulated.root / prepared, results.root / prepared)
    (folder / "sitecustomize.py").write_text(JOB)
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--quiet", "host", "rules", "progress"]
    command += ["--snakefile", str(snakefile()), "--profile", str(profiles() / "default")]
    command += ["--config", f"study={written(study, folder)}", f"results={results.root}"]
    paths = {"PYTHONPATH": str(folder), "SIMULATED": str(simulated.root)}
    started, marks = time.monotonic(), list(MARKS)
    run = subprocess.Popen(command, cwd=folder, env=os.environ | paths)
    while run.poll() is None:
        time.sleep(1)
        done = sum(1 for _ in results.folder.glob("cells/*/*/*/evaluation.key"))
        if marks and done >= marks[0]:
            print(f"{done} cells: {time.monotonic() - started:.0f} s, {standing(run.pid)}", flush=True)
            marks = [mark for mark in marks if mark > done]
    print(f"all in {time.monotonic() - started:.0f} s", flush=True)
    if run.returncode or not (results.folder / "summary.md").is_file():
        sys.exit(f"snakemake ended with {run.returncode}")


def aggregation(folder: Path) -> None:
    study = make_study(**CELLS)
    simulate(folder / "results", study, documents=10_000)
    options = ["--study", str(written(study, folder)), "--results", str(folder / "results")]
    for verb in ("collect", "verdict"):
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "mola_core.cli", verb, *options], check=True)
        # The peak is that of all children so far; the smaller step comes first.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        seconds = time.monotonic() - started
        print(f"{verb} of 10 million rows: {seconds:.1f} s, {peak:.0f} MiB", flush=True)


def worker(folder: Path) -> None:
    from mola_core.runs.cell import CellRunner
    from mola_core.runs.prepare import prepare_all

    layout = Layout(smoke(tasks=["cola"], methods=["mola-2468"], seeds=list(range(30))), folder)
    prepare_all(layout)
    runner = CellRunner(layout)
    for number, cell in enumerate(layout.study.cells(), 1):
        started = time.monotonic()
        runner.run(cell)
        if number in (1, 2, 5, 10, 20, 30):
            print(f"cell {number}: {time.monotonic() - started:.1f} s, {standing(os.getpid())}", flush=True)


if __name__ == "__main__":
    parts = {"dag": dag, "aggregation": aggregation, "worker": worker}
    for part in sys.argv[1:] or parts:
        with tempfile.TemporaryDirectory() as place:
            parts[part](Path(place))
