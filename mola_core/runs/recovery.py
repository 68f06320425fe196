"""Crash-safe training: what is there already, damaged checkpoints, micro-batch halving on OOM."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

from mola_core.errors import MolaError
from mola_core.files import read_json, remove, sha256_file, write_json
from mola_core.records import read_record
from mola_core.study.sections import TrainingSettings

MICRO_BATCH = "micro_batch.json"
"""In a cell's scratch folder: the micro-batch that memory suffices for, where it is smaller than the study's."""
DIVERGED = "diverged.json"
"""In place of the weights of a training that diverged: at which step, and what was no longer finite."""
CONFIGS = ("adapter_config.json", "config.json")
"""Configuration of an adapter, of a whole model."""


def training_is_whole(folder: Path, weights: Path, key: str) -> bool:
    """Whether `folder` has the records of a training with this key, and `weights` the unaltered weights that they name."""
    try:
        record = read_record(folder / "training.json")
        check_weights(weights, record)
        return record["key"] == key and record["log_sha256"] == sha256_file(folder / "train.jsonl")
    except (MolaError, OSError, KeyError):
        return False


def weights_record(folder: Path) -> dict[str, str]:
    """Hashes of the weights in `folder` and of the configuration that says how they act.

    Raises `MolaError` where either is missing.
    """
    from mola_core.models.weights import weights_sha256

    if (folder / DIVERGED).is_file():
        return dict.fromkeys(("adapter_sha256", "adapter_config_sha256"), sha256_file(folder / DIVERGED))
    config = next((folder / name for name in CONFIGS if (folder / name).is_file()), None)
    if config is None:
        raise MolaError(f"{folder}: no {CONFIGS[0]}; train the cell again")
    return {"adapter_sha256": weights_sha256(folder), "adapter_config_sha256": sha256_file(config)}


def diverged(folder: Path) -> dict[str, Any] | None:
    """What stands in place of the weights in `folder` after a training that diverged; None where they are there."""
    return read_json(folder / DIVERGED) if (folder / DIVERGED).is_file() else None


def check_weights(folder: Path, record: dict[str, Any]) -> None:
    """Raise `MolaError` where what is in `folder` is not what `record`, the training's, says."""
    for name, value in weights_record(folder).items():
        if record.get(name) != value:
            raise MolaError(f"{folder}: altered since it was trained; `mola train` makes it again")


def fitting_micro_batch(scratch: Path, settings: TrainingSettings) -> int | None:
    """The micro-batch that an earlier attempt was left with; None where the settings' own is to be tried."""
    if not (scratch / MICRO_BATCH).is_file():
        return None
    smaller = read_json(scratch / MICRO_BATCH)
    fits = type(smaller) is int and smaller > 0 and settings.batch_size % smaller == 0
    return smaller if fits else None


def halve_micro_batch(scratch: Path, settings: TrainingSettings, label: str, processes: int) -> None:
    """Note a smaller micro-batch for the next attempt. Raises `MolaError` where there is none, or where several
    processes would have to begin again together."""
    smaller = settings.smaller_micro_batch
    if smaller is None:
        raise MolaError(
            f"cell {label}: not enough memory for one document at a time; lower training.max_length, set "
            "training.gradient_checkpointing, or use a larger card"
        )
    write_json(scratch / MICRO_BATCH, smaller)
    if processes > 1:
        raise MolaError(
            f"cell {label}: out of memory in one of {processes} processes; run again, it goes on with "
            f"micro_batch_size {smaller}"
        )
    print(f"{label}: out of memory, goes on with micro_batch_size {smaller}", file=sys.stderr, flush=True)


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
