"""What tuning chose: each method's learning rate, as `tuning.json` holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mola_core.files import read_json
from mola_core.methods.settings import MethodSettings
from mola_core.runs.layout import Layout
from mola_core.study.study import Cell

TUNING, TABLE = "tuning.json", "tuning.csv"
"""In a study's folder: what was chosen, and the key of the tries that it was chosen from; every try with its score."""
EVERY_TASK = "every task"


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


def read_choices(layout: Layout) -> tuple[str, dict[str, dict[str, Choice]]]:
    """The key of the tries that were chosen from, and by method and task what was chosen.

    Raises `MolaError`, KeyError, TypeError or AttributeError for a file that is damaged.
    """
    record: dict[str, Any] = read_json(layout.folder / TUNING)
    return record["key"], {
        method: {choice["task"]: Choice(**choice) for choice in listed}
        for method, listed in record["choices"].items()
    }
