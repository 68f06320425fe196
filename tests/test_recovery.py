"""Faults: processes killed at any moment, full disks, too little memory, two at once, altered files.

Processes come from a fork server that has imported torch once, so a kill costs a fraction of a second.
"""

import contextlib
import hashlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from mola_core import cli
from mola_core.analysis import collect
from mola_core.errors import MolaError, OutOfTime
from mola_core.files import atomic_write, locked, read_json, write_json
from mola_core.models.loading import prepare_model, verify_model
from mola_core.records import digest
from mola_core.runs import local
from mola_core.runs.cell import CellRunner
from mola_core.runs.key import keys
from mola_core.runs.layout import TRAINED, Layout
from mola_core.runs.recovery import drop_damaged_checkpoints
from mola_core.study.loading import STUDIES, load_study
from mola_core.tasks.rows import prepare_task, verify_data
from mola_core.training import trainer
from mola_core.training.trainer import CellTrainer, last_checkpoint

ROOT = Path(__file__).parent.parent
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "mola_core.runs.cell",
        "mola_core.training.trainer",
        "mola_core.models.weights",
        "mola_core.evaluation.harness",
    ]
)
CELL = ("cola", "mola-2468", 0)


def write_study(folder: Path, **changes) -> Path:
    """A study file of one task and two methods whose training takes a while and saves a checkpoint at every step."""
    content = yaml.safe_load((STUDIES / "smoke.yaml").read_text())
    content |= {"name": "small", "tasks": ["cola"], "methods": ["base", "mola-2468"], "seeds": [0]}
    content["training"] |= {"epochs": 4, "checkpoint_minutes": 1e-6} | changes.pop("training", {})
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(content | changes))
    return file


def layout_of(study: Path, results: Path) -> Layout:
    return Layout(load_study(study), results)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The study's results folder after a run without faults."""
    folder = tmp_path_factory.mktemp("undisturbed")
    layout = layout_of(write_study(folder), folder / "results")
    prepare_model(layout.study.model, layout.model)
    prepare_task("cola", layout.study.data, layout.data("cola"))
    bench = CellRunner(layout)
    for cell in layout.study.cells():
        bench.run(cell)
    return layout


@pytest.fixture
def fresh(undisturbed, tmp_path):
    """The same study in a folder of its own, prepared, with no cell done."""
    study = write_study(tmp_path)
    for name in ("models", "data"):
        shutil.copytree(undisturbed.root / name, tmp_path / "results" / name)
    layout = layout_of(study, tmp_path / "results")
    shutil.copytree(undisturbed.folder / "examples", layout.folder / "examples")
    return layout


@pytest.fixture
def done(undisturbed, tmp_path):
    """A copy of the finished study."""
    shutil.copytree(undisturbed.root, tmp_path / "results")
    return layout_of(write_study(tmp_path), tmp_path / "results")


def cell_of(layout: Layout):
    return layout.study.cell(*CELL)


def outcome(layout: Layout):
    """What must be equal whatever happened on the way: the adapter's bytes and every document's scores."""
    folder = layout.cell(cell_of(layout))
    adapter = hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()
    return adapter, pd.read_parquet(folder / "samples.parquet").to_json()


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in (".tmp", ".old")]


def run_cell(layout: Layout) -> None:
    CellRunner(layout).run(cell_of(layout))


def test_a_cell_killed_at_random_moments_ends_as_an_undisturbed_one(undisturbed, fresh):
    """Three kills at random steps, at any point between two of them, and one while the cell is evaluated."""
    cell, moments = cell_of(fresh), random.Random(5)
    scratch = fresh.checkpoints(keys(fresh, cell).training)

    def reached(step: int) -> bool:
        saved = [int(path.name.removeprefix("checkpoint-")) for path in scratch.glob("checkpoint-*")]
        return max(saved, default=0) >= step

    def evaluating() -> bool:
        return (fresh.cell(cell) / "training.json").exists()

    stops = [lambda step=step: reached(step) for step in sorted(moments.sample(range(1, 20), 3))]
    for stop in [*stops, evaluating]:
        process = PROCESSES.Process(target=run_cell, args=(fresh,))
        process.start()
        while not stop():
            assert process.is_alive()
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (fresh.cell(cell) / "manifest.json").exists()
    run_cell(fresh)
    assert outcome(fresh) == outcome(undisturbed)
    assert not leftovers(fresh.cell(cell))
    assert not scratch.exists()


