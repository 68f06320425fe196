"""What tuning chose: each method's learning rate, as `tuning.json` holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from mola_core.errors import MolaError
from mola_core.files import read_json, sha256_file
from mola_core.methods.settings import MethodSettings
from mola_core.records import read_record
from mola_core.runs.layout import Layout
from mola_core.study.study import Cell

TUNING, TABLE = "tuning.json", "tuning.csv"
"""In a study's folder: what was chosen, and the key of the tries that it was chosen from; every try with its score."""
EVERY_TASK = "every task"
FIX = "run `mola tuning` again"


@dataclass(frozen=True)
class Choice:
    """What a method is trained with."""

    task: str
    """Or `EVERY_TASK`."""
    tried: str
    """Label of the method whose tries decided."""
    learning_rate: float
    alpha: float | None
    """None where `tuning.alphas` is not given."""
    score: float
    """Mean over tasks and seeds of the tries: `tuning.score`."""
    edge: str | None
    """`lowest` or `highest` where the rate is the first or the last of those tried: a better one may lie beyond."""

    def given_to(self, method: MethodSettings) -> MethodSettings:
        """The method as it is trained: with this rate, and this alpha where it was tuned too."""
        own = {"learning_rate": self.learning_rate} | ({} if self.alpha is None else {"alpha": self.alpha})
        return method.model_copy(update=own)


def of_cell(choices: dict[str, dict[str, Choice]], cell: Cell) -> Choice | None:
    """Of what was chosen by method and task, what the cell is trained with."""
    of_method = choices.get(cell.method, {})
    return of_method.get(cell.task) or of_method.get(EVERY_TASK)


def read_choices(layout: Layout, earlier: bool = False) -> tuple[str, dict[str, dict[str, Choice]]]:
    """The key of the tries that were chosen from, and by method and task what was chosen.

    Raises `MolaError` where file or table is missing, damaged or altered, and for a choice that the study does not try. A file
    of an earlier version, which recorded no hashes, is read with `earlier` only.
    """
    file, tuning = layout.folder / TUNING, layout.study.tuning
    assert tuning is not None
    try:
        record: dict[str, Any] = read_json(file)
        if not earlier or "sha256" in record:
            record = read_record(file, FIX)
            _check_table(layout.folder / TABLE, record["table_sha256"])
        found = {
            method: {choice["task"]: Choice(**choice) for choice in listed}
            for method, listed in record["choices"].items()
        }
        key: str = record["key"]
    except (KeyError, TypeError, AttributeError):
        raise MolaError(f"{file}: damaged; {FIX}") from None
    alphas: Sequence[float | None] = tuning.alphas or [None]
    tried = set(product(tuning.learning_rates, alphas))
    for method, by_task in found.items():
        if any((choice.learning_rate, choice.alpha) not in tried for choice in by_task.values()):
            raise MolaError(f"{file}: {method}: its rate or alpha is none that the study tries; {FIX}")
    return key, found


def _check_table(table: Path, sha256: str) -> None:
    if not table.is_file() or sha256_file(table) != sha256:
        raise MolaError(f"{table}: missing or altered since it was made; {FIX}")
