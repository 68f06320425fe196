"""Figure: each shape as the paper draws it, layer 1 at the bottom, as wide as the layer has experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mola_core.analysis.figures.drawing import plain, words
from mola_core.analysis.figures.registry import FigureEntry, StudyData
from mola_core.methods.registry import family_of, layer_experts, parse_method
from mola_core.shapes import budget, quarters
from mola_core.study.study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mola_core.analysis.figures.style import Style
    from mola_core.methods.settings import MethodSettings


def draw(data: StudyData) -> Figure:
    import matplotlib.pyplot as plt

    from mola_core.analysis.figures.style import study_styles

    study, depth, chosen = data.study, data.depth, data.chosen
    shapes: dict[str, tuple[Sequence[float], Style]] = {}
    styles = study_styles(study)
    for label, settings in study.method_by_label.items():
        method = parse_method(settings)
        experts: Sequence[float] | None = None
        if depth:
            experts = chosen.get(label) if method.budget else _of_layers(settings, depth)
        # A matched LoRA has its shape's profile; it is drawn once, as the shape.
        routed = family_of(settings).role == "routed"
        if experts and (routed or f"mola-{method.shape}" not in study.method_by_label):
            shapes[label] = (experts, styles[label])
    if not shapes:
        return words("No method of this study has experts per layer.")
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


def _of_layers(settings: MethodSettings, depth: int) -> Sequence[float] | None:
    """The mean over its target modules where they differ."""
    experts = layer_experts(settings, depth)
    return np.mean(list(experts.values()), axis=0).tolist() if isinstance(experts, dict) else experts


def _shape(axis: Axes, label: str, experts: Sequence[float], style: Style, study: Study) -> None:
    from matplotlib.colors import to_rgb

    layers = np.arange(1, len(experts) + 1)
    left = -np.asarray(experts) / 2
    axis.barh(layers, experts, left=left, height=1.0, color=style.colour, edgecolor="white", linewidth=0.4)
    method = parse_method(study.method_by_label[label])
    size = budget(method.shape) if method.shape else method.budget
    sized = f"budget {size}, " if size else ""
    axis.set_title(f"{plain(label, 20)}\n", pad=2)
    axis.text(
        0.5,
        1.02,
        f"{sized}{round(sum(experts))} experts",
        transform=axis.transAxes,
        ha="center",
        va="bottom",
        fontsize=7,
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


def caption(data: StudyData) -> str:
    depth = f"{data.depth} layers" if data.depth else "layers"
    return (
        f"Experts in each of the {depth} of {data.study.model.name}, layer 1 at the bottom. Ticks stand at the last layer "
        "of each quarter of the depth. A LoRA matched to a shape is not drawn again. Shapes that data chose are means "
        "over cells, those of methods with experts by module means over modules; nothing here has an interval."
    )


FIGURE = FigureEntry("experts_per_layer", "study", 3, "Experts in each layer", draw, caption)