def test_a_checkpoint_stays_until_the_next_is_whole(undisturbed, fresh, monkeypatch):
    """As of a process that is killed after the Trainer has written a checkpoint and before its marker is."""
    scratch = fresh.checkpoints(keys(fresh, cell_of(fresh)).training)

    def killed(path, content):
        if Path(path).parent.name == "checkpoint-3":
            raise SystemExit
        write_json(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "write_json", killed)
        with pytest.raises(SystemExit):
            run_cell(fresh)
    assert {path.name for path in scratch.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}
    assert last_checkpoint(scratch).name == "checkpoint-2"
    drop_damaged_checkpoints(scratch)
    assert [path.name for path in scratch.glob("checkpoint-*")] == ["checkpoint-2"]
    run_cell(fresh)
    assert read_json(fresh.cell(cell_of(fresh)) / "training.json")["resumed"] is True
    assert outcome(fresh) == outcome(undisturbed)


def make_examples_of_others(layout: Layout) -> None:
    """As `mola examples` of another session does, after an edit of the rows' source or of the code that renders."""
    file = layout.examples("cola") / "examples.json"
    write_json(file, read_json(file) | {"identity": "0" * 64})


def test_a_training_keeps_its_record_where_examples_are_made_anew_meanwhile(undisturbed, fresh, monkeypatch):
    key = keys(fresh, cell_of(fresh)).training
    before = read_json(fresh.examples("cola") / "examples.json")
    fit = CellRunner._fit

    def disturbed(self, *arguments):
        outcome = fit(self, *arguments)
        make_examples_of_others(fresh)
        return outcome

    with monkeypatch.context() as patch:
        patch.setattr(CellRunner, "_fit", disturbed)
        CellRunner(fresh).train(cell_of(fresh))
    record = read_json(fresh.cell(cell_of(fresh)) / "training.json")
    assert record["key"] == digest(record["parts"]) == key
    write_json(fresh.examples("cola") / "examples.json", before)
    run_cell(fresh)
    assert outcome(fresh) == outcome(undisturbed)


def test_documents_that_change_before_they_are_read_are_refused(fresh, monkeypatch):
    read = CellRunner._documents

    def disturbed(self, *arguments):
        make_examples_of_others(fresh)
        return read(self, *arguments)

    monkeypatch.setattr(CellRunner, "_documents", disturbed)
    with pytest.raises(MolaError, match="its examples changed while they were read; run it again"):
        CellRunner(fresh).train(cell_of(fresh))
    assert not (fresh.cell(cell_of(fresh)) / "training.json").exists()


def test_scores_of_examples_that_changed_meanwhile_are_not_kept(done, monkeypatch):
    (done.cell(cell_of(done)) / "manifest.json").unlink()
    evaluated = CellRunner._evaluated

    def disturbed(self, *arguments):
        found = evaluated(self, *arguments)
        make_examples_of_others(done)
        return found

    monkeypatch.setattr(CellRunner, "_evaluated", disturbed)
    with pytest.raises(MolaError, match="its examples changed while it was evaluated; evaluate it again"):
        CellRunner(done).evaluate(cell_of(done))
    assert not (done.cell(cell_of(done)) / "manifest.json").exists()


