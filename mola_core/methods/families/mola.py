"""MoLA: LoRA experts per layer behind a top-k router, by shape, by list, or chosen by data at a shape's budget."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from mola_core.methods.allocation import AllocationInput, total_experts
from mola_core.methods.family import Family, LayerExperts, LayerSizes, Request
from mola_core.shapes import SHAPE_PATTERN, mola_parameters


def _config(request: Request) -> dict[str, Any]:
    """`num_experts` of each layer; until data have chosen them, what they are chosen by."""
    adapter, method, experts = request.adapter, request.method, request.experts
    request.ranks()
    if experts:
        _check_experts(request, experts)
    return {
        "peft_type": "MOLA",
        "num_experts": experts or [method.allocation, method.budget, method.draw],
        "top_k": adapter.top_k,
        "r": request.rank,
        "lora_alpha": adapter.alpha,
        "router_aux_loss_coef": adapter.balance_loss,
        "init_lora_weights": "pissa" if adapter.initialisation == "pissa" else True,
        **request.lora_common,
    }


def _check_experts(request: Request, experts: LayerExperts) -> None:
    """Raise ValueError where a layer has fewer experts than a token uses, or modules are not the target modules."""
    label, adapter = request.settings.label, request.adapter
    least = min(experts if isinstance(experts, list) else (min(counts) for counts in experts.values()))
    if adapter.top_k > least:
        raise ValueError(
            f"method {label!r}: top_k {adapter.top_k} is above the {least} experts of a layer;"
            " lower top_k or give every layer more experts"
        )
    if isinstance(experts, dict):
        targets = adapter.target_modules
        for module in experts.keys() - set(targets):
            raise ValueError(
                f"method {label!r}: experts: {module[:60]!r} is none of its target_modules, {', '.join(targets)}"
            )
        for module in set(targets) - experts.keys():
            raise ValueError(
                f"method {label!r}: experts: target module {module!r} has none; add it, or leave it out of target_modules"
            )


def _parameters(request: Request, sizes: LayerSizes) -> int | None:
    experts, ranks = request.experts, request.ranks()
    if request.method.budget is not None:
        # Which layer has how many is the data's choice: the sum alone is known, and enough where layers are alike.
        if any((layer, rank) != (sizes[0], ranks[0]) for layer, rank in zip(sizes, ranks, strict=True)):
            return None
        experts = [total_experts(request.method.budget, len(sizes)), *[0] * (len(sizes) - 1)]
    if experts is None:
        return None
    return sum(
        mola_parameters([_experts_of(experts, name)[layer]], [size], ranks[layer])
        for layer, modules in enumerate(sizes)
        for name, size in modules.items()
    )


def _experts_of(experts: LayerExperts, name: str) -> list[int]:
    """Experts of each layer in the module `name`, which may end with several of the target modules' names."""
    if isinstance(experts, list):
        return experts
    return experts[max((key for key in experts if f".{name}".endswith(f".{key}")), key=len)]


_TAKES = ("rank", "alpha", "dropout", "top_k", "balance_loss", "target_modules", "initialisation")
_MODULES = ("mola_core.adapter",)
_ALLOCATED = (*_MODULES, "mola_core.training.allocate:allocate")


def allocated(
    name: str,
    colour: str,
    marker: str,
    experts: Callable[[AllocationInput], Sequence[int]] | None = None,
    draw: bool = False,
) -> Family:
    """The family `<name>-<budget>`: MoLA with the experts that `experts` gives each layer of the base model.

    `colour` and `marker` are matplotlib's, for figures. Without `experts` the allocation is one of
    `mola_core.training.allocate`; with `draw` a number follows the budget.
    """
    form, usage = rf"(?P<allocation>{re.escape(name)})-(?P<budget>[1-9]\d*)", f"{name}-<budget>"
    if draw:
        form, usage = rf"{form}-(?P<draw>\d+)", f"{usage}-<n>"
    return Family(
        name, (form,), usage, "routed", colour, marker, _config, _parameters, _ALLOCATED, _TAKES, experts
    )


FAMILIES = (
    Family(
        "mola", (rf"mola(?:-(?P<shape>{SHAPE_PATTERN}))?",), "mola-<shape>", "routed",
        "#4D4D4D", "v", _config, _parameters, _MODULES, takes=_TAKES,
    ),
    allocated("alphalora", "#8C564B", "p"),
    allocated("sensitivity", "#6A3D9A", "h"),
    allocated("fisher", "#A6761D", "*"),
    allocated("random", "#7F7F7F", "8", draw=True),
)  # fmt: skip
