"""The published numbers, put to the questions that a verdict answers.

Tables 1, 2, 3, 4, 7 and 9 of the MoLA paper and the reruns by others are one run per cell, Table 8 the mean
of three; no per-document results were published. What such tables can carry is tested over tasks: every task
was trained by itself, so the spread of the tasks' differences holds the noise of runs and of documents
(`statistics.between_tasks`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mola_core.analysis.reference import numbers as reference
from mola_core.analysis.statistics.estimates import Components, between_tasks, holm
from mola_core.analysis.statistics.planner import Planner
from mola_core.analysis.statistics.questions import Question, find_shapes, named_pair, possible_questions
from mola_core.files import atomic_write, write_text

LEVEL = 0.05
POWER = 0.8
SMALLER_PAIRS = ("2356-vs-6532", "2356-vs-4444", "2662-vs-4444")
"""The budget-16 counterparts of the standing pairs."""
PRINTED_SEEDS = 3
PRINTED_Z = 1.96
"""Table 8 prints mean ± z · sd / √3 over seeds 0, 1 and 2."""


@dataclass(frozen=True)
class Source:
    """One published table: `accuracy` is tasks x methods, in percent."""

    name: str
    model: str
    accuracy: pd.DataFrame
    ours: bool
    """True for the paper's own tables, false for reruns by others."""
    runs: int = 1
    slopes_only: bool = False
    """True for tables put together for their slopes, whose pairs are asked about where they are printed."""


def sources() -> list[Source]:
    """The tables, each complete in its tasks; the extreme shapes of Table 3 also beside the other shapes of
    budget 16.

    Names of PiSSA-initialised methods lose their prefix: within Table 9 all methods have it.
    """
    paper = reference.results()
    paper = paper.assign(method=paper["method"].str.removeprefix("pissa-"))

    def table(name: str, model: str, *numbers: int) -> Source:
        rows = paper[paper["table"].isin([f"naacl-{n}" for n in numbers]) & (paper["base_model"] == model)]
        return Source(name, model, _pivot(rows), ours=True, runs=PRINTED_SEEDS if numbers == (8,) else 1)

    llama, mistral, gemma = "Llama-2-7b", "Mistral-7B", "Gemma-7b"
    found = [
        table("Table 1", llama, 1),
        table("Table 8 (three seeds)", llama, 8),
        table("Table 4 (after instruction tuning)", llama, 4),
        table("Table 9 (PiSSA)", llama, 9),
        table("Table 2", mistral, 2),
        table("Table 7", gemma, 7),
        table("Table 3", llama, 3),
        _smaller(table("Tables 1 and 3", llama, 1, 3)),
        table("Table 3", mistral, 3),
        _smaller(table("Tables 2 and 3", mistral, 2, 3)),
    ]
    reruns = pd.read_csv(reference.FOLDER / "reruns.csv").replace(
        {"task": {"commonsense_qa": "commonsenseqa"}}
    )
    for (name, model), rows in reruns.groupby(["source", "base_model"], sort=False):
        setting = rows["setting"].iloc[0].split(",")[0]
        short = str(name).split(" (")[0].removesuffix(" plotting script")
        found.append(Source(f"{short} ({setting})", str(model), _pivot(rows), ours=False))
    return found


def _smaller(source: Source) -> Source:
    """The shapes of budget 16 alone; those of budget 20 are asked about where they are printed."""
    shapes = [shape.method for shape in find_shapes(source.accuracy.columns) if shape.budget == 16]
    return replace(source, accuracy=source.accuracy[shapes], slopes_only=True)