def test_a_complete_cell_whose_weights_are_gone_is_not_trained_again(done, capfd):
    """As of a cell that was brought home without them, planned where model and rows were not prepared."""
    folder = done.cell(cell_of(done))
    shutil.rmtree(folder / "adapter")
    (folder / TRAINED).unlink()
    before = (folder / "manifest.json").read_bytes()
    run_cell(done)
    assert (folder / "manifest.json").read_bytes() == before
    assert (folder / TRAINED).read_text().strip() == read_json(folder / "training.json")["key"]
    assert not (folder / "adapter").exists()
    assert "already trained, its weights are gone" in capfd.readouterr().err
    CellRunner(done).train(cell_of(done))
    assert (folder / "adapter").is_dir(), "who asks for a training gets one"


def test_the_archive_is_written_where_a_worker_is_killed(done, monkeypatch, capsys):
    def fails(*arguments):
        raise MolaError("a worker was killed")

    def run() -> list[str]:
        options = ["--study", str(done.root.parent / "small.yaml"), "--results", str(done.root)]
        assert cli.main(["run", *options, "--archive", str(done.root / "all.tar.gz")]) == 2
        assert "a worker was killed" in capsys.readouterr().err
        with tarfile.open(done.root / "all.tar.gz") as archive:
            return archive.getnames()

    monkeypatch.setattr(local, "_run_cells", fails)
    assert "small/cells/cola/mola-2468/seed0/manifest.json" in (names := run())
    # Where a run fails before it begins nothing is known to be complete: an earlier archive stays.
    shutil.rmtree(done.model)
    monkeypatch.setattr(local, "prepare_all", fails)
    assert run() == names


@pytest.mark.parametrize("stopped", [True, False])
def test_a_worker_that_ends_before_it_can_answer_is_explained_by_what_was_asked(stopped):
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(OutOfTime if stopped else MolaError, match="stopped" if stopped else "was killed"),
        local._stoppable(),
    ):
        if stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        raise BrokenProcessPool
    assert signal.getsignal(signal.SIGTERM) == before


def until_it_trains(fresh: Layout, *command: str) -> subprocess.Popen:
    """A `mola` command as a process, after it has told of its first step."""
    options = ["--study", str(fresh.root.parent / "small.yaml"), "--results", str(fresh.root)]
    process = subprocess.Popen(
        [sys.executable, "-m", "mola_core.cli", *command, *options],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    while "step " not in process.stderr.readline():
        assert process.poll() is None
    return process


def workers(process: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.parametrize(
    "command",
    [("train", "--task", "cola", "--method", "mola-2468", "--seed", "0"), ("run",)],
    ids=["train", "run"],
)
def test_sigterm_saves_a_checkpoint_and_the_same_command_goes_on(undisturbed, fresh, command):
    process = until_it_trains(fresh, *command)
    process.terminate()
    said = process.stderr.read()
    assert process.wait(timeout=120) == 143, said
    assert "stopped at step" in said
    assert "Traceback" not in said
    run_cell(fresh)
    assert read_json(fresh.cell(cell_of(fresh)) / "training.json")["resumed"] is True
    assert outcome(fresh) == outcome(undisturbed)


def test_a_killed_worker_is_one_line_and_a_killed_run_leaves_none_behind(undisturbed, fresh):
    process = until_it_trains(fresh, "run")
    os.kill(workers(process)[0], signal.SIGKILL)
    said = process.stderr.read()
    assert process.wait(timeout=120) == 2, said
    assert "mola run: a worker was killed" in said
    assert "Traceback" not in said
    process = until_it_trains(fresh, "run")
    left = workers(process)
    process.kill()
    process.stderr.read()  # ends when the last process that could write to it has ended
    for worker in left:
        with contextlib.suppress(FileNotFoundError):
            assert Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] == "Z", (
                "still there"
            )
    run_cell(fresh)
    assert outcome(fresh) == outcome(undisturbed)


def test_a_damaged_checkpoint_is_not_resumed(fresh, tmp_path, capfd):
    process = until_it_trains(fresh, "run")
    process.terminate()
    process.stderr.read()
    scratch = fresh.checkpoints(keys(fresh, cell_of(fresh)).training)
    (checkpoint,) = scratch.glob("checkpoint-*")
    drop_damaged_checkpoints(scratch)
    kept = shutil.copytree(checkpoint, tmp_path / "kept")
    names = {file.name for file in kept.iterdir()}
    assert {"optimizer.pt", "rng_state.pth", "trainer_state.json", "complete.json"} < names
    assert "damaged" not in capfd.readouterr().err
    for name in sorted(names - {"training_args.bin", "README.md"}):
        shutil.rmtree(checkpoint, ignore_errors=True)
        shutil.copytree(kept, checkpoint)
        truncated(checkpoint / name)
        drop_damaged_checkpoints(scratch)
        assert not checkpoint.exists(), name
        assert "damaged, deleted" in capfd.readouterr().err


def die_at(call: int, action, *arguments) -> None:
    """Do `action`, killing this process just before its so-many-th write to the disk or rename."""
    count = 0

    def dying(function):
        def wrapped(*a, **k):
            nonlocal count
            count += 1
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*a, **k)

        return wrapped

    os.replace, os.fsync, shutil.rmtree = dying(os.replace), dying(os.fsync), dying(shutil.rmtree)
    action(*arguments)


