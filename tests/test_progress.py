"""What is told of a study while it runs: states, losses, reasons, time left; and experiment trackers."""

import importlib.util
import json
import os
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from mola_core import cli
from mola_core.errors import MolaError, OutOfTime
from mola_core.files import locked
from mola_core.runs.cell import CellRunner
from mola_core.runs.plan import plan
from mola_core.runs.progress import CellProgress, progress, seconds_left
from mola_core.study.loading import load_study
from mola_core.study.study import Cell
from mola_core.training import trainer
from mola_core.training.trackers import tracked

SMALL = {"tasks": ["cola"], "methods": ["base", "lora-r4", "mola-2468"], "seeds": [0]}


def states(runner):
    return {one.cell.method: one for one in progress(runner.layout)}


def test_a_study_s_cells_from_open_to_complete(bench):
    runner = bench(**SMALL)
    study = runner.study
    assert {one.state for one in progress(runner.layout)} == {"open"}
    assert seconds_left(progress(runner.layout)) is None, "nothing is known yet"

    runner.run(study.cell("cola", "base", 0))
    cell = study.cell("cola", "lora-r4", 0)
    runner.train(cell)
    found = states(runner)
    assert (found["base"].state, found["lora-r4"].state, found["mola-2468"].state) == (
        "complete",
        "trained",
        "open",
    )
    assert found["base"].seconds > 0
    runner.evaluate(cell)
    cells = progress(runner.layout)
    done = states(runner)["lora-r4"]
    manifest = json.loads((runner.layout.cell(cell) / "manifest.json").read_text())
    assert done.seconds == pytest.approx(manifest["training"]["seconds"] + manifest["evaluation"]["seconds"])
    assert seconds_left(cells) == pytest.approx(done.seconds), "the open cell will take what the other took"


def test_tries_are_told_before_the_cells_that_wait_for_them(bench, capsys, tmp_path):
    tuning = {"learning_rates": [1e-3, 1e-2], "steps": 2}
    runner = bench(**SMALL | {"methods": ["base", "mola-2468"]}, tuning=tuning)
    layout = runner.layout
    first = layout.tries.study.all_cells()[0]
    CellRunner(layout.tries).run(first)
    found = progress(layout)
    assert [(one.tried, one.state) for one in found] == [
        (True, "complete"),
        (True, "open"),
        (False, "open"),
        (False, "open"),
    ]
    assert found[0].path == f"tuning/{first.path}"
    assert seconds_left(found[:2]) == pytest.approx(found[0].seconds)
    assert seconds_left(found) is None, "how long a cell takes no try says"


def test_a_cell_that_is_evaluated_runs(bench, monkeypatch):
    runner = bench(**SMALL)
    seen = []
    evaluating = CellRunner._evaluate

    def evaluate(self, cell):
        seen.append(states(CellRunner(runner.layout))[cell.method])
        evaluating(self, cell)

    monkeypatch.setattr(CellRunner, "_evaluate", evaluate)
    for method in ("base", "lora-r4"):
        runner.run(runner.study.cell("cola", method, 0))
    assert [(one.state, one.evaluated) for one in seen] == [("running", True)] * 2
    assert states(runner)["lora-r4"].state == "complete"


def test_the_losses_of_a_running_cell_can_be_read(bench, monkeypatch):
    runner = bench(**SMALL)
    cell = runner.study.cell("cola", "mola-2468", 0)
    seen = []
    growing = trainer.Progress.on_log

    def on_log(self, *arguments, **more):
        growing(self, *arguments, **more)
        seen.append(states(CellRunner(runner.layout))["mola-2468"])

    monkeypatch.setattr(trainer.Progress, "on_log", on_log)
    runner.train(cell)
    running = [one for one in seen if one.state == "running" and one.step]
    assert [one.step for one in running] == [1, 2, 3, 4, 5, 6, 6][: len(running)]
    log = [json.loads(line) for line in (runner.layout.cell(cell) / "train.jsonl").read_text().splitlines()]
    assert [one.loss for one in running[:6]] == [entry["loss"] for entry in log]
    assert running[2].steps == 6
    assert running[2].seconds_left == pytest.approx(running[2].seconds)
    assert "steps" not in log[0], "the cell's own log is the Trainer's"


