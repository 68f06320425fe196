"""One cell trained by several processes: the same cell as by one. The processes are torchrun's, on the CPU (gloo)."""

import os
import shutil
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
from mola_core.gpu_slots import gpu_slot

ROOT = Path(__file__).parent.parent
TASK, METHOD, SEED = "cola", "mola-2468", 0


@pytest.fixture
def train(bench, tmp_path):
    """Starts `mola train` of a smoke cell that `gpus` processes share, in a folder of its own."""
    prepared = bench(tasks=[TASK]).layout.root

    def start(folder: str, gpus: int, **training) -> tuple[subprocess.Popen, Path]:
        content = smoke(
            tasks=[TASK],
            methods=["base", METHOD],
            seeds=[SEED],
            compute={"gpus": gpus},
            training={"epochs": 3, **training},
            # Which documents a dropout mask meets depends on the number of processes.
            adapter={"dropout": 0.0, "balance_loss": 0.0 if training.get("shared_prefix") else 0.01},
        ).model_dump(mode="json", exclude_none=True)
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        (root / "study.yaml").write_text(yaml.safe_dump(content))
        for name in ("models", "data"):
            if not (root / name).exists():
                shutil.copytree(prepared / name, root / name)
        command = [sys.executable, "-m", "mola_core.cli", "train", "--study", str(root / "study.yaml")]
        command += ["--results", str(root), "--task", TASK, "--method", METHOD, "--seed", str(SEED)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=root
        )
        return process, root / "smoke/cells" / TASK / METHOD / f"seed{SEED}"

    return start


def ended(process: subprocess.Popen) -> str:
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


def assert_same_weights(first: Path, second: Path, **tolerance) -> None:
    ours, theirs = (load_file(cell / "adapter/adapter_model.safetensors") for cell in (first, second))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], **tolerance)


@pytest.mark.parametrize("shared_prefix", [False, True])
def test_two_processes_train_the_cell_that_one_trains(train, shared_prefix):
    process, alone = train("alone", 0, shared_prefix=shared_prefix)
    ended(process)
    process, together = train("together", 2, shared_prefix=shared_prefix)
    output = ended(process)
    assert output.count("step 18/18") == 1, "one process tells"
    one, two = (read_json(cell / "training.json") for cell in (alone, together))
    assert two["digest"] == one["digest"]
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["steps"] == one["steps"] == 18
    assert two["tokens"] == one["tokens"]
    assert two["final_loss"] == pytest.approx(one["final_loss"], abs=1e-4)
    # Adam divides by a gradient's own size, so rounding shows where a gradient is next to nothing.
    assert_same_weights(alone, together, rtol=1e-2, atol=1e-3)


def test_processes_that_are_told_to_stop_go_on_from_their_checkpoint(train):
    process, undisturbed = train("undisturbed", 2, epochs=6)
    ended(process)
    process, cell = train("stopped", 2, epochs=6, checkpoint_minutes=1e-6)
    checkpoints = cell.parents[4]
    while not list(checkpoints.rglob("checkpoint-*/complete.json")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=300)[0]
    assert process.returncode != 0, output
    assert not (cell / "training.json").exists()
    process, cell = train("stopped", 2, epochs=6, checkpoint_minutes=1e-6)
    ended(process)
    assert read_json(cell / "training.json")["resumed"]
    assert_same_weights(undisturbed, cell, rtol=0, atol=0)


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
