"""The figures of a verdict: differences, depth, ranks, and accuracy against size; each as SVG and PNG.

Matplotlib is imported where it draws: the workflow reads `FIGURES` from here and needs nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mola_core.analysis.statistics.questions import FAMILIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mola_core.analysis.figures.style import Style

FIGURES = ("verdict-forest", "verdict-depth", "verdict-ranks", "verdict-pareto")
ANSWERS = {
    "supported": {"color": "#0072B2", "marker": "o", "markerfacecolor": "#0072B2"},
    "contradicted": {"color": "#D55E00", "marker": "s", "markerfacecolor": "#D55E00"},
    "undecided": {"color": "#6E6E6E", "marker": "D", "markerfacecolor": "white"},
}


def draw_verdict(verdict: Mapping[str, Any], folder: str | Path) -> None:
    """Draw every one of `FIGURES` into `folder`. One that the data do not allow says so in words."""
    from mola_core.analysis.figures.drawing import save_figure
    from mola_core.analysis.figures.style import figure_style

    drawings: dict[str, Callable[[Mapping[str, Any]], Figure]] = {
        "verdict-forest": _forest,
        "verdict-depth": _depth,
        "verdict-ranks": _ranks,
        "verdict-pareto": _pareto,
    }
    with figure_style():
        for name in FIGURES:
            figure = drawings[name](verdict)
            if verdict.get("stand_in"):
                figure.suptitle("Stand-in data: says nothing about a benchmark", fontsize=7, color="#A03000")
            save_figure(figure, Path(folder) / name)


def forest(
    rows: Iterable[Mapping[str, Any]], *, label: str, width: float, limit: float | None = None
) -> Figure:
    """A forest plot.

    A row has `label`, `answer`, `estimate`, `low` and `high`, and may have `inner_low` and `inner_high` for a
    second, thick interval; one with only `label` is a heading. Beyond ±`limit` points, intervals end in an
    arrow.
    """
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    rows = list(rows)
    figure, axes = plt.subplots(figsize=(width, 0.75 + 0.165 * len(rows)))
    for place, row in enumerate(rows):
        if row.get("estimate") is None:
            continue
        look = ANSWERS[row["answer"]]
        axes.plot([row["low"], row["high"]], [place, place], color=look["color"], linewidth=1.3)
        if "inner_low" in row:
            inner = [row["inner_low"], row["inner_high"]]
            axes.plot(
                inner, [place, place], color=look["color"], linewidth=4.5, alpha=0.35, solid_capstyle="butt"
            )
        axes.plot(row["estimate"], place, linestyle="", markersize=4.2, markeredgewidth=1.0, **look)
        if limit is not None:
            for beyond, side, marker in ((row["low"] < -limit, -1, "<"), (row["high"] > limit, 1, ">")):
                if beyond:
                    axes.plot(
                        side * limit, place, marker=marker, color=look["color"], markersize=4, clip_on=False
                    )
            if abs(row["estimate"]) > limit:
                words = f"{row['estimate']:+.1f}"
                side = -1 if row["estimate"] < 0 else 1
                axes.annotate(
                    words,
                    (side * limit * 0.95, place),
                    va="bottom",
                    fontsize=6,
                    ha="left" if side < 0 else "right",
                )
    axes.axvline(0, color="black", linewidth=0.7)
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        if "estimate" not in row:
            tick.set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(label, loc="right")
    if limit is not None:
        axes.set_xlim(-limit, limit)
    used = {row["answer"] for row in rows if row.get("estimate") is not None}
    handles = [
        Line2D([], [], linewidth=1.3, markersize=4.2, label=name, **look)
        for name, look in ANSWERS.items()
        if name in used
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, handlelength=1.6, columnspacing=1.2)
    return figure


def _forest(verdict: Mapping[str, Any]) -> Figure:
    """Every question in accuracy points; a slope as the difference that it makes between the outermost
    shapes.
    """
    from mola_core.analysis.figures.style import COLUMN

    rows: list[dict[str, Any]] = []
    for family, title in FAMILIES.items():
        answers = [q for q in verdict["questions"] if q["family"] == family and q["estimate"] is not None]
        if answers:
            rows.append({"label": title})
        for question in answers:
            scaled = {key: question[key] * question["reach"] for key in ("estimate", "low", "high")}
            rows.append({"label": _short(question), "answer": question["answer"], **scaled})
    if not rows:
        return _words("No question can be put to these methods.")
    confidence = f"{100 * (1 - verdict['level']):g} % interval"
    return forest(rows, label=f"Difference in accuracy (points, {confidence})", width=1.35 * COLUMN)


def _short(question: Mapping[str, Any]) -> str:
    if question["reach"] == 1:
        return question["id"].replace("-vs-", " − ").replace("placement ", "placement: ")
    return f"{question['id']} (outermost shapes)"


def _depth(verdict: Mapping[str, Any]) -> Figure:
    """Accuracy against the experts' centre of depth, one panel for each budget, with the fitted line and
    band.
    """
    import matplotlib.pyplot as plt

    from mola_core.analysis.figures.style import COLUMN

    lines = list(verdict["lines"].items())
    if not lines:
        return _words("Fewer than three shapes of one budget: no line over depth.")
    figure, panels = plt.subplots(1, len(lines), figsize=(COLUMN * len(lines), 2.7), squeeze=False)
    for axes, (name, line) in zip(panels[0], lines, strict=True):
        places = [point["centre"] for point in line["line"]]
        axes.fill_between(
            places,
            [point["low"] for point in line["line"]],
            [point["high"] for point in line["line"]],
            color="#BBBBBB",
            alpha=0.45,
            linewidth=0,
        )
        axes.plot(places, [point["accuracy"] for point in line["line"]], color="#333333")
        beside = _side_by_side([row["centre"] for row in line["shapes"].values()])
        for place, (method, row) in zip(beside, line["shapes"].items(), strict=True):
            _marked(axes, place, row, _style(method), method.removeprefix("mola-"))
        answer = next(question for question in verdict["questions"] if question["id"] == name)
        slope = f"slope {answer['estimate']:+.1f} ({answer['low']:+.1f} to {answer['high']:+.1f}): {answer['answer']}"
        axes.set_title(f"Budget {line['budget']}\n{slope}", loc="left")
        axes.set_xlabel("Experts' centre of depth (0: first layer, 1: last)")
        axes.set_ylabel("Accuracy, mean over tasks (%)")
        axes.margins(x=0.12)
    figure.legend(
        *_legend(panels[0]), loc="outside lower center", ncols=6, handletextpad=0.2, columnspacing=1.0
    )
    return figure


def _legend(panels: Iterable[Axes]) -> tuple[list[Any], list[str]]:
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def _side_by_side(places: Sequence[float]) -> list[float]:
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


def _marked(axes: Axes, place: float, row: Mapping[str, Any], style: Style, label: str) -> None:
    spans = [[row["accuracy"] - row["low"]], [row["high"] - row["accuracy"]]]
    axes.errorbar(
        [place],
        [row["accuracy"]],
        yerr=spans,
        linestyle="",
        elinewidth=0.9,
        label=label,
        **style.marker_options(),
    )


def _style(method: str) -> Style:
    """The look of a method in every figure; a name that no study knows gets the look of `other`."""
    from mola_core.analysis.figures.style import PROFILES, Style, method_style
    from mola_core.methods.settings import MethodSettings

    try:
        return method_style(MethodSettings(method=method))
    except ValueError:
        return Style(*PROFILES["other"])


def _ranks(verdict: Mapping[str, Any]) -> Figure:
    """Probability of each rank of each method, best first."""
    import matplotlib.pyplot as plt
    import numpy as np

    from mola_core.analysis.figures.style import COLUMN

    ranked = {method: row["ranks"] for method, row in verdict["methods"].items() if row["ranks"]}
    if len(ranked) < 2:
        return _words("Fewer than two methods with all seeds of all tasks: no ranks.")
    table = 100 * np.array(list(ranked.values()))
    size = 0.22 * len(ranked)
    figure, axes = plt.subplots(figsize=(max(COLUMN, 1.4 + 1.3 * size), 0.75 + size))
    image = axes.imshow(table, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        if value >= 0.5:
            colour = "white" if value > 55 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
    axes.set_xticks(range(len(ranked)), range(1, len(ranked) + 1))
    axes.set_yticks(range(len(ranked)), list(ranked))
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.set_xlabel("Rank by mean accuracy (1: best)")
    figure.colorbar(image, ax=axes, label="Probability (%)", shrink=0.9, pad=0.02)
    return figure


def _pareto(verdict: Mapping[str, Any]) -> Figure:
    """Accuracy against trainable parameters; the line joins the methods that no smaller one equals."""
    import matplotlib.pyplot as plt

    from mola_core.analysis.figures.style import COLUMN

    sized = {m: row for m, row in verdict["methods"].items() if row.get("parameters")}
    if not sized:
        return _words("Trainable parameters are not in a score file.\nRun the verdict on a study's folder.")
    figure, axes = plt.subplots(figsize=(COLUMN, 2.9))
    beside = _side_by_side([row["parameters"] / 1e6 for row in sized.values()])
    for place, (method, row) in zip(beside, sized.items(), strict=True):
        _marked(axes, place, row, _style(method), method)
    front, best = [], float("-inf")
    for row in sorted(sized.values(), key=lambda row: (row["parameters"], -row["accuracy"])):
        if row["accuracy"] > best:
            best = row["accuracy"]
            front.append((row["parameters"] / 1e6, best))
    axes.plot(
        *zip(*front, strict=True),
        color="#333333",
        linewidth=0.9,
        linestyle="--",
        label="Pareto front",
        zorder=1,
    )
    axes.set_xlabel("Trainable parameters (millions)")
    axes.set_ylabel("Accuracy, mean over tasks (%)")
    axes.margins(x=0.1)
    figure.legend(*_legend([axes]), loc="outside lower center", ncols=2, handletextpad=0.3, columnspacing=1.0)
    return figure


def _words(text: str) -> Figure:
    """A figure that says why there is none."""
    import matplotlib.pyplot as plt

    from mola_core.analysis.figures.style import COLUMN

    figure, axes = plt.subplots(figsize=(COLUMN, 0.8))
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
    return figure