def killed_everywhere(action, *arguments):
    """Run `action` in processes that die at their first, second, ... write; yields after each, the whole one too."""
    call, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        call += 1
        process = PROCESSES.Process(target=die_at, args=(call, action, *arguments))
        process.start()
        process.join()
        code = process.exitcode
        yield code
    assert code == 0
    assert call > 3, "it was killed at several places"


def rewrite_folder(path: Path) -> None:
    with atomic_write(path) as temporary:
        temporary.mkdir()
        (temporary / "a").write_text("new")
        (temporary / "b").write_text("new")


def test_a_folder_is_old_or_new_or_away_wherever_its_writer_is_killed(tmp_path):
    path = tmp_path / "folder"
    for _ in killed_everywhere(rewrite_folder, path):
        content = {file.name: file.read_text() for file in path.iterdir()} if path.exists() else {}
        assert content in ({}, {"a": "old", "b": "old"}, {"a": "new", "b": "new"})
        path.mkdir(exist_ok=True)
        for name in "ab":
            (path / name).write_text("old")
    rewrite_folder(path)
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("step", ["model", "data", "collect"])
def test_preparation_and_aggregation_leave_nothing_half_written(done, step):
    layout = done
    action, folder, check = {
        "model": (prepare_model, layout.model, lambda: verify_model(layout.model)),
        "data": (prepare_task, layout.data("cola"), lambda: verify_data(layout.data("cola"))),
        "collect": (collect.write, layout.folder, lambda: pd.read_parquet(layout.folder / "scores.parquet")),
    }[step]
    arguments = {
        "model": (layout.study.model, layout.model),
        "data": ("cola", layout.study.data, layout.data("cola")),
        "collect": (layout,),
    }[step]
    product = {"model": "model.json", "data": "fingerprint.json", "collect": "scores.parquet"}[step]
    if step != "collect":
        shutil.rmtree(folder)
    for _ in killed_everywhere(action, *arguments):
        if (folder / product).exists():
            check()
    check()
    assert not leftovers(folder)


def with_little_disk(limit: int, said: Path, *arguments: str) -> None:
    """`mola ...` in a process that cannot write a file of more than `limit` bytes."""
    with open(said, "w") as stream, contextlib.redirect_stderr(stream):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        code = cli.main(list(arguments))
    sys.exit(code)


