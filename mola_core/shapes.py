"""Shapes: how many LoRA experts each layer has, and what that costs.

A shape names the experts per layer for each quarter of the depth, first layers first: `2468` puts two experts in
every layer of the first quarter and eight in the last; counts above nine are separated by dashes (`10-2-2-2`).
Its *budget* is the sum over the four quarters (2468 has budget 20: five experts a layer on average).
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Sequence

from mola_core.errors import MolaError

QUARTERS = r"[1-9]{4}|[1-9]\d*(?:-[1-9]\d*){3}"
"""Form of a shape that gives a count for each quarter of the depth."""


@dataclasses.dataclass(frozen=True)
class ShapeFamily:
    """Shapes whose names have one form; another entry of `SHAPE_FAMILIES` is all that a new form needs."""

    form: str
    """Regular expression of a whole shape, without groups that capture."""
    experts: Callable[[str, int], list[int]]
    """(shape, depth) -> experts of each layer, first layer first."""
    budget: Callable[[str], int]
    """Experts a layer on average, times four."""


def parse_shape(shape: str) -> tuple[int, int, int, int]:
    """Experts per layer in each quarter. Raises `MolaError` for anything that is not a shape of quarters."""
    if not re.fullmatch(QUARTERS, shape):
        raise MolaError(
            f"shape {shape!r}: write one count of at least 1 for each quarter of the depth, as 2468 or 10-2-2-2"
        )
    first, second, third, fourth = (int(n) for n in (shape.split("-") if "-" in shape else shape))
    return first, second, third, fourth


def _family(shape: str) -> ShapeFamily:
    for family in SHAPE_FAMILIES:
        if re.fullmatch(family.form, shape):
            return family
    parse_shape(shape)  # says what a shape looks like
    raise MolaError(f"shape {shape!r}: unknown")


def budget(shape: str) -> int:
    """Sum of the experts per layer over the four quarters."""
    return _family(shape).budget(shape)


def experts_per_layer(shape: str, depth: int) -> list[int]:
    """Experts of each layer of a model `depth` layers deep, first layer first. Raises `MolaError` for no shape."""
    return _family(shape).experts(shape, depth)


def quarters(depth: int) -> tuple[int, int, int, int]:
    """Layers in each quarter, a palindrome (30 layers: 8, 7, 7, 8), so that a shape and its mirror cost the same.

    An odd depth has one layer left over in the middle, which belongs to no quarter (`experts_per_layer`).
    Raises `MolaError` for a model of fewer than four layers.
    """
    if depth < 4:
        raise MolaError(
            f"depth {depth}: a shape needs a model of at least 4 layers; list the experts of each layer"
        )
    inner = depth // 4
    outer = depth // 2 - inner
    return outer, inner, inner, outer


def _quarter_experts(shape: str, depth: int) -> list[int]:
    """The middle layer of an odd depth gets the mean of its two neighbouring quarters, rounded up."""
    counts = parse_shape(shape)
    first, second, third, fourth = (
        [count] * layers for count, layers in zip(counts, quarters(depth), strict=True)
    )
    middle = [math.ceil((counts[1] + counts[2]) / 2)] * (depth % 2)
    return first + second + middle + third + fourth


def _quarter_budget(shape: str) -> int:
    return sum(parse_shape(shape))


SHAPE_FAMILIES = (ShapeFamily(QUARTERS, _quarter_experts, _quarter_budget),)
SHAPE_PATTERN = "|".join(family.form for family in SHAPE_FAMILIES)
"""Regular expression of any shape."""


def _depths(layers: int) -> list[float]:
    return [layer / max(layers - 1, 1) for layer in range(layers)]


def centre_of_depth(experts: Sequence[int]) -> float:
    """Mean depth of the experts: 0 when all are in the first layer, 1 when all are in the last."""
    return sum(n * d for n, d in zip(experts, _depths(len(experts)), strict=True)) / sum(experts)


def spread(experts: Sequence[int]) -> float:
    """Standard deviation of the experts' depth: 0.5 when they sit half at each end, small when they sit together.

    With the centre it tells hourglass (8228), diamond (2882) and uniform (5555) apart, whose centres are all 0.5.
    """
    centre = centre_of_depth(experts)
    weighted = sum(n * (d - centre) ** 2 for n, d in zip(experts, _depths(len(experts)), strict=True))
    return math.sqrt(weighted / sum(experts))


def mola_parameters(experts: Iterable[int], modules: Iterable[tuple[int, int]], rank: int) -> int:
    """Trainable parameters of a MoLA adapter: `Σ_layers E_l · Σ_modules [r·(d_in + d_out) + d_in]`.

    `modules` are the (d_in, d_out) of the adapted modules of one layer. The formula reproduces the counts that the
    MoLA paper prints (NAACL 2025, Table 1) exactly: 105,635,840 for budget 20 on LLaMA-2-7B.
    """
    per_expert = sum(rank * (d_in + d_out) + d_in for d_in, d_out in modules)
    return sum(experts) * per_expert


def lora_parameters(ranks: Iterable[int], modules: Iterable[tuple[int, int]]) -> int:
    """Trainable parameters of a plain LoRA with one rank per layer: `Σ_layers r_l · Σ_modules (d_in + d_out)`."""
    per_rank = sum(d_in + d_out for d_in, d_out in modules)
    return sum(ranks) * per_rank
