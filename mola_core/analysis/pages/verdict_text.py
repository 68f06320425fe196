"""The verdict as a page that is understood in a minute: question, answer, plot, what would change it."""

from typing import Any

from mola_core.analysis.statistics.planner import MAX_SEEDS
from mola_core.analysis.tables.render import p_value

TITLE = "Do higher layers need more experts here?"
UNITS = {"accuracy": "points", "likelihood": "points of probability"}
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
    unit = SLOPE_UNIT if question["family"] == "depth" else UNITS[question["endpoint"]]
    text += (
        f"\nEstimate **{question['estimate']:+.2f}** {unit}, {_confidence(verdict)} interval "
        f"**{interval(question)}** (covers {question['covers']}), mean over "
        f"{_count(len(question['tasks']), 'task')}; margin {question['margin']:g}."
    )
    if question["worth"]:
        text += f" That is worth {question['worth']['estimate']:+.2f} points of accuracy ({interval(question['worth'])})."
    if question["family"] == "depth":
        outer = sorted(question["weights"], key=lambda method: verdict["methods"][method]["centre"])
        text += (
            f" From `{outer[0]}` to `{outer[-1]}` that is {question['estimate'] * question['reach']:+.2f} "
            "points."
            if all(method in verdict["methods"] for method in outer)
            else ""
        )
    if question["drawn"]:
        text += f" For tasks like these (drawn): {interval(question['drawn'])}, p {p_value(question['drawn']['p'])}."
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
    if not question["noise_from"]:
        return "**What would change it:** nothing that more seeds of the same training would show."
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
        f"many points: {', '.join(plans)}; that show equivalence within {question['margin']:g}: "
        f"{_seeds(question['seeds_equivalent'])}."
    )


def _seeds(count: int | None) -> str:
    return f"more than {MAX_SEEDS} (the documents are the limit)" if count is None else str(count)


