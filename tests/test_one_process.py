"""One process for training and evaluation, for one cell or several: the same files as a process each, and no needless import."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mola_core.cli import main
from mola_core.errors import MolaError
from mola_core.runs.several import run_in_turn
from mola_core.study.loading import STUDIES, load_study
from mola_core.study.study import Study

ROOT = Path(__file__).parent.parent
METHODS = ["lora-r4", "mola-2468", "mola-8642"]


def small(folder: Path, **changes) -> Path:
    content = yaml.safe_load((STUDIES / "smoke.yaml").read_text())
    content |= {"name": "small", "tasks": ["cola"], "methods": ["base", *METHODS], "seeds": [0]}
    content["training"] |= {"epochs": 1}
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(content | changes))
    return file


def mola(*arguments: object, results: Path, study: Path) -> str:
    """Run a verb in a process of its own; returns standard error."""
    verb, *options = map(str, arguments)
    command = [sys.executable, "-m", "mola_core.cli", verb, "--study", str(study), "--results", str(results)]
    done = subprocess.run(
        [*command, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def prepared(results: Path, study: Path) -> None:
    for verb in ("model", "data", "examples"):
        assert main([verb, "--study", str(study), "--results", str(results)]) == 0


def made(results: Path) -> dict[str, bytes]:
    """What cells made that holds no time: adapters, scores, keys."""
    names = (
        "adapter_model.safetensors",
        "adapter_config.json",
        "samples.parquet",
        "training.key",
        "evaluation.key",
    )
    files = [file for file in results.rglob("*") if file.name in names]
    return {str(file.relative_to(results)): file.read_bytes() for file in files}


def test_one_process_makes_the_same_bytes_as_a_process_each(tmp_path):
    study = small(tmp_path)
    apart, together = tmp_path / "apart", tmp_path / "together"
    for results in (apart, together):
        prepared(results, study)
    for method in METHODS:
        cell = ("--task", "cola", "--method", method, "--seed", 0)
        mola("train", *cell, results=apart, study=study)
        mola("evaluate", *cell, results=apart, study=study)
    options = [part for method in METHODS for part in ("--cell", "cola", method, 0)]
    mola("cell", *options, results=together, study=study)
    first, second = made(apart), made(together)
    assert len(first) == 5 * len(METHODS)
    assert sorted(first) == sorted(second)
    assert [name for name in first if first[name] != second[name]] == []
    said = mola("cell", *options, results=together, study=study)
    assert said.count("already trained") == said.count("already evaluated") == len(METHODS)


def test_a_process_without_quantised_weights_does_not_import_bitsandbytes(tmp_path):
    """It takes a second where it is installed, and prints what it lacks; PEFT would."""
    pytest.importorskip("bitsandbytes")
    study = small(tmp_path)
    prepared(tmp_path / "results", study)
    said = mola("cell", "--cell", "cola", "mola-2468", 0, results=tmp_path / "results", study=study)
    assert "gemm_4bit" not in said
    code = (
        "import sys; from mola_core import cli; "
        f"sys.argv = ['mola', 'evaluate', '--study', {str(study)!r}, '--results', {str(tmp_path / 'results')!r}, "
        "'--task', 'cola', '--method', 'base', '--seed', '0']; assert cli.main() == 0; "
        "print([name for name in sys.modules if name.startswith('bitsandbytes.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


LIGHT = {
    "cells": ["cells"],
    "tables": ["tables"],
    "verdict": ["verdict", "--state"],
    "where": ["where"],
    "schema": ["schema"],
}


@pytest.mark.parametrize("verb", [*LIGHT, "planning"])
def test_what_needs_no_model_imports_no_torch(tmp_path, verb):
    """`tables` ends with an error, after its imports: there are no scores."""
    study, results = small(tmp_path), tmp_path / "results"
    if verb == "planning":
        run = f"from mola_core.runs.plan import plan; plan({{'study': {str(study)!r}, 'results': {str(results)!r}}}, True).collected"
    else:
        options = [] if verb == "schema" else ["--study", str(study), "--results", str(results)]
        run = f"from mola_core import cli; cli.main({[*LIGHT[verb][:1], *options, *LIGHT[verb][1:]]!r})"
    heavy = "[name for name in ('torch', 'transformers', 'peft', 'lm_eval', 'datasets', 'bitsandbytes') if name in sys.modules]"
    code = f"import sys\n{run}\nprint('heavy:', {heavy})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip().endswith("heavy: []"), done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture
def untold(monkeypatch):
    monkeypatch.setattr("mola_core.runs.several.told", lambda layout, cell: "complete")


class Runner:
    layout = None

    def __init__(self, failing, error):
        self.done, self.failing, self.error = [], failing, error

    def run(self, cell):
        if cell.seed == self.failing:
            raise self.error
        self.done.append(cell.seed)


def cells(count):
    content = load_study("smoke").model_dump(mode="json", exclude_none=True)
    content |= {"tasks": ["cola"], "methods": [{"method": "mola-2468"}], "seeds": list(range(count))}
    return Study.model_validate(content).cells()


def test_a_failed_cell_does_not_hold_up_the_others(untold, capsys):
    runner = Runner(1, ValueError("no\nluck"))
    with pytest.raises(MolaError, match="1 of 3 cells failed, the first is cola/mola-2468/seed1"):
        run_in_turn(runner, cells(3))
    assert runner.done == [0, 2]
    assert capsys.readouterr().err == "cola/mola-2468/seed1: failed: ValueError: no luck\n"


def test_one_cell_fails_as_it_is_and_a_full_disk_ends_all(untold):
    with pytest.raises(ValueError, match="luck"):
        run_in_turn(Runner(0, ValueError("luck")), cells(1))
    runner = Runner(1, OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="space"):
        run_in_turn(runner, cells(3))
    assert runner.done == [0]


def study(**changes) -> Study:
    content = load_study("smoke").model_dump(mode="json", exclude_none=True)
    return Study.model_validate(content | changes)


def test_which_cells_are_trained_and_evaluated_by_one_process():
    plain = study(methods=["base", "lora-r4", "mola-2468"], seeds=[0, 1])
    found = plain.in_one_job()
    assert {cell.method for cell in found} == {"lora-r4", "mola-2468"} and len(found) == 8
    on_cards = study(
        compute={"gpus": 2}, training={"batch_size": 8, "micro_batch_size": 4, "warmup_steps": 1}
    )
    assert on_cards.in_one_job() == [], "torchrun trains, one process evaluates"
    tuned = study(
        tasks=["scienceqa"],
        methods=["mola-2468"],
        seeds=[0],
        instruction={"epochs": 1, "documents": 8, "warmup_steps": 0},
        continual={"tasks": ["scienceqa-biology", "scienceqa-physics"], "epochs": 1},
    )
    names = [cell.task for cell in tuned.in_one_job()]
    # The first stage's training is waited for by the second; it is evaluated meanwhile.
    assert names == ["scienceqa", "continual-2-physics"]


def test_jobs_hold_every_cell_once_in_order():
    batched = study(compute={"cells_per_job": 3}, methods=["base", "lora-r4", "mola-2468"], seeds=[0, 1])
    jobs = batched.jobs()
    assert [len(job) for job in jobs] == [3, 3, 2]
    assert [cell for job in jobs for cell in job] == batched.in_one_job()


def snakemake(*arguments: object, results: Path, study: Path) -> str:
    command = [sys.executable, "-m", "snakemake", *map(str, arguments)]
    command += ["--config", f"study={study}", f"results={results}"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return done.stdout + done.stderr


def jobs(said: str) -> dict[str, int]:
    found = dict(re.findall(r"^(\w+) +(\d+)$", said.partition("Job stats:")[2], re.MULTILINE))
    return {rule: int(count) for rule, count in found.items()}


def test_several_cells_a_job_and_only_those_that_are_open(tmp_path):
    study, results = small(tmp_path, compute={"threads": 1, "cells_per_job": 2}), tmp_path / "results"
    said = snakemake("--cores", 2, results=results, study=study)
    assert {rule: count for rule, count in jobs(said).items() if "cell" in rule} == {
        "cells_0": 1,
        "cells_1": 1,
    }
    folder = results / "small"
    for method in METHODS:
        assert (
            json.loads((folder / f"cells/cola/{method}/seed0/manifest.json").read_text())["method"] == method
        )
    assert "step 6/6" in (folder / "logs/cells/0.log").read_text()
    assert "Nothing to be done" in snakemake("-n", results=results, study=study)
    (folder / "cells/cola/mola-8642/seed0/samples.parquet").unlink()
    found = jobs(snakemake("-n", results=results, study=study))
    assert "cells_1" in found and "cells_0" not in found
    # How cells are put together decides nothing that is recorded.
    small(tmp_path, compute={"threads": 1, "cells_per_job": 1})
    found = jobs(snakemake("-n", results=results, study=study))
    assert found["cell"] == 1 and "evaluate" not in found


def test_a_study_is_told_in_few_lines_and_each_cell_in_one(tmp_path):
    study, results = small(tmp_path), tmp_path / "results"
    quiet = ("--quiet", "host", "rules", "progress")  # as `make study`
    said = snakemake("--cores", 2, *quiet, results=results, study=study)
    lines = [line for line in said.splitlines() if " cells are complete" in line]
    assert len(lines) == len(METHODS)
    assert sorted(line.split(":")[0] for line in lines) == [f"cola/{method}/seed0" for method in METHODS]
    assert any("of 4 cells are complete" in line for line in lines)
    assert len(said.splitlines()) <= 60, said
    log = (results / "small/logs/cell/cola/mola-2468/seed0.log").read_text()
    assert "step 6/6" in log and "cells are complete" in log
