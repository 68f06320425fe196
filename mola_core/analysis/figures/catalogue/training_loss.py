"""Figure: training loss against optimiser steps, a panel a task, as differences from the methods' mean below it.

Losses of methods fall together by far more than they differ, so that curves in one panel hide one another. The upper
panel shows how the loss falls, the lower one how each method differs from the mean of all at the same step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from mola_core.analysis.figures.drawing import legend_height, plain, shared_legend, words
from mola_core.analysis.figures.registry import FigureEntry, StudyData
from mola_core.analysis.reference.numbers import task_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTHED_SHARE = 0.05
"""Share of the training steps over which the curves are averaged."""
PER_ROW = 3


def smoothed(curves: pd.DataFrame) -> pd.DataFrame:
    """Loss by step (rows) and method (columns): mean over seeds, then over `window` steps up to each."""
    table = curves.pivot_table(values="loss", index="step", columns="method", aggfunc="mean", sort=False)
    return table.sort_index().apply(lambda loss: loss.dropna().rolling(window(loss), min_periods=1).mean())


def window(loss: pd.Series) -> int:
    """Steps that are averaged: `SMOOTHED_SHARE` of those logged, at least one."""
    return max(1, round(SMOOTHED_SHARE * loss.notna().sum()))


def draw(data: StudyData) -> Figure:
    import matplotlib.pyplot as plt

    from mola_core.analysis.figures.style import TEXT, study_styles

    study, curves = data.study, data.curves
    if curves.empty:
        return words("No method of this study is trained.")
    tasks = [task for task in study.tasks if (curves["task"] == task).any()]
    labels = [label for label in study.method_by_label if (curves["method"] == label).any()]
    columns = min(PER_ROW, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = plt.figure(figsize=(TEXT, 3.6 * rows + legend_height(len(labels))))
    spec = figure.add_gridspec(2 * rows, columns, height_ratios=[1.2, 1] * rows)
    styles = study_styles(study)
    axes: list[Axes] = []
    for index, task in enumerate(tasks):
        row, column = divmod(index, columns)
        upper = figure.add_subplot(spec[2 * row, column])
        lower = figure.add_subplot(spec[2 * row + 1, column], sharex=upper)
        axes += [upper, lower]
        table = smoothed(curves[curves["task"] == task]).reindex(columns=labels).dropna(axis=1, how="all")
        middle = table.mean(axis=1)
        for label in table:
            look = {"color": styles[label].colour, "linestyle": styles[label].line, "label": label}
            for axis, values in ((upper, table[label]), (lower, table[label] - middle)):
                axis.plot(values.index, values, linewidth=1.2, **look)
        _dress(upper, lower, plain(task_title(task)), left=column == 0)
    shared_legend(figure, axes)
    return figure


def _dress(upper: Axes, lower: Axes, title: str, left: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    upper.set_title(title)
    upper.set_ylim(bottom=0)
    upper.set_xlim(left=0)
    upper.tick_params(labelbottom=False)
    lower.axhline(0, color="black", linewidth=0.6)
    lower.set_xlabel("optimiser step")
    lower.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axis in (upper, lower):
        axis.yaxis.set_major_locator(MaxNLocator(5))
    if left:
        upper.set_ylabel("training loss")
        lower.set_ylabel("minus the mean of\nall methods")


def caption(data: StudyData) -> str:
    steps = data.curves.groupby(["task", "method", "seed"])["step"].nunique().max() if len(data.curves) else 0
    averaged = max(1, round(SMOOTHED_SHARE * steps))
    return (
        f"Training loss, mean over {len(data.study.seeds)} seeds, averaged over the last {averaged} of up to {steps} steps. Below: "
        "the same curves minus the mean of all methods at the step, so that they can be told apart. No interval is drawn; "
        "a training loss is no test score."
    )


FIGURE = FigureEntry("training_loss", "study", 4, "Training loss", draw, caption)
