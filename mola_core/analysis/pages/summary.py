"""`summary.md`, the study's page as text: the answer, what was run, what came out, and where everything is."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from mola_core.analysis.collect import read_cells
from mola_core.analysis.figures import registry
from mola_core.analysis.notices import missing_cells, notices
from mola_core.analysis.pages.answer import answer_sentence, change_sentence, current_verdict
from mola_core.analysis.paper.catalogue import ALL_PAPER_TABLES
from mola_core.analysis.reference.numbers import task_title
from mola_core.analysis.tables.accuracy import TABLES, accuracy_notes, accuracy_table, shown_accuracy
from mola_core.analysis.tables.questions import shown_questions
from mola_core.analysis.tables.render import EMPTY, markdown_text, percent, pipe_table, points
from mola_core.files import write_text
from mola_core.runs.layout import Layout
from mola_core.study.study import Cell, Study
from mola_core.study.tries import candidates

FILE = "summary.md"
SHOWN_MISSING = 20
HELPED_NOTE = (
    "Differences in points; yes means by more than two standard errors of the documents, whatever the seeds. Whether methods differ from each "
    "other is the verdict's question, not this table's."
)


def write(layout: Layout) -> None:
    """Write `summary.md` from the files that `collect` wrote.

    What is not there yet (figures, verdict) is not mentioned. Raises `MolaError` where the cells are not collected.
    """
    study, folder = layout.study, layout.folder
    cells = read_cells(folder)
    missing = missing_cells(study, cells)
    table = accuracy_table(study, cells)
    sections = [
        f"# {study.name}: {markdown_text(study.description)}",
        "  \n".join(f"> **{notice}**" for notice in notices(study, missing)),
        _verdict(layout),
        "## What was run",
        "\n".join(f"- {line}" for line in what_was_run(study, cells)),
        "## Accuracy (%)",
        pipe_table(shown_accuracy(study, table)),
        " ".join(accuracy_notes(study, cells)),
        "## Did training help?",
        pipe_table(did_training_help(study, table, cells.groupby("task")["documents"].max().to_dict())),
        HELPED_NOTE,
        _missing(missing),
        _files(folder),
    ]
    write_text(folder / FILE, "\n\n".join(section for section in sections if section) + "\n")


def what_was_run(study: Study, cells: pd.DataFrame) -> list[str]:
    """Model, data, settings, time and machine, a line each."""
    trained = cells[cells["trainable_parameters"] > 0]
    seconds = trained["train_seconds"].sum() + cells["evaluation_seconds"].sum()
    devices = dict.fromkeys([*trained["device"].dropna(), *cells["evaluation_device"].dropna()])
    training = study.training
    length = (
        f"{training.max_steps:,} steps"
        if training.max_steps
        else f"{training.last_epoch:g} epoch{'s' * (training.last_epoch != 1)}"
    )
    lines = [
        f"Base model: {study.model.name} ({study.model.source}), {study.model.dtype}",
        f"Data: {study.data.source}; tasks: {', '.join(map(task_title, study.tasks))}; protocol: {study.protocol}",
        f"Methods: {', '.join(f'`{label}`' for label in study.method_by_label)}; "
        f"seeds: {', '.join(map(str, study.seeds))}",
        f"Training: {length}, batch {training.batch_size}, learning rate {_rates(study)}, "
        f"loss on {'the answer' if training.loss_on == 'answer' else 'prompt and answer'}",
        f"Cells: {len(cells)} of {len(study.cells())} complete; {duration(seconds)} of training and evaluation in all, "
        f"last finished {cells['finished'].max()}",
    ]
    if len(trained):
        memory = trained["peak_memory_bytes"].max() / 2**30
        speed = trained["tokens"].sum() / trained["train_seconds"].sum()
        lines.append(f"Speed: {speed:,.0f} tokens/s in training; at most {memory:.1f} GiB")
    if "remarks" in cells:
        said = cells.groupby("task", sort=False)["remarks"].first().dropna()
        lines += [f"Documents of {task_title(str(task))}: {text}" for task, text in said.items() if text]
    lines += training_notes(study, trained)
    lines.append(f"Machine: {', '.join(devices)}")
    commits = cells["commit"].dropna().unique()
    if len(commits):
        changed = ", with uncommitted changes" if cells["dirty"].fillna(False).any() else ""
        lines.append(f"Code: {', '.join(commit[:10] for commit in commits)}{changed}")
    return lines


def training_notes(study: Study, trained: pd.DataFrame) -> list[str]:
    """Rates that tuning chose, choices at the edge of those tried, trainings that diverged, update sizes: a line each."""
    lines = []
    if study.tuning and "learning_rate" in trained:
        tuned = trained[trained["method"].isin(candidates(study))]
        told = [f"{', '.join(methods)} {rates}" for rates, methods in _chosen_rates(tuned).items()]
        lines.append(f"Learning rates chosen: {'; '.join(told)} ([tuning.csv](tuning.csv))")
        ends = {min(study.tuning.learning_rates), max(study.tuning.learning_rates)}
        edge = tuned.loc[tuned["learning_rate"].isin(ends), "method"].unique()
        if len(edge):
            lines.append(
                f"**At the edge of the rates tried: {', '.join(edge)}. A better rate may lie beyond: add rates to"
                " `tuning.learning_rates`.**"
            )
    if "diverged" in trained and trained["diverged"].notna().any():
        stopped = trained[trained["diverged"].notna()]
        named = [
            f"{row.task}/{row.method}/seed{row.seed} (step {row.diverged:g})" for row in stopped.itertuples()
        ]
        lines.append(
            f"**Diverged: {len(stopped)} of {len(trained)} trainings, scored as models that know nothing unless an earlier epoch was kept: "
            f"{', '.join(named[:SHOWN_MISSING])}.**"
        )
    if "update_first" in trained and trained["update_first"].notna().any():
        sizes = (
            trained.groupby("method", sort=False)[["update_first", "update_last"]].mean().dropna(how="all")
        )
        told = [
            f"{method} {row.update_first:.2g} and {row.update_last:.2g}" for method, row in sizes.iterrows()
        ]
        lines.append(
            "Update size after the first and the last step (RMS of adapter over base output, mean over modules): "
            + "; ".join(told)
        )
    return lines


def _chosen_rates(tuned: pd.DataFrame) -> dict[str, list[str]]:
    """Learning rates in words, with the tasks' names where these have rates of their own; and the methods that have them."""
    methods: dict[str, list[str]] = {}
    for method, own in tuned.groupby("method", sort=False):
        by_task = own.groupby("task", sort=False)["learning_rate"].first()
        told = [f"{rate:g} ({task_title(str(task))})" for task, rate in by_task.items()]
        text = ", ".join(told) if by_task.nunique() > 1 else f"{by_task.iloc[0]:g}"
        methods.setdefault(text, []).append(str(method))
    return methods


