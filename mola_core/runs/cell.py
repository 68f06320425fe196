"""One cell from its settings to its manifest: what `mola train`, `mola evaluate`, `mola cell` and `mola run` do."""

from __future__ import annotations

import dataclasses

from mola_core.runs.evaluation import EvaluationRunner
from mola_core.runs.training import TrainingRunner
from mola_core.study.study import Cell


@dataclasses.dataclass
class CellRunner(TrainingRunner, EvaluationRunner):
    """Trains and evaluates a study's cells in this process, one after another, on one copy of the base model."""

    def run(self, cell: Cell) -> None:
        """Train (unless an adapter with this key is there) and evaluate."""
        if not self._is_base(cell):
            self.train(cell)
        if self.study.evaluated_on(cell):
            self.evaluate(cell)
