"""What some methods do to the Trainer's loop: AdaLoRA's call after each step and its regulariser, LoRA+'s optimiser."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.adalora import AdaLoraModel
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mola_core.training.batches import IGNORED


class RankAllocation(TrainerCallback):
    """AdaLoRA: after each optimiser step, gradients still there, the ranks' importances are updated and ranks masked.

    Steps count from 0, as in PEFT's examples.
    """

    def __init__(self, model: AdaLoraModel) -> None:
        self.model = model

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.model.update_and_allocate(state.global_step)


def allocates_ranks(model: Any) -> bool:
    """Whether ranks change while the model is trained."""
    return isinstance(model, PeftModel) and isinstance(model.base_model, AdaLoraModel)


@contextlib.contextmanager
def regulariser_shared(model: Any) -> Iterator[None]:
    """During the block AdaLoRA's orthogonal regulariser counts once a batch.

    PEFT adds it to the loss of each forward pass. Where several passes make one batch the Trainer does not divide the
    loss, which the model has divided by the batch's number of loss tokens: each pass gets its share of the regulariser
    by these, as the balance loss of MoLA does.
    """
    if not allocates_ranks(model):
        yield
        return
    config = model.peft_config[model.base_model.trainable_adapter_name]
    weight = config.orth_reg_weight

    def share(module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        labels, items = given.get("labels"), given.get("num_items_in_batch")
        part = 1.0 if labels is None or items is None else float((labels != IGNORED).sum() / items)
        config.orth_reg_weight = weight * part

    def restore(module: Any, args: tuple[Any, ...], output: Any) -> None:
        config.orth_reg_weight = weight  # a config that is saved between two passes is the method's

    handles = [
        model.base_model.register_forward_pre_hook(share, with_kwargs=True),
        model.base_model.register_forward_hook(restore, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def loraplus_optimizer(trainer: Trainer, ratio: float) -> torch.optim.Optimizer:
    """LoRA+ (Hayou et al., 2024): AdamW as the Trainer makes it, with B at `ratio` times the learning rate of A."""
    optimizer, options = Trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    return create_loraplus_optimizer(
        trainer.model,
        optimizer,
        loraplus_lr_ratio=ratio,
        loraplus_weight_decay=trainer.args.weight_decay,
        **options,
    )
