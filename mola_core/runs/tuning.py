"""Tuning: each method's learning rate, chosen from the scores of its tries on validation, and what the cells make of it."""

from __future__ import annotations

import csv
import math
import sys
from collections import defaultdict
from dataclasses import asdict
from typing import Any

from mola_core.errors import MolaError
from mola_core.files import atomic_write, read_json, sha256_file
from mola_core.records import read_record, write_record
from mola_core.runs.choice import EVERY_TASK, TABLE, TUNING, Choice
from mola_core.runs.key import tuning_key
from mola_core.runs.layout import Layout
from mola_core.study.study import Cell
from mola_core.study.tries import candidates, tries


def choose(layout: Layout) -> dict[str, dict[str, Choice]]:
    """Choose from the scores of all tries; writes `tuning.csv` and, last, `tuning.json`.

    Raises `MolaError` where tries are not complete, or none of a method's gives a score.
    """
    study = layout.study
    if study.tuning is None or layout.tries is None:
        raise MolaError(f"study {study.name}: has no section `tuning`; add one")
    rows = score_tries(layout)
    found = choices_of(layout, rows)
    best = {(choice.tried, task): choice for of_task in found.values() for task, choice in of_task.items()}
    tasks = list(next(iter(found.values())))
    marked = [row | {"chosen": _is_chosen(row, best, tasks)} for row in rows]
    with atomic_write(layout.folder / TABLE) as temporary, open(temporary, "w", newline="") as file:
        table = csv.DictWriter(file, list(marked[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(marked)
    record = {
        "key": tuning_key(layout),
        "score": study.tuning.score,
        "table_sha256": sha256_file(layout.folder / TABLE),
        "choices": {method: [asdict(c) for c in by_task.values()] for method, by_task in found.items()},
    }
    write_record(layout.folder / TUNING, record)
    for warning in edges(list(best.values())):
        print(f"tuning: {warning}", file=sys.stderr)
    return found


def choices_of(layout: Layout, rows: list[dict[str, Any]]) -> dict[str, dict[str, Choice]]:
    """By method and task (or `EVERY_TASK`), what the scored tries give. Raises `MolaError` where a method has no score."""
    study = layout.study
    assert study.tuning is not None
    tasks = study.tasks if study.tuning.per_task else [EVERY_TASK]
    best = {
        (candidate, task): _best(rows, candidate, task)
        for candidate in dict.fromkeys(candidates(study).values())
        for task in tasks
    }
    return {
        method: {task: best[candidate, task] for task in tasks}
        for method, candidate in candidates(study).items()
    }


def edges(found: list[Choice]) -> list[str]:
    """A line for each choice at the end of the rates that were tried."""
    return [
        f"{choice.tried} ({choice.task}): the {choice.edge} rate tried, {choice.learning_rate:g}, scores best; a better"
        f" one may lie beyond: add {'lower' if choice.edge == 'lowest' else 'higher'} tuning.learning_rates"
        for choice in found
        if choice.edge
    ]


def score_tries(layout: Layout, complete: bool = True) -> list[dict[str, Any]]:
    """Each try with its score on validation, which is None where its training diverged; raises `MolaError` where one is
    not `complete` by today's keys."""
    from mola_core.runs.state import cell_state

    assert layout.tries is not None and layout.study.tuning is not None
    attempts, rows = tries(layout.study), []
    for cell in layout.tries.study.cells():
        if complete and cell_state(layout.tries, cell) != "complete":
            raise MolaError(
                f"tuning: try {cell.path} is not complete; run it with `mola tuning` or the study"
            )
        folder, attempt = layout.tries.cell(cell), attempts[cell.method]
        manifest = read_record(folder / "manifest.json")
        training, evaluation = manifest["training"], manifest["evaluation"]
        answered = "diverged" not in training and "unanswered" not in evaluation
        likelihood = _likelihood(folder / "samples.parquet") if answered else None
        accuracy = evaluation["accuracy"] if answered else None
        rows.append(
            {
                "method": attempt.candidate,
                "task": cell.task,
                "learning_rate": attempt.learning_rate,
                "alpha": attempt.alpha,
                "seed": cell.seed,
                "score": likelihood if layout.study.tuning.score == "likelihood" else accuracy,
                "likelihood": likelihood,
                "accuracy": accuracy,
                "documents": evaluation["documents"],
                "steps": training["steps"],
                "final_loss": training["final_loss"],
                "diverged": not answered,
            }
        )
    return rows


def _likelihood(samples: Any) -> float | None:
    """Mean over the documents; None where the samples do not say it."""
    import pandas as pd

    from mola_core.evaluation.likelihoods import of_samples

    found = of_samples(pd.read_parquet(samples))
    return None if found is None else float(found[0].mean())


def _best(rows: list[dict[str, Any]], candidate: str, task: str) -> Choice:
    """The combination with the highest mean score; of equal ones the lower rate, then the lower alpha."""
    scores: dict[tuple[float, float | None], list[float | None]] = defaultdict(list)
    tries = [row for row in rows if row["method"] == candidate and task in (row["task"], EVERY_TASK)]
    for row in tries:
        scores[row["learning_rate"], row["alpha"]].append(row["score"])
    # A rate at which one seed or task diverges is no choice.
    means = {tried: math.fsum(found) / len(found) for tried, found in scores.items() if None not in found}  # type: ignore[arg-type]
    if not means:
        raise MolaError(
            f"tuning: no try of {candidate} ({task}) has a score: "
            + (
                "each diverged at some seed or task; lower tuning.learning_rates"
                if any(row["diverged"] for row in tries)
                else "the likelihood of the right answer cannot be read of this task; set tuning.score: accuracy"
            )
        )
    rate, alpha = max(means, key=lambda tried: (means[tried], -tried[0], -(tried[1] or 0.0)))
    rates = sorted({tried for tried, _ in scores})
    edge = {rates[0]: "lowest", rates[-1]: "highest"}.get(rate)
    return Choice(task, candidate, rate, alpha, means[rate, alpha], edge)


def _is_chosen(row: dict[str, Any], best: dict[tuple[str, str], Choice], tasks: list[str]) -> bool:
    choice = best[row["method"], row["task"] if row["task"] in tasks else EVERY_TASK]
    return (choice.learning_rate, choice.alpha) == (row["learning_rate"], row["alpha"])


def cost(layout: Layout) -> str | None:
    """What tuning adds to the study, in words: trainings and steps of tries and of cells; None where nothing is tuned."""
    if layout.tries is None:
        return None
    told = []
    for part, what in ((layout.tries, "tries"), (layout, "cells")):
        study = part.study
        cells = [c for c in study.all_cells() if not c.is_base]
        steps = 0
        for task in dict.fromkeys(cell.task for cell in cells):
            settings = study.training_of(next(cell for cell in cells if cell.task == task))
            documents = settings.documents or _documents(part, task)
            each = settings.max_steps or (settings.steps(documents) if documents else None)
            steps = steps + each * sum(cell.task == task for cell in cells) if each and steps >= 0 else -1
        told.append(f"{len(cells)} {what}" + (f" of {steps} steps in all" if steps > 0 else ""))
    assert layout.study.tuning is not None
    methods = len(set(candidates(layout.study).values()))
    rates = len(layout.study.tuning.learning_rates) * len(layout.study.tuning.alphas or [None])
    return f"tuning: {methods} methods, {rates} tries each a task and seed: {told[0]}, before {told[1]}"


def _documents(layout: Layout, task: str) -> int | None:
    """Training documents of a task, where they are prepared."""
    from mola_core.tasks.examples import RECORD

    rows = layout.study.trained_on(Cell(task, layout.study.methods[-1].label, layout.study.seeds[0]))
    try:
        return int(read_json(layout.examples(rows) / RECORD)["parts"]["train"]["documents"])
    except (MolaError, KeyError, TypeError):
        return None