@pytest.mark.parametrize(
    ("verb", "limit"),
    [
        ("model", 30_000),
        ("data", 700),
        ("train", 700),
        ("train", 30_000),
        ("evaluate", 700),
        ("collect", 700),
    ],
)
def test_a_full_disk_is_one_line_and_nothing_is_half_written(done, tmp_path, verb, limit):
    layout = done
    folder = {"model": layout.model, "data": layout.data("cola"), "collect": layout.folder}.get(
        verb, layout.cell(cell_of(layout))
    )
    if verb in ("model", "data", "train"):
        shutil.rmtree(folder)
    options = ["--study", str(tmp_path / "small.yaml"), "--results", str(layout.root)]
    if verb in ("train", "evaluate"):
        options += ["--task", "cola", "--method", "mola-2468", "--seed", "0"]
        (layout.cell(cell_of(layout)) / "manifest.json").unlink(missing_ok=True)
    process = PROCESSES.Process(target=with_little_disk, args=(limit, tmp_path / "said", verb, *options))
    process.start()
    process.join()
    said = [
        line for line in (tmp_path / "said").read_text().splitlines() if line.startswith(f"mola {verb}: ")
    ]
    assert process.exitcode == 1, (tmp_path / "said").read_text()
    assert len(said) == 1
    assert "run again" in said[0]
    assert not leftovers(layout.root)
    assert cli.main([verb, *options]) == 0
    if verb == "train":
        CellRunner(layout).evaluate(cell_of(layout))
        assert (layout.cell(cell_of(layout)) / "manifest.json").is_file()


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def altered(file: Path) -> None:
    content = bytearray(file.read_bytes())
    # A digit in JSON, any byte elsewhere.
    digits = (
        [place for place, byte in enumerate(content) if chr(byte).isdigit()] if file.suffix == ".json" else []
    )
    place = digits[len(digits) // 2] if digits else len(content) // 2
    content[place] = ord("7") if content[place] != ord("7") and digits else content[place] ^ 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncated, altered])
@pytest.mark.parametrize(
    "name", ["adapter/adapter_model.safetensors", "training.json", "samples.parquet", "manifest.json"]
)
def test_a_damaged_file_of_a_cell_is_named_and_made_again(undisturbed, done, name, damage):
    layout, cell = done, cell_of(done)
    damage(layout.cell(cell) / name)
    with pytest.raises(MolaError, match="altered|not valid JSON") as error:
        if name in ("samples.parquet", "manifest.json"):
            collect.write(layout)
        else:
            (layout.cell(cell) / "manifest.json").unlink()  # what is evaluated already needs no adapter
            CellRunner(layout).evaluate(cell)
    assert cell.path in str(error.value)
    assert "\n" not in str(error.value)
    run_cell(layout)
    assert outcome(layout) == outcome(undisturbed)


@pytest.mark.parametrize("damage", [truncated, altered])
@pytest.mark.parametrize("what", ["model", "data"])
def test_a_damaged_input_is_named_before_it_is_used(done, what, damage):
    layout = done
    file = layout.model / "model.safetensors" if what == "model" else layout.data("cola") / "test.parquet"
    damage(file)
    shutil.rmtree(layout.cell(cell_of(layout)))
    with pytest.raises(MolaError, match=str(file)) as error:
        run_cell(layout)
    assert "\n" not in str(error.value)
    made = layout.cell(cell_of(layout)) / ("training.json" if what == "model" else "manifest.json")
    assert not made.exists(), "training reads the examples, evaluation the rows too"


