"""The re-analysis as a page: the combined answer first, then the forest plot, the losses, every table and its limits."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mola_core.analysis.paper.combined import PRIMARY, Combined
from mola_core.analysis.paper.reanalysis_figures import (
    FOREST_CAPTION,
    GROUPS,
    LOSS_CAPTION,
    SHORT_MODELS,
)
from mola_core.analysis.paper.sources import DOUBTFUL
from mola_core.analysis.paper.training_losses import CAVEATS, LossSlope, shape_losses
from mola_core.analysis.tables.render import p_value


def reanalysis_page(
    rows: pd.DataFrame,
    combined: Mapping[str, Combined],
    treatments: Sequence[Mapping[str, Any]],
    losses: Sequence[LossSlope],
    seeds: Mapping[str, int | None],
    tests: int,
) -> str:
    """Markdown of the re-analysis; `rows` as `reanalysis.correct_all` leaves them, `tests` the tests among them."""
    sections = [
        "# The published numbers, put to the same questions",
        "Do higher layers need more LoRA experts? These are the MoLA paper's own tables (Findings of NAACL "
        "2025) and the reruns by others whose numbers by task are known. Nothing was trained for this "
        "page.",
        _answer(combined[PRIMARY], rows),
        "![Differences in the published tables](reanalysis.svg)",
        FOREST_CAPTION,
        _short_answer(rows, tests),
        _combined(combined, treatments),
        _losses(losses),
        _tables(rows),
        _limits(rows, seeds),
        _method(tests),
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def _answer(main: Combined, rows: pd.DataFrame) -> str:
    """The whole in one paragraph."""
    reruns = _one(rows, PRIMARY, ours=False)
    against = ", ".join(f"{row['source']} {row['estimate']:+.2f}" for _, row in reruns.iterrows())
    return (
        f"**In one sentence.** Over the paper's own tables the increasing shape 2468 is {main.estimate:.2f} points ahead of its mirror 8642 "
        f"({main.low:+.2f} to {main.high:+.2f} for these six tasks, {main.drawn_low:+.2f} to {main.drawn_high:+.2f} for tasks like "
        f"these; p = {main.p:.3f}), but settings differ so much (τ = {main.tau:.2f}) that in another one the difference may lie "
        f"anywhere from {main.predict_low:+.2f} to {main.predict_high:+.2f}; both reruns that print it by task have it the other way "
        f"({against}), no single table decides it, and the paper chose its epochs by results. "
        "So: for the claim in the paper's hands, undecided for a model of one's own."
    )


def _combined(combined: Mapping[str, Combined], treatments: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "## Combined over the paper's tables",
        "",
        "| question | settings | points | these tasks | tasks like these | p (these) | τ between settings | sd between tasks | another setting |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in combined.items():
        lines.append(
            f"| {GROUPS[name][0]} | {row.settings} | {row.estimate:+.2f} | {row.low:+.2f} to {row.high:+.2f} | {row.drawn_low:+.2f} to "
            f"{row.drawn_high:+.2f} | {p_value(row.p)} | {row.tau:.2f} | {row.task_sd:.2f} | {row.predict_low:+.2f} to {row.predict_high:+.2f} |"
        )
    lines += [
        "",
        "2468 − 8642 is the paper's claim and the one test here without a correction; the other three stand beside it uncorrected and count as "
        "exploration. *Another setting*: where the true difference in one more setting like these, on these tasks, would lie (95 %).",
        "",
        "**What the tables share.** All test the same six tasks on the same documents, so settings and tasks are crossed and the task is a term of its own. "
        "Tables 1 and 8 are one experiment with other seeds and count as one setting, weighted one to three. "
        "Three of the five settings are LLaMA-2-7B. What other treatments give for 2468 − 8642:",
        "",
        "| treatment | points | 95 % interval | τ |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in treatments:
        lines.append(
            f"| {row['treatment']} | {row['estimate']:+.2f} | {row['low']:+.2f} to {row['high']:+.2f} | {row['tau']:.2f} |"
        )
    return "\n".join(lines)


def _losses(losses: Sequence[LossSlope]) -> str:
    lines = [
        "## Training losses of 102 runs by others",
        "",
        "![Training losses by others against depth](training-losses.svg)",
        "",
        LOSS_CAPTION,
        "",
        "| runs | number | change of the loss per unit of depth (log %) | 95 % interval over tasks |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in losses:
        lines.append(f"| {row.name} | {row.runs} | {row.slope:+.1f} | {row.low:+.1f} to {row.high:+.1f} |")
    shapes = ", ".join(f"{row.task} {row.percent:+.1f} %" for row in shape_losses().itertuples())
    lines += [
        "",
        "These losses lean **for** the claim, against LayerIF's own table of accuracies from the same runs. On Mistral 2468 has a lower loss than 8642 "
        f"on every task ({shapes}).",
        "",
        *(f"- {caveat}" for caveat in CAVEATS),
    ]
    return "\n".join(lines)


def _one(rows: pd.DataFrame, question: str, *, ours: bool) -> pd.DataFrame:
    return rows[(rows["question"] == question) & (rows["ours"] == ours)]


def _short_answer(rows: pd.DataFrame, tests: int) -> str:
    """What the rows say, counted from them."""
    decided = rows[rows["reading"] != "undecided"]
    alone = rows[(rows["p_table"] <= 0.05) & rows["same_test_as"].isna()]
    named = "; ".join(
        f"{row['question']} in {row['source']}, {SHORT_MODELS.get(row['base_model'], row['base_model'])} ({row['p_table']:.3f}, over all {row['p_holm']:.2f})"
        for _, row in alone.iterrows()
    )
    lines = [
        "## Table by table",
        "",
        f"- **Holm over all {tests} tests of all tables** decides {len(decided) or 'nothing'}. Within their own table and kind of question "
        f"{len(alone)} have p at most 0.05: {named}. Tests of one table share its runs, and all share tasks and documents: they are fewer pieces of evidence than they are tests.",
    ]
    for question, words in (
        ("2468-vs-8642", "the increasing against the decreasing shape"),
        ("2468-vs-5555", "the increasing against the uniform shape"),
        ("2882-vs-5555", "the middle-heavy against the uniform shape"),
        (
            "mola-2468-vs-lora-r64",
            "the increasing shape against plain LoRA of rank 64, which has more parameters",
        ),
    ):
        paper, others = _one(rows, question, ours=True), _one(rows, question, ours=False)
        text = (
            f"- **{GROUPS[question][0]}** ({words}): above zero in {int((paper['estimate'] > 0).sum())} of "
            f"{len(paper)} tables of the paper ({paper['estimate'].min():+.2f} to "
            f"{paper['estimate'].max():+.2f} points), {_readings(paper)}."
        )
        if len(others):
            named = ", ".join(f"{row['source']} {row['estimate']:+.2f}" for _, row in others.iterrows())
            text += f" Reruns: {named}; {_readings(others)}."
        lines.append(text)
    slope = _one(rows, "depth-slope-16", ours=True)
    lines.append(
        "- **Slope over budget 16**, where the extreme shapes of Table 3 reach further: "
        + "; ".join(
            f"{row['source']}, {SHORT_MODELS[row['base_model']]}: {row['estimate']:+.2f} points per unit of "
            f"depth ({row['low']:+.2f} to {row['high']:+.2f}, {row['reading']})"
            for _, row in slope[slope["source"].str.contains("and")].iterrows()
        )
        + "."
    )
    return "\n".join(lines)


def _readings(rows: pd.DataFrame) -> str:
    counts = rows["reading"].value_counts()
    return ", ".join(f"{reading} in {counts[reading]}" for reading in sorted(counts.index))


def _tables(rows: pd.DataFrame) -> str:
    lines = ["## Every main question", ""]
    head = "| source | base model | points | tasks like these (drawn) | these tasks (fixed) | tasks above 0 | p | p in its table | p over all | reading |"
    for question, title in {
        **{name: title for name, (title, _) in GROUPS.items()},
        "depth-slope": "Slope over budget 20",
        "spread": "Spread, budget 20",
    }.items():
        chosen = rows[rows["question"] == question]
        unit = ", points per unit of depth" if question.startswith(("depth", "spread")) else ""
        lines += [f"**{title.removesuffix(', outermost shapes')}** (`{question}`{unit})", "", head]
        lines.append("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
        for _, row in chosen.iterrows():
            seeds = f"{row['seed_low']:+.2f} to {row['seed_high']:+.2f}"
            fixed = seeds if "own" in row["seed_noise"] else f"({seeds})"
            lines.append(
                f"| {row['source']}{row['mark']} | {row['base_model']} | {row['estimate']:+.2f} | {row['low']:+.2f} to "
                f"{row['high']:+.2f} | {'–' if pd.isna(row['seed_low']) else fixed} | {row['tasks_above_zero']} of {row['tasks']} | "
                f"{p_value(row['p'])} | {p_value(row['p_table'])} | {p_value(row['p_holm'])} | {row['reading']} |"
            )
        lines.append("")
    return "\n".join([*lines, _marks()])


def _marks() -> str:
    doubts = "; ".join(f"{source} on {task}: {why}" for (source, task), why in DOUBTFUL.items())
    return (
        "*Tasks like these*: Student's t over the tasks. *These tasks*: noise between seeds alone on these very documents, in brackets where it is "
        f"borrowed from Table 8, – where none is known. All rows: `reanalysis.csv`, `combined.csv`.\n\n‡ Doubtful: {doubts}. Without "
        "OpenbookQA and ScienceQA 2468 − 8642 is −0.36 points there, on three tasks.\n\n† Second-hand: not read from the paper itself. LD-MoLE's tasks are not "
        "the paper's, so no noise between seeds is known for them; 8888 has 60 % more parameters than 2468."
    )


def _limits(rows: pd.DataFrame, seeds: Mapping[str, int | None]) -> str:
    noise = _one(rows, "2468-vs-8642", ours=True)["document_noise"]
    plans = ", ".join(f"{count} for {size}" for size, count in seeds.items())
    return "\n".join(
        [
            "## What these numbers cannot say",
            "",
            "- **Noise between trainings.** Tables 1, 2, 3, 4, 7 and 9 are one run per cell: they hold no "
            "seed variance. Table 8 prints intervals over three seeds on LLaMA-2 alone; its noise need not "
            "be that of Mistral, Gemma or three epochs.",
            "- **Noise of the test documents.** Which documents each run got right was not published, so "
            "differences cannot be paired. If they were independent, documents alone would move 2468 − "
            f"8642 by up to ±{noise.min():.1f} to ±{noise.max():.1f} points (95 %); pairing makes it less, "
            "by how much is unknown.",
            "- **Middle or top.** At budget 20 only 2468 and 8642 lie off the middle of the depth, so the "
            "slope is their difference in another unit: the same test, answered once.",
            "- **Choice of epochs.** The paper picked 10, 15 or 20 epochs per task, on which split is not "
            "stated; a best-of choice per cell adds noise that no interval here knows.",
            "- **Reruns differ in more than the seed.** LayerIF trained 3 epochs, with a warm-up longer "
            "than some of its runs, so its models are barely trained; the GuiLoMo values are read from a "
            "plotting script for an unnamed model and two tasks, and of its four rank settings only the uniform one is "
            "here, the only one that MoLA itself has (2468 − 8642 is −1.01 there; +0.11, +0.15 and +0.06 in the others).",
            "- **Reruns that print no numbers by task** are not here: a figure of MoSLD has 2468 above 8642.",
            "- **How many seeds would settle it:** with Table 8's seed noise, on these very documents, "
            f"{plans} points (80 % power at level 5 %, one question). New documents need more.",
        ]
    )


def _method(tests: int) -> str:
    return "\n".join(
        [
            "## How it was computed",
            "",
            "- Each question is the mean over tasks of a weighted sum of the printed accuracies, as in a "
            "verdict.",
            "- **Two estimands**, in every table. *Tasks like these (drawn)*: Student's t over the tasks' differences. Each task was trained by "
            "itself, so their spread holds the noise of runs and documents; it is conservative where tasks "
            "differ in truth or in noise (Ibragimov & Müller 2010). *These tasks (fixed)*: their own documents, noise between seeds alone. A verdict on one's own "
            "study shows both too.",
            f"- *Reading*: supported or contradicted where Holm's adjusted p over all {tests} tests of all tables is at most 5 %. No table and no question was "
            "stated before its numbers were seen, so they are one exploratory family; *p in its table* corrects within the table and kind of question only.",
            "- *Combined*: settings x tasks as a two-way table with both random; τ from its mean squares, the prediction interval after Higgins, Thompson & "
            "Spiegelhalter (2009). Independent settings: Paule & Mandel's τ, Hartung & Knapp's interval.",
            "- *Seeds*: Table 8 prints mean ± 1.96 · sd / √3, which gives the standard deviation of "
            "each cell; Satterthwaite's degrees of freedom from two per cell; methods independent. Single "
            "runs use each task's noise pooled over Table 8's methods.",
            "- Accuracies of Table 8 are the midpoints of its intervals. PiSSA rows are compared among "
            "themselves. The slope's and the spread's shapes are laid out over 32 layers.",
        ]
    )
