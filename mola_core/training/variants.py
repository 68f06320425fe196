"""What some methods do to the Trainer's loop: AdaLoRA's call after each step, LoRA+'s optimiser."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.adalora import AdaLoraModel
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


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
    """Whether ranks change while the model is trained. Checkpoints do not hold what that depends on."""
    return isinstance(model, PeftModel) and isinstance(model.base_model, AdaLoraModel)


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
