"""Figure: accuracy against trainable parameters, a panel a task and one for their mean.

Methods of nearly the same size stand side by side in a group that is headed by its size: on a scale of parameters
they would hide one another, and a distance between them would be made up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from mola_core.analysis.collect import chance_label, chance_levels
from mola_core.analysis.figures.drawing import grid, legend_height, outer_labels, plain, shared_legend, words
from mola_core.analysis.figures.registry import FigureEntry, StudyData
from mola_core.analysis.reference.numbers import task_title
from mola_core.analysis.scores import ScoreMatrix, shared_runs
from mola_core.analysis.statistics.estimates import combine, components
from mola_core.methods.family import BASE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mola_core.analysis.figures.style import Style

LEVEL = 0.05
GROUP_GAP = 1.0
"""Between groups of methods of one size, in the distance of two methods."""


def accuracies(
    matrix: ScoreMatrix, method: str, tasks: Sequence[str], seeds_shared: bool = True
) -> tuple[float, float, float] | None:
    """Mean accuracy over seeds, then tasks, and its 95 % interval over seeds and documents (`statistics`), shares.

    With `seeds_shared` a seed of all tasks may be one training, as in `decide`. None where the method lacks one of the tasks.
    """
    blocks = [block for block in matrix.blocks if block.name in tasks]
    there = [block for block in blocks if method in block.methods]
    if not there or len(there) < len(tasks):
        return None
    runs = shared_runs(there, {method: 1.0}) if seeds_shared else None
    estimate = combine([components(block.contrast({method: 1.0}), block.clusters) for block in there], runs)
    low, high = estimate.interval(LEVEL)
    return float(estimate.value), float(low), float(high)


def draw(data: StudyData) -> Figure:
    from mola_core.analysis.figures.style import study_styles

    study, cells, matrix = data.study, data.cells, data.matrix
    panels: list[tuple[str, list[str]]] = [(task_title(task), [task]) for task in study.tasks]
    if len(panels) > 1:
        panels.insert(0, ("Mean over tasks", study.tasks))
    # Data may decide the size of each cell: the mean.
    trained = cells[cells["trainable_parameters"] > 0].groupby("method")["trainable_parameters"].mean()
    groups = size_groups(
        {label: round(trained[label]) for label in study.method_by_label if label in trained}
    )
    if not groups:
        return words("No method of this study is trained.")
    entries = sum(len(group.methods) for group in groups)
    figure, axes = grid(len(panels), height=2.2, legend=legend_height(entries), first_wide=len(panels) > 3)
    styles = study_styles(study)
    for axis, (title, tasks) in zip(axes, panels, strict=True):
        axis.set_title(plain(title))
        place = 0.0
        ticks = []
        for group in groups:
            for offset, label in enumerate(group.methods):
                _point(
                    axis,
                    place + offset,
                    accuracies(matrix, label, tasks, study.seeds_shared),
                    styles[label],
                    label,
                )
            ticks.append(place + (len(group.methods) - 1) / 2)
            place += len(group.methods) + GROUP_GAP
        _size_axis(axis, groups, ticks, place)
        _without_training(axis, cells, matrix, tasks)
    outer_labels(axes, "trainable parameters", "accuracy (%), 95 % interval")
    shared_legend(figure, axes)
    return figure


def caption(data: StudyData) -> str:
    cells = data.cells
    documents = cells.groupby("task")["documents"].first()
    named = ", ".join(
        f"{task_title(task)} {documents[task]:,}" for task in data.study.tasks if task in documents
    )
    seeds = len(data.study.seeds)
    return (
        f"Accuracy of each method against its trainable parameters, mean over {seeds} seed{'s' * (seeds != 1)}; "
        f"documents: {named}. Bars are 95 % intervals of one method over documents and, with two or more seeds, "
        "over seeds. Methods share documents, so bars that overlap do not mean that two methods cannot be told "
        "apart: the forest plot compares them in pairs. Sizes within 5 % of each other share a column, and the "
        "order in a column means nothing. Filled markers have a router, hollow ones are plain LoRA of the same "
        "ranks; a grey number is what no training gives."
    )


@dataclasses.dataclass
class SizeGroup:
    """Methods of nearly the same number of trainable parameters."""

    methods: list[str]
    smallest: int
    largest: int

    @property
    def title(self) -> str:
        low, high = short_count(self.smallest), short_count(self.largest)
        return low if low == high else f"{low}–\n{high}"


def size_groups(sizes: dict[str, int], near: float = 1.05) -> list[SizeGroup]:
    """Methods by size, smallest first; neighbours that differ by less than the factor `near` share a group.

    Within a group the order is that of `sizes`.
    """
    groups: list[SizeGroup] = []
    for label in sorted(sizes, key=lambda label: sizes[label]):
        size = sizes[label]
        if groups and size < near * groups[-1].largest:
            groups[-1].methods.append(label)
            groups[-1].largest = size
        else:
            groups.append(SizeGroup([label], size, size))
    order = list(sizes)
    for group in groups:
        group.methods.sort(key=order.index)
    return groups


def _point(
    axis: Axes, place: float, found: tuple[float, float, float] | None, style: Style, label: str
) -> None:
    if found is None:
        return
    value, low, high = (100 * number for number in found)
    bars = [[value - max(low, 0)], [min(high, 100) - value]]
    axis.errorbar(
        place,
        value,
        yerr=bars,
        label=label,
        linestyle="none",
        elinewidth=0.9,
        **style.marker_options(),
        zorder=3,
    )


def _without_training(axis: Axes, cells: pd.DataFrame, matrix: ScoreMatrix, tasks: list[str]) -> None:
    """What no training gives, in words below and as lines where the axis reaches so far."""
    found = accuracies(matrix, BASE, tasks, seeds_shared=False)
    own = cells[cells["task"].isin(tasks)]
    levels = {chance_label(own): chance_levels(own).mean()}
    if found:
        levels = {"untrained": found[0]} | levels
    low, high = axis.get_ylim()
    # Room for the words below the points.
    low -= 0.16 * (high - low)
    for (name, level), line in zip(levels.items(), ["--", ":"], strict=False):
        if low <= 100 * level <= high + 0.05 * (high - low):
            axis.axhline(100 * level, color="#7F7F7F", linestyle=line, linewidth=1, zorder=1, label=name)
    axis.set_ylim(low, high)
    words = ", ".join(f"{name} {100 * level:.1f}" for name, level in levels.items())
    axis.text(0.02, 0.02, words, transform=axis.transAxes, fontsize=7, color="#555555", va="bottom")


def _size_axis(axis: Axes, groups: list[SizeGroup], ticks: list[float], end: float) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.set_xlim(-1, end - GROUP_GAP)
    turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if len(groups) > 3 else {}
    titles = [group.title.replace("\n", "") if turned else group.title for group in groups]
    axis.set_xticks(ticks, titles, **turned)
    axis.grid(False, axis="x")
    for before, after in zip(groups[:-1], ticks[:-1], strict=True):
        edge = after + (len(before.methods) + GROUP_GAP) / 2
        axis.axvline(edge, color="#E4E4E4", linewidth=0.8, zorder=0)


def short_count(value: float) -> str:
    """105,635,840 as `105.6 M`."""
    for unit, name in [(1e9, " B"), (1e6, " M"), (1e3, " k")]:
        if value >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:g}"


FIGURE = FigureEntry(
    "accuracy_parameters", "study", 1, "Accuracy against trainable parameters", draw, caption
)
