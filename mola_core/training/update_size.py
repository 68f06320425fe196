"""Update size: RMS of what an adapter adds to a module's output over RMS of that output, after the first and last step.

Methods differ in it by factors at one learning rate, so that a comparison of methods can be one of step sizes.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mola_core.adapter.shape import block_of
from mola_core.distributed import is_main
from mola_core.files import read_json, write_json

FILE = "update_size.json"
"""Among the checkpoints: what was measured before a restart."""


@torch.no_grad()
def update_sizes(model: Any, batch: Mapping[str, Any]) -> list[float]:
    """Of each layer of the model that is adapted, first layer first: the mean over its adapted modules.

    `batch` is a micro-batch; sizes are computed in float32, whatever the model computes in. Dropout is off, and the random
    generators are left as they were. Empty where the method adapts no module (prompt tuning, full fine-tuning).
    """
    found: dict[int, list[float]] = defaultdict(list)
    layers = [
        (name, module) for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and isinstance(getattr(module, "base_layer", None), torch.nn.Module)
    ]  # fmt: skip
    handles = [
        module.register_forward_hook(_measure(found[_layer(model, name)]), with_kwargs=True)
        for name, module in layers
    ]
    if not handles:
        return []
    training, device = model.training, next(model.parameters()).device
    inputs = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
        if name != "labels"
    }
    model.eval()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            model(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    return [mean(found[layer]) for layer in sorted(found) if found[layer]]


def _layer(model: Any, name: str) -> int:
    """A module in no layer, as an output layer, comes last."""
    layer = block_of(model, name)[1]
    return 1_000_000 if layer is None else layer


def _measure(sizes: list[float]) -> Any:
    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not isinstance(output, torch.Tensor):
            return
        args = tuple(_wide(value) for value in args)
        # In 16 bits what is added to an output is lost where it is small beside it: of first steps nearly all.
        with torch.autocast(output.device.type, enabled=False), _wide_base(module):
            base = module.base_layer(*args, **kwargs)
            whole = module.forward(*args, **kwargs)
        sizes.append(_rms(whole - base) / max(_rms(base), 1e-30))

    return hook


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


@contextlib.contextmanager
def _wide_base(module: Any) -> Iterator[None]:
    """During the block the module's base layer has its weights in float32, where it holds them in 16 bits."""
    held = module.base_layer
    weight = getattr(held, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dtype not in (torch.bfloat16, torch.float16):
        yield
        return
    module.base_layer = copy.deepcopy(held).float()
    try:
        yield
    finally:
        module.base_layer = held


def _rms(values: torch.Tensor) -> float:
    return math.sqrt(float(values.float().square().mean()))


class UpdateSize(TrainerCallback):
    """Measures on one micro-batch after the first step whose learning rate is not 0, and after the last."""

    def __init__(self, batch: Mapping[str, Any], folder: Path) -> None:
        self.batch = batch
        self.file = folder / FILE
        self.sizes: dict[str, list[float | None]] = read_json(self.file) if self.file.is_file() else {}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not is_main():
            return
        # With a warm-up the rate of the very first step is 0, and nothing moves in it.
        if state.global_step == (2 if args.warmup_steps else 1):
            self.sizes["first"] = self._measured(kwargs["model"])
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.file, self.sizes)
        if state.global_step == state.max_steps:
            self.sizes["last"] = self._measured(kwargs["model"])

    def _measured(self, model: Any) -> list[float | None]:
        """Rounded; None for what is not finite, where the training has diverged."""
        sizes = update_sizes(model, self.batch)
        return [round(size, 8) if math.isfinite(size) else None for size in sizes]

    def record(self) -> dict[str, Any]:
        """`{"update_size": {"first": ..., "last": ...}}`, each the sizes by layer; empty where there are none."""
        sizes = {when: by_layer for when, by_layer in self.sizes.items() if by_layer}
        return {"update_size": sizes} if sizes else {}
