"""The verdict as a page that is understood in a minute: question, answer, plot, what would change it."""

from typing import Any

from mola_core.analysis.statistics.planner import MOST_SEEDS
from mola_core.analysis.statistics.questions import FAMILIES

TITLE = "Do higher layers need more experts here?"
SLOPE_UNIT = "points per unit of the experts' centre of depth (0: all in the first layer, 1: all in the last)"
STAND_IN = (
    "> **Stand-in results.** The rows or the model are made up for a quick run. "
    "They show that the harness works and say nothing about any benchmark or about the paper's claim.\n"
)


def verdict_page(verdict: dict[str, Any]) -> str:
    """Markdown of a verdict as `decide` returns it; figures are expected in `figures/` beside the page."""
    sections = [
        f"# {TITLE}",
        STAND_IN if verdict.get("stand_in") else "",
        _headline(verdict),
        _what_would_change_it(verdict),
        "![Differences with their intervals](figures/verdict-forest.svg)",
        _answers(verdict),
        "## Shapes and methods",
        "![Accuracy against the experts' centre of depth](figures/verdict-depth.svg)",
        _methods(verdict),
        "![Probability of each rank](figures/verdict-ranks.svg)\n\n"
        "![Accuracy against trainable parameters](figures/verdict-pareto.svg)",
        _cannot_say(verdict),
        _mcnemar(verdict),
        _how(verdict),
    ]
    return "\n\n".join(section.strip() for section in sections if section) + "\n"


def interval(row: dict[str, Any]) -> str:
    return f"{row['low']:+.2f} to {row['high']:+.2f}"


def _confidence(verdict: dict[str, Any]) -> str:
    return f"{100 * (1 - verdict['level']):g} %"


