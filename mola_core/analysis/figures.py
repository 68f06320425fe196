"""The study's own figures, drawn from its collected files: accuracy against size, the shapes, the training loss."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from mola_core.analysis.collect import read_cells, read_curves
from mola_core.analysis.drawing import heading, save_figure
from mola_core.analysis.notices import missing_cells, notices
from mola_core.analysis.parameters import layer_matrices
from mola_core.analysis.reference import task_title
from mola_core.analysis.scores import ScoreMatrix, load_scores, score_matrix
from mola_core.analysis.statistics import combine, components
from mola_core.analysis.style import TEXT, Style, figure_style, study_styles
from mola_core.analysis.tables import model_depth
from mola_core.layout import Layout
from mola_core.methods import layer_experts, parse_method
from mola_core.shapes import parse_shape
from mola_core.study import Study

FIGURES = ("accuracy_parameters", "experts_per_layer", "training_loss")
"""Figures of every study: `figures/<name>.{svg,png}`."""

LEVEL = 0.05
SMOOTHED_SHARE = 0.05
"""Share of the training steps over which the loss curves are averaged."""


def write(layout: Layout, out_dir: Path | None = None) -> None:
    """Write `FIGURES` from the collected files into `out_dir` (default: the study's `figures`)."""
    study, cells = layout.study, read_cells(layout.folder)
    folder = Path(out_dir or layout.folder / "figures")
    said = notices(study, missing_cells(study, cells))
    with figure_style():
        matrix = score_matrix(load_scores(layout.folder / "scores.parquet"))
        depth = model_depth(cells, layer_matrices(layout.model))
        drawn = [
            accuracy_parameters(study, cells, matrix),
            experts_per_layer(study, depth),
            training_loss(study, read_curves(layout.folder)),
        ]
        for name, figure in zip(FIGURES, drawn, strict=True):
            heading(figure, said)
            save_figure(figure, folder / name)


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
    """Accuracy against trainable parameters, one panel a task and one for their mean."""
    panels: list[tuple[str, list[str]]] = [(task_title(task), [task]) for task in study.tasks]
    if len(panels) > 1:
        panels.insert(0, ("Mean over tasks", study.tasks))
    trained = cells[cells["trainable_parameters"] > 0].groupby("method")["trainable_parameters"].first()
    sizes = {label: int(trained[label]) for label in study.method_by_label if label in trained}
    places = spread_sideways(sizes)
    figure, axes = _grid(len(panels), height=2.1, legend=0.25 + 0.14 * (len(sizes) + 2) / 4)
    styles = study_styles(study)
    for axis, (title, tasks) in zip(axes, panels, strict=True):
        axis.set_title(title)
        _reference_lines(axis, study, cells, matrix, tasks)
        for label, place in places.items():
            found = accuracies(matrix, label, tasks)
            if found:
                _point(axis, place, found, styles[label], label)
        _parameter_axis(axis, sizes)
    _shared_labels(figure, axes, "trainable parameters", "accuracy (%)")
    _legend(figure, axes)
    return figure


def spread_sideways(sizes: dict[str, int], step: float = 0.035) -> dict[str, float]:
    """Where to draw each method: methods of nearly the same size are set apart sideways by `step` of the axis."""
    if not sizes:
        return {}
    low, high = _limits(sizes)
    gap = step * np.log(high / low)
    labels = sorted(sizes, key=lambda label: sizes[label])
    groups: list[list[str]] = []
    for label in labels:
        near = groups and np.log(sizes[label] / sizes[groups[-1][-1]]) < gap
        groups[-1].append(label) if near else groups.append([label])
    places = {}
    for group in groups:
        centre = np.mean([np.log(sizes[label]) for label in group])
        # Study order within a group, so that panels and legend read alike.
        members = [label for label in sizes if label in group]
        for index, label in enumerate(members):
            places[label] = float(np.exp(centre + gap * (index - (len(members) - 1) / 2)))
    return {label: places[label] for label in sizes}


def _limits(sizes: dict[str, int]) -> tuple[float, float]:
    """Limits of the logarithmic axis: the data and a margin, at least a factor of three in all."""
    low, high = min(sizes.values()), max(sizes.values())
    margin = max(1.25, (3 * low / high) ** 0.5 if high < 3 * low else 1.25)
    return low / margin, high * margin


def _point(axis: Axes, place: float, found: tuple[float, float, float], style: Style, label: str) -> None:
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


def _reference_lines(
    axis: Axes, study: Study, cells: pd.DataFrame, matrix: ScoreMatrix, tasks: list[str]
) -> None:
    """What no training gives: the base model and always the same answer."""
    base = next((label for label, method in study.method_by_label.items() if method.method == "base"), None)
    found = accuracies(matrix, base, tasks) if base else None
    if found:
        axis.axhline(
            100 * found[0],
            color="#7F7F7F",
            linestyle="--",
            linewidth=1,
            label="base model, untrained",
            zorder=1,
        )
    own = cells[cells["task"].isin(tasks)].groupby("task")[["majority", "documents"]].first()
    majority = (own["majority"] / own["documents"]).mean()
    axis.axhline(
        100 * majority, color="#7F7F7F", linestyle=":", linewidth=1, label="majority class", zorder=1
    )


def _parameter_axis(axis: Axes, sizes: dict[str, int]) -> None:
    axis.yaxis.set_major_locator(MaxNLocator(5))
    if not sizes:
        axis.set_xticks([])
        axis.text(0.5, 0.9, "no trained method", transform=axis.transAxes, ha="center")
        return
    low, high = _limits(sizes)
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    narrow = high / low < 30
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axis.xaxis.set_minor_formatter(NullFormatter())


def short_count(value: float) -> str:
    """20,000,000 as `20 M`."""
    for unit, name in [(1e9, " B"), (1e6, " M"), (1e3, " k")]:
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def experts_per_layer(study: Study, depth: int | None) -> Figure:
    """Each shape as the paper draws it: layer 1 at the bottom, as wide as the layer has experts."""
    shapes: dict[str, tuple[list[int], Style]] = {}
    styles = study_styles(study)
    for label, settings in study.method_by_label.items():
        method = parse_method(settings)
        experts = layer_experts(settings, depth) if depth and (method.shape or settings.experts) else None
        # A matched LoRA has its shape's profile; it is drawn once, as the shape.
        if experts and (method.kind == "mola" or f"mola-{method.shape}" not in study.method_by_label):
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


def _shape(axis: Axes, label: str, experts: list[int], style: Style, study: Study) -> None:
    layers = np.arange(1, len(experts) + 1)
    left = -np.asarray(experts) / 2
    axis.barh(layers, experts, left=left, height=1.0, color=style.colour, edgecolor="white", linewidth=0.4)
    shape = parse_method(study.method_by_label[label]).shape
    budget = f"budget {sum(parse_shape(shape))}, " if shape else ""
    axis.set_title(f"{label}\n", pad=2)
    axis.text(
        0.5,
        1.02,
        f"{budget}{sum(experts)} experts",
        transform=axis.transAxes,
        ha="center",
        va="bottom",
        fontsize=6.5,
    )
    start = 0
    for count, length in _runs(experts):
        axis.text(
            0,
            start + (length + 1) / 2,
            str(count),
            ha="center",
            va="center",
            color="white",
            fontweight="bold",
        )
        start += length
    axis.set_xticks([])
    axis.set_yticks([1, *range(len(experts) // 4, len(experts) + 1, max(1, len(experts) // 4))])
    axis.set_ylim(0.4, len(experts) + 0.6)
    axis.grid(False)
    axis.spines["bottom"].set_visible(False)


def _runs(experts: list[int]) -> list[tuple[int, int]]:
    """Runs of layers with equally many experts: (experts, layers)."""
    edges = np.flatnonzero(np.diff(experts, prepend=-1, append=-1))
    return [(experts[start], int(stop - start)) for start, stop in zip(edges[:-1], edges[1:], strict=True)]


def training_loss(study: Study, curves: pd.DataFrame) -> Figure:
    """Training loss against optimiser steps, mean over seeds, one panel a task."""
    if curves.empty:
        return _nothing_to_draw("No method of this study is trained.")
    tasks = [task for task in study.tasks if (curves["task"] == task).any()]
    labels = [label for label in study.method_by_label if (curves["method"] == label).any()]
    figure, axes = _grid(len(tasks), height=2.1, legend=0.25 + 0.14 * len(labels) / 4)
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
    _shared_labels(figure, axes, "optimiser step", "training loss")
    _legend(figure, axes)
    return figure


def _grid(panels: int, height: float, legend: float) -> tuple[Figure, list[Axes]]:
    """Panels in rows of up to four, or three where that leaves no gap, with room for a legend below (inches)."""
    columns = panels if panels <= 4 else 3 if panels % 3 == 0 else 4
    rows = -(-panels // columns)
    width = TEXT if columns > 2 else 2.6 * columns + 0.6
    figure, axes = plt.subplots(rows, columns, figsize=(width, height * rows + legend), squeeze=False)
    for axis in axes.flat[panels:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:panels])


def _shared_labels(figure: Figure, axes: Sequence[Axes], below: str, left: str) -> None:
    columns = axes[0].get_gridspec().ncols
    for index, axis in enumerate(axes):
        if index % columns == 0:
            axis.set_ylabel(left)
        if index + columns >= len(axes):
            axis.set_xlabel(below)


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, below them."""
    entries: dict[str, object] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    columns = max(2, int(figure.get_figwidth() / 1.55))
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=min(columns, len(entries))
    )


def _nothing_to_draw(reason: str) -> Figure:
    figure, axis = plt.subplots(figsize=(3.4, 1.0))
    axis.axis("off")
    axis.text(0.5, 0.5, reason, ha="center", va="center")
    return figure
