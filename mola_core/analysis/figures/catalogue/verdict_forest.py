"""Figure: every question of a verdict with its interval, a slope as what it makes between the outermost shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mola_core.analysis import verdict_fields as fields
from mola_core.analysis.figures.drawing import words
from mola_core.analysis.figures.forest import forest
from mola_core.analysis.figures.registry import FigureEntry
from mola_core.analysis.statistics.questions import FAMILIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(verdict: Mapping[str, Any]) -> Figure:
    from mola_core.analysis.figures.style import TEXT

    endpoint = verdict["primary_endpoint"]
    asked = [q for q in fields.of_endpoint(verdict, endpoint) if q["estimate"] is not None]
    rows: list[dict[str, Any]] = []
    stated = [question for question in asked if question["status"] == "stated"]
    if stated:
        rows += [{"label": "Hypotheses"}, *(_row(verdict, question) for question in stated)]
    for family in dict.fromkeys((*FAMILIES, *(question["family"] for question in asked))):
        own = [q for q in asked if q["family"] == family and q["status"] == "exploratory"]
        if own:
            rows.append({"label": f"{FAMILIES.get(family, family)} (exploratory)"})
        rows += [_row(verdict, question) for question in own]
    if not rows:
        return words("No question can be put to these methods.")
    unit = fields.UNITS[endpoint]
    return forest(
        rows,
        label=f"Difference in {endpoint} ({unit}), {fields.confidence(verdict)} interval",
        width=TEXT,
        data=fields.asked_line(verdict),
        margin=verdict["settings"]["margin"],
    )


def _row(verdict: Mapping[str, Any], question: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"label": fields.title(question), "answer": question["answer"]} | fields.scaled(
        question
    )
    sides = fields.pair(question) or fields.outer_pair(question)
    return row | ({"sides": sides} if sides else {})


def caption(verdict: Mapping[str, Any]) -> str:
    return (
        f"{fields.asked_line(verdict)}. Each line is the question's own {fields.confidence(verdict)} interval over seeds and "
        "documents, paired, for these tasks (fixed); colour and marker are the answer, after correction among the "
        "hypotheses or among all exploratory questions. Right of zero favours the first name, left of it the second. A "
        "slope over depth is shown as the difference that it makes between the outermost shapes. Shaded: differences "
        f"below the margin of {verdict['settings']['margin']:g}, which the study takes as none."
    )


FIGURE = FigureEntry("verdict-forest", "verdict", 1, "Every question with its interval", draw, caption)