def test_two_processes_train_one_cell_once(undisturbed, fresh):
    both = [PROCESSES.Process(target=run_cell, args=(fresh,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert outcome(fresh) == outcome(undisturbed)


def test_a_training_that_ended_without_snakemake_is_not_done_again(undisturbed, fresh, capfd):
    bench, cell = CellRunner(fresh), cell_of(fresh)
    bench.train(cell)
    adapter = fresh.weights(cell) / "adapter_model.safetensors"
    made = adapter.stat().st_mtime_ns
    # As Snakemake does with the declared outputs of a job whose end it did not see.
    (fresh.cell(cell) / TRAINED).unlink()
    bench.train(cell)
    bench.train(cell)
    assert "already trained" in capfd.readouterr().err
    assert adapter.stat().st_mtime_ns == made
    bench.evaluate(cell)
    assert outcome(fresh) == outcome(undisturbed)


def test_too_little_memory_halves_the_micro_batch_and_nothing_else(tmp_path, monkeypatch):
    """Without dropout, whose masks depend on the micro-batch, the adapter is the same up to rounding."""
    step, adapters, records = CellTrainer.training_step, [], []
    for limit in (4, 1):
        calls = 0

        def limited(self, model, inputs, *arguments, limit=limit):
            nonlocal calls
            calls += 1
            if calls > 17 and len(inputs["input_ids"]) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
            return step(self, model, inputs, *arguments)

        monkeypatch.setattr(CellTrainer, "training_step", limited)
        folder = tmp_path / str(limit)
        layout = layout_of(write_study(folder, adapter={"dropout": 0.0}), folder / "results")
        prepare_model(layout.study.model, layout.model)
        prepare_task("cola", layout.study.data, layout.data("cola"))
        bench, cell = CellRunner(layout), cell_of(layout)
        bench.run(cell)
        adapters.append(load_file(layout.weights(cell) / "adapter_model.safetensors"))
        records.append(read_json(layout.cell(cell) / "training.json"))
    assert [record["settings"]["micro_batch_size"] for record in records] == [4, 1]
    assert records[0]["key"] == records[1]["key"]
    assert records[0]["steps"] == records[1]["steps"]
    assert records[0]["tokens"] == records[1]["tokens"]
    assert records[1]["resumed"] is True
    for name, tensor in adapters[0].items():
        assert torch.allclose(tensor, adapters[1][name], atol=2e-4), name


def test_no_memory_for_one_document_is_one_line(fresh, monkeypatch):
    def failing(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    monkeypatch.setattr(CellTrainer, "training_step", failing)
    with pytest.raises(MolaError, match="not enough memory for one document"):
        run_cell(fresh)


def test_a_lock_is_refused_to_a_second_run(tmp_path):
    with (
        locked(tmp_path / "lock"),
        pytest.raises(MolaError, match="another run"),
        locked(tmp_path / "lock", wait=False),
    ):
        pass
    with locked(tmp_path / "lock", wait=False):
        pass


@pytest.mark.slow
def test_a_killed_snakemake_continues_by_being_started_again(undisturbed, fresh):
    """SIGKILL of the scheduler alone: its job lives on, and the next run waits for it instead of repeating it."""
    target = fresh.cell(cell_of(fresh)) / TRAINED
    command = [sys.executable, "-m", "snakemake", "--cores", "1", str(target)]
    command += ["--config", f"study={fresh.root.parent / 'small.yaml'}", f"results={fresh.root}"]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = fresh.folder / "logs/cell/cola/mola-2468/seed0.log"
    while not (log.is_file() and "step " in log.read_text()):
        assert first.poll() is None
        time.sleep(0.1)
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert second.returncode != 0
    assert "another run works on this folder" in second.stderr
    first.kill()
    first.wait()
    third = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert third.returncode == 0, third.stderr
    CellRunner(fresh).evaluate(cell_of(fresh))
    assert outcome(fresh) == outcome(undisturbed)


def test_a_worker_that_was_stopped_in_a_training_begins_no_other_cell(monkeypatch):
    """The training's own handler takes the signal, and the worker has more cells to come."""

    class Stopped:
        deadline, begun = None, 0

        def run(self, cell):
            self.begun += 1
            raise OutOfTime("stopped at step 3 of 6")

    bench = Stopped()
    monkeypatch.setattr(local, "_bench", bench, raising=False)
    outcomes = [local._run(cell) for cell in load_study("smoke").cells()[:3]]
    assert [outcome.state for outcome in outcomes] == ["out of time"] * 3
    assert bench.begun == 1