def _rates(study: Study) -> str:
    """The study's learning rate, or where each method's comes from."""
    own = [f"{m.label} {m.learning_rate:g}" for m in study.methods if m.learning_rate is not None]
    listed = f" ({', '.join(own)})" if own else ""
    if study.tuning is None:
        return f"{study.training.learning_rate:g}{listed}"
    tried = ", ".join(f"{rate:g}" for rate in sorted(study.tuning.learning_rates))
    return f"chosen on validation for each method from {tried}{listed}"


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would use."""
    for unit, name in [(86400, "days"), (3600, "hours"), (60, "minutes")]:
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} seconds"


def did_training_help(study: Study, table: pd.DataFrame, documents: Mapping[str, int]) -> pd.DataFrame:
    """For each task the trained methods against the untrained model and knowing nothing.

    `documents` are those of each task's evaluation.
    """
    chance = table.iloc[0]
    over = f"Over {str(chance['method']).split()[0]}"
    untrained = table.iloc[1]
    trained = table.iloc[2:]
    rows = []
    for task in study.tasks:
        scores = trained[["method", task]].dropna()
        row = {
            "Task": task_title(task),
            str(chance["method"]).capitalize(): percent(chance[task]),
            "Untrained": percent(untrained[task]),
        }
        if scores.empty:
            rows.append(row | dict.fromkeys(["Best trained", "Over untrained", over, "Answer"], EMPTY))
            continue
        best = scores.loc[scores[task].astype(float).idxmax()]
        row |= {
            "Best trained": f"{percent(best[task])} ({best['method']})",
            "Over untrained": points(_minus(best[task], untrained[task])),
            over: points(_minus(best[task], chance[task])),
            "Answer": _answer(scores[task], untrained[task], chance[task], documents[task]),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _minus(ours: float, other: float | None) -> float | None:
    return None if other is None or pd.isna(other) else ours - other


def _answer(scores: pd.Series, untrained: float | None, chance: float, documents: int) -> str:
    """How many of the trained methods are above both by more than the noise of so many documents.

    Two standard errors of the difference of two proportions, unpaired, which is more than pairs have.
    """
    level = max(level for level in (untrained, chance) if level is not None and not pd.isna(level))
    error = (2 * level * (1 - level) / documents) ** 0.5
    above = int((scores > level + 2 * error).sum())
    if above == len(scores):
        return f"yes, all {above} methods"
    return f"{above} of {len(scores)} methods" if above else "no"


def _verdict(layout: Layout) -> str:
    """The answer in a sentence, the forest plot, what would change it and every question, where there is a verdict."""
    verdict = current_verdict(layout)
    if verdict is None:
        return ""
    change = change_sentence(verdict)
    parts = [
        "## Answer",
        f"**{markdown_text(answer_sentence(verdict))}**",
        "![Every question with its interval](figures/verdict-forest.svg)"
        if _is(layout.folder, "figures/verdict-forest.svg")
        else "",
        f"**What would change it:** {change}" if change else "",
        pipe_table(shown_questions(verdict).map(markdown_text)) if verdict["questions"] else "",
        "All of it: [verdict.md](verdict.md).",
    ]
    return "\n\n".join(part for part in parts if part)


def _missing(missing: Sequence[Cell]) -> str:
    if not missing:
        return ""
    named = [f"- {cell.path}" for cell in missing[:SHOWN_MISSING]]
    if len(missing) > SHOWN_MISSING:
        named.append(f"- and {len(missing) - SHOWN_MISSING} more")
    return "## Missing cells\n\n" + "\n".join(named)


def _files(folder: Path) -> str:
    """Figures and tables that are there, with links that work beside this file."""
    figures = [
        f"![{entry.title}](figures/{entry.name}.svg)"
        for entry in registry.entries("study")
        if _is(folder, f"figures/{entry.name}.svg")
    ]
    tables = [f"[{name}](tables/{name}.md)" for name in TABLES if _is(folder, f"tables/{name}.md")]
    lines = [*figures]
    if tables:
        lines.append(f"Tables (Markdown, LaTeX and CSV in `tables/`): {', '.join(tables)}.")
    paper = [f"[{stem}](tables/{stem}.md)" for stem in ALL_PAPER_TABLES if _is(folder, f"tables/{stem}.md")]
    if paper:
        lines.append(f"The paper's tables beside ours: {', '.join(paper)}.")
    lines.append("Every answer to every document: `scores.parquet`; every cell: `cells.csv`.")
    return "## Figures, tables, data\n\n" + "\n\n".join(lines)


def _is(folder: Path, name: str) -> bool:
    return (folder / name).is_file()
