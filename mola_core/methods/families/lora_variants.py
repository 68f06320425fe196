"""LoRA's variants that reviewers ask for by name: DoRA, rsLoRA, AdaLoRA, and LoRA in one half of the layers."""

from typing import Any

from mola_core.methods.families.lora import PLAIN, plain, plain_parameters
from mola_core.methods.family import LAYER_ALPHAS, LAYER_RANKS, Family, LayerSizes, Request
from mola_core.shapes import lora_parameters


def _dora(request: Request) -> dict[str, Any]:
    """Weight-decomposed LoRA (Liu et al., 2024)."""
    return plain(request) | {"use_dora": True}


def _rslora(request: Request) -> dict[str, Any]:
    """Scale alpha / √k (Kalajdzievski, 2023), alpha the method's own or the study's."""
    alpha = request.adapter.alpha
    return plain(request) | {"use_rslora": True, "lora_alpha": alpha}


def _adalora(request: Request) -> dict[str, Any]:
    """AdaLoRA (Zhang et al., 2023): from 3/2 of the rank down to k on average, by importance.

    As in the authors' runs the start has half as much again; the first tenth of the steps leaves the ranks alone, and
    the last half has the final ones (their GLUE runs: about a tenth, and 0.4 to 0.6).
    """
    target = request.known_rank()
    first = -(-3 * target // 2)
    return request.lora_common | {
        "peft_type": "ADALORA",
        "init_r": first,
        "target_r": target,
        "lora_alpha": first * plain(request)["lora_alpha"] / target,
        "schedule": [0.1, 0.5],
    }


def half_ranks(rank: int, depth: int, upper: bool) -> list[int]:
    """Ranks of the layers of one half: as many in all as `rank` in every layer, and none in the other half.

    The middle layer of an odd depth is in neither half; its share goes to the half's layers, the outermost first.
    """
    half = depth // 2
    each, rest = divmod(rank * depth, half)
    ranks = [each + (place < rest) for place in range(half)] + [0] * (depth - half)
    return ranks[::-1] if upper else ranks


def _ranks(request: Request) -> list[int]:
    if request.depth < 2:
        raise ValueError(f"method {request.settings.label!r}: a model of one layer has no halves")
    return half_ranks(request.known_rank(), request.depth, request.method.kind == "lora-upper")


def _half(request: Request) -> dict[str, Any]:
    """Each layer at the scale that `lora-r<k>` has, or alpha / rank with an alpha of its own."""
    ranks, whole, alpha = _ranks(request), plain(request), request.settings.alpha
    scale = whole["lora_alpha"] / request.known_rank()
    alphas = [rank * scale if alpha is None else alpha for rank in ranks]
    return whole | {"r": max(ranks), "lora_alpha": max(alphas), LAYER_RANKS: ranks, LAYER_ALPHAS: alphas}


def _half_parameters(request: Request, sizes: LayerSizes) -> int:
    ranks = _ranks(request)
    return sum(lora_parameters([rank], layer.values()) for rank, layer in zip(ranks, sizes, strict=True))


def _counted(request: Request, sizes: LayerSizes) -> None:
    return None


_RANK = r"r(?P<rank>[1-9]\d*)"
_SIMPLE = tuple(name for name in PLAIN if name not in ("rslora", "initialisation"))

FAMILIES = (
    Family("dora", (rf"dora-{_RANK}",), "dora-r<k>", "baseline", "#56B4E9", "^", _dora, _counted, takes=_SIMPLE),
    Family(
        "rslora", (rf"rslora-{_RANK}",), "rslora-r<k>", "baseline",
        "#E69F00", "D", _rslora, plain_parameters, takes=_SIMPLE,
    ),
    Family(
        "adalora", (rf"adalora-{_RANK}",), "adalora-r<k>", "baseline",
        "#CC79A7", "h", _adalora, _counted, takes=("alpha", "dropout", "target_modules"),
    ),
    Family(
        "lora-upper", (rf"lora-upper-{_RANK}",), "lora-upper-r<k>", "baseline",
        "#000000", "2", _half, _half_parameters, takes=_SIMPLE,
    ),
    Family(
        "lora-lower", (rf"lora-lower-{_RANK}",), "lora-lower-r<k>", "baseline",
        "#000000", "1", _half, _half_parameters, takes=_SIMPLE,
    ),
)  # fmt: skip
