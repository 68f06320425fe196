"""Samples of a model that gives no finite number: a training that diverged is a result, not a hole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from mola_core.models.tokens import split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mola_core.tasks import Example


def numbered(frame: pd.DataFrame) -> pd.DataFrame:
    """Samples with the same document twice in a benchmark told apart by its place among its copies."""
    copies = frame.groupby("document").cumcount()
    document = frame["document"].where(copies == 0, frame["document"] + "-" + copies.astype(str))
    return frame.assign(document=document)


def unanswered(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    golds: Sequence[tuple[int, int]] | None = None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Samples and record as `evaluate` gives them, of a model that knows nothing.

    Every token of the vocabulary is as likely as any other, in each place of the right answer. All options of a document
    are as likely as the right one, and the first is the answer, as with log-likelihoods that are not numbers; without
    options no answer is right. `golds` are place and number of each document's options where they stand in its prompt, of
    which an example has the right one only.
    """
    token = -math.log(len(tokenizer))
    rows = []
    for position, example in enumerate(examples):
        tokens = [token] * len(split(tokenizer, example.prompt, example.completion)[1])
        gold, options = golds[position] if golds else (example.answer, len(example.options))
        row = {
            "document": example.document,
            "position": position,
            "target": str(gold) if example.options else example.completion,
            "correct": int(bool(example.options) and gold == 0),
            "prompt_hash": "",
            "answer": "0" if example.options else "",
            "loglikelihoods": [sum(tokens)] * options,
        }
        rows.append(row if example.options else row | {"answer_tokens": tokens})
    frame = numbered(pd.DataFrame(rows))
    return frame, {
        "documents": len(frame),
        "accuracy": float(frame["correct"].mean()),
        "metrics": {},
        "seconds": 0.0,
        "documents_per_second": 0.0,
        "unanswered": True,
    }