def _by_id(verdict: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {question["id"]: question for question in verdict["questions"]}


def _headline(verdict: dict[str, Any]) -> str:
    if verdict["headline"] is None:
        asked = ", ".join(f"`{row['id']}` ({row['reason']})" for row in verdict["unanswered"])
        return f"**No answer: the methods here do not allow the stated hypotheses.** Not possible: {asked}."
    question = _by_id(verdict)[verdict["headline"]]
    text = f"**{question['answer'].capitalize()}**: the claim “{question['claim']}”."
    if question["estimate"] is None:
        return f"{text} {'; '.join(question['reasons'])}."
    unit = SLOPE_UNIT if question["family"] == "depth" else "points"
    text += (
        f"\nEstimate **{question['estimate']:+.2f}** {unit}, {_confidence(verdict)} interval "
        f"**{interval(question)}** (covers {question['covers']}), mean over "
        f"{_count(len(question['tasks']), 'task')}."
    )
    if question["family"] == "depth":
        outer = sorted(question["weights"], key=lambda method: verdict["methods"][method]["centre"])
        text += (
            f" From `{outer[0]}` to `{outer[-1]}` that is {question['estimate'] * question['reach']:+.2f} "
            "points."
            if all(method in verdict["methods"] for method in outer)
            else ""
        )
    return text + "".join(f"\n{reason[0].upper()}{reason[1:]}." for reason in question["reasons"])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _what_would_change_it(verdict: dict[str, Any]) -> str:
    if verdict["headline"] is None:
        return ""
    question = _by_id(verdict)[verdict["headline"]]
    if question["covers"] is None:
        return ""
    if question["covers"] == "documents":
        return (
            "**What would change it:** at least two more seeds a task. With one, how much accuracy moves "
            "from one training to the next is unknown, so nothing can be planned either."
        )
    mde = question["minimum_detectable_effect"]
    power = f"{100 * verdict['settings']['power']:g} %"
    seen = (
        f"an effect below {abs(mde):.2f} would probably have been missed (found in fewer than {power} of "
        "studies like this one)"
        if mde is not None
        else "even a difference of 100 points could have been missed"
    )
    plans = [f"{_seeds(count)} for {size}" for size, count in question["seeds_needed"].items()]
    what = "a difference between the outermost shapes of" if question["reach"] != 1 else "a difference of"
    return (
        f"**What would change it:** {seen}. With the noise seen here, seeds per task that decide {what} so "
        f"many points: {', '.join(plans)}."
    )


def _seeds(count: int | None) -> str:
    return f"more than {MOST_SEEDS} (the documents are the limit)" if count is None else str(count)


def _answers(verdict: dict[str, Any]) -> str:
    sizes = " / ".join(f"{size:g}" for size in verdict["settings"]["differences"])
    lines = [
        "## Every question",
        "",
        "Accuracy points; a slope per unit of depth. *Smallest* is the smallest effect found with "
        f"{100 * verdict['settings']['power']:g} % probability; *seeds* decide {sizes} points (for slopes: "
        "between the outermost shapes).",
    ]
    for family, title in FAMILIES.items():
        rows = [question for question in verdict["questions"] if question["family"] == family]
        if not rows:
            continue
        corrected = sum(row["same_test_as"] is None for row in rows)
        lines += [
            "",
            f"**{title}**" + (f" (Holm over {corrected})" if corrected > 1 else ""),
            "",
            f"| question | claim | answer | estimate | {_confidence(verdict)} interval | p (Holm) | better "
            "in | smallest | seeds |",
            "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        lines += [_row(row) for row in rows]
    if verdict["unanswered"]:
        asked = ", ".join(f"`{row['id']}` ({row['reason']})" for row in verdict["unanswered"])
        lines += ["", f"Not possible with these methods: {asked}."]
    return "\n".join(lines)


def _row(question: dict[str, Any]) -> str:
    if question["estimate"] is None:
        return f"| `{question['id']}` | {question['claim']} | undecided | – | – | – | – | – | – |"
    single = question["covers"] == "documents"
    wins = question["probability_of_improvement"]
    mde = question["minimum_detectable_effect"]
    seeds = " / ".join("> 1000" if n is None else str(n) for n in question["seeds_needed"].values())
    answer = question["answer"] + (" (one seed: documents only)" if single else "")
    twin = question["same_test_as"]
    cells = [
        f"`{question['id']}`",
        question["claim"] + (f"; the same test as `{twin}`" if twin else ""),
        answer if question["answer"] == "undecided" else f"**{answer}**",
        f"{question['estimate']:+.2f}",
        interval(question),
        "–" if question["p_holm"] is None else p_value(question["p_holm"]),
        "–" if wins is None else f"{100 * wins['estimate']:.0f} % of runs",
        "–" if mde is None else f"{mde:.2f}",
        "–" if single else seeds,
    ]
    return "| " + " | ".join(cells) + " |"


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _methods(verdict: dict[str, Any]) -> str:
    lines = [
        f"| method | accuracy | {_confidence(verdict)} interval | covers | best of all | centre of depth | "
        "spread |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for method, row in verdict["methods"].items():
        first = "–" if row["ranks"] is None else f"{100 * row['ranks'][0]:.0f} %"
        place = f"{row['centre']:.3f} | {row['spread']:.3f}" if "centre" in row else "– | –"
        lines.append(
            f"| `{method}` | {row['accuracy']:.2f} | {row['low']:.2f} to {row['high']:.2f} | {row['covers']} "
            f"| {first} | {place} |"
        )
    return "\n".join(lines)


def _cannot_say(verdict: dict[str, Any]) -> str:
    tasks = ", ".join(
        f"{name} ({_count(row['documents'], 'document')}, {_count(row['seeds'], 'seed')})"
        for name, row in verdict["data"]["tasks"].items()
    )
    lines = [
        "## What it cannot say",
        "",
        f"- It is about {', '.join(verdict['data']['models'])} and these tasks alone: {tasks}. Tasks are "
        "not a sample of all tasks; each counts the same.",
        "- *Undecided* is not *no difference*: see the smallest effect that could have been found.",
        "- A slope is a straight line through the shapes tried, at their spread; it does not promise a "
        "shape between.",
        "- It takes the training recipe as given. Another learning rate or more steps may change the order.",
    ]
    if len(verdict["data"]["tasks"]) > 1:
        lines.append(
            "- It takes a seed's effects on two tasks as independent. The harness trains them so (`seeds_by_task`); in "
            "scores made elsewhere, with one initial adapter for all tasks, p may be too small."
        )
    return "\n".join([*lines, *(f"- {note}" for note in verdict["notes"])])


def _mcnemar(verdict: dict[str, Any]) -> str:
    if not verdict["mcnemar"]:
        return ""
    lines = [
        "## One seed: exact McNemar tests",
        "",
        "These compare two *trained adapters* on the same documents, not two shapes: the noise between "
        "trainings is not in them. p after Holm over all rows.",
        "",
        "| pair | task | only first right | only second right | p | p (Holm) |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in verdict["mcnemar"]:
        lines.append(
            f"| `{row['id']}` | {row['task']} | {row['only_first']} | {row['only_second']} | "
            f"{p_value(row['p'])} | {p_value(row['p_holm'])} |"
        )
    return "\n".join(lines)


def _how(verdict: dict[str, Any]) -> str:
    settings = verdict["settings"]
    stated = ", ".join(f"`{name}`" for name in settings["hypotheses"])
    lines = [
        f"**Stated beforehand:** hypotheses {stated}, level {settings['level']:g}, two-sided (settings "
        f"sha256 `{verdict['settings_sha256'][:16]}`). A claim is *supported* where the estimate is above "
        "zero and Holm's adjusted p within its family is at most the level, *contradicted* where it is "
        "below, *undecided* otherwise. The interval shown is each question's own. p is never below that of the "
        "documents alone, with the seeds taken as fixed: a few seeds that agree by chance decide nothing.",
        "**Estimate:** the mean over documents, seeds, then tasks, of differences paired on documents and "
        "seeds. Slope and spread are least squares over all shapes of a budget with tasks and seeds as "
        "blocks.",
        "**Interval and p:** tasks are fixed; seeds and documents are both random. The variance "
        "comes from the mean squares of each task's seeds x documents table and is compared with Student's "
        "t with Satterthwaite's degrees of freedom. The bootstrap below covers more than it says, since it "
        "counts the noise of a seed on a document three times; `mola calibrate` measures both.",
        f"**Bootstrap** ({settings['resamples']} resamples, stratified by task, seeds and documents "
        f"together, seed {settings['seed']}): ranks, the share of runs in which one method beats another, "
        "and a second interval in `verdict.json`.",
        f"**Smallest effect and seeds** aim at {100 * settings['power']:g} % power at the strictest step of "
        "Holm's correction, averaged over what the data leave open about the variance.",
    ]
    return "\n".join(["## How it was computed", "", *(f"- {line}" for line in lines)])
