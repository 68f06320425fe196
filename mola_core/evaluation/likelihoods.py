"""Likelihood of the right answer: a softmax over the log-likelihoods of a document's options, taken at the right one.

What lm-evaluation-harness calls a document's target is the position of the right option in some tasks, its letter or
label in others. Which it is, is not guessed: an interpretation counts only where it explains, for every document of
the cell, whether the answer was correct, which the harness judged for itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def of_samples(samples: Mapping[str, Any] | pd.DataFrame) -> tuple[np.ndarray, np.ndarray] | None:
    """Likelihood and log-likelihood (nats) of each document of a cell's samples, by column: (documents,) each.

    Of options `right_likelihoods`; of answers that were generated the mean probability of the right answer's tokens and
    the sum of their log-likelihoods (`answer_tokens`). None where the samples say neither.
    """
    if "answer_tokens" in samples:
        tokens = [np.asarray(row, dtype=float) for row in samples["answer_tokens"]]
        return np.array([np.exp(row).mean() for row in tokens]), np.array([row.sum() for row in tokens])
    if "loglikelihoods" not in samples:
        return None
    columns = (list(samples[name]) for name in ("target", "loglikelihoods", "correct"))
    targets, loglikelihoods, correct = columns
    return right_likelihoods(targets, loglikelihoods, np.asarray(correct))


def right_likelihoods(
    targets: Sequence[str], loglikelihoods: Sequence[Sequence[float] | None], correct: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Probability of the right option among the options, and its log-likelihood in nats: (documents,) each.

    `loglikelihoods` are the sums over each option's tokens, as evaluated; the probability is exp(l_right) / Σ exp(l),
    without normalising by length, as `correct` is decided. None where there are no options (the protocol `generate`
    reads its answer from text) or where no reading of `targets` agrees with `correct` on every document.
    """
    widest = max((len(row) for row in loglikelihoods if row is not None), default=0)
    if widest < 2 or any(row is None or len(row) == 0 for row in loglikelihoods):
        return None
    table = np.full((len(targets), widest), -np.inf)
    for place, row in enumerate(loglikelihoods):
        table[place, : len(row)] = row
    right = _right_options(list(targets), table, np.asarray(correct))
    best = table.max(axis=1, keepdims=True)
    if right is None or not np.isfinite(best).all():
        return None
    chosen = table[np.arange(len(table)), right]
    total = np.exp(table - best).sum(axis=1)
    return np.exp(chosen - best[:, 0]) / total, chosen


def _right_options(targets: list[str], table: np.ndarray, correct: np.ndarray) -> np.ndarray | None:
    """Position of the right option of each document: positions, letters, or labels that always stand in one place."""
    answered = table.argmax(axis=1)
    labels = {target: place for target, place, hit in zip(targets, answered, correct, strict=True) if hit}
    readings = (
        [int(target) if target.isdecimal() else -1 for target in targets],
        [LETTERS.find(target) if len(target) == 1 else -1 for target in targets],
        [int(labels.get(target, -1)) for target in targets],
    )
    for reading in readings:
        places = np.array(reading)
        inside = (places >= 0) & (places < np.isfinite(table).sum(axis=1))
        if inside.all() and np.array_equal(answered == places, correct.astype(bool)):
            return places
    return None
