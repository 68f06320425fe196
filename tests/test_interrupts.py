"""Ctrl-C: once leaves a checkpoint and one line, twice ends at once; in a training, `mola run` and Snakemake."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from snakemake_interface_logger_plugins.common import LogEvent

from mola_core.errors import OutOfTime
from mola_core.runs.progress import progress
from mola_core.study.loading import STUDIES
from mola_core.training import trainer

ROOT = Path(__file__).parent.parent
SMALL = {"tasks": ["cola"], "methods": ["base", "mola-2468"], "seeds": [0]}


@pytest.fixture(autouse=True)
def hearing():
    """Tests that run in the background are deaf to Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted_at_step_2(monkeypatch, times):
    """Press Ctrl-C in the middle of the second step."""
    ended = trainer.Progress.on_step_end

    def on_step_end(self, args, state, control, **more):
        if state.global_step == 2:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
        ended(self, args, state, control, **more)

    monkeypatch.setattr(trainer.Progress, "on_step_end", on_step_end)


def test_once_leaves_a_checkpoint_from_which_the_training_goes_on(bench, monkeypatch):
    undisturbed = bench(**SMALL)
    cell = undisturbed.study.cell("cola", "mola-2468", 0)
    undisturbed.train(cell)
    expected = json.loads((undisturbed.layout.cell(cell) / "training.json").read_text())["adapter_sha256"]
    (undisturbed.layout.cell(cell) / "training.json").unlink()

    runner = bench(**SMALL)
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupted_at_step_2(patch, times=1)
        with pytest.raises(OutOfTime, match="stopped at step 2 of 6"):
            runner.train(cell)
    assert signal.getsignal(signal.SIGINT) is before
    assert [one.state for one in progress(runner.layout) if one.cell == cell] == ["stopped"]
    runner.train(cell)
    record = json.loads((runner.layout.cell(cell) / "training.json").read_text())
    assert record["resumed"]
    assert record["adapter_sha256"] == expected


def test_twice_ends_at_once(bench, monkeypatch):
    runner = bench(**SMALL)
    cell = runner.study.cell("cola", "mola-2468", 0)
    before = signal.getsignal(signal.SIGINT)
    interrupted_at_step_2(monkeypatch, times=2)
    with pytest.raises(KeyboardInterrupt):
        runner.train(cell)
    assert signal.getsignal(signal.SIGINT) is before
    assert not list(runner.layout.checkpoints(runner._training_key(cell)).glob("checkpoint-*"))


@pytest.fixture
def long_study(tmp_path) -> Path:
    """A study file whose one training takes minutes."""
    content = yaml.safe_load((STUDIES / "smoke.yaml").read_text()) | SMALL | {"name": "long"}
    content["training"] |= {"epochs": 5000}
    file = tmp_path / "long.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def _hear_ctrl_c() -> None:
    """What a shell starts in the background is deaf to Ctrl-C, and so is what that starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def press(*command: str) -> tuple[int, str]:
    """Exit code and output of a command whose process group gets Ctrl-C while it trains, as from a terminal."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=_hear_ctrl_c,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    said, pressed = "", False
    for line in process.stdout:
        said += line
        if not pressed and re.search(r"step \d+/", line):
            os.killpg(process.pid, signal.SIGINT)
            pressed = True
    return process.wait(timeout=120), said


def test_snakemake_stops_with_one_line(long_study, tmp_path):
    options = ["--config", f"study={long_study}", f"results={tmp_path / 'results'}"]
    code, said = press("snakemake", "--cores", "1", *options)
    assert code == 1
    assert re.search(r"stopped at step \d+ of \d+; the same command goes on from its checkpoint", said)
    assert said.rstrip().endswith("Stopped; the same command goes on from here.")
    for block in ("Error in rule", "RuleException", "WorkflowError", "Traceback"):
        assert block not in said
    again = ["run", "--study", str(long_study), "--results", str(tmp_path / "results")]
    code, said = press("mola_core.cli", *again)
    assert code == 143
    assert int(re.search(r"step (\d+)/", said)[1]) > 1, "it went on from Snakemake's checkpoint"
    assert said.splitlines()[-1].startswith("mola run: stopped with 1 cells to go")


def filtered(*records):
    """The texts that Snakemake shows of records (text, event[, level])."""
    source = (ROOT / "workflow/rules/common.smk").read_text().split("class Told")[1]
    space = {"logging": logging, "re": re, "LogEvent": LogEvent}
    exec("class Told" + source.split("logger.addFilter")[0], space)
    chosen, shown = space["Told"](), []
    for text, event, *level in records:
        record = logging.LogRecord("snakemake", *(level or [logging.ERROR]), "", 0, text, (), None)
        record.event = event
        if chosen.filter(record):
            shown.append(record.getMessage())
    return shown


def test_failures_are_told_as_ever():
    end = ("WorkflowError:\nAt least one job did not complete successfully.", None)
    stopped = ("Command '...' returned non-zero exit status 143.", None)
    failed = ("Command '...' returned non-zero exit status 2.", None)
    block = ("", LogEvent.JOB_ERROR)
    assert filtered(failed, block, end) == [failed[0], "", end[0]]
    assert filtered(stopped, block, end) == ["Stopped; the same command goes on from here."]
    assert filtered(stopped, block, failed, block, end) == [failed[0], "", end[0]]
    assert filtered(block, end) == ["", end[0]]
    chatter = (
        "Select jobs to execute...",
        "Execute 12 jobs...",
        "Complete log(s): x.log",
        "Elapsed time: 0:01",
    )
    said = [(text, None, logging.INFO) for text in (*chatter, "Building DAG of jobs...")]
    assert filtered(*said) == ["Building DAG of jobs..."]
    assert filtered(failed, *said) == [failed[0], *chatter, "Building DAG of jobs..."], (
        "where something failed"
    )
    assert filtered(("returned non-zero exit status 1430", None)) == ["returned non-zero exit status 1430"]
