"""Progress of a study: what each cell is at, its last loss, why it failed, and an estimate of the time that is left.

Everything is read from files, so it can be asked while cells run, on another machine too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any, Literal, Protocol, TypeVar

from mola_core.distributed import is_main
from mola_core.errors import MolaError, OutOfTime
from mola_core.files import read_json, remove, write_json
from mola_core.runs.layout import Layout
from mola_core.runs.state import cell_state, standing
from mola_core.study.study import Cell

LOG = "train.jsonl"
"""In a cell's folder; while it is trained, in its scratch folder, where it grows."""
ProgressState = Literal["complete", "trained", "running", "stopped", "failed", "open"]
"""As `runs.state.State`; `stopped`: a checkpoint is there and nothing runs, `failed`: the last try ended with an error."""


class HasLayout(Protocol):
    """What runs cells of a study."""

    layout: Layout


Runner = TypeVar("Runner", bound=HasLayout)


@dataclasses.dataclass(frozen=True)
class CellProgress:
    """What one cell is at."""

    cell: Cell
    state: ProgressState
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    """The last one logged; of a mean over a 200th of the steps."""
    seconds: float | None = None
    """Of training and evaluation of a complete cell; of the training so far of another."""
    reason: str = ""
    """Why the last try failed."""
    evaluated: bool = False
    """Of a running cell: that it is evaluated now, its training is over."""
    tried: bool = False
    """Whether it is one of tuning's tries, no cell of the study itself."""

    @property
    def path(self) -> str:
        return f"tuning/{self.cell.path}" if self.tried else self.cell.path

    @property
    def seconds_left(self) -> float | None:
        """Of the training, if it goes on as fast as so far."""
        if not self.step or self.steps is None or self.seconds is None or self.state == "complete":
            return None
        return self.seconds / self.step * (self.steps - self.step)


def failure_noted(step: Callable[[Runner, Cell], None]) -> Callable[[Runner, Cell], None]:
    """A step of a cell that leaves the reason where it fails, for `progress`; a later try removes it."""

    @functools.wraps(step)
    def noted(runner: Runner, cell: Cell) -> None:
        note = _note(runner.layout, cell)
        if is_main():
            remove(note)
        try:
            step(runner, cell)
        except OutOfTime:
            raise
        except Exception as error:
            name = "" if isinstance(error, MolaError) else f"{type(error).__name__}: "
            reason = " ".join(f"{name}{error}".split())[:500]
            when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            with contextlib.suppress(OSError):
                write_json(note, {"reason": reason, "when": when})
            raise

    return noted


def _note(layout: Layout, cell: Cell) -> Path:
    return layout.folder / "logs" / "failed" / f"{cell.path}.json"


def progress(layout: Layout) -> list[CellProgress]:
    """What each cell of the study is at, in the study's order, tries first."""
    return [
        dataclasses.replace(_progress_of(part, cell), tried=part is not layout)
        for part in filter(None, (layout.tries, layout))
        for cell in part.study.all_cells()
    ]


def _progress_of(layout: Layout, cell: Cell) -> CellProgress:
    found = standing(layout, cell)
    state: ProgressState = cell_state(layout, cell, found)
    if state == "complete":
        return CellProgress(cell, state, seconds=_measured(layout.cell(cell)))
    if state == "trained":
        return (
            CellProgress(cell, "failed", reason=reason)
            if (reason := _reason(layout, cell))
            else CellProgress(cell, state)
        )
    if state == "running" and (found.trained or cell.is_base):
        return CellProgress(cell, state, evaluated=True)
    last: dict[str, Any] = {}
    if found.keys.training:
        last = _last_entry(layout.checkpoints(found.keys.training) / LOG)
    if state == "open" and (reason := _reason(layout, cell)):
        return CellProgress(cell, "failed", *_numbers(last), reason=reason)
    if state == "open" and last:
        state = "stopped"
    return CellProgress(cell, state, *_numbers(last))


def _numbers(last: dict[str, Any]) -> tuple[int | None, int | None, float | None, float | None]:
    return last.get("step"), last.get("steps"), last.get("loss"), last.get("seconds")


def _reason(layout: Layout, cell: Cell) -> str:
    with contextlib.suppress(MolaError, KeyError, TypeError):
        return str(read_json(_note(layout, cell))["reason"])
    return ""


def _last_entry(log: Path) -> dict[str, Any]:
    """The last whole line of a log that may be growing; empty where there is none."""
    with contextlib.suppress(OSError):
        for line in reversed(log.read_text(encoding="utf-8").splitlines()):
            with contextlib.suppress(json.JSONDecodeError):
                entry = json.loads(line)
                if isinstance(entry, dict):
                    return entry
    return {}


def _measured(folder: Path) -> float | None:
    """Seconds that a complete cell's record says it took."""
    with contextlib.suppress(MolaError):
        if (folder / "manifest.json").is_file():
            manifest = read_json(folder / "manifest.json")
            parts = [manifest.get("training") or {}, manifest.get("evaluation") or {}]
            return sum(float(part.get("seconds", 0.0)) for part in parts)
        return float(read_json(folder / "training.json").get("seconds", 0.0))
    return None


def seconds_left(cells: list[CellProgress]) -> float | None:
    """An estimate for the whole study, as many cells at a time as run now (at least one); None where nothing is known.

    An open cell takes as long as the complete ones of its task and kind (the untrained model, a try or neither) did on
    average, else as the complete ones of its kind, else as long as the running ones seem to.
    """

    def kind(each: CellProgress) -> tuple[str, tuple[bool, bool]]:
        return each.cell.task, (each.cell.is_base, each.tried)

    done = [(kind(each), each.seconds) for each in cells if each.state == "complete" and each.seconds]
    projected = [
        each.seconds + each.seconds_left
        for each in cells
        if each.seconds is not None and each.seconds_left is not None
    ]
    left = 0.0
    for each in cells:
        if each.state == "complete":
            continue
        if each.seconds_left is not None:
            left += each.seconds_left
            continue
        alike = (
            [seconds for other, seconds in done if other == kind(each)]
            or [seconds for other, seconds in done if other[1] == kind(each)[1]]
            or projected
        )
        if not alike:
            return None
        left += mean(alike)
    return left / max(1, sum(each.state == "running" for each in cells))
