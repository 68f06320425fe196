"""State of a study's cells: the records on disk compared with the keys of today's study, rows, model and code."""

from __future__ import annotations

import fcntl
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mola_core.errors import MolaError
from mola_core.files import read_json, sha256_file, write_json
from mola_core.records import read_record
from mola_core.runs.key import Keys, keys
from mola_core.runs.layout import Layout
from mola_core.study.study import Cell

State = Literal["complete", "trained", "running", "open"]
"""`complete`: trained where it is to be, and evaluated where it is to be; `running`: some process trains or evaluates it now."""
OWNER = "study.json"
"""In a study's folder of results: the study file that they belong to."""


@dataclass(frozen=True)
class Standing:
    """What of a cell is there and current."""

    keys: Keys
    trained: bool
    evaluated: bool


def standing(layout: Layout, cell: Cell) -> Standing:
    """Whether the cell's training and evaluation have today's keys, and the files that their records name are unaltered.

    Scores are those of one training: of another one under the same key (an adapter that was lost and made again) they are
    made again too.

    Weights, which are large and may be gone, are compared where they are used and by `mola verify`.
    """
    today = keys(layout, cell)
    folder = layout.cell(cell)
    training = today.training is not None and _current(
        folder, "training.json", "key", today.training, {"train.jsonl": "log_sha256"}
    )
    evaluation = today.evaluation is not None and _current(
        folder, "manifest.json", "evaluation_key", today.evaluation, {"samples.parquet": "samples_sha256"}
    )
    return Standing(today, training, evaluation and scored_as_trained(folder))


def evaluation_state(layout: Layout, cell: Cell) -> Literal["complete", "out of date", "missing", "damaged"]:
    """Of a cell's scores by its record alone; `out of date` are those of other settings, data or code than the study has now,
    and of another training."""
    folder = layout.cell(cell)
    if not (folder / "manifest.json").is_file():
        return "missing"
    try:
        made = read_record(folder / "manifest.json").get("evaluation_key")
    except MolaError:
        return "damaged"
    today = keys(layout, cell).evaluation
    return "complete" if today and made == today and scored_as_trained(folder) else "out of date"


def scored_as_trained(folder: Path) -> bool:
    """Whether a cell's scores are those of the training whose record is there."""
    if not (folder / "training.json").is_file():
        return True
    try:
        return bool(
            read_record(folder / "manifest.json")["training"] == read_record(folder / "training.json")
        )
    except (MolaError, KeyError, TypeError):
        return False


def _current(folder: Path, record: str, name: str, key: str, files: dict[str, str]) -> bool:
    if not (folder / record).is_file():
        return False
    try:
        content = read_record(folder / record)
        return content[name] == key and all(
            sha256_file(folder / file) == content[sha256] for file, sha256 in files.items()
        )
    except (MolaError, OSError, KeyError, TypeError):
        return False


def cell_state(layout: Layout, cell: Cell, found: Standing | None = None) -> State:
    """The cell's state; `found` is its standing where that is known."""
    found = found or standing(layout, cell)
    evaluated = bool(layout.study.evaluated_on(cell))
    trained = not cell.is_base
    if (found.trained or not trained) and (found.evaluated or not evaluated):
        return "complete"
    if any(key and _locked(layout.lock(key)) for key in (found.keys.training, found.keys.evaluation)):
        return "running"
    return "trained" if found.trained else "open"


def _locked(file: Path) -> bool:
    if not file.is_file():
        return False
    with open(file) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def claim(layout: Layout) -> None:
    """Note in the results folder which study file it belongs to. Raises `MolaError` as `refuse_other` does."""
    refuse_other(layout)
    if layout.file is None:
        return
    owner, own = layout.folder / OWNER, _owner(layout.file)
    if not owner.is_file() or read_json(owner) != own:
        write_json(owner, own)


def refuse_other(layout: Layout) -> None:
    """Raise `MolaError` where the results folder belongs to another study of the same name: one in a file of another name, or
    another file that is still there and says something else. A folder that is nobody's (a published one) passes."""
    owner = layout.folder / OWNER
    if layout.file is None or not owner.is_file():
        return
    other = read_json(owner)
    if not isinstance(other, dict):
        raise MolaError(f"{owner}: is none of ours; remove it")
    file = Path(str(other.get("file")))
    elsewhere = file.is_file() and file != layout.file.resolve()
    if other.get("name") != layout.file.name or (elsewhere and file.read_bytes() != layout.file.read_bytes()):
        raise MolaError(
            f"{layout.folder}: holds the study of {file}, which has the same name as {layout.file}; give one of them "
            f"another `name`, or name another folder for results; if it is the same study, delete {owner}"
        )


def _owner(file: Path) -> dict[str, str]:
    return {"file": str(file.resolve()), "name": file.name}


def as_json(cell: Cell, state: State, found: Keys) -> str:
    """One line for `mola cells --format json`."""
    return json.dumps(
        {
            "task": cell.task,
            "method": cell.method,
            "seed": cell.seed,
            "state": state,
            "training_key": found.training,
            "evaluation_key": found.evaluation,
        }
    )
