"""The answer of a verdict in plain words: one sentence with its number and interval, for pages and the terminal."""

from collections.abc import Mapping
from typing import Any

from mola_core.analysis import verdict_fields as fields
from mola_core.analysis.statistics.planner import MAX_SEEDS
from mola_core.files import read_json, sha256_file
from mola_core.runs.layout import Layout

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
    where = f"({fields.data_line(verdict, question)})"
    if question is None:
        return f"{start}No answer: the methods here do not allow the stated hypotheses {where}."
    if question["estimate"] is None:
        return f"{start}Undecided: no task here lets “{question['claim']}” be asked {where}."
    if question["status"] == "exploratory":
        start += "Exploratory. "
    row = {key: number + 0.0 for key, number in fields.scaled(question).items()}
    unit = fields.UNITS[question["endpoint"]]
    ahead, behind = fields.pair(question) or fields.outer_pair(question) or ("higher", "lower")
    # A line through more shapes than two is no comparison of the outermost: these may differ by less, or the other way.
    compares_two = fields.pair(question) is not None or question["same_test_as"] is not None
    line = "" if compares_two else f"the line through all shapes, from {behind} to {ahead},"
    size = f"{abs(row['estimate']):.2f} {unit}"
    span = f"{fields.confidence(verdict)} interval {signed(row['low'])} to {signed(row['high'])}"
    if is_identical(question):
        shown = question["answer"] == "equivalent"
        text = (
            f"{'Equivalent' if shown else 'Undecided'}: {ahead} and {behind} gave the same answers to every document"
            f"{', so nothing tells them apart' if shown else ', which are too few, or of one seed, to show that they are equivalent'}"
        )
    elif question["answer"] == "supported":
        text = f"{line} rises by {size}" if line else f"{ahead} beats {behind} by {size}"
        text = f"Supported: {text} ({span})"
    elif question["answer"] == "contradicted":
        text = f"{line} falls by {size}" if line else f"{ahead} is behind {behind} by {size}"
        text = f"Contradicted: {text} ({span})"
    elif question["answer"] == "equivalent":
        units = unit.replace("points", "point") if question["margin"] == 1 else unit
        low, high = (signed(question["inner"][key] * question["reach"]) for key in ("low", "high"))
        what = f"{line} changes" if line else f"{ahead} and {behind} differ"
        text = (
            f"Equivalent: {what} by less than {question['margin']:g} {units} "
            f"({signed(row['estimate'])}, {100 * (1 - 2 * verdict['level']):g} % interval {low} to {high})"
        )
    else:
        what = f"{line} changes by" if line else f"{ahead} − {behind} is"
        text = f"Undecided: {what} {signed(row['estimate'])} {unit} ({span})"
        if question["p_adjusted"] is not None and question["p"] <= verdict["level"] < question["p_adjusted"]:
            text += ", outside zero but not after correction"
        if question["covers"] == "documents":
            text += "; one seed, so the noise between trainings was not seen"
    if question["within_margin"] and question["answer"] != "equivalent":
        text += f", which is smaller than the margin of {question['margin']:g}"
    return f"{start}{text} {where}."


def beside_sentences(verdict: Mapping[str, Any]) -> list[str]:
    """For which tasks the answer is meant, its other endpoint, how it was stated and looked at, and what else there is to it."""
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
    if question["worth"] is not None:
        size, worth = (signed(question[key] * question["reach"]) for key in ("estimate", "worth"))
        found.append(
            f"Over the {verdict['exchange']['runs']} runs here {size} points of probability go with {worth} points of accuracy."
        )
    other = "likelihood" if question["endpoint"] == "accuracy" else "accuracy"
    twin = fields.same_question(verdict, question, other)
    if twin is not None:
        estimate, low, high = map(signed, fields.scaled(twin).values())
        found.append(
            f"By {other} (exploratory): {estimate} {fields.UNITS[other]} ({low} to {high}), {twin['answer']}."
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
    return found + [f"{text[0].upper()}{text[1:]}." for text in question["reasons"]]


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
    looks = verdict["looks"]
    if looks["taken"] >= looks["planned"]:
        text += " To add them is a look more than planned, and they are counted for its smaller level."
    if None in question["seeds_needed"].values():
        text += " Where no number of seeds helps, the documents are the limit."
    return text


def _seeds(count: int | None) -> str:
    return f"more than {MAX_SEEDS}" if count is None else str(count)


def signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def current_verdict(layout: Layout) -> dict[str, Any] | None:
    """The study's verdict.json; None where there is none, or where it answers other scores or settings than are there now."""
    path, scores = layout.folder / "verdict.json", layout.folder / "scores.parquet"
    if not path.is_file() or not scores.is_file():
        return None
    verdict = read_json(path)
    if not isinstance(verdict, dict) or verdict.get("settings_sha256") != layout.study.verdict.sha256:
        return None
    return verdict if verdict.get("scores_sha256") == sha256_file(scores) else None


def told(layout: Layout) -> str:
    """What the terminal shows when a study ends: the answer and where to read on; empty where there is no verdict."""
    verdict = current_verdict(layout)
    if verdict is None:
        if (layout.folder / "verdict.json").is_file():
            return "No answer yet: the verdict there is of other scores or settings. `mola verdict` answers these."
        return ""
    lines = [answer_sentence(verdict)]
    page = layout.folder / "index.html"
    if page.is_file():
        lines.append(f"Read on: {page}")
    return "\n".join(lines)
