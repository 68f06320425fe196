"""Mixed precision: autocast of the forward pass, with frozen weights held in its type meanwhile.

Autocast converts a frozen weight anew in every forward pass (it remembers trained ones only). Converted once beforehand it
is the same number, so results are equal bit for bit, unless an adapter reads the weight itself, as DoRA does for its
norm: such weights are left as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from mola_core.adapter.layer import MolaLayer

Precision = Literal["fp32", "bf16", "fp16"]
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextlib.contextmanager
def frozen_in(model: nn.Module, precision: Precision, but: nn.Module | None = None) -> Iterator[None]:
    """Hold the frozen float32 weights of linear modules, and of MoLA's experts where they are frozen, in the autocast type
    of `precision` during the block; the module `but` keeps its own.

    On a CPU only: a card that just holds the model has no room for a second copy, and converts quickly.
    """
    dtype = TYPES.get(precision)
    held: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for owner, name, weight in list(_multiplied(model)) if dtype else ():
            if weight.requires_grad or weight.dtype != torch.float32 or weight.device.type != "cpu":
                continue
            if owner is but:
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
    tuners = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    read = {tuner.get_base_layer() for tuner in tuners if not _calls_base(tuner)}
    for module in model.modules():
        # What libraries derive from it has a forward pass of its own.
        if type(module) is nn.Linear and module not in read:
            yield module, "weight", module.weight
        elif isinstance(module, MolaLayer):
            for weights in (module.mola_A, module.mola_B, module.mola_router):
                for adapter in weights:
                    yield weights, adapter, weights[adapter]


def _calls_base(tuner: BaseTunerLayer) -> bool:
    """Whether an adapted layer only calls its base layer: MoLA, and LoRA but for its variants (DoRA, KaSA)."""
    return isinstance(tuner, MolaLayer) or (isinstance(tuner, LoraLayer) and not tuner.lora_variant)


def autocast(device: str, precision: Precision) -> contextlib.AbstractContextManager[None]:
    """Autocast to the type of `precision`; nothing for fp32."""
    return torch.autocast(device, dtype=TYPES[precision]) if precision in TYPES else contextlib.nullcontext()


@contextlib.contextmanager
def computed_in(model: nn.Module, precision: Precision) -> Iterator[None]:
    """Forward passes in the block are computed in `precision`, all but the output layer, which is computed in float32
    whatever type its weights are held in.

    Two options are compared by their logits, which bf16 rounds to an eighth (between 16 and 32): it would often call them equal.
    """
    device = next(model.parameters()).device.type
    head = _output_layer(model)
    with frozen_in(model, precision, head), autocast(device, precision), _in_float32(head, device):
        yield


def _output_layer(model: nn.Module) -> nn.Linear | None:
    find = getattr(model, "get_output_embeddings", None)
    head = find() if find else None
    if isinstance(head, ModulesToSaveWrapper) and head.active_adapters:
        head = head.modules_to_save[head.active_adapters[0]]
    return head if type(head) is nn.Linear and head.weight.is_floating_point() else None


@contextlib.contextmanager
def _in_float32(module: nn.Linear | None, device: str) -> Iterator[None]:
    if module is None:
        yield
        return
    forward = module.forward
    # Once, not in every pass; of float32 weights no copy is made.
    weight, bias = (
        module.weight.detach().float(),
        None if module.bias is None else module.bias.detach().float(),
    )

    def exact(hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, enabled=False):
            return nn.functional.linear(hidden.float(), weight, bias)

    own = "forward" in vars(module)
    module.forward = exact  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own:
            module.forward = forward  # type: ignore[method-assign]
        else:
            del module.forward
