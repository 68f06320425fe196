"""What lets the training of a cell be killed at any moment, run out of memory, or be started twice."""

from __future__ import annotations

import contextlib
import shutil
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mola_core.distributed import from_main, is_main, world_size
from mola_core.errors import MolaError
from mola_core.files import atomic_write, locked, read_json, remove, sha256_file, write_json
from mola_core.records import read_record
from mola_core.runs.key import digests

if TYPE_CHECKING:
    from mola_core.runs.cell import Workbench
    from mola_core.study.sections import TrainingSettings
    from mola_core.study.study import Cell

MICRO_BATCH = "micro_batch.json"
"""In a cell's scratch folder: the micro-batch that memory suffices for, where it is smaller than the study's."""
CONFIGS = ("adapter_config.json", "config.json")
"""Configuration of an adapter, of a whole model."""
RECORDS = ("train.jsonl", "training.json")
"""What a training leaves beside its weights; training.json, written last, says that the training is whole."""


def train_once(bench: Workbench, cell: Cell) -> None:
    """Have `bench` train the cell unless its training is there, whole and unaltered.

    One process at a time works on a cell; others wait, then find it trained. A training that memory does not suffice
    for goes on with half the micro-batch. The records are kept in the scratch folder until the cell is evaluated:
    Snakemake deletes those of the cell where it was killed before it learnt that a job, which on a cluster goes on
    without it, had ended.
    """
    scratch = bench.layout.checkpoints(digests(bench.study, cell).training)
    with locked(scratch.with_suffix(".lock")) if is_main() else contextlib.nullcontext():
        folder = bench.layout.cell(cell)
        if from_main(lambda: _is_whole(bench, cell, folder)):
            if is_main():
                print(f"{cell.path}: already trained", file=sys.stderr)
            return
        if not from_main(lambda: _is_whole(bench, cell, scratch)):
            while not _attempt(bench, cell, scratch):
                pass
        if is_main():
            for name in RECORDS:
                with atomic_write(folder / name) as temporary:
                    shutil.copyfile(scratch / name, temporary)


def forget(scratch: Path) -> None:
    """Delete what only a training under way needs: checkpoints, not the records."""
    for entry in scratch.iterdir():
        if entry.name not in (*RECORDS, MICRO_BATCH):
            remove(entry)


def weights_record(folder: Path) -> dict[str, str]:
    """Hashes of the weights in `folder` and of the configuration that says how they act.

    Raises `MolaError` where either is missing.
    """
    from mola_core.models.weights import weights_sha256

    config = next((folder / name for name in CONFIGS if (folder / name).is_file()), None)
    if config is None:
        raise MolaError(f"{folder}: no {CONFIGS[0]}; train the cell again")
    return {"adapter_sha256": weights_sha256(folder), "adapter_config_sha256": sha256_file(config)}


def check_weights(folder: Path, record: dict[str, Any]) -> None:
    """Raise `MolaError` where what is in `folder` is not what `record`, the training's, says."""
    for key, value in weights_record(folder).items():
        if record.get(key) != value:
            raise MolaError(f"{folder}: altered since it was trained; `mola train` makes it again")


def _is_whole(bench: Workbench, cell: Cell, folder: Path) -> bool:
    """Whether `folder` has the records of a training with the cell's digest, and the cell its unaltered weights."""
    try:
        record = read_record(folder / "training.json")
        check_weights(bench.layout.weights(cell), record)
        return record["digest"] == digests(bench.study, cell).training and record[
            "log_sha256"
        ] == sha256_file(folder / "train.jsonl")
    except (MolaError, OSError):
        return False


def _attempt(bench: Workbench, cell: Cell, scratch: Path) -> bool:
    """Train the cell into `scratch`; False where it needs a smaller micro-batch, which is noted there."""
    from mola_core.models.memory import free_memory, is_out_of_memory

    settings = from_main(lambda: _fitting(bench, cell, scratch))
    if is_main():
        drop_damaged_checkpoints(scratch)
    try:
        bench.train_into(scratch, cell, settings)
        return True
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    # Outside the handler: the error keeps alive what the failed step had allocated.
    free_memory()
    smaller = settings.smaller_micro_batch
    if smaller is None:
        raise MolaError(
            f"cell {cell.path}: not enough memory for one document at a time; lower training.max_length, set "
            "training.gradient_checkpointing, or use a larger card"
        )
    write_json(scratch / MICRO_BATCH, smaller)
    if world_size() > 1:
        raise MolaError(
            f"cell {cell.path}: out of memory in one of {world_size()} processes; run again, it goes on with "
            f"micro_batch_size {smaller}"
        )
    print(f"{cell.path}: out of memory, goes on with micro_batch_size {smaller}", file=sys.stderr, flush=True)
    return False


def drop_damaged_checkpoints(scratch: Path) -> None:
    """Delete checkpoints that cannot be read: training goes on from an older one or starts anew."""
    from safetensors import SafetensorError, safe_open

    for checkpoint in scratch.glob("checkpoint-*"):
        try:
            float(read_json(checkpoint / "complete.json")["seconds"])
            for file in checkpoint.iterdir():
                if file.suffix == ".json":
                    read_json(file)
                elif file.suffix in (".pt", ".pth"):
                    with zipfile.ZipFile(file) as archive:
                        damaged = archive.testzip()
                    if damaged:
                        raise ValueError(f"{file.name}: {damaged} has another checksum")
                elif file.suffix == ".safetensors":
                    safe_open(file, "pt")
        except (
            MolaError,
            OSError,
            TypeError,
            ValueError,
            KeyError,
            zipfile.BadZipFile,
            SafetensorError,
        ) as error:
            reason = str(error).splitlines()[0][:200]
            print(f"{checkpoint}: damaged, deleted ({reason})", file=sys.stderr, flush=True)
            remove(checkpoint)


def _fitting(bench: Workbench, cell: Cell, scratch: Path) -> TrainingSettings:
    """The cell's training settings, with the smaller micro-batch that an earlier attempt was left with, or that
    several processes need to share a batch.

    The effective batch, the documents and their order stay, and so does the digest; but sums round differently, and
    dropout, where there is some, draws other masks.
    """
    method = bench.study.method_by_label[cell.method]
    changes: dict[str, Any] = {"learning_rate": method.learning_rate} if method.learning_rate else {}
    settings = bench.study.training_of(cell)
    if (scratch / MICRO_BATCH).is_file():
        smaller = read_json(scratch / MICRO_BATCH)
        if type(smaller) is int and smaller > 0 and settings.batch_size % smaller == 0:
            changes["micro_batch_size"] = smaller
    settings = settings.model_copy(update=changes)
    return settings.shared_by(world_size())
