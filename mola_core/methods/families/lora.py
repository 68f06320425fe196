"""LoRA of one rank in every layer (`lora-r<k>`), and with the ranks that a MoLA's experts have together, layer by layer."""

from typing import Any

from mola_core.methods.family import LAYER_RANKS, Family, LayerNumbers, LayerSizes, Request, of_module
from mola_core.shapes import SHAPE_PATTERN, lora_parameters


def _start(request: Request) -> dict[str, Any]:
    # A full SVD of 224 matrices takes minutes even on a GPU; sixteen subspace iterations agree with it closely.
    pissa = request.adapter.initialisation == "pissa"
    return {
        "peft_type": "LORA",
        "init_lora_weights": "pissa_niter_16" if pissa else True,
        **request.lora_common,
    }


def plain(request: Request) -> dict[str, Any]:
    """One rank k everywhere, at the scale of one expert: alpha = k · study's alpha / rank, or the method's own alpha.

    With `rslora` the scale is alpha / √k (Kalajdzievski, 2023), alpha the method's own or the study's as it stands.
    """
    rank, adapter, settings = request.known_rank(), request.adapter, request.settings
    if settings.rslora:
        alpha = adapter.alpha
    else:
        alpha = rank * adapter.alpha / adapter.rank if settings.alpha is None else settings.alpha
    stable = {"use_rslora": True} if settings.rslora else {}
    return _start(request) | {"r": rank, "lora_alpha": alpha, **stable}


def _matched(request: Request) -> dict[str, Any]:
    """Rank r·E and scale alpha / (r·E) in a layer of E experts: MoLA with every gate at 1/E, so without routing."""
    adapter = request.adapter
    ranks = _matched_ranks(request)
    return _start(request) | {"r": adapter.rank, "lora_alpha": adapter.alpha, LAYER_RANKS: ranks}


def _matched_ranks(request: Request) -> LayerNumbers:
    ranks, experts = request.ranks(), request.known_experts()

    def products(counts: list[int]) -> list[int]:
        return [rank * count for rank, count in zip(ranks, counts, strict=True)]

    if isinstance(experts, list):
        return products(experts)
    return {module: products(counts) for module, counts in experts.items()}


def plain_parameters(request: Request, sizes: LayerSizes) -> int:
    return sum(lora_parameters([request.known_rank()], layer.values()) for layer in sizes)


def _matched_parameters(request: Request, sizes: LayerSizes) -> int:
    ranks = _matched_ranks(request)
    return sum(
        lora_parameters([of_module(ranks, name)[layer]], [size])
        for layer, modules in enumerate(sizes)
        for name, size in modules.items()
    )


_MATCHED = ("rank", "alpha", "dropout", "target_modules", "initialisation", "loraplus_ratio")
PLAIN = ("alpha", "rslora", "dropout", "target_modules", "initialisation", "loraplus_ratio")
"""Settings that a LoRA of one rank takes."""

FAMILIES = (
    Family(
        "lora", (r"lora-r(?P<rank>[1-9]\d*)",), "lora-r<k>", "baseline",
        "#000000", "o", plain, plain_parameters, takes=PLAIN,
    ),
    Family(
        "lora-matched", (rf"lora-matched(?:-(?P<shape>{SHAPE_PATTERN}))?",), "lora-matched-<shape>", "matched",
        "#000000", "s", _matched, _matched_parameters, takes=_MATCHED,
    ),
)  # fmt: skip
