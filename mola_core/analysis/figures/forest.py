"""Forest plots: estimates with their intervals in rows, with the direction of each, and combined rows as diamonds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mola_core.analysis.figures.drawing import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ANSWERS: dict[str, dict[str, Any]] = {
    "supported": {"color": "#0072B2", "marker": "o", "markerfacecolor": "#0072B2"},
    "contradicted": {"color": "#D55E00", "marker": "s", "markerfacecolor": "#D55E00"},
    "equivalent": {"color": "#00785A", "marker": "h", "markerfacecolor": "#00785A"},
    "undecided": {"color": "#6E6E6E", "marker": "D", "markerfacecolor": "white"},
}
"""Look of each answer; colour is never alone, every answer has a marker of its own."""
COMBINED = "#000000"
ROW = 0.2
"""Height of a row in inches."""


def forest(
    rows: Iterable[Mapping[str, Any]],
    *,
    label: str,
    width: float,
    limit: float | None = None,
    data: str = "",
    margin: float | None = None,
    intervals: Mapping[str, str] | None = None,
) -> Figure:
    """A forest plot.

    A row has `label`, `answer`, `estimate`, `low` and `high`, and may have `inner_low` and `inner_high` for a second, thick
    interval, `sides` (the names that a value above and below zero favours) and, with `combined` true, is drawn as a
    diamond with `predict_low` and `predict_high` as its prediction interval. A row with only `label` is a heading.
    Beyond ±`limit` points, intervals end in an arrow. `data` stands above the axes, `margin` is shaded, and
    `intervals` (`thin`, `thick`, `diamond`, `prediction` -> words) explains the lines in the legend.
    """
    import matplotlib.pyplot as plt

    rows = list(rows)
    figure, axes = plt.subplots(figsize=(width, 1.15 + ROW * len(rows)))
    if margin:
        axes.axvspan(-margin, margin, color="#00785A", alpha=0.09, linewidth=0, zorder=0)
    for place, row in enumerate(rows):
        if row.get("estimate") is None:
            continue
        if row.get("combined"):
            _diamond(axes, place, row)
        else:
            _interval(axes, place, row)
        if limit is not None:
            _beyond(axes, place, row, limit)
    axes.axvline(0, color="black", linewidth=0.7)
    axes.set_yticks(range(len(rows)), [plain(row["label"], 60) for row in rows])
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        if "estimate" not in row or row.get("combined"):
            tick.set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(label)
    if limit is not None:
        axes.set_xlim(-limit, limit)
    else:
        low, high = axes.get_xlim()
        room = 0.28 * (high - low) if any("sides" in row for row in rows) else 0
        axes.set_xlim(min(low, 0) - room, max(high, 0) + room)
    _directions(axes, rows)
    if data:
        axes.set_title(plain(data, 130), loc="right", fontsize=7.5, color="#444444")
    _legend(figure, rows, margin, intervals or {})
    return figure


def _interval(axes: Axes, place: int, row: Mapping[str, Any]) -> None:
    look = ANSWERS[row["answer"]]
    axes.plot([row["low"], row["high"]], [place, place], color=look["color"], linewidth=1.4)
    if row.get("inner_low") is not None:
        inner = [row["inner_low"], row["inner_high"]]
        axes.plot(inner, [place, place], color=look["color"], linewidth=5, alpha=0.35, solid_capstyle="butt")
    axes.plot(row["estimate"], place, linestyle="", markersize=4.8, markeredgewidth=1.0, **look)


def _diamond(axes: Axes, place: int, row: Mapping[str, Any]) -> None:
    """The combined estimate: as wide as its interval, on a dotted line as wide as its prediction interval."""
    if row.get("predict_low") is not None:
        ends = [row["predict_low"], row["predict_high"]]
        axes.plot(ends, [place, place], color=COMBINED, linewidth=1.1, linestyle=(0, (1.5, 1.2)))
        axes.plot(ends, [place, place], color=COMBINED, linestyle="", marker="|", markersize=6)
    corners = [(row["low"], place), (row["estimate"], place - 0.34), (row["high"], place)]
    corners.append((row["estimate"], place + 0.34))
    axes.fill(*zip(*corners, strict=True), color=COMBINED, linewidth=0, zorder=3)


def _beyond(axes: Axes, place: int, row: Mapping[str, Any], limit: float) -> None:
    """Arrows where an interval leaves the axes, and the estimate in figures where it does."""
    colour = COMBINED if row.get("combined") else ANSWERS[row["answer"]]["color"]
    low = min(row["low"], row.get("predict_low") or row["low"])
    high = max(row["high"], row.get("predict_high") or row["high"])
    for outside, side, marker in ((low < -limit, -1, "<"), (high > limit, 1, ">")):
        if outside:
            axes.plot(side * limit, place, marker=marker, color=colour, markersize=4.5, clip_on=False)
    if abs(row["estimate"]) > limit:
        side = -1 if row["estimate"] < 0 else 1
        axes.annotate(
            f"{row['estimate']:+.1f}",
            (side * limit * 0.95, place),
            va="bottom",
            fontsize=7,
            ha="left" if side < 0 else "right",
        )


def _directions(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """What a value below and above zero favours: the names at the edges of their row, *favours* above them."""
    told = [index for index, row in enumerate(rows) if "sides" in row]
    for place, row in enumerate(rows):
        if "sides" in row:
            above, below = (plain(str(name).replace("matched ", ""), 14) for name in row["sides"])
            if "estimate" not in row:
                above, below = f"favours {above}", f"favours {below}"
        elif place + 1 in told and "estimate" in rows[place + 1]:
            above, below = "favours", "favours"
        else:
            continue
        for edge, text, side in ((0.006, f"◂ {below}", "left"), (0.994, f"{above} ▸", "right")):
            axes.text(
                edge,
                place,
                text,
                transform=axes.get_yaxis_transform(),
                ha=side,
                va="center",
                fontsize=7.5,
                color="#444444",
            )


def _legend(
    figure: Figure,
    rows: Sequence[Mapping[str, Any]],
    margin: float | None,
    intervals: Mapping[str, str],
) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    used = {row["answer"] for row in rows if row.get("estimate") is not None and not row.get("combined")}
    handles: list[Any] = [
        Line2D([], [], linewidth=1.4, markersize=4.8, label=name, **look)
        for name, look in ANSWERS.items()
        if name in used
    ]
    grey = "#6E6E6E"
    lines = {
        "thin": {"color": grey, "linewidth": 1.4},
        "thick": {"color": grey, "linewidth": 5, "alpha": 0.35},
        "diamond": {"color": COMBINED, "linestyle": "", "marker": "D", "markersize": 6},
        "prediction": {"color": COMBINED, "linewidth": 1.1, "linestyle": (0, (1.5, 1.2)), "marker": "|"},
    }
    handles += [Line2D([], [], label=text, **lines[kind]) for kind, text in intervals.items()]
    if margin:
        handles.append(Patch(color="#00785A", alpha=0.15, linewidth=0, label=f"within ±{margin:g}"))
    columns = 2 if intervals else max(len(handles), 1)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, handlelength=2.2, columnspacing=1.4
    )
