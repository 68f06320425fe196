"""What single runs tell: collapsed ones, tasks on which nothing was learnt, what likelihood is worth in accuracy."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mola_core.analysis.scores import Block, ScoreMatrix
from mola_core.analysis.statistics.records import Exchange
from mola_core.analysis.statistics.summaries import points
from mola_core.methods.family import BASE

COLLAPSE = 5.0
"""Points below the median of its method's runs, and times their usual distance from it, at which a run is collapsed."""
FEWEST_RUNS = 6
MIN_R = 0.5
"""Correlation of accuracy and likelihood below which a rate between them would mean nothing."""


def collapsed_runs(matrix: ScoreMatrix) -> list[dict[str, Any]]:
    """Runs far below the other runs of their method in the task: by 5 points and 5 robust standard deviations.

    The deviation is 1.4826 x the median distance of a run from its method's median, over all methods of the task; the
    runs that are that median are left out of it. Needs three seeds.
    """
    found = []
    for block in matrix.blocks:
        accuracy = _run_table(block)
        if accuracy.shape[1] < 3:
            continue
        median = np.nanmedian(accuracy, axis=1, keepdims=True)
        distance = accuracy - median
        apart = np.abs(distance[np.isfinite(distance) & (distance != 0)])
        usual = 1.4826 * float(np.median(apart)) if len(apart) else 0.0
        for row, seed in np.argwhere(distance < -max(COLLAPSE / 100, COLLAPSE * usual)):
            found.append(
                {
                    "task": block.name,
                    "method": block.methods[row],
                    "seed": block.seeds[seed],
                    "accuracy": points(accuracy[row, seed]),
                    "median": points(median[row, 0]),
                }
            )
    return found


def _run_table(block: Block, endpoint: str = "accuracy") -> np.ndarray:
    """Mean of each run, (trained methods with all seeds or some, seeds); NaN where there is no such run."""
    means = block.values(endpoint).mean(axis=2, dtype=float)
    means[~block.present] = np.nan
    if BASE in block.methods:
        means[block.methods.index(BASE)] = np.nan
    counts = np.isfinite(means).sum(axis=1)
    means[counts == 0] = 0.0  # a row without runs: no distance from its median
    return means


def unlearnt(matrix: ScoreMatrix, floors: Mapping[str, float], least: float) -> dict[str, float]:
    """Tasks whose trained methods, on average, gain `least` points or less over knowing nothing, with that gain.

    Knowing nothing is the base model's accuracy or `floors`, the larger; a task for which neither is known is
    not listed. The average over all methods is blind to which of them is ahead.
    """
    found = {}
    for block in matrix.blocks:
        known = _known_nothing(block, floors)
        trained = [row for row, method in enumerate(block.methods) if method != BASE]
        if known and trained:
            runs = block.correct.mean(axis=2, dtype=float)[trained][block.present[trained]]
            gain = points(runs.mean() - max(known))
            if gain <= least:
                found[block.name] = gain
    return found


def without_floor(matrix: ScoreMatrix, floors: Mapping[str, float]) -> list[str]:
    """Tasks of which nobody says what knowing nothing scores, so that `unlearnt` cannot judge them."""
    return [block.name for block in matrix.blocks if not _known_nothing(block, floors)]


def _known_nothing(block: Block, floors: Mapping[str, float]) -> list[float]:
    """Accuracies (fractions) of knowing nothing: always giving the most frequent answer, and the base model."""
    task = block.name.rpartition("/")[2]  # of several studies or models a block's name begins with theirs
    known = [floors[name] for name in dict.fromkeys((block.name, task)) if name in floors][:1]
    if BASE in block.methods:
        row = block.methods.index(BASE)
        known.append(float(block.correct[row][block.present[row]].mean()))
    return known


def unlearnt_notes(gains: Mapping[str, float], least: float | None, unknown: Sequence[str] = ()) -> list[str]:
    """What the page says of tasks on which nothing was learnt, and of those (`unknown`) of which that cannot be told."""
    if unknown:
        return [
            f"`verdict.least_gain` could not be applied to {', '.join(unknown)}: neither the base model's scores nor the most "
            "frequent answer's are known.",
            *unlearnt_notes(gains, least),
        ]
    if not gains:
        return []
    named = ", ".join(f"{task} ({gain:+.1f} points)" for task, gain in gains.items())
    if least is None:
        return [
            f"Nothing was learnt in {named}, against the base model or always giving the most frequent answer: such a "
            "task shrinks every difference. `verdict.least_gain` leaves it out, if stated beforehand."
        ]
    return [f"Left out of every question, since at most {least:g} points were learnt: {named}."]


def exchange_rate(matrix: ScoreMatrix) -> Exchange | None:
    """Points of accuracy that a point of probability is worth: least squares over runs, an intercept for each task.

    Every run of a trained method is one point; what tells tasks apart (how hard they are) is in the intercepts. None
    for fewer than 6 runs or a correlation within tasks below 0.5. It describes these runs: a rate between methods,
    not a promise for another study.
    """
    x: list[np.ndarray] = []
    y: list[np.ndarray] = []
    for block in matrix.blocks:
        rows = [row for row, method in enumerate(block.methods) if method != BASE]
        if block.likelihood is None or not rows:
            continue
        there = block.present[rows]
        for values, target in ((block.likelihood, x), (block.correct, y)):
            runs = values.mean(axis=2, dtype=float)[rows][there]
            target.append(runs - runs.mean())
    if not x:
        return None
    likelihood, accuracy = np.concatenate(x), np.concatenate(y)
    spread = float(likelihood @ likelihood)
    if len(likelihood) < FEWEST_RUNS or spread < 1e-15:
        return None
    r = float(likelihood @ accuracy) / max(np.sqrt(spread * float(accuracy @ accuracy)), 1e-15)
    if r < MIN_R:
        return None
    return {
        "rate": round(float(likelihood @ accuracy) / spread, 4),
        "r": round(r, 4),
        "runs": len(likelihood),
    }
