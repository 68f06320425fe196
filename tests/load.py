"""Load: `python tests/load.py [planning dag aggregation worker]` prints seconds and memory. No test: takes minutes.

planning     `snakemake -n` on a study of 1,000 cells, none of them done
dag          the same study run to its summary by Snakemake: 1,000 jobs whose training and evaluation copy records that
             were simulated before, collecting and the rest as always; memory and open files of Snakemake on the way
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


STAND_IN = """\
import os, shutil, sys
from pathlib import Path

FILES = ["train.jsonl", "training.json", "samples.parquet", "manifest.json"]
if __name__ == "__main__" and sys.argv[1] == "cell":
    results, place = sys.argv[sys.argv.index("--results") + 1], sys.argv.index("--cell")
    task, method, seed = sys.argv[place + 1 : place + 4]
    cell = Path("thousand/cells", task, method, "seed" + seed)
    target = Path(results, cell)
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copy(Path(os.environ["SIMULATED"], cell, name), target)
    for name in ("training.key", "evaluation.key"):
        (target / name).touch()
elif __name__ == "__main__" and sys.argv[1] == "model":
    results = sys.argv[sys.argv.index("--results") + 1]
    shutil.copytree(Path(os.environ["SIMULATED"], "models"), Path(results, "models"), dirs_exist_ok=True)
    for folder in Path(results, "models").iterdir():
        folder.joinpath("model.json").write_text("{}")
elif __name__ == "__main__":
    import mola_core

    mola_core.__path__.pop(0)
    from mola_core.cli import main

    sys.exit(main())
"""
"""Takes the place of `mola_core.cli` in the jobs of `dag`."""


def dag(folder: Path) -> None:
    from simulated_study import make_study, simulate

    study = make_study(**CELLS, name="thousand")
    file, package = folder / "thousand.yaml", folder / "shadow" / "mola_core"
    file.write_text(yaml.safe_dump(study.model_dump(mode="json", exclude_none=True)))
    simulate(folder / "simulated", study, documents=100)
    package.mkdir(parents=True)
    real = ROOT / "mola_core"
    (package / "__init__.py").write_text(f"__path__ = [{str(package)!r}, {str(real)!r}]\n")
    (package / "cli.py").write_text(STAND_IN)
    (folder / "work").mkdir()
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--quiet", "all"]
    command += ["--snakefile", str(ROOT / "Snakefile"), "--profile", str(ROOT / "workflow/profiles/default")]
    command += ["--config", f"study={file}", f"results={folder / 'results'}"]
    paths = {"PYTHONPATH": str(package.parent), "SIMULATED": str(folder / "simulated")}
    started, manifests = time.monotonic(), folder / "results/thousand/cells"
    run = subprocess.Popen(command, cwd=folder / "work", env=os.environ | paths)
    marks = [100, 250, 500, 750, 1000]
    while run.poll() is None:
        time.sleep(1)
        done = sum(1 for _ in manifests.glob("*/*/*/manifest.json"))
        if marks and done >= marks[0]:
            process = Path("/proc") / str(run.pid)
            resident = int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
            files = len(list((process / "fd").iterdir()))
            seconds = time.monotonic() - started
            print(f"{done} cells: {seconds:.0f} s, {resident:.0f} MiB, {files} open files", flush=True)
            marks = [mark for mark in marks if mark > done]
    summary = folder / "results/thousand/summary.md"
    print(
        f"exit code {run.returncode} after {time.monotonic() - started:.0f} s, summary: {summary.is_file()}"
    )


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
    from mola_core.models.loading import prepare_model
    from mola_core.runs.cell import CellRunner
    from mola_core.runs.layout import Layout
    from mola_core.study.loading import load_study
    from mola_core.study.study import Study
    from mola_core.tasks.rows import prepare_task

    content = load_study("smoke").model_dump(mode="json", exclude_none=True)
    content |= {"tasks": ["cola"], "methods": [{"method": "mola-2468"}], "seeds": list(range(30))}
    layout = Layout(Study.model_validate(content), folder / "results")
    prepare_model(layout.study.model, layout.model)
    prepare_task("cola", layout.study.data, layout.data("cola"))
    bench = CellRunner(layout)
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
    for part in sys.argv[1:] or ["planning", "dag", "aggregation", "worker"]:
        with tempfile.TemporaryDirectory() as place:
            {"planning": planning, "dag": dag, "aggregation": aggregation, "worker": worker}[part](
                Path(place)
            )
