"""Mixed precision: autocast of the forward pass, with frozen weights held in its type meanwhile.

Autocast converts a frozen weight anew in every forward pass (it remembers trained ones only). Converted once beforehand it
is the same number, so results are equal bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn

from mola_core.adapter.layer import MolaLayer

Precision = Literal["fp32", "bf16", "fp16"]
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextlib.contextmanager
def frozen_in(model: nn.Module, precision: Precision) -> Iterator[None]:
    """Hold the frozen float32 weights of linear modules, and of MoLA's experts where they are frozen, in the autocast type
    of `precision` during the block.

    On a CPU only: a card that just holds the model has no room for a second copy, and converts quickly.
    """
    dtype = TYPES.get(precision)
    held: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for owner, name, weight in list(_multiplied(model)) if dtype else ():
            if weight.requires_grad or weight.dtype != torch.float32 or weight.device.type != "cpu":
                continue
            held.append((owner, name, weight))
            # A parameter of its own: an embedding that is tied to the output layer stays in float32.
            setattr(owner, name, nn.Parameter(weight.detach().to(dtype), requires_grad=False))
        yield
    finally:
        for owner, name, weight in held:
            setattr(owner, name, weight)


def _multiplied(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Owner, name and value of each weight that autocast converts wherever it is used."""
    for module in model.modules():
        if type(module) is nn.Linear:  # what libraries derive from it has a forward pass of its own
            yield module, "weight", module.weight
        elif isinstance(module, MolaLayer):
            for weights in (module.mola_A, module.mola_B, module.mola_router):
                for adapter in weights:
                    yield weights, adapter, weights[adapter]


def autocast(device: str, precision: Precision) -> contextlib.AbstractContextManager[None]:
    """Autocast to the type of `precision`; nothing for fp32."""
    return torch.autocast(device, dtype=TYPES[precision]) if precision in TYPES else contextlib.nullcontext()


@contextlib.contextmanager
def computed_in(model: nn.Module, precision: Precision) -> Iterator[None]:
    """Forward passes in the block are computed in `precision`, as those of the Trainer's are."""
    device = next(model.parameters()).device.type
    with frozen_in(model, precision), autocast(device, precision):
        yield
