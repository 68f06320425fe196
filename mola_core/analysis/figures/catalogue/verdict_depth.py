"""Figure: each endpoint against the experts' centre of depth, a panel a budget, with the fitted line and its band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mola_core.analysis import verdict_fields as fields
from mola_core.analysis.figures.drawing import shared_legend, words
from mola_core.analysis.figures.registry import FigureEntry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mola_core.analysis.figures.style import Style


def draw(verdict: Mapping[str, Any]) -> Figure:
    import matplotlib.pyplot as plt

    from mola_core.analysis.figures.style import TEXT

    lines = list(verdict["lines"].items())
    if not lines:
        return words("Fewer than three shapes of one budget: no line over depth.")
    width = TEXT if len(lines) > 1 else 0.72 * TEXT
    figure, panels = plt.subplots(1, len(lines), figsize=(width, 3.2), squeeze=False)
    for axes, (name, line) in zip(panels[0], lines, strict=True):
        places = [point["centre"] for point in line["line"]]
        low, high = ([point[key] for point in line["line"]] for key in ("low", "high"))
        axes.fill_between(
            places,
            low,
            high,
            color="#BBBBBB",
            alpha=0.45,
            linewidth=0,
            label="band: difference from the shapes' mean",
        )
        axes.plot(places, [point["value"] for point in line["line"]], color="#333333", label="fitted line")
        beside = side_by_side([row["centre"] for row in line["shapes"].values()])
        for place, (method, row) in zip(beside, line["shapes"].items(), strict=True):
            axes.errorbar(
                [place],
                [row["value"]],
                yerr=[[row["value"] - row["low"]], [row["high"] - row["value"]]],
                linestyle="",
                elinewidth=1.0,
                label=method.removeprefix("mola-"),
                **_style(method).marker_options(),
            )
        answer = next(question for question in verdict["questions"] if question["id"] == name)
        slope = f"slope {answer['estimate']:+.1f} ({answer['low']:+.1f} to {answer['high']:+.1f}): {answer['answer']}"
        axes.set_title(f"Budget {line['budget']}\n{slope}", loc="left")
        axes.set_ylabel(f"{line['endpoint'].capitalize()} (%), mean over tasks")
        axes.set_xlabel("Experts' centre of depth\n(0: all in the first layer, 1: in the last)")
        axes.margins(x=0.12)
    shared_legend(figure, panels[0])
    return figure


def side_by_side(places: Sequence[float]) -> list[float]:
    """The same places, those that coincide moved apart a little so that no marker hides another."""
    width = max(places) - min(places) or abs(places[0]) or 1.0
    groups: dict[float, list[int]] = {}
    for index, place in enumerate(places):
        groups.setdefault(round(place, 4), []).append(index)
    moved = list(places)
    for members in groups.values():
        for order, index in enumerate(members):
            moved[index] += 0.025 * width * (order - (len(members) - 1) / 2)
    return moved


def _style(method: str) -> Style:
    """The look of a method in every figure; a name that no study knows gets the look of `other`."""
    from mola_core.analysis.figures.style import PROFILES, Style, method_style
    from mola_core.methods.settings import MethodSettings

    try:
        return method_style(MethodSettings(method=method))
    except ValueError:
        return Style(*PROFILES["other"])


def caption(verdict: Mapping[str, Any]) -> str:
    return (
        f"{fields.asked_line(verdict)}. By the primary endpoint first. Bars and band are {fields.confidence(verdict)} intervals of the difference from the shapes' common mean, "
        "not of the accuracy itself: hard documents are hard for every shape, and what all share cancels in the slope. So they are "
        "several times narrower than the bars of accuracy against parameters, which show each method by itself. The centre of depth is the mean "
        "place of the experts. Shapes at one centre stand side by side. The slope is in points per unit of depth."
    )


FIGURE = FigureEntry(
    "verdict-depth",
    "verdict",
    2,
    "Accuracy and likelihood against the experts' centre of depth",
    draw,
    caption,
)
