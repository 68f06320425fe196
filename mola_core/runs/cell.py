"""One cell from its settings to its manifest: what `mola train`, `mola evaluate`, `mola cell` and `mola run` do."""

from __future__ import annotations

import dataclasses
import sys

from mola_core.files import write_text
from mola_core.runs.evaluation import EvaluationRunner
from mola_core.runs.layout import TRAINED
from mola_core.runs.state import cell_state
from mola_core.runs.training import TrainingRunner
from mola_core.study.study import Cell


@dataclasses.dataclass
class CellRunner(TrainingRunner, EvaluationRunner):
    """Trains and evaluates a study's cells in this process, one after another, on one copy of the base model."""

    def run(self, cell: Cell) -> None:
        """Train (unless an adapter with this key is there, or was and nothing needs it any more) and evaluate."""
        study, layout = self.study, self.layout
        self._prepared(cell)
        gone = not self._is_base(cell) and not layout.weights(cell).is_dir()
        if (
            gone
            and cell_state(layout, cell) == "complete"
            and not any(study.parent(other) == cell for other in study.all_cells())
        ):
            print(f"{cell.path}: already trained, its weights are gone", file=sys.stderr)
            write_text(layout.cell(cell) / TRAINED, f"{self._keys(cell).training}\n")
        elif not self._is_base(cell):
            self.train(cell)
        if study.evaluated_on(cell):
            self.evaluate(cell)
