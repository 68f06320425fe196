"""Cards: each takes its share of the cells, and who has chosen cards already keeps them."""

import multiprocessing
import os
from pathlib import Path

from mola_core.runs import gpus
from mola_core.runs.gpus import gpu_slot

PROCESSES = multiprocessing.get_context("forkserver")


def hold_slot(folder: Path, names: list[str], taken, release) -> None:
    with gpu_slot(2, names=names, folder=folder) as card:
        taken.put((card, os.environ["CUDA_VISIBLE_DEVICES"]))
        release.wait()


def test_every_card_gets_its_share_of_cells_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    taken, release = PROCESSES.Queue(), PROCESSES.Event()
    holders = [
        PROCESSES.Process(target=hold_slot, args=(tmp_path, ["GPU-a", "GPU-b"], taken, release))
        for _ in range(5)
    ]
    for holder in holders:
        holder.start()
    cards = [taken.get(timeout=60) for _ in range(4)]
    assert sorted(cards) == [("GPU-a", "GPU-a")] * 2 + [("GPU-b", "GPU-b")] * 2
    assert taken.empty(), "the fifth waits"
    release.set()
    assert taken.get(timeout=60)[0] in ("GPU-a", "GPU-b")
    for holder in holders:
        holder.join(timeout=60)
        assert holder.exitcode == 0


def test_nothing_is_assigned_where_someone_else_did(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with gpu_slot(1) as card:
        assert card == ""
        assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_no_card_is_a_choice(monkeypatch, tmp_path):
    monkeypatch.setattr(gpus, "cards", lambda: ["GPU-a"])
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    for name in gpus.DECIDED:
        monkeypatch.delenv(name, raising=False)
    with gpu_slot(1) as card:
        assert card == os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-a"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with gpu_slot(1) as card:
        assert card == os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
