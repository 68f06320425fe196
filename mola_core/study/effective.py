"""Effective training settings of a cell: the study's, its stage's, its method's own and what memory allows, in that order."""

from typing import Any

from mola_core.study.sections import TrainingSettings
from mola_core.study.study import Cell, Study


def effective_training(study: Study, cell: Cell, micro_batch_size: int | None = None) -> TrainingSettings:
    """The settings that the cell is trained with: the one place that decides them; its key and its record hold them.

    `micro_batch_size` is a smaller one that memory suffices for: effective batch, documents and order stay, but sums
    round differently and dropout, where there is some, draws other masks.
    """
    settings = study.training_of(cell)
    changes: dict[str, Any] = {}
    rate = study.method_by_label[cell.method].learning_rate
    if rate is not None:
        changes["learning_rate"] = rate
    if micro_batch_size is not None:
        changes["micro_batch_size"] = micro_batch_size
    return settings.model_copy(update=changes)
