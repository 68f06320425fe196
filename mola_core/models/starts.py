"""Starts of a LoRA that look at data first: EVA and LoRA-GA, by PEFT's own functions on micro-batches of the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, initialize_lora_eva_weights
from peft.tuners.lora.loraga import preprocess_loraga
from torch import nn

MICRO_BATCHES = 4
"""Of the training, that a start looks at."""


def start_at_input_directions(model: PeftModel, batches: Sequence[Mapping[str, Any]]) -> None:
    """EVA (Paischer et al., 2024): A at the leading right-singular vectors of each module's inputs, ranks shared out by
    the variance that they explain.

    The inputs are those of all tokens but padding. Raises ValueError where a micro-batch has fewer tokens than a module
    needs directions: PEFT would wait for more for ever.
    """
    config = model.peft_config["default"]
    assert isinstance(config, LoraConfig) and config.eva_config is not None
    tokens = min(int(batch["attention_mask"].sum()) for batch in batches)
    needed = round(max([config.r, *(config.rank_pattern or {}).values()]) * config.eva_config.rho)
    if tokens < needed:
        raise ValueError(
            f"EVA looks for {needed} directions in micro-batches of {tokens} tokens; raise training.micro_batch_size or"
            " lower r or eva_config.rho"
        )
    plain = [{name: batch[name] for name in ("input_ids", "attention_mask")} for batch in batches]
    initialize_lora_eva_weights(model, plain, show_progress_bar=False)


def estimate_gradients(base: nn.Module, config: Any, batches: Sequence[Mapping[str, Any]]) -> None:
    """LoRA-GA (Wang et al., 2024): the loss gradient of the weights to be adapted, which PEFT then starts A and B at."""

    def step() -> None:
        for batch in batches:
            base(**_on_device(batch, base), use_cache=False).loss.backward()

    preprocess_loraga(base, config, step)


def _on_device(batch: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    device = next(model.parameters()).device
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
    }
