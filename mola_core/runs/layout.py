"""Where a study's files are: the folders of `results/`, named in one place."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from mola_core.models.loading import model_identity
from mola_core.records import digest
from mola_core.study.study import Cell, Study
from mola_core.study.tries import tries_study
from mola_core.tasks.prepare import rows_identity

ROUTING, KNOCK_OUT = "routing.csv", "knockout.csv"
"""In a cell's folder, and, gathered, the second in the study's."""
TRAINED, EVALUATED = "training.key", "evaluation.key"
"""In a cell's folder, each with the key that it has: what Snakemake waits for and may delete, unlike the records."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Paths of one study's files below `root` (normally `results`).

    Prepared models and data are shared by all studies; their folders carry the first digits of their identity, so
    that two studies with the same names and other contents never meet in one folder.
    """

    study: Study
    root: Path = Path("results")
    model_folder: Path | None = None
    """An already prepared base model, in place of the one below `root`."""
    file: Path | None = None
    """The study's file."""
    rates: dict[str, dict[str, Any]] | None = dataclasses.field(default=None, compare=False)
    """What tuning chose, by method and task, where that is not to be read from the folder."""

    @property
    def folder(self) -> Path:
        return self.root / self.study.name

    @property
    def model(self) -> Path:
        if self.model_folder:
            return self.model_folder
        return (
            self.root / "models" / f"{self.study.model.name}-{digest(model_identity(self.study.model))[:8]}"
        )

    @property
    def quality(self) -> Path:
        """Scores of the base model's layers. Beside its folder, which holds the model and nothing else."""
        return self.root / "models" / f"{self.model.name}.quality.json"

    def data(self, task: str) -> Path:
        """Rows of a task, or of `instruction`."""
        identity = digest(rows_identity(self.study, task))[:8]
        return self.root / "data" / f"{self.study.data.source}-{identity}" / task

    def examples(self, task: str) -> Path:
        """What training and evaluation read of a task, or of `instruction`."""
        return self.folder / "examples" / task

    @functools.cached_property
    def tries(self) -> "Layout | None":
        """The study's tries, whose cells stand in `tuning/`; None where nothing is tuned."""
        study = tries_study(self.study)
        return dataclasses.replace(self, study=study) if study else None

    @functools.cached_property
    def remembered(self) -> dict[object, Any]:
        """What is worth finding once for this object."""
        return {}

    def cell(self, cell: Cell) -> Path:
        cells = "tuning" if self.study.scored_part == "validation" else "cells"
        return self.folder / cells / cell.path

    def weights(self, cell: Cell) -> Path:
        """What a cell's training leaves: its adapter, or the whole model after full fine-tuning."""
        full = self.study.method_by_label[cell.method].method == "full"
        return self.cell(cell) / ("model" if full else "adapter")

    def candidates(self, cell: Cell) -> Path:
        """The weights after each epoch that was not chosen, where `training.epochs` is a list."""
        return self.cell(cell) / "epochs"

    def checkpoints(self, training_key: str) -> Path:
        """Checkpoints stand outside the cell's folder because Snakemake deletes declared outputs before a job."""
        return self.root / "checkpoints" / training_key[:16]

    def lock(self, key: str) -> Path:
        """Held by the process that trains or evaluates the cell of this key."""
        return self.checkpoints(key).with_suffix(".lock")