def test_a_stopped_training_goes_on_with_its_log(bench, monkeypatch):
    runner = bench(**SMALL)
    cell = runner.study.cell("cola", "mola-2468", 0)
    stopping = trainer.Progress._due

    def due(self):
        save, _ = stopping(self)
        return save, self.log.is_file() and len(self.log.read_text().splitlines()) == 2

    monkeypatch.setattr(trainer.Progress, "_due", due)
    with pytest.raises(OutOfTime):
        runner.train(cell)
    stopped = states(runner)["mola-2468"]
    assert (stopped.state, stopped.step, stopped.steps) == ("stopped", 3, 6)
    monkeypatch.setattr(trainer.Progress, "_due", stopping)
    runner.train(cell)
    lines = (runner.layout.cell(cell) / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_a_failure_is_told_until_it_is_mended(bench):
    runner = bench(**SMALL, training={"learning_rate": 1000.0})
    cell = runner.study.cell("cola", "mola-2468", 0)
    runner.study.__dict__["training"] = runner.study.training.model_copy(update={"warmup_steps": 99})
    with pytest.raises(MolaError, match="warmup_steps"):
        runner.train(cell)
    failed = states(runner)["mola-2468"]
    assert failed.state == "failed"
    assert "training.warmup_steps: 99 is not below the 6 steps" in failed.reason
    runner.study.__dict__["training"] = runner.study.training.model_copy(
        update={"warmup_steps": 1, "learning_rate": 1e-3}
    )
    runner.train(cell)
    assert states(runner)["mola-2468"].state == "trained"


def test_the_estimate_takes_cells_alike_and_what_runs_at_a_time():
    def at(task, method, state, **more):
        return CellProgress(Cell(task, method, 0), state, **more)

    done = [
        at("cola", "base", "complete", seconds=2.0),
        at("cola", "mola-2468", "complete", seconds=100.0),
        at("mrpc", "mola-2468", "complete", seconds=300.0),
    ]
    assert seconds_left(done) == 0
    assert seconds_left([*done, at("cola", "lora-r4", "open")]) == 100
    assert seconds_left([*done, at("mrpc", "base", "open")]) == 2, "no trained cell says how long base takes"
    assert seconds_left([*done, at("rte", "lora-r4", "open")]) == 200
    running = at("cola", "x", "running", step=1, steps=4, seconds=10.0)
    assert running.seconds_left == 30
    assert seconds_left([*done, running]) == 30
    assert seconds_left([*done, running, replace(running, cell=Cell("cola", "y", 0))]) == 30, "two at a time"
    assert seconds_left([running, at("rte", "lora-r4", "open")]) == 30 + 40
    assert seconds_left([at("rte", "lora-r4", "open")]) is None


def test_tensorboard_follows_a_cell_and_changes_nothing(bench):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plain = bench(**SMALL)
    cell = plain.study.cell("cola", "mola-2468", 0)
    plain.train(cell)
    folder = plain.layout.folder / "tensorboard" / cell.path
    assert not folder.exists()
    before = json.loads((plain.layout.cell(cell) / "training.json").read_text())

    followed = bench(**SMALL, training={"report_to": ["tensorboard"]})
    assert followed._training_key(cell) == before["key"], "who follows a training does not change it"
    (followed.layout.cell(cell) / "training.json").unlink()
    followed.train(cell)
    after = json.loads((plain.layout.cell(cell) / "training.json").read_text())
    assert after["adapter_sha256"] == before["adapter_sha256"]
    events = EventAccumulator(str(folder))
    events.Reload()
    losses = [(one.step, one.value) for one in events.Scalars("train/loss")]
    log = (followed.layout.cell(cell) / "train.jsonl").read_text().splitlines()
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in losses] == pytest.approx([json.loads(line)["loss"] for line in log])


def test_trackers_write_below_the_study_and_an_error_leaves_no_run_open(tmp_path, monkeypatch):
    """Stand-ins: W&B and MLflow are no dependency of the tests. Two real processes that made MLflow's database at once
    failed."""
    study, calls = tmp_path / "mine", []

    def set_experiment(name):
        with pytest.raises(MolaError, match="another run"), locked(study / ".mlflow.lock", wait=False):
            pass
        calls.append(name)

    mlflow = SimpleNamespace(
        set_tracking_uri=calls.append,
        set_experiment=set_experiment,
        active_run=lambda: True,
        end_run=calls.append,
    )
    wandb = SimpleNamespace(finish=lambda: calls.append("finished"))
    for name, module in (("mlflow", mlflow), ("wandb", wandb)):
        monkeypatch.setitem(sys.modules, name, module)
        module.__spec__ = importlib.util.spec_from_loader(name, None)
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    before = dict(os.environ)
    with pytest.raises(ZeroDivisionError), tracked(["wandb", "mlflow"], study, "cola/base/seed0"):
        assert os.environ["WANDB_PROJECT"] == "theirs"
        assert os.environ["WANDB_DIR"] == str(study)
        raise ZeroDivisionError
    assert calls == [f"sqlite:///{study}/mlflow.db", "mine", "finished", "FAILED"]
    assert dict(os.environ) == before
    with tracked([], tmp_path / "other", "cola/base/seed0"):
        assert dict(os.environ) == before
    assert not (tmp_path / "other").exists()


def test_a_tracker_that_is_not_installed_is_told_when_a_run_is_planned(tmp_path, monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else real(name, *more)
    )
    study = load_study("smoke").model_dump(mode="json", exclude_none=True)
    study["training"]["report_to"] = ["tensorboard", "wandb"]
    file = tmp_path / "smoke.yaml"
    file.write_text(json.dumps(study))
    message = "training.report_to: wandb is not installed; pip install wandb, or leave wandb out"
    with pytest.raises(MolaError, match=message):
        plan({"study": str(file), "results": str(tmp_path / "results")}, fresh=True)
    assert cli.main(["run", "--study", str(file), "--results", str(tmp_path / "results")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "results" / "models").exists()
