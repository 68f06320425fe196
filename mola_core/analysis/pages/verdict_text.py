"""The verdict as a page that is understood in a minute: question, answer, plot, what would change it."""

from collections.abc import Mapping
from typing import Any

from mola_core.analysis import verdict_fields as fields
from mola_core.analysis.pages.answer import answer_sentence, beside_sentences, change_sentence
from mola_core.analysis.statistics.planner import MAX_SEEDS
from mola_core.analysis.tables.render import markdown_text, p_value

TITLE = "Do higher layers need more experts here?"
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
        "![Accuracy and likelihood against the experts' centre of depth](figures/verdict-depth.svg)",
        _methods(verdict),
        "![Probability of each rank](figures/verdict-ranks.svg)",
        _cannot_say(verdict),
        _mcnemar(verdict),
        _how(verdict),
    ]
    return "\n\n".join(section.strip() for section in sections if section) + "\n"


def interval(row: dict[str, Any]) -> str:
    return f"{row['low']:+.2f} to {row['high']:+.2f}"


def _headline(verdict: dict[str, Any]) -> str:
    answer = markdown_text(answer_sentence(verdict | {"stand_in": False}))
    return f"**{answer}**" + "".join(f"\n{markdown_text(text)}" for text in beside_sentences(verdict))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _what_would_change_it(verdict: dict[str, Any]) -> str:
    text = change_sentence(verdict)
    return f"**What would change it:** {markdown_text(text)}" if text else ""


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
            f"| question | claim | answer | estimate | {fields.confidence(verdict)} interval | median | p | p (equivalence) "
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
        asked = markdown_text(", ".join(f"{row['id']} ({row['reason']})" for row in verdict["unanswered"]))
        lines += ["", f"Not possible with these methods: {asked}."]
    return "\n".join(lines)


def _row(question: dict[str, Any]) -> str:
    if question["estimate"] is None:
        return (
            f"| {markdown_text(question['id'])} | {markdown_text(question['claim'])} | undecided |"
            + " – |" * 8
        )
    single = question["covers"] == "documents"
    mde = question["minimum_detectable_effect"]
    counts = [*question["seeds_needed"].values(), question["seeds_equivalent"]]
    seeds = " / ".join(f"> {MAX_SEEDS}" if n is None else str(n) for n in counts)
    answer = question["answer"] + (" (one seed: documents only)" if single else "")
    if question["within_margin"] and question["answer"] != "equivalent":
        answer += " (within the margin)"
    twin = question["same_test_as"]
    cells = [
        markdown_text(question["id"]),
        markdown_text(question["claim"] + (f"; the same test as {twin}" if twin else "")),
        answer if question["answer"] == "undecided" else f"**{answer}**",
        f"{question['estimate']:+.2f}"
        + (f" (worth {question['worth']:+.2f})" if question["worth"] is not None else ""),
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
        f"| method | accuracy | median run | {fields.confidence(verdict)} interval | covers | best of all | centre of depth | "
        "spread |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for method, row in verdict["methods"].items():
        first = "–" if row["ranks"] is None else f"{100 * row['ranks'][0]:.0f} %"
        place = f"{row['centre']:.3f} | {row['spread']:.3f}" if "centre" in row else "– | –"
        lines.append(
            f"| {markdown_text(method)} | {row['accuracy']:.2f} | {row['median']:.2f} | {row['low']:.2f} to {row['high']:.2f} | {row['covers']} "
            f"| {first} | {place} |"
        )
    also = fields.also_counted(verdict)
    return "\n".join(lines + ["", markdown_text(also)] if also else lines)


def _clusters(row: Mapping[str, Any]) -> str:
    return f" in {_count(row['clusters'], 'cluster')}" if "clusters" in row else ""


def _cannot_say(verdict: dict[str, Any]) -> str:
    tasks = ", ".join(
        f"{markdown_text(name)} ({_count(row['documents'], 'document')}{_clusters(row)}, {_count(row['seeds'], 'seed')})"
        for name, row in verdict["data"]["tasks"].items()
    )
    lines = [
        "## What it cannot say",
        "",
        f"- It is about {markdown_text(', '.join(verdict['data']['models']))} and these tasks alone: {tasks}{_but_left_out(verdict)}. Tasks are "
        "not a sample of all tasks; each counts the same. The column *tasks drawn* is about tasks like these.",
        "- *Undecided* is not *no difference*: that is *equivalent*.",
        "- A slope is a straight line through the shapes tried, at their spread; it does not promise a "
        "shape between.",
        "- It takes the training recipe as given. Another learning rate or more steps may change the order.",
    ]
    if len(verdict["data"]["tasks"]) > 1:
        lines.append(
            "- One training may have answered several tasks, and a good one is good in all of them: intervals and p are the wider "
            "and larger of those with noise of each task's own and those with noise common to tasks; plans are of the former."
            if verdict["seeds_shared"]
            else "- It takes a seed's effects on two tasks as independent: each task has trainings of its own (`seeds_by_task`)."
        )
    return "\n".join([*lines, *(f"- {markdown_text(note)}" for note in verdict["notes"])])


def _but_left_out(verdict: dict[str, Any]) -> str:
    left_out = list(verdict["left_out_tasks"])
    return f"; the questions leave out {markdown_text(', '.join(left_out))}" if left_out else ""


def _mcnemar(verdict: dict[str, Any]) -> str:
    if not verdict["mcnemar"]:
        return ""
    lines = [
        "## One seed: exact McNemar tests",
        "",
        "These compare two *trained adapters* on the same documents, not two shapes: the noise between "
        "trainings is not in them. p after Holm over all rows. Tasks whose documents belong together in clusters are left out.",
        "",
        "| pair | task | only first right | only second right | p | p (Holm) |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in verdict["mcnemar"]:
        lines.append(
            f"| {markdown_text(row['id'])} | {markdown_text(row['task'])} | {row['only_first']} | {row['only_second']} | "
            f"{p_value(row['p'])} | {p_value(row['p_holm'])} |"
        )
    return "\n".join(lines)


def _how(verdict: dict[str, Any]) -> str:
    settings = verdict["settings"]
    looks = verdict["looks"]
    stated = ", ".join(
        markdown_text(question["id"]) for question in verdict["questions"] if question["status"] == "stated"
    )
    when = "Stated beforehand" if looks["stated_beforehand"] else "Hypotheses"
    which = f"look {looks['taken']} of {looks['planned']} planned, level {looks['level']:g} at this one"
    if looks["taken"] > looks["planned"]:
        which += "; **more looks than planned: what it decides is a hint, not a test**"
    clustered = (
        "Documents of one cluster (a premise, a skill) may be answered alike: sums over clusters take their place. "
        if any("clusters" in row for row in verdict["data"]["tasks"].values())
        else ""
    )
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
        f"as fixed. {clustered}Each interval shown is its question's own. The bootstrap below covers more than it says, since it "
        "counts the noise of a seed on a document three times; `mola calibrate` measures both.",
        f"**Bootstrap** ({settings['resamples']} resamples, stratified by task, seeds and documents "
        f"together, seed {settings['seed']}): ranks, the share of runs in which one method beats another, "
        "and a second interval in `verdict.json`.",
        f"**Smallest effect and seeds** aim at {100 * settings['power']:g} % power at the strictest step of "
        "Holm's correction, averaged over what the data leave open about the variance, with the question's own noise, or pooled "
        "with equally noisy methods of its kind (`noise_from` in `verdict.json`); seeds at the level of the next look.",
    ]
    return "\n".join(["## How it was computed", "", *(f"- {line}" for line in lines)])
