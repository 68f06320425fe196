"""Likelihood of the right option from lm-eval's samples, whose `target` is a number, a letter or a text by the task.

A reading of `target` counts only where it explains what `acc` says of every document.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mola_core.evaluation.likelihoods import LETTERS


def right_likelihoods(
    samples: Sequence[dict[str, Any]], correct: np.ndarray | None
) -> tuple[list[float], list[float]] | None:
    """Probability of the right option among a document's options, and its log-likelihood in nats; None where it is not known.

    An interpretation of `target` counts only where `acc` says the same of every document.
    """
    tables = [_options(sample) for sample in samples]
    if correct is None:
        judged = [sample.get("acc") for sample in samples]
        correct = np.array([value if value in (0, 1) else math.nan for value in judged], float)
    if any(table is None for table in tables) or not np.isin(correct, (0, 1)).all():
        return None
    options = [table for table in tables if table is not None]
    answered = np.array([int(np.argmax(values)) for _, values in options])
    fitting: list[list[int]] = []
    for reading in (_by_number, _by_letter, _by_text, _by_elimination):
        if fitting and reading is _by_elimination:
            break
        right = [
            reading(str(sample.get("target")).strip(), texts, int(best), bool(hit))
            for sample, (texts, _), best, hit in zip(samples, options, answered, correct, strict=True)
        ]
        if all(place is not None for place in right) and np.array_equal(
            answered == right, correct.astype(bool)
        ):
            fitting.append([int(place) for place in right if place is not None])
    # Options that are numbers, none of them chosen rightly: their place and their text both explain it, and differ.
    if not fitting or any(other != fitting[0] for other in fitting):
        return None
    chosen = [values[place] for (_, values), place in zip(options, fitting[0], strict=True)]
    totals = [float(np.logaddexp.reduce(values)) for _, values in options]
    return [math.exp(one - total) for one, total in zip(chosen, totals, strict=True)], chosen


def _options(sample: dict[str, Any]) -> tuple[list[str], list[float]] | None:
    """Text and log-likelihood of each option of a document; None where text was generated."""
    try:
        asked = sample["arguments"]
        asked = list(asked.values()) if isinstance(asked, dict) else asked
        pairs = [(one["arg_0"], one["arg_1"]) if isinstance(one, dict) else tuple(one[:2]) for one in asked]
        values = [float(answer[0]) for answer in sample["filtered_resps"]]
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    # Older versions of lm-eval list no metrics, but have each one's value.
    if "acc_mutual_info" in (sample.get("metrics") or sample):
        # The other half are the options without their prompt.
        pairs, values = pairs[: len(pairs) // 2], values[: len(values) // 2]
    if len(values) < 2 or len(values) != len(pairs) or not all(map(math.isfinite, values)):
        return None
    return [str(option).strip() for _, option in pairs], values


def _by_number(target: str, options: list[str], best: int, hit: bool) -> int | None:
    return int(target) if re.fullmatch(r"\d{1,6}", target) and int(target) < len(options) else None


def _by_letter(target: str, options: list[str], best: int, hit: bool) -> int | None:
    place = LETTERS.find(target) if len(target) == 1 else -1
    return place if 0 <= place < len(options) else None


def _by_text(target: str, options: list[str], best: int, hit: bool) -> int | None:
    return options.index(target) if options.count(target) == 1 else None


def _by_elimination(target: str, options: list[str], best: int, hit: bool) -> int | None:
    """Of two options the one that was taken is right, or the other is."""
    return (best if hit else 1 - best) if len(options) == 2 else None
