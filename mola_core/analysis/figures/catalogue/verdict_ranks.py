"""Figure: probability of each rank of each method by the bootstrap, best first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mola_core.analysis import verdict_fields as fields
from mola_core.analysis.figures.drawing import plain, words
from mola_core.analysis.figures.registry import FigureEntry

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(verdict: Mapping[str, Any]) -> Figure:
    import matplotlib.pyplot as plt

    from mola_core.analysis.figures.style import COLUMN, TEXT

    ranked = {method: row["ranks"] for method, row in verdict["methods"].items() if row["ranks"]}
    if len(ranked) < 2:
        return words("Fewer than two methods with all seeds of all tasks: no ranks.")
    if one_seed(verdict):
        return words("One seed in a task: how far ranks depend on the seed was not seen, so none is given.")
    table = 100 * np.array(list(ranked.values()))
    size = 0.25 * len(ranked)
    figure, axes = plt.subplots(figsize=(min(max(COLUMN, 1.8 + 1.6 * size), TEXT), 0.85 + size))
    image = axes.imshow(table, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        if value >= 0.5:
            colour = "white" if value > 55 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(ranked)), range(1, len(ranked) + 1))
    axes.set_yticks(range(len(ranked)), [plain(method, 30) for method in ranked])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.set_xlabel("Rank by mean accuracy (1: best)")
    figure.colorbar(image, ax=axes, label="Probability (%)", shrink=0.9, pad=0.02)
    return figure


def one_seed(verdict: Mapping[str, Any]) -> bool:
    """Whether a task has a single seed: its ranks are then those of single trainings, and surer than anything is."""
    return any(task["seeds"] < 2 for task in verdict["data"]["tasks"].values())


def caption(verdict: Mapping[str, Any]) -> str:
    resamples = verdict["settings"].get("resamples")
    drawn = f"{resamples:,} " if resamples else ""
    text = (
        f"{fields.data_line(verdict)}. Share of {drawn}bootstrap resamples of seeds and documents in which a method has each rank. "
        "The tasks are these (fixed). A likely rank is no decided difference: the questions are in the forest plot."
    )
    return f"{text} {fields.also_counted(verdict)}".rstrip()


FIGURE = FigureEntry("verdict-ranks", "verdict", 4, "Probability of each rank", draw, caption)