def _answers(verdict: dict[str, Any]) -> str:
    sizes = " / ".join(f"{size:g}" for size in verdict["settings"]["differences"])
    lines = [
        "## Every question",
        "",
        "Points; a slope per unit of depth. *p* is after Holm's correction within stated or exploratory questions. "
        f"*Smallest* is the smallest effect found with {100 * verdict['settings']['power']:g} % probability; *seeds* "
        f"decide {sizes} points (for slopes: between the outermost shapes) / show equivalence.",
    ]
    for status, words in (("stated", "Hypotheses"), ("exploratory", "Exploratory")):
        rows = [question for question in verdict["questions"] if question["status"] == status]
        if not rows:
            continue
        lines += [
            "",
            f"**{words}** (Holm over {rows[0]['family_size']})",
            "",
            f"| question | claim | answer | estimate | {_confidence(verdict)} interval | median | p | p (equivalence) "
            "| tasks drawn | smallest | seeds |",
            "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        lines += [_row(row) for row in rows]
    exchange = verdict["exchange"]
    if exchange:
        lines += [
            "",
            f"A point of probability goes with {exchange['rate']:.2f} points of accuracy here: least squares over "
            f"{exchange['runs']} runs within tasks (r = {exchange['r']:.2f}).",
        ]
    if verdict["unanswered"]:
        asked = ", ".join(f"`{row['id']}` ({row['reason']})" for row in verdict["unanswered"])
        lines += ["", f"Not possible with these methods: {asked}."]
    return "\n".join(lines)


def _row(question: dict[str, Any]) -> str:
    if question["estimate"] is None:
        return f"| `{question['id']}` | {question['claim']} | undecided |" + " – |" * 8
    single = question["covers"] == "documents"
    mde = question["minimum_detectable_effect"]
    counts = [*question["seeds_needed"].values(), question["seeds_equivalent"]]
    seeds = " / ".join("> 1000" if n is None else str(n) for n in counts)
    answer = question["answer"] + (" (one seed: documents only)" if single else "")
    if question["within_margin"] and question["answer"] != "equivalent":
        answer += " (within the margin)"
    twin = question["same_test_as"]
    cells = [
        f"`{question['id']}`",
        question["claim"] + (f"; the same test as `{twin}`" if twin else ""),
        answer if question["answer"] == "undecided" else f"**{answer}**",
        f"{question['estimate']:+.2f}"
        + (f" (worth {question['worth']['estimate']:+.2f})" if question["worth"] else ""),
        interval(question),
        f"{question['median']:+.2f}",
        "–" if question["p_adjusted"] is None else p_value(question["p_adjusted"]),
        "–" if question["p_equivalence_adjusted"] is None else p_value(question["p_equivalence_adjusted"]),
        interval(question["drawn"]) if question["drawn"] else "–",
        "–" if mde is None else f"{mde:.2f}",
        seeds if question["noise_from"] else "–",
    ]
    return "| " + " | ".join(cells) + " |"


def _methods(verdict: dict[str, Any]) -> str:
    lines = [
        f"| method | accuracy | median run | {_confidence(verdict)} interval | covers | best of all | centre of depth | "
        "spread |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for method, row in verdict["methods"].items():
        first = "–" if row["ranks"] is None else f"{100 * row['ranks'][0]:.0f} %"
        place = f"{row['centre']:.3f} | {row['spread']:.3f}" if "centre" in row else "– | –"
        lines.append(
            f"| `{method}` | {row['accuracy']:.2f} | {row['median']:.2f} | {row['low']:.2f} to {row['high']:.2f} | {row['covers']} "
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
        "not a sample of all tasks; each counts the same. The column *tasks drawn* is about tasks like these.",
        "- *Undecided* is not *no difference*: that is *equivalent*.",
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
    looks = verdict["looks"]
    stated = ", ".join(
        f"`{question['id']}`" for question in verdict["questions"] if question["status"] == "stated"
    )
    when = "Stated beforehand" if looks["stated_beforehand"] else "Hypotheses"
    which = f"look {looks['taken']} of {looks['planned']} planned, level {looks['level']:g} at this one"
    if looks["taken"] > looks["planned"]:
        which += "; **more looks than planned: what it decides is a hint, not a test**"
    lines = [
        f"**{when}:** {stated or 'none that these methods allow'}; margin {settings['margin']:g} points, level "
        f"{settings['level']:g}, two-sided; {which} (settings sha256 `{verdict['settings_sha256'][:16]}`). A claim is "
        "*supported* where the estimate is above zero and Holm's adjusted p at most the level, *contradicted* where it is "
        "below; *equivalent* where two one-sided tests place it within the margin; *undecided* otherwise. Exploratory "
        "questions are corrected for one another, not for the hypotheses, and never move them.",
        "**Estimate:** the mean over documents, seeds, then tasks, of differences paired on documents and "
        "seeds. Slope and spread are least squares over all shapes of a budget with tasks and seeds as "
        "blocks.",
        "**Interval and p:** tasks are fixed; seeds and documents are both random. The variance "
        "comes from the mean squares of each task's seeds x documents table and is compared with Student's "
        "t with Satterthwaite's degrees of freedom; both are never narrower than the documents alone allow, seeds taken "
        "as fixed. Each interval shown is its question's own. The bootstrap below covers more than it says, since it "
        "counts the noise of a seed on a document three times; `mola calibrate` measures both.",
        f"**Bootstrap** ({settings['resamples']} resamples, stratified by task, seeds and documents "
        f"together, seed {settings['seed']}): ranks, the share of runs in which one method beats another, "
        "and a second interval in `verdict.json`.",
        f"**Smallest effect and seeds** aim at {100 * settings['power']:g} % power at the strictest step of "
        "Holm's correction, averaged over what the data leave open about the variance, with the question's own noise "
        "(`noise_from` in `verdict.json`).",
    ]
    return "\n".join(["## How it was computed", "", *(f"- {line}" for line in lines)])
