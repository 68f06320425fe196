"""The answer of a verdict in plain words: one sentence with its number and interval, for pages and the terminal."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mola_core.analysis import verdict_fields as fields
from mola_core.analysis.statistics.planner import MAX_SEEDS

STAND_IN = "Stand-in results, which say nothing about a benchmark. "


def answer_sentences(verdict: Mapping[str, Any]) -> list[str]:
    """One plain sentence for each stated question, by the primary endpoint."""
    stated = [
        question
        for question in fields.of_endpoint(verdict, verdict["primary_endpoint"])
        if question["status"] == "stated" and question["same_test_as"] is None
    ]
    return [_sentence(verdict, question) for question in stated] or [answer_sentence(verdict)]


def answer_sentence(verdict: Mapping[str, Any]) -> str:
    """What the study says about its first hypothesis, as one plain sentence; begins with a warning for stand-ins."""
    return _sentence(verdict, fields.headline(verdict))


def _sentence(verdict: Mapping[str, Any], question: fields.Question | None) -> str:
    start = STAND_IN if verdict.get("stand_in") else ""
    where = f"({fields.data_line(verdict)})"
    if question is None:
        return f"{start}No answer: the methods here do not allow the stated hypotheses {where}."
    if question["estimate"] is None:
        return f"{start}Undecided: no task here lets “{question['claim']}” be asked {where}."
    row = {key: number + 0.0 for key, number in fields.scaled(question).items()}
    unit = fields.UNITS[question["endpoint"]]
    ahead, behind = fields.pair(question) or fields.outer_pair(verdict, question) or ("higher", "lower")
    size = f"{abs(row['estimate']):.2f} {unit}"
    span = f"{fields.confidence(verdict)} interval {signed(row['low'])} to {signed(row['high'])}"
    if is_identical(question):
        shown = question["answer"] == "equivalent"
        text = (
            f"{'Equivalent' if shown else 'Undecided'}: {ahead} and {behind} gave the same answers to every document"
            f"{', so nothing tells them apart' if shown else ', which are too few, or of one seed, to show that they are equivalent'}"
        )
    elif question["answer"] == "supported":
        text = f"Supported: {ahead} beats {behind} by {size} ({span})"
    elif question["answer"] == "contradicted":
        text = f"Contradicted: {ahead} is behind {behind} by {size} ({span})"
    elif question["answer"] == "equivalent":
        units = unit.replace("points", "point") if question["margin"] == 1 else unit
        text = (
            f"Equivalent: {ahead} and {behind} differ by less than {question['margin']:g} {units} "
            f"({signed(row['estimate'])}, {span})"
        )
    else:
        text = f"Undecided: {ahead} − {behind} is {signed(row['estimate'])} {unit} ({span})"
        if row["low"] * row["high"] > 0 and question["covers"] != "documents":
            text += ", outside zero but not after correction"
        if question["covers"] == "documents":
            text += "; one seed, so the noise between trainings was not seen"
    if question["within_margin"] and question["answer"] != "equivalent":
        text += f", which is smaller than the margin of {question['margin']:g}"
    return f"{start}{text} {where}."


def beside_sentences(verdict: Mapping[str, Any]) -> list[str]:
    """For which tasks the answer is meant, its other endpoint, and how it was stated and looked at."""
    question = fields.headline(verdict)
    if question is None or question["estimate"] is None:
        return []
    found = ["The answer is about these tasks (fixed)."]
    drawn = fields.drawn(question)
    if drawn:
        low, high = (end * question["reach"] for end in drawn)
        found = [
            f"These tasks (fixed): the interval above. Tasks like these (drawn): {signed(low)} to {signed(high)}."
        ]
    elif len(verdict["data"]["tasks"]) == 1:
        found[0] += " With one task nothing is said about tasks like it."
    if question["worth"]:
        worth = {
            key: signed(question["worth"][key] * question["reach"]) for key in ("estimate", "low", "high")
        }
        found.append(f"Worth {worth['estimate']} points of accuracy ({worth['low']} to {worth['high']}).")
    other = "likelihood" if question["endpoint"] == "accuracy" else "accuracy"
    twin = fields.same_question(verdict, question, other)
    if twin is not None:
        row = {key: signed(value) for key, value in fields.scaled(twin).items()}
        found.append(
            f"By {other} (exploratory): {row['estimate']} {fields.UNITS[other]} ({row['low']} to {row['high']}), {twin['answer']}."
        )
    looks = verdict["looks"]
    when = (
        "Stated before the first cell was finished"
        if looks["stated_beforehand"]
        else "No record says that this was stated beforehand"
    )
    found.append(f"{when}; look {looks['taken']} of {looks['planned']} planned.")
    if looks["taken"] > looks["planned"]:
        found.append("More looks than planned: what it decides is a hint, not a test.")
    return found


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
    if question["covers"] == "documents":
        return "At least two more seeds a task: with one, the noise between trainings is unknown and nothing can be planned."
    if not question["noise_from"]:
        return "Nothing that more seeds of the same training would show."
    unit = fields.UNITS[question["endpoint"]]
    smallest = question["minimum_detectable_effect"]
    missed = f"in more than {100 - 100 * verdict['settings']['power']:.0f} of 100 studies like this one"
    text = (
        f"Even a true difference of 100 points could be missed {missed}."
        if smallest is None
        else f"A true difference below {abs(smallest) * question['reach']:.2f} {unit} would be missed {missed}."
    )
    plans = [f"{_seeds(count)} for {size}" for size, count in question["seeds_needed"].items()]
    text += (
        f" Seeds a task that would decide a difference of so many {unit}: {', '.join(plans)}; that would show "
        f"equivalence within {question['margin']:g}: {_seeds(question['seeds_equivalent'])}."
    )
    if None in question["seeds_needed"].values():
        text += " Where no number of seeds helps, the documents are the limit."
    return text


def _seeds(count: int | None) -> str:
    return f"more than {MAX_SEEDS}" if count is None else str(count)


def signed(value: float) -> str:
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
