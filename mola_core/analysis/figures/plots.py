"""Drawing a study's own figures: accuracy against size, the shapes, the training loss. `figures` saves them."""

import dataclasses
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mola_core.analysis.figures.style import COLUMN, TEXT, Style, study_styles
from mola_core.analysis.reference.numbers import task_title
from mola_core.analysis.scores import ScoreMatrix
from mola_core.analysis.statistics.estimates import combine, components
from mola_core.methods.registry import family_of, layer_experts, parse_method
from mola_core.shapes import budget, quarters
from mola_core.study.study import Study

LEVEL = 0.05
GROUP_GAP = 1.0
"""Between groups of methods of one size, in the distance of two methods."""
SMOOTHED_SHARE = 0.05
"""Share of the training steps over which the loss curves are averaged."""


def accuracies(matrix: ScoreMatrix, method: str, tasks: Sequence[str]) -> tuple[float, float, float] | None:
    """Mean accuracy over seeds, then tasks, and its 95 % interval over seeds and documents (`statistics`), shares.

    None where the method lacks one of the tasks.
    """
    blocks = [block for block in matrix.blocks if block.name in tasks]
    contrasts = [block.contrast({method: 1.0}) for block in blocks if method in block.methods]
    if not contrasts or len(contrasts) < len(tasks):
        return None
    estimate = combine([components(contrast) for contrast in contrasts])
    low, high = estimate.interval(LEVEL)
    return float(estimate.value), float(low), float(high)


def accuracy_parameters(study: Study, cells: pd.DataFrame, matrix: ScoreMatrix) -> Figure:
    """Accuracy against trainable parameters, one panel a task and one for their mean.

    Methods of nearly the same size stand side by side in a group that is headed by its size: on a scale of
    parameters they would hide one another.
    """
    panels: list[tuple[str, list[str]]] = [(task_title(task), [task]) for task in study.tasks]
    if len(panels) > 1:
        panels.insert(0, ("Mean over tasks", study.tasks))
    trained = cells[cells["trainable_parameters"] > 0].groupby("method")["trainable_parameters"].first()
    groups = size_groups({label: int(trained[label]) for label in study.method_by_label if label in trained})
    if not groups:
        return _nothing_to_draw("No method of this study is trained.")
    entries = sum(len(group.methods) for group in groups)
    figure, axes = _grid(len(panels), height=2.0, legend=_legend_height(entries), first_wide=len(panels) > 3)
    styles = study_styles(study)
    for axis, (title, tasks) in zip(axes, panels, strict=True):
        axis.set_title(title)
        place = 0.0
        ticks = []
        for group in groups:
            for offset, label in enumerate(group.methods):
                _point(axis, place + offset, accuracies(matrix, label, tasks), styles[label], label)
            ticks.append(place + (len(group.methods) - 1) / 2)
            place += len(group.methods) + GROUP_GAP
        _size_axis(axis, groups, ticks, place)
        _without_training(axis, study, cells, matrix, tasks)
    _outer_labels(axes, "trainable parameters", "accuracy (%), 95 % interval")
    _legend(figure, axes)
    return figure


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


def _without_training(
    axis: Axes, study: Study, cells: pd.DataFrame, matrix: ScoreMatrix, tasks: list[str]
) -> None:
    """What no training gives, in words below and as lines where the axis reaches so far."""
    base = next((label for label, method in study.method_by_label.items() if method.method == "base"), None)
    found = accuracies(matrix, base, tasks) if base else None
    own = cells[cells["task"].isin(tasks)].groupby("task")[["majority", "documents"]].first()
    levels = {"majority class": (own["majority"] / own["documents"]).mean()}
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
    axis.text(0.02, 0.02, words, transform=axis.transAxes, fontsize=6.3, color="#555555", va="bottom")


def _size_axis(axis: Axes, groups: list[SizeGroup], ticks: list[float], end: float) -> None:
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


