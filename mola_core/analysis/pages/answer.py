"""The answer of a verdict in plain words: one sentence with its number and interval, for pages and the terminal."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mola_core.analysis import verdict_fields as fields

STAND_IN = "Stand-in results, which say nothing about a benchmark. "


def answer_sentence(verdict: Mapping[str, Any]) -> str:
    """What the study says about its first hypothesis, as one plain sentence; begins with a warning for stand-ins."""
    question = fields.headline(verdict)
    start = STAND_IN if verdict.get("stand_in") else ""
    where = f"({fields.data_line(verdict)})"
    if question is None:
        return f"{start}No answer: the methods here do not allow the stated hypotheses {where}."
    if question["estimate"] is None:
        return f"{start}Undecided: no task here lets “{question['claim']}” be asked {where}."
    row = {key: number + 0.0 for key, number in fields.scaled(question).items()}
    unit = fields.UNITS.get(fields.endpoint(question), "points")
    ahead, behind = fields.pair(question) or fields.outer_pair(verdict, question) or ("higher", "lower")
    size = f"{abs(row['estimate']):.2f} {unit}"
    span = f"{fields.confidence(verdict)} interval {_signed(row['low'])} to {_signed(row['high'])}"
    if is_identical(question):
        text = f"{ahead} and {behind} gave the same answers to every document, so nothing tells them apart"
    elif question["answer"] == "supported":
        text = f"Supported: {ahead} beats {behind} by {size} ({span})"
    elif question["answer"] == "contradicted":
        text = f"Contradicted: {ahead} is behind {behind} by {size} ({span})"
    elif question["answer"] == "equivalent":
        within = question.get("margin", fields.margin(verdict))
        limit = f"less than {within:g} {unit}" if within else "less than the stated margin"
        text = f"Equivalent: {ahead} and {behind} differ by {limit} ({_signed(row['estimate'])}, {span})"
    else:
        text = f"Undecided: {ahead} − {behind} is {_signed(row['estimate'])} {unit} ({span})"
        if row["low"] * row["high"] > 0:
            text += ", outside zero but not after the correction for the questions asked"
        if question.get("covers") == "documents":
            text += "; one seed, so the noise between trainings was not seen"
    return f"{start}{text} {where}."


def is_identical(question: Mapping[str, Any]) -> bool:
    """Whether the methods compared gave the same answers everywhere: no difference, and no interval around it."""
    return question["estimate"] == question["low"] == question["high"] == 0


def change_sentence(verdict: Mapping[str, Any]) -> str:
    """What would change the answer: more seeds, and how many; empty where there is no answer."""
    question = fields.headline(verdict)
    if question is None or question["estimate"] is None:
        return ""
    if is_identical(question):
        return "More seeds would show nothing while training changes no answer: check that it changes any (longer, other rates)."
    if question.get("covers") == "documents":
        return "At least two more seeds a task: with one, the noise between trainings is unknown and nothing can be planned."
    reach = question["reach"]
    unit = fields.UNITS.get(fields.endpoint(question), "points")
    parts = []
    smallest = question.get("minimum_detectable_effect")
    if smallest is not None:
        power = 100 * verdict["settings"].get("power", 0.8)
        parts.append(
            f"A true difference below {abs(smallest) * reach:.2f} {unit} would be missed in more than {100 - power:.0f} of 100 studies like this one."
        )
    needed = question.get("seeds_needed") or {}
    if needed:
        plans = ", ".join(f"{'no number' if n is None else n} for {size}" for size, n in needed.items())
        parts.append(f"Seeds a task that would decide a difference of so many {unit}: {plans}.")
        if None in needed.values():
            parts.append("Where no number of seeds helps, the documents are the limit.")
    shown = question.get("seeds_equivalent")
    if isinstance(shown, int):
        parts.append(f"Seeds that would show equivalence: {shown}.")
    return " ".join(parts)


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def told(folder: Path) -> str:
    """What the terminal shows when a study ends: the answer and where to read on; empty where there is no verdict."""
    path = folder / "verdict.json"
    if not path.is_file():
        return ""
    lines = [answer_sentence(json.loads(path.read_text(encoding="utf-8")))]
    page = folder / "index.html"
    if page.is_file():
        lines.append(f"Read on: {page}")
    return "\n".join(lines)
