"""Re-analysis: the published numbers put to the questions that a verdict answers, table by table.

Tables 1, 2, 3, 4, 7 and 9 of the MoLA paper and the reruns by others are one run per cell, Table 8 the mean
of three; no per-document results were published. Two estimands, both in every row: *tasks like these* (drawn), tested
over tasks, since every task was trained by itself and the spread of the tasks' differences holds the noise of runs and of
documents (`estimates.between_tasks`); and *these tasks* (fixed) on their very test documents, with the noise between seeds
that Table 8 prints.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from mola_core.analysis.paper.combined import combine_all, sensitivity
from mola_core.analysis.paper.sources import PRINTED_SEEDS, Source, seed_noise, sources
from mola_core.analysis.paper.training_losses import slopes
from mola_core.analysis.reference import numbers as reference
from mola_core.analysis.statistics.estimates import Components, between_tasks, holm
from mola_core.analysis.statistics.planner import Planner
from mola_core.analysis.statistics.questions import Question, find_shapes, named_pair, possible_questions
from mola_core.files import atomic_write, write_text

LEVEL = 0.05
POWER = 0.8
EXTRA_PAIRS = ("2356-vs-6532", "2356-vs-4444", "2662-vs-4444", "2468-vs-8888")
"""The budget-16 counterparts of the standing pairs, and the shape of budget 32, which has more parameters."""


def ask(source: Source) -> list[dict[str, Any]]:
    """One row for each question that the methods of a table allow; accuracies in points.

    `p_table` is Holm's within the table and kind of question; `correct_all` adds what decides, over all tables.
    """
    methods = list(source.accuracy.columns)
    questions = possible_questions(methods, find_shapes(methods))
    questions += [question for name in EXTRA_PAIRS if (question := named_pair(name, methods))]
    if source.slopes_only:
        questions = [question for question in questions if not question.is_pair]
    rows = [_ask(question, source) for question in questions]
    twins = {question.id: twin.id for question in questions if (twin := question.twin(questions))}
    adjusted: dict[str, float] = {}
    for family in dict.fromkeys(row["family"] for row in rows):
        tested = [row for row in rows if row["family"] == family and row["question"] not in twins]
        adjusted |= zip((row["question"] for row in tested), holm([row["p"] for row in tested]), strict=True)
    for row in rows:
        row["same_test_as"] = twins.get(row["question"])
        row["p_table"] = round(adjusted[row["same_test_as"] or row["question"]], 6)
    return rows


def correct_all(rows: list[dict[str, Any]]) -> int:
    """Add `p_holm`, Holm's over every test of every table, and the `reading` that follows; returns the number of tests.

    No table and no question was stated before its numbers were seen, so all tests are one exploratory family. The
    one claim that the paper states, 2468 - 8642 over all its tables, is tested apart (`combined`).
    """
    tested = [row for row in rows if row["same_test_as"] is None]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = round(p, 6)
    known = {(row["source"], row["base_model"], row["question"]): row["p_holm"] for row in tested}
    for row in rows:
        twin = row["same_test_as"]
        row["p_holm"] = known[(row["source"], row["base_model"], twin or row["question"])]
        row["reading"] = "undecided"
        if row["p_holm"] <= LEVEL:
            row["reading"] = "supported" if row["estimate"] > 0 else "contradicted"
    return len(tested)


def _ask(question: Question, source: Source) -> dict[str, Any]:
    accuracy = source.accuracy[list(question.weights)]
    weights = np.array(list(question.weights.values()))
    differences = accuracy.to_numpy() @ weights
    estimate = between_tasks(differences)
    low, high = estimate.interval(LEVEL)
    seed_error, seed_df, noise = _seed_error(accuracy, weights, source)
    half = float(stats.t.ppf(1 - LEVEL / 2, seed_df)) * seed_error
    # Tasks that the paper does not have: neither their documents nor their noise between seeds is known.
    documents = np.array([reference.TASKS.get(task, ("", math.nan))[1] for task in accuracy.index])[:, None]
    share = accuracy.to_numpy() / 100
    document_error = 100 * np.sqrt((weights**2 * share * (1 - share) / documents).sum()) / len(accuracy)
    family = "shapes" if question.id in EXTRA_PAIRS else question.family
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
        **{key: None if math.isnan(value) else round(float(value), 6) for key, value in numbers.items()},
        "seed_noise": noise,
        "mark": source.mark,
    }


def _seed_error(accuracy: pd.DataFrame, weights: np.ndarray, source: Source) -> tuple[float, float, str]:
    """Standard error from seeds alone, its degrees of freedom, and whose noise it is; NaN for tasks without any.

    Table 8 has its own; any other table borrows each task's noise from Table 8, pooled over its methods.
    Seeds of different methods count as independent, since their results were not published by seed.
    """
    noise = seed_noise()
    if not set(accuracy.index) <= set(noise.index):
        return math.nan, 1.0, "unknown"
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
    """Write reanalysis.{csv,md}, combined.csv and the figures into `out`; returns the rows. Needs no model and no
    study.
    """
    from mola_core.analysis.paper.reanalysis_figures import draw_losses, draw_reanalysis
    from mola_core.analysis.paper.reanalysis_page import reanalysis_page

    out, tables = Path(out), sources()
    answers = [row for source in tables for row in ask(source)]
    tests = correct_all(answers)
    rows, combined = pd.DataFrame(answers), combine_all(tables)
    losses = slopes()
    with atomic_write(out / "reanalysis.csv") as temporary:
        rows.to_csv(temporary, index=False, lineterminator="\n")
    with atomic_write(out / "combined.csv") as temporary:
        frame = pd.DataFrame([{"question": name, **row._asdict()} for name, row in combined.items()])
        frame.round(6).to_csv(temporary, index=False, lineterminator="\n")
    draw_reanalysis(rows, combined, out)
    draw_losses(losses, out)
    page = reanalysis_page(rows, combined, sensitivity(tables), losses, seeds_for(), tests)
    write_text(out / "reanalysis.md", page)
    return rows
