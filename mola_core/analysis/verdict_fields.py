"""Reading a verdict: what figures and pages say of a question, in the same words everywhere.

A verdict is the dictionary that `decide` returns and `verdict.json` holds; its fields are in `statistics/records.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

ANSWERS = ("supported", "contradicted", "equivalent", "undecided")
UNITS = {"accuracy": "points", "likelihood": "points of probability"}

Question = Mapping[str, Any]
Verdict = Mapping[str, Any]


def of_endpoint(verdict: Verdict, wanted: str) -> list[Question]:
    return [question for question in verdict["questions"] if question["endpoint"] == wanted]


def in_order(verdict: Verdict) -> list[Question]:
    """All questions, what was stated first, then the primary endpoint before the other."""
    return sorted(
        verdict["questions"],
        key=lambda question: (
            question["status"] != "stated",
            question["endpoint"] != verdict["primary_endpoint"],
        ),
    )


def headline(verdict: Verdict) -> Question | None:
    """The question that the study is about, on its primary endpoint; None where no hypothesis could be asked."""
    return next(
        (question for question in verdict["questions"] if question["id"] == verdict["headline"]), None
    )


def same_question(verdict: Verdict, question: Question, wanted: str) -> Question | None:
    """The same weights on the same methods, asked of another endpoint."""
    for other in of_endpoint(verdict, wanted):
        if other["weights"] == question["weights"] and other["estimate"] is not None:
            return other
    return None


def pair(question: Question) -> tuple[str, str] | None:
    """The methods that the claim puts ahead and behind, without `mola-`; None for a slope or spread."""
    weights = question["weights"]
    if len(weights) != 2 or question["reach"] != 1:
        return None
    ahead, behind = sorted(weights, key=weights.__getitem__, reverse=True)
    if question["family"] == "asked":
        return ahead, behind
    return _short(ahead), _short(behind)


def _short(method: str) -> str:
    return method.removeprefix("mola-").replace("lora-matched-", "matched LoRA ").replace("lora-r", "LoRA r")


def outer_pair(question: Question) -> tuple[str, str] | None:
    """The outermost shapes of a slope, (highest centre of depth or spread, lowest)."""
    places = question["places"]
    if len(places) < 2:
        return None
    ordered = sorted(places, key=places.__getitem__)
    return _short(ordered[-1]), _short(ordered[0])


def title(question: Question) -> str:
    """`2468 − 8642`, or the id of a slope; the endpoint is told elsewhere."""
    found = pair(question)
    if found is None:
        return f"{question['id'].partition(':')[0]} (between the outermost shapes)"
    return f"{found[0]} − {found[1]}"


def scaled(question: Question) -> dict[str, float]:
    """Estimate and interval in points; a slope's as the difference that it makes between the outermost shapes."""
    return {key: question[key] * question["reach"] for key in ("estimate", "low", "high")}


def drawn(question: Question) -> tuple[float, float] | None:
    """Interval for tasks like these, in the question's unit; None where the data hold a single task."""
    found = question["drawn"]
    return (found["low"], found["high"]) if found else None


def confidence(verdict: Verdict) -> str:
    return f"{100 * (1 - verdict['level']):g} %"


def data_line(verdict: Verdict, question: Question | None = None) -> str:
    """Model, tasks, documents and seeds in one line: of a question that was answered its own, else all that there are."""
    tasks = verdict["data"]["tasks"]
    counts = [task["seeds"] for task in tasks.values()]
    if question is not None and question["estimate"] is not None:
        tasks, counts = {name: tasks[name] for name in question["tasks"]}, question["seeds"]
    return _line(verdict, tasks, counts)


def asked_line(verdict: Verdict) -> str:
    """The same line for figures and tables of all questions: `verdict.least_gain` may leave tasks out of every one."""
    left_out = verdict["left_out_tasks"]
    tasks = {name: task for name, task in verdict["data"]["tasks"].items() if name not in left_out}
    if not left_out or not tasks:
        return data_line(verdict)
    line = _line(verdict, tasks, [task["seeds"] for task in tasks.values()])
    return f"{line}; left out: {', '.join(left_out)}"


def also_counted(verdict: Verdict) -> str:
    """Of what is over all tasks (ranks, methods): which of them the questions leave out; empty where they leave none."""
    left_out = ", ".join(verdict["left_out_tasks"])
    return (
        f"Ranks and means are over all tasks, {left_out} too, which the questions leave out."
        if left_out
        else ""
    )


def _line(verdict: Verdict, tasks: Mapping[str, Any], counts: Sequence[int]) -> str:
    documents = sum(task["documents"] for task in tasks.values())
    seeds = sorted(set(counts))
    count = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    named = ", ".join(tasks) if len(tasks) <= 3 else f"{len(tasks)} tasks"
    models = ", ".join(verdict["data"]["models"])
    return f"{models}; {named}; {documents:,} documents, {count} seed{'s' * (count != '1')} a task"
