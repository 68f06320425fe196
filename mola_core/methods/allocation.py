"""Experts per layer chosen by data instead of by a shape, at exactly a shape's budget.

| method                  | experts in proportion to                                                               |
| ----------------------- | -------------------------------------------------------------------------------------- |
| `alphalora-<budget>`    | PL_Alpha_Hill of the layer's base weights to the power 2.5 (AlphaLoRA, EMNLP 2024)     |
| `sensitivity-<budget>`  | the gradient of the base weights that are adapted, on the cell's first training batches |
| `fisher-<budget>`       | the Fisher information of these weights, document by document, on the same batches     |
| `random-<budget>-<n>`   | four numbers drawn with seed n, one a quarter of the depth: a control, and a point      |
|                         | for the depth slope                                                                    |

A budget b is b/4 experts a layer on average, as the sum over the quarters of a shape; every layer has at least top-k.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mola_core.shapes import quarters

BETA = 2.5
"""AlphaLoRA's exponent: the default of its released code."""


@dataclasses.dataclass(frozen=True)
class Allocation:
    """Experts of each layer and the scores that they are in proportion to, first layer first."""

    experts: list[int]
    scores: list[float]
    score: str
    """What the scores are, in words."""


@dataclasses.dataclass(frozen=True)
class AllocationInput:
    """What another package's allocation may look at."""

    model: Any
    """The frozen base model (`transformers.PreTrainedModel`), in evaluation mode; to be left as it is."""
    target_modules: Sequence[str]
    """Ends of the names of the modules that are adapted."""
    batches: Sequence[Mapping[str, Any]]
    """The first four micro-batches of the cell's training, as its model is called with them."""
    total: int
    """Experts of all layers together, to be shared out exactly (`apportion`)."""
    least: int
    """Fewest experts of a layer: the router's top-k."""


def checked(experts: Sequence[int], depth: int, total: int, least: int) -> list[int]:
    """Another's experts per layer as a list. Raises ValueError where they are not what was asked for."""
    found = [int(count) for count in experts]
    if found != list(experts) or len(found) != depth or sum(found) != total or min(found) < least:
        raise ValueError(
            f"its allocation gave {str(list(experts))[:80]}; it must give {depth} whole numbers of at least {least} that sum "
            f"to {total}"
        )
    return found


def total_experts(budget: int, depth: int) -> int:
    """Experts of all layers together: budget / 4 a layer, rounded half up."""
    return math.floor(budget * depth / 4 + 0.5)


def apportion(scores: Sequence[float], total: int, least: int) -> list[int]:
    """`total` experts over the layers in proportion to their scores, at least `least` each.

    A layer whose share is below `least` gets `least`, and the others share the rest; fractions go by largest
    remainder, equal ones to the lower layer first. Raises ValueError where `total` is too small, and for scores that are
    below zero, not finite or all zero.
    """
    if not all(math.isfinite(score) and score >= 0 for score in scores) or not any(scores):
        raise ValueError("the layers' scores must be numbers of at least zero, not all zero")
    if total < least * len(scores):
        raise ValueError(
            f"{total} experts are fewer than {least} for each of {len(scores)} layers; raise the budget or lower top_k"
        )
    weights = np.asarray(scores, dtype=float)
    fixed = np.zeros(len(weights), dtype=bool)
    while True:
        rest = total - least * int(fixed.sum())
        share = weights[~fixed].sum()
        quotas = np.where(
            fixed, least, weights * rest / share if share > 0 else rest / max(1, (~fixed).sum())
        )
        below = quotas < least
        if not below.any():
            break
        fixed |= below
    experts = np.floor(quotas + 1e-9).astype(int)
    remainders = quotas - experts
    # Stable, so that equal remainders go to the lower layer first.
    order = np.argsort(-np.round(remainders, 9), kind="stable")
    experts[order[: total - int(experts.sum())]] += 1
    return experts.tolist()


def random_experts(budget: int, draw: int, depth: int, least: int) -> list[int]:
    """Experts of each layer at `budget`, drawn with seed `draw`.

    The quarters' weights are uniform on the simplex, so that draws differ in their centre of depth, which draws layer
    by layer would not. The middle layer of an odd depth belongs to the second quarter.
    """
    first, second, third, fourth = np.random.default_rng(draw).dirichlet(np.ones(4))
    a, b, c, d = quarters(depth)
    scores = [first] * a + [second] * (b + depth % 2) + [third] * c + [fourth] * d
    return apportion(scores, total_experts(budget, depth), least)


def alphalora(qualities: Sequence[float], budget: int, least: int) -> Allocation:
    """AlphaLoRA: experts in proportion to `PL_Alpha_Hill ** 2.5` of each layer.

    Qing et al., "AlphaLoRA: Assigning LoRA Experts Based on Layer Training Quality", EMNLP 2024, with the exponent of
    their code. That rounds each share and then moves single experts; here it is the largest remainder. Their code lets
    a layer have one expert, with top-1 there.
    """
    scores = [quality**BETA for quality in qualities]
    experts = apportion(scores, total_experts(budget, len(scores)), least)
    return Allocation(experts, list(qualities), f"PL_Alpha_Hill (fitted tail), to the power {BETA}")


def sensitivity(norms: Sequence[float], budget: int, least: int) -> Allocation:
    """Experts in proportion to the gradient norms that `training.allocate` measures."""
    experts = apportion(norms, total_experts(budget, len(norms)), least)
    return Allocation(experts, list(norms), "gradient norm of the adapted base weights")


def fisher(traces: Sequence[float], budget: int, least: int) -> Allocation:
    """Experts in proportion to the Fisher information that `training.allocate` measures, as FIM-LoRA (arXiv 2605.16800)
    shares ranks by the variance of gradients."""
    experts = apportion(traces, total_experts(budget, len(traces)), least)
    return Allocation(
        experts, list(traces), "trace of the empirical Fisher information of the adapted base weights"
    )
