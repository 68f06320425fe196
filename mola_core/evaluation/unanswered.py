"""Samples of a model that gives no finite number: a training that diverged is a result, not a hole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from mola_core.tasks import Example


def numbered(frame: pd.DataFrame) -> pd.DataFrame:
    """Samples with the same document twice in a benchmark told apart by its place among its copies."""
    copies = frame.groupby("document").cumcount()
    document = frame["document"].where(copies == 0, frame["document"] + "-" + copies.astype(str))
    return frame.assign(document=document)


def unanswered(examples: Sequence[Example]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Samples and record as `evaluate` gives them, of a model that knows nothing.

    All options of a document are equally likely, and the first is the answer, as with log-likelihoods that are not
    numbers; without options no answer is right.
    """
    rows = [
        {
            "document": example.document,
            "position": position,
            "target": str(example.answer) if example.options else example.completion,
            "correct": int(bool(example.options) and example.answer == 0),
            "prompt_hash": "",
            "answer": "0" if example.options else "",
            "loglikelihoods": [0.0] * len(example.options),
        }
        for position, example in enumerate(examples)
    ]
    frame = numbered(pd.DataFrame(rows))
    return frame, {
        "documents": len(frame),
        "accuracy": float(frame["correct"].mean()),
        "metrics": {},
        "seconds": 0.0,
        "documents_per_second": 0.0,
        "unanswered": True,
    }
