"""LoRA of one rank in every layer (`lora-r<k>`), and with a rank for each layer that a MoLA's experts have together."""

from typing import Any

from mola_core.methods.family import Family, LayerSizes, Request
from mola_core.shapes import SHAPE_PATTERN, lora_parameters


def _start(request: Request) -> dict[str, Any]:
    # A full SVD of 224 matrices takes minutes even on a GPU; sixteen subspace iterations agree with it closely.
    pissa = request.adapter.initialisation == "pissa"
    return {
        "peft_type": "LORA",
        "init_lora_weights": "pissa_niter_16" if pissa else True,
        **request.lora_common,
    }


def _plain(request: Request) -> dict[str, Any]:
    rank = request.method.rank
    assert rank is not None
    return _start(request) | {"r": rank, "lora_alpha": rank * request.scale}


def _matched(request: Request) -> dict[str, Any]:
    """Rank × experts in each layer, at the scale of the plain LoRA: the same capacity in the same place, no routing."""
    adapter = request.adapter
    # PEFT matches these keys against whole module names; the layer's number is the only numeric part of one.
    ranks = {
        rf"\D+\.{layer}\.\D+": adapter.rank * count for layer, count in enumerate(request.known_experts())
    }
    return _start(request) | {
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "rank_pattern": ranks,
        "alpha_pattern": {key: rank * request.scale for key, rank in ranks.items()},
    }


def _plain_parameters(request: Request, sizes: LayerSizes) -> int:
    rank = request.method.rank
    assert rank is not None
    return sum(lora_parameters([rank], layer) for layer in sizes)


def _matched_parameters(request: Request, sizes: LayerSizes) -> int:
    experts = request.known_experts()
    return sum(
        lora_parameters([request.adapter.rank * count], layer)
        for count, layer in zip(experts, sizes, strict=True)
    )


FAMILIES = (
    Family(
        "lora", (r"lora-r(?P<rank>[1-9]\d*)",), "lora-r<k>", "baseline",
        "#000000", "o", _plain, _plain_parameters, pissa=True,
    ),
    Family(
        "lora-matched", (rf"lora-matched-(?P<shape>{SHAPE_PATTERN})",), "lora-matched-<shape>", "matched",
        "#000000", "s", _matched, _matched_parameters, pissa=True,
    ),
)  # fmt: skip
