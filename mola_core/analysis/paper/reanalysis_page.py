"""The re-analysis as a page and a forest plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mola_core.analysis.tables.render import p_value

GROUPS = {
    "2468-vs-8642": "2468 − 8642",
    "2468-vs-5555": "2468 − 5555",
    "2882-vs-5555": "2882 − 5555",
    "2356-vs-6532": "2356 − 6532 (budget 16)",
    "depth-slope-16": "Slope over budget 16, outermost shapes",
    "mola-2468-vs-lora-r64": "2468 − LoRA of rank 64",
}
SHORT_MODELS = {
    "Llama-2-7b": "LLaMA-2",
    "Mistral-7B": "Mistral",
    "Mistral-7B-v0.1": "Mistral",
    "Gemma-7b": "Gemma",
}
LIMIT = 5.0


def reanalysis_page(rows: pd.DataFrame, seeds: Mapping[str, int | None]) -> str:
    """Markdown of the rows of `reanalysis.ask`; `seeds` as `reanalysis.seeds_for` gives them."""
    sections = [
        "# The published numbers, put to the same questions",
        "Do higher layers need more LoRA experts? These are the MoLA paper's own tables (Findings of NAACL "
        "2025) and the reruns by others whose per-task numbers are known. Nothing was trained for this "
        "page.",
        _short_answer(rows),
        "![Differences in the published tables](reanalysis.svg)",
        "Thin line: 95 % interval over tasks, which decides the colour after Holm's correction within each "
        "table and kind of question. Thick line: seed noise alone, on these very test documents (Table 8 "
        "its own, every other row borrowed from Table 8). Arrows: beyond the axis.",
        _tables(rows),
        _limits(rows, seeds),
        _method(),
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def _one(rows: pd.DataFrame, question: str, *, ours: bool) -> pd.DataFrame:
    return rows[(rows["question"] == question) & (rows["ours"] == ours)]


def _short_answer(rows: pd.DataFrame) -> str:
    """What the rows say, counted from them."""
    lines = ["## In short", ""]
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
            f"- **{GROUPS[question]}** ({words}): above zero in {int((paper['estimate'] > 0).sum())} of "
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
    head = "| source | base model | points | interval over tasks | tasks above 0 | p (Holm) | reading | seeds alone |"
    for question, title in {
        **GROUPS,
        "depth-slope": "Slope over budget 20",
        "spread": "Spread, budget 20",
    }.items():
        chosen = rows[rows["question"] == question]
        unit = ", points per unit of depth" if question.startswith(("depth", "spread")) else ""
        lines += [f"**{title.removesuffix(', outermost shapes')}** (`{question}`{unit})", "", head]
        lines.append("| --- | --- | ---: | ---: | ---: | ---: | --- | ---: |")
        for _, row in chosen.iterrows():
            seeds = f"{row['seed_low']:+.2f} to {row['seed_high']:+.2f}"
            lines.append(
                f"| {row['source']} | {row['base_model']} | {row['estimate']:+.2f} | {row['low']:+.2f} to "
                f"{row['high']:+.2f} | {row['tasks_above_zero']} of {row['tasks']} | "
                f"{p_value(row['p_holm'])} | {row['reading']} | "
                f"{seeds if 'own' in row['seed_noise'] else f'({seeds})'} |"
            )
        lines.append("")
    return "\n".join([*lines, "Seeds alone in brackets: borrowed from Table 8. All rows: `reanalysis.csv`."])


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
            "- **Reruns that print no numbers by task** are not here: a figure of MoSLD has 2468 above 8642, LD-MoLE "
            "reports 2468 half a point above 8888.",
            "- **How many seeds would settle it:** with Table 8's seed noise, on these very documents, "
            f"{plans} points (80 % power at level 5 %, one question). New documents need more.",
        ]
    )


def _method() -> str:
    return "\n".join(
        [
            "## How it was computed",
            "",
            "- Each question is the mean over tasks of a weighted sum of the printed accuracies, as in a "
            "verdict.",
            "- *Interval over tasks*: Student's t over the tasks' differences. Each task was trained by "
            "itself, so their spread holds the noise of runs and documents; it is conservative where tasks "
            "differ in truth or in noise (Ibragimov & Müller 2010). *Reading* is supported or contradicted "
            "where Holm's adjusted p within the table and kind of question is at most 5 %. A verdict on "
            "one's own one-seed matrix stays undecided instead: there another seed can be run.",
            "- *Seeds alone*: Table 8 prints mean ± 1.96 · sd / √3, which gives the standard deviation of "
            "each cell; Satterthwaite's degrees of freedom from two per cell; methods independent. Single "
            "runs use each task's noise pooled over Table 8's methods.",
            "- Accuracies of Table 8 are the midpoints of its intervals. PiSSA rows are compared among "
            "themselves. The slope's and the spread's shapes are laid out over 32 layers.",
        ]
    )


def draw_reanalysis(rows: pd.DataFrame, folder: Path) -> None:
    """The forest plot, `reanalysis.svg` and `.png`: each main question, table by table."""
    from mola_core.analysis.figures.drawing import save_figure
    from mola_core.analysis.figures.style import TEXT, figure_style
    from mola_core.analysis.figures.verdict import forest

    entries: list[dict[str, Any]] = []
    for question, title in GROUPS.items():
        entries.append({"label": title})
        entries += [_entry(row) for _, row in rows[rows["question"] == question].iterrows()]
    with figure_style():
        figure = forest(
            entries, label="Difference in accuracy, mean over tasks (points)", width=0.8 * TEXT, limit=LIMIT
        )
        save_figure(figure, folder / "reanalysis")


def _entry(row: Mapping[str, Any]) -> dict[str, Any]:
    reach = row["reach"]
    values: Sequence[float] = [
        row[key] * reach for key in ("estimate", "low", "high", "seed_low", "seed_high")
    ]
    keys = ("estimate", "low", "high", "inner_low", "inner_high")
    model = SHORT_MODELS.get(row["base_model"], f"{row['base_model']} model")
    return {
        "label": f"{row['source']}, {model}",
        "answer": row["reading"],
        **dict(zip(keys, values, strict=True)),
    }
