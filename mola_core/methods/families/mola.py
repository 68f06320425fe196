"""MoLA: LoRA experts per layer behind a top-k router, by shape, by list, or chosen by data at a shape's budget."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from mola_core.methods.allocation import AllocationInput, total_experts
from mola_core.methods.family import Family, LayerSizes, Request, of_module
from mola_core.shapes import SHAPE_PATTERN, mola_parameters


def _config(request: Request) -> dict[str, Any]:
    """`num_experts` of each layer; until data have chosen them, what they are chosen by."""
    adapter, method, experts = request.adapter, request.method, request.experts
    request.ranks()
    if method.budget is not None and method.budget < 4 * adapter.top_k:
        raise ValueError(
            f"method {request.settings.label!r}: a budget of {method.budget} is {method.budget / 4:g} experts a layer, fewer than top_k"
            f" {adapter.top_k}; raise it to {4 * adapter.top_k} or lower top_k"
        )
    if experts:
        known = request.known_experts()
        least = min(known if isinstance(known, list) else map(min, known.values()))
        if adapter.top_k > least:
            raise ValueError(
                f"method {request.settings.label!r}: top_k {adapter.top_k} is above the {least} experts of a layer;"
                " lower top_k or give every layer more experts"
            )
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
        mola_parameters([of_module(experts, name)[layer]], [size], ranks[layer])
        for layer, modules in enumerate(sizes)
        for name, size in modules.items()
    )


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
        form, usage = rf"{form}-(?P<draw>0|[1-9]\d*)", f"{usage}-<n>"
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
