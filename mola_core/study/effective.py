"""Effective training settings of a cell: the study's, its stage's, its method's own and what memory allows, in that order."""

from mola_core.methods.settings import MethodSettings
from mola_core.study.sections import TrainingSettings
from mola_core.study.study import Cell, Study


class EffectiveTraining(TrainingSettings):
    """The settings of a study's section `training` and what a method adds to them."""

    loraplus_ratio: float | None = None
    """LoRA+: learning rate of B over that of A."""


def effective_training(
    study: Study, cell: Cell, micro_batch_size: int | None = None, method: MethodSettings | None = None
) -> EffectiveTraining:
    """The settings that the cell is trained with: the one place that decides them; its key and its record hold them.

    `method` is the cell's with what tuning chose for it, where it did. `micro_batch_size` is a smaller one that memory suffices for: effective batch, documents and order stay, but sums
    round differently and dropout, where there is some, draws other masks.
    """
    method = method or study.method_by_label[cell.method]
    settings = dict(study.training_of(cell)) | {"loraplus_ratio": method.loraplus_ratio}
    if method.learning_rate is not None:
        settings["learning_rate"] = method.learning_rate
    if micro_batch_size is not None:
        settings["micro_batch_size"] = micro_batch_size
    return EffectiveTraining.model_construct(**settings)
