"""Figure: each question by likelihood and by accuracy side by side, where the scores hold likelihoods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mola_core.analysis import verdict_fields as fields
from mola_core.analysis.figures.drawing import plain
from mola_core.analysis.figures.forest import ANSWERS
from mola_core.analysis.figures.registry import FigureEntry

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def both(verdict: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Each question with an estimate on both endpoints: (by accuracy, by likelihood)."""
    found = []
    for question in fields.of_endpoint(verdict, "accuracy"):
        other = fields.same_question(verdict, question, "likelihood")
        if question["estimate"] is not None and other is not None:
            found.append((question, other))
    return found


def draw(verdict: Mapping[str, Any]) -> Figure | None:
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    from mola_core.analysis.figures.style import TEXT

    pairs = both(verdict)
    if not pairs:
        return None
    figure, panels = plt.subplots(1, 2, sharey=True, figsize=(TEXT, 1.3 + 0.22 * len(pairs)))
    for side, (axes, endpoint) in enumerate(zip(panels, ("accuracy", "likelihood"), strict=True)):
        for place, questions in enumerate(pairs):
            row = fields.scaled(questions[side])
            look = ANSWERS.get(questions[side]["answer"], ANSWERS["undecided"])
            axes.plot([row["low"], row["high"]], [place, place], color=look["color"], linewidth=1.4)
            axes.plot(row["estimate"], place, linestyle="", markersize=4.8, **look)
        axes.axvline(0, color="black", linewidth=0.7)
        primary = " (primary)" if endpoint == verdict["primary_endpoint"] else ""
        axes.set_title(f"by {endpoint}{primary}", loc="left")
        axes.set_xlabel(f"difference ({fields.UNITS[endpoint]})")
        axes.grid(visible=False, axis="y")
    panels[0].set_yticks(range(len(pairs)), [plain(fields.title(first), 60) for first, _ in pairs])
    panels[0].set_ylim(len(pairs) - 0.4, -0.6)
    panels[0].tick_params(axis="y", length=0)
    used = {question["answer"] for both_ends in pairs for question in both_ends}
    handles = [
        Line2D([], [], linewidth=1.4, label=name, **look) for name, look in ANSWERS.items() if name in used
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(ANSWERS))
    return figure


def caption(verdict: Mapping[str, Any]) -> str:
    return (
        f"{fields.asked_line(verdict)}. Left: difference in accuracy. Right: difference in likelihood, the probability that the model gives the right "
        f"option among a document's options. Lines are {fields.confidence(verdict)} intervals over seeds and documents, paired, for these tasks (fixed). "
        "The two are in different units: a point of probability is not worth a point of accuracy."
    )


FIGURE = FigureEntry(
    "verdict-likelihood", "verdict", 3, "Likelihood and accuracy side by side", draw, caption, always=False
)
