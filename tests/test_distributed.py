"""One cell trained by several processes: the same cell as by one. The processes are torchrun's, on the CPU (gloo)."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file
from smoke_study import smoke

from mola_core.errors import MolaError
from mola_core.files import read_json
from mola_core.models.loading import prepare_model
from mola_core.runs.cell import CellRunner
from mola_core.runs.gpus import gpu_slot
from mola_core.runs.layout import Layout
from mola_core.study.study import Cell
from mola_core.tasks.prepare import prepare_rows

ROOT = Path(__file__).parent.parent
CELL = Cell("cola", "mola-2468", 0)


@pytest.fixture(scope="module")
def layout_for(tmp_path_factory):
    """Makes a smoke study of one cell that `gpus` processes share, prepared, in a results folder of its own."""

    def make(gpus: int, **training) -> Layout:
        study = smoke(
            tasks=[CELL.task],
            methods=["base", CELL.method],
            seeds=[CELL.seed],
            compute={"gpus": gpus},
            # Of the last batch one process has all four documents, the other nothing.
            training={"epochs": 6, "documents": 44, **training},
            # Which documents a dropout mask meets depends on the number of processes.
            adapter={"dropout": 0.0, "balance_loss": 0.0 if training.get("shared_prefix") else 0.01},
        )
        layout = Layout(study, tmp_path_factory.mktemp("results"))
        prepare_model(study.model, layout.model)
        prepare_rows(study, CELL.task, layout.data(CELL.task))
        content = study.model_dump(mode="json", exclude_none=True)
        (layout.root / "study.yaml").write_text(yaml.safe_dump(content))
        return layout

    return make


def start(layout: Layout) -> subprocess.Popen:
    """`mola train`, which becomes torchrun."""
    command = [sys.executable, "-m", "mola_core.cli", "train", "--study", str(layout.root / "study.yaml")]
    command += ["--results", str(layout.root), "--task", CELL.task, "--method", CELL.method, "--seed", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(process: subprocess.Popen) -> str:
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def shared_cell(layout_for):
    """The cell as two processes train it, undisturbed, and what they print."""
    layout = layout_for(2)
    return layout, ended(start(layout))


def assert_same_weights(first: Layout, second: Layout, **tolerance) -> None:
    ours, theirs = (
        load_file(layout.weights(CELL) / "adapter_model.safetensors") for layout in (first, second)
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], **tolerance)


def assert_same_training(together: Layout, alone: Layout) -> None:
    CellRunner(alone).train(CELL)
    one, two = (read_json(layout.cell(CELL) / "training.json") for layout in (alone, together))
    assert two["key"] == one["key"]
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["steps"] == one["steps"] == 36
    assert two["tokens"] == one["tokens"] + 6, "an epoch's last batch is filled with one token"
    assert two["final_loss"] == pytest.approx(one["final_loss"], abs=1e-4)
    # Adam divides by a gradient's own size, so rounding shows where a gradient is next to nothing.
    assert_same_weights(alone, together, rtol=1e-2, atol=1e-3)


def test_two_processes_train_the_cell_that_one_trains(layout_for, shared_cell):
    together, output = shared_cell
    assert output.count("step 36/36") == 1, "one process tells"
    assert_same_training(together, layout_for(0))


def test_two_processes_share_a_batch_of_packed_documents(layout_for):
    together = layout_for(2, shared_prefix=True)
    ended(start(together))
    assert_same_training(together, layout_for(0, shared_prefix=True))


def test_processes_that_are_told_to_stop_go_on_from_their_checkpoint(layout_for, shared_cell):
    layout = layout_for(2, checkpoint_minutes=1e-6)
    process = start(layout)
    while not list(layout.root.rglob("checkpoint-*/complete.json")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=300)[0]
    assert process.returncode != 0, output
    assert not (layout.cell(CELL) / "training.json").exists()
    ended(start(layout))
    assert read_json(layout.cell(CELL) / "training.json")["resumed"]
    assert_same_weights(shared_cell[0], layout, rtol=0, atol=0)


def test_processes_that_cannot_share_a_batch_are_refused():
    with pytest.raises(ValidationError, match="compute.gpus: 3 cards cannot share training.batch_size 8"):
        smoke(compute={"gpus": 3})


def test_a_cell_on_several_cards_takes_all_or_none(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    names = ["GPU-a", "GPU-b", "GPU-c"]
    with gpu_slot(1, 2, names, tmp_path) as cards, gpu_slot(1, 1, names, tmp_path) as card:
        assert (cards, card) == ("GPU-a,GPU-b", "GPU-c")
    with gpu_slot(1, 3, names, tmp_path) as cards:
        assert cards == "GPU-a,GPU-b,GPU-c"
    with (
        pytest.raises(MolaError, match="compute.gpus: 4 cards for a cell, but this machine has 3"),
        gpu_slot(1, 4, names, tmp_path),
    ):
        pass