def experts_per_layer(
    study: Study, depth: int | None, chosen: Mapping[str, Sequence[float]] | None = None
) -> Figure:
    """Each shape as the paper draws it: layer 1 at the bottom, as wide as the layer has experts.

    `chosen` are the experts by layer of methods whose name does not tell, as `collect.recorded_experts` gives them.
    """
    shapes: dict[str, tuple[Sequence[float], Style]] = {}
    styles = study_styles(study)
    for label, settings in study.method_by_label.items():
        method = parse_method(settings)
        experts: Sequence[float] | None = None
        if depth:
            experts = (chosen or {}).get(label) if method.budget else layer_experts(settings, depth)
        # A matched LoRA has its shape's profile; it is drawn once, as the shape.
        if experts and (
            family_of(settings).role == "routed" or f"mola-{method.shape}" not in study.method_by_label
        ):
            shapes[label] = (experts, styles[label])
    if not shapes:
        return _nothing_to_draw("No method of this study has experts per layer.")
    columns = min(5, len(shapes))
    rows = -(-len(shapes) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(0.5 + 1.3 * columns, 0.35 + 1.75 * rows),
        squeeze=False,
        sharex=True,
        sharey=True,
    )
    widest = max(max(experts) for experts, _ in shapes.values())
    for axis, (label, (experts, style)) in zip(axes.flat, shapes.items(), strict=False):
        _shape(axis, label, experts, style, study)
        axis.set_xlim(-0.5 * widest - 0.6, 0.5 * widest + 0.6)
    for axis in axes.flat[len(shapes) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("layer")
    return figure


def _shape(axis: Axes, label: str, experts: Sequence[float], style: Style, study: Study) -> None:
    layers = np.arange(1, len(experts) + 1)
    left = -np.asarray(experts) / 2
    axis.barh(layers, experts, left=left, height=1.0, color=style.colour, edgecolor="white", linewidth=0.4)
    method = parse_method(study.method_by_label[label])
    size = budget(method.shape) if method.shape else method.budget
    sized = f"budget {size}, " if size else ""
    axis.set_title(f"{label}\n", pad=2)
    axis.text(
        0.5,
        1.02,
        f"{sized}{round(sum(experts))} experts",
        transform=axis.transAxes,
        ha="center",
        va="bottom",
        fontsize=6.5,
    )
    dark = np.dot([0.2126, 0.7152, 0.0722], to_rgb(style.colour)) < 0.55
    start = 0
    # Single layers leave no room for a number.
    least = 3 if len(experts) > 8 else 1
    for count, length in _runs(experts):
        if length < least:
            start += length
            continue
        axis.text(
            0,
            start + (length + 1) / 2,
            f"{count:g}",
            ha="center",
            va="center",
            color="white" if dark else "black",
            fontweight="bold",
            bbox={"facecolor": style.colour, "edgecolor": "none", "pad": 1},
        )
        start += length
    axis.set_xticks([])
    # The last layer of each quarter.
    axis.set_yticks(
        sorted({1, len(experts), *np.cumsum(quarters(len(experts)))} if len(experts) >= 4 else layers)
    )
    axis.set_ylim(0.4, len(experts) + 0.6)
    axis.grid(False)
    axis.spines["bottom"].set_visible(False)


def _runs(experts: Sequence[float]) -> list[tuple[float, int]]:
    """Runs of layers with equally many experts: (experts, layers)."""
    edges = np.flatnonzero(np.diff(experts, prepend=-1, append=-1))
    return [(experts[start], int(stop - start)) for start, stop in zip(edges[:-1], edges[1:], strict=True)]


def training_loss(study: Study, curves: pd.DataFrame) -> Figure:
    """Training loss against optimiser steps, mean over seeds, one panel a task."""
    if curves.empty:
        return _nothing_to_draw("No method of this study is trained.")
    tasks = [task for task in study.tasks if (curves["task"] == task).any()]
    labels = [label for label in study.method_by_label if (curves["method"] == label).any()]
    figure, axes = _grid(len(tasks), height=2.1, legend=_legend_height(len(labels)))
    styles = study_styles(study)
    for axis, task in zip(axes, tasks, strict=True):
        axis.set_title(task_title(task))
        for label in labels:
            own = curves[(curves["task"] == task) & (curves["method"] == label)]
            mean = own.groupby("step")["loss"].mean()
            window = max(1, round(SMOOTHED_SHARE * len(mean)))
            smooth = mean.rolling(window, min_periods=1).mean()
            style = styles[label]
            axis.plot(
                smooth.index, smooth, color=style.colour, linestyle=style.line, label=label, linewidth=1.1
            )
        axis.set_ylim(bottom=0)
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(5))
    _outer_labels(axes, "optimiser step", "training loss")
    _legend(figure, axes)
    return figure


def _grid(panels: int, height: float, legend: float, first_wide: bool = False) -> tuple[Figure, list[Axes]]:
    """Panels in rows of up to three; `first_wide` gives the first one a row of its own. Sizes in inches."""
    small = panels - first_wide
    columns = min(3, small) if small != 4 else 2
    rows = -(-small // columns) + first_wide
    figure = plt.figure(figsize=(TEXT if columns > 1 else COLUMN, height * rows + legend))
    grid = figure.add_gridspec(rows, columns)
    axes = [figure.add_subplot(grid[0, :])] if first_wide else []
    axes += [
        figure.add_subplot(grid[index // columns + first_wide, index % columns]) for index in range(small)
    ]
    return figure, axes


def _outer_labels(axes: Sequence[Axes], below: str, left: str) -> None:
    for axis in axes:
        place = axis.get_subplotspec()
        if place.is_first_col():
            axis.set_ylabel(left)
        if place.is_last_row():
            axis.set_xlabel(below)


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, below them."""
    entries: dict[str, object] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    columns = min(_legend_columns(figure.get_figwidth()), len(entries))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)


def _legend_columns(width: float) -> int:
    return max(2, int(width / 1.5))


def _legend_height(entries: int, width: float = TEXT) -> float:
    """Inches that a legend with so many methods takes."""
    return 0.35 + 0.15 * -(-(entries + 2) // _legend_columns(width))


def _nothing_to_draw(reason: str) -> Figure:
    figure, axis = plt.subplots(figsize=(3.4, 1.0))
    axis.axis("off")
    axis.text(0.5, 0.5, reason, ha="center", va="center")
    return figure