def _pivot(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.pivot(index="task", columns="method", values="accuracy").dropna(axis=1)


def seed_noise() -> pd.DataFrame:
    """Standard deviation between seeds in points, tasks x methods, from the intervals printed in Table 8."""
    rows = reference.results().query("table == 'naacl-8'")
    half = (rows["ci_high"] - rows["ci_low"]) / 2
    rows = rows.assign(deviation=half * np.sqrt(PRINTED_SEEDS) / PRINTED_Z)
    return rows.pivot(index="task", columns="method", values="deviation")


def ask(source: Source) -> list[dict[str, Any]]:
    """One row for each question that the methods of a table allow; accuracies in points."""
    methods = list(source.accuracy.columns)
    questions = possible_questions(methods, find_shapes(methods))
    questions += [question for name in SMALLER_PAIRS if (question := named_pair(name, methods))]
    if source.slopes_only:
        questions = [question for question in questions if not question.is_pair]
    rows = [_ask(question, source) for question in questions]
    twins = {question.id: twin.id for question in questions if (twin := question.twin(questions))}
    adjusted: dict[str, float] = {}
    for family in {row["family"] for row in rows}:
        tested = [row for row in rows if row["family"] == family and row["question"] not in twins]
        adjusted |= zip((row["question"] for row in tested), holm([row["p"] for row in tested]), strict=True)
    for row in rows:
        row["same_test_as"] = twins.get(row["question"])
        row["p_holm"] = round(adjusted[row["same_test_as"] or row["question"]], 6)
        row["reading"] = "undecided"
        if row["p_holm"] <= LEVEL:
            row["reading"] = "supported" if row["estimate"] > 0 else "contradicted"
    return rows


def _ask(question: Question, source: Source) -> dict[str, Any]:
    accuracy = source.accuracy[list(question.weights)]
    weights = np.array(list(question.weights.values()))
    differences = accuracy.to_numpy() @ weights
    estimate = between_tasks(differences)
    low, high = estimate.interval(LEVEL)
    seed_error, seed_df, noise = _seed_error(accuracy, weights, source)
    half = float(stats.t.ppf(1 - LEVEL / 2, seed_df)) * seed_error
    documents = np.array([reference.TASKS[task][1] for task in accuracy.index])[:, None]
    share = accuracy.to_numpy() / 100
    document_error = 100 * np.sqrt((weights**2 * share * (1 - share) / documents).sum()) / len(accuracy)
    family = "shapes" if question.id in SMALLER_PAIRS else question.family
    numbers = {
        "estimate": estimate.value,
        "low": low,
        "high": high,
        "p": estimate.p_value(),
        "seed_low": estimate.value - half,
        "seed_high": estimate.value + half,
        "document_noise": stats.norm.ppf(1 - LEVEL / 2) * document_error,
        "reach": question.reach,
    }
    return {
        "source": source.name,
        "base_model": source.model,
        "ours": source.ours,
        "question": question.id,
        "family": family,
        "tasks": len(accuracy),
        "tasks_above_zero": int((differences > 0).sum()),
        **{key: round(float(value), 6) for key, value in numbers.items()},
        "seed_noise": noise,
    }


def _seed_error(accuracy: pd.DataFrame, weights: np.ndarray, source: Source) -> tuple[float, float, str]:
    """Standard error from seeds alone, its degrees of freedom, and whose noise it is.

    Table 8 has its own; any other table borrows each task's noise from Table 8, pooled over its methods.
    Seeds of different methods count as independent, since their results were not published by seed.
    """
    noise = seed_noise()
    if source.runs == PRINTED_SEEDS:
        terms = weights**2 * noise.loc[accuracy.index, accuracy.columns].to_numpy() ** 2 / PRINTED_SEEDS
        df = PRINTED_SEEDS - 1
        label = "its own three seeds"
    else:
        pooled = (noise.loc[accuracy.index] ** 2).mean(axis=1).to_numpy()
        terms = pooled * (weights**2).sum()
        df = noise.shape[1] * (PRINTED_SEEDS - 1)
        label = "borrowed from Table 8"
    return (
        float(np.sqrt(terms.sum()) / len(accuracy)),
        float(terms.sum() ** 2 / ((terms**2).sum() / df)),
        label,
    )


def seeds_for(differences: Sequence[float] = (0.5, 1.0, 2.0)) -> dict[str, int | None]:
    """Seeds a task that find a difference between two shapes on the paper's six tasks, with Table 8's seed
    noise.

    Only the noise between seeds is known, so the plan is for these very test documents and a lower bound
    otherwise.
    """
    noise = seed_noise()
    parts = [
        Components(
            np.float64(0),
            seed=reference.TASKS[task][1] * np.float64(2 * (row**2).mean() / 100**2),
            document=np.float64(0),
            rest=np.float64(0),
            seeds=PRINTED_SEEDS,
            documents=reference.TASKS[task][1],
            seed_df=noise.shape[1] * (PRINTED_SEEDS - 1),
        )
        for task, row in noise.iterrows()
    ]
    planner = Planner(parts, LEVEL, POWER)
    return {f"{size:g}": planner.seeds_needed(size / 100) for size in differences}


def reanalyse(out: str | Path) -> pd.DataFrame:
    """Write reanalysis.{csv,md} and the forest plot into `out`; returns the rows. Needs no model and no
    study.
    """
    from mola_core.analysis.paper.reanalysis_page import draw_reanalysis, reanalysis_page

    out = Path(out)
    rows = pd.DataFrame([row for source in sources() for row in ask(source)])
    with atomic_write(out / "reanalysis.csv") as temporary:
        rows.to_csv(temporary, index=False, lineterminator="\n")
    draw_reanalysis(rows, out)
    write_text(out / "reanalysis.md", reanalysis_page(rows, seeds_for()))
    return rows
