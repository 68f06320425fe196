"""Knock-out: a trained adapter with its modules in some layers switched off, which tells where the model uses them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
from peft.tuners.tuners_utils import BaseTunerLayer

from mola_core.adapter.shape import block_of
from mola_core.evaluation.likelihoods import of_samples
from mola_core.shapes import quarters

NOTHING, EVERYTHING = "none", "all"
"""Names of the parts beside the quarters (`1` to `4`, first layers first) or the layers (from `0`)."""
COLUMNS = ("part", "layers", "documents", "accuracy", "likelihood")


@contextmanager
def switched_off(model: Any, layers: Collection[int]) -> Iterator[int]:
    """The model with its adapter off in `layers` during the block, which gets the number of modules that are off."""
    found = [
        module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and block_of(model, name)[1] in layers
    ]
    for module in found:
        module.enable_adapters(False)
    try:
        yield len(found)
    finally:
        for module in found:
            module.enable_adapters(True)


def parts(depth: int, by: str) -> dict[str, list[int]]:
    """The layers of each part: nothing, each quarter (or, `by` layer, each layer), everything.

    The middle layer of an odd depth belongs to the second quarter.
    """
    found: dict[str, list[int]] = {NOTHING: []}
    if by == "layer":
        found |= {str(layer): [layer] for layer in range(depth)}
    else:
        first, second, third, fourth = quarters(depth)
        start = 0
        for number, size in enumerate((first, second + depth % 2, third, fourth), 1):
            found[str(number)] = list(range(start, start + size))
            start += size
    return found | {EVERYTHING: list(range(depth))}


def row(part: str, layers: Sequence[int], samples: pd.DataFrame) -> tuple[Any, ...]:
    """One row of the cell's table: `COLUMNS`, likelihood nan where the samples do not say it."""
    found = of_samples(samples)
    likelihood = float("nan") if found is None else float(found[0].mean())
    return part, len(layers), len(samples), float(samples["correct"].mean()), likelihood
