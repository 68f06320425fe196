"""What makes rendered documents no fair question: options that a tokenizer cannot tell apart, answers that never change.

A row is one document of `mola_core.tasks.examples`. Raises `MolaError`, one line with task, row and fix.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mola_core.errors import MolaError
from mola_core.models.tokens import split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mola_core.tasks import Example

Row = dict[str, Any]
Parts = dict[str, list[Row]]
"""`train`, `validation` and `evaluation`, or `train` alone."""
MAX_TWINS = 0.01
"""Share of documents whose right option may have an equal (CommonsenseQA: 6 of 1,221)."""
MAX_SHARED = 0.5
"""Share of the documents to evaluate on that may stand in train too."""
MIN_DOCUMENTS = 10
"""From so many documents on an answer that is always the same is no chance: two options give it once in 500 times."""


def check_options(
    task: str, part: str, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase
) -> dict[str, int]:
    """Refuse options without a token of their own, and right options that another one equals in text or tokens.

    An empty continuation has the best likelihood there is, and of two equal ones the first is always taken. Benchmarks
    have some such documents; above `MAX_TWINS` of all they are refused, below they are counted: `twins`. `merged` counts
    those with an option whose first letters merge with the last token of the prompt: lm-eval then leaves that token out
    of the option's likelihood.
    """
    merged, twins = 0, []
    for number, row in enumerate(rows):
        where = f"task {task}: row {number} of {part}"
        options, right = row["options"] or [row["completion"]], row["answer"]
        alone = split(tokenizer, row["prompt"], "")[0]
        cut = [split(tokenizer, row["prompt"], option) for option in options]
        for option, (_, tokens) in zip(options, cut, strict=True):
            if not tokens:
                raise MolaError(
                    f"{where}: option {option!r} has no token of its own, this tokenizer merges it with the prompt's end "
                    f"{row['prompt'][-20:]!r}, so it would always win; change target_delimiter or use another model"
                )
        merged += any(context != alone for context, _ in cut)
        for other, (option, (_, tokens)) in enumerate(zip(options, cut, strict=True)):
            if right not in (None, other) and tokens == cut[right][1]:
                how = "text" if option == options[right] else "tokens"
                twins.append(
                    f"{where}: options {right} and {other} are the same {how} ({options[right][:40]!r}, {option[:40]!r})"
                )
                break
    if len(twins) > MAX_TWINS * len(rows):
        raise MolaError(
            f"{twins[0]} and one of them is right, as in {len(twins)} of {len(rows)} documents; mend the options, or use "
            "another model where its tokens are the same"
        )
    return {"merged": merged, "twins": len(twins)}


def check_answers(task: str, part: str, rows: Sequence[Row]) -> None:
    """Refuse an answer that is always the same text, or always in one place that the prompt shows."""
    if len(rows) < MIN_DOCUMENTS:
        return
    same = len({row["completion"] for row in rows}) == 1
    places = {row["answer"] for row in rows}
    shown = len(places) == 1 and all(
        row["options"] and all(option.strip() in row["prompt"] for option in row["options"]) for row in rows
    )
    if same or shown:
        what = repr(rows[0]["completion"][:40]) if same else f"option {rows[0]['answer']} of the prompt"
        raise MolaError(
            f"task {task}: {what} is the right answer of all {len(rows)} documents of {part}, so nothing can be learnt or "
            "shown; check the column of answers"
        )


def chance(examples: Sequence[Example], options: Sequence[int]) -> dict[str, Any]:
    """Accuracy of who knows nothing of the document: its `level` (0 to 1), and `of` what.

    Where all documents have the same options these are classes, and the level is the share of the most frequent one;
    elsewhere an option is guessed, and it is the mean of 1 / `options`, the number that each document has. Where text is
    generated (no options) the most frequent answer is what counts.
    """
    answers = Counter(example.completion for example in examples)
    alike = len({tuple(example.options) for example in examples}) == 1
    if not any(options) or (alike and len(examples[0].options) > 1):
        return {"of": "class", "level": max(answers.values()) / len(examples)}
    return {"of": "options", "level": sum(1 / count for count in options) / len(options)}


def content(row: Row) -> str:
    """What a document asks, whatever the order of its options and its blanks: equal for the same question.

    Options stand in the prompt behind their letters or numbers, or follow it.
    """
    prompt, options = row["prompt"], [option.strip() for option in row["options"]]
    if len(options) > 1 and all(re.fullmatch(r"\w", option) for option in options):
        letters = "".join(map(re.escape, options))
        head, *listed = re.split(rf"(?:^|(?<=\s))\(?[{letters}][).:]\s", prompt)
        if len(listed) == len(options):
            last, _, tail = listed[-1].partition("\n")
            texts = sorted(" ".join(text.split()) for text in [*listed[:-1], last])
            return json.dumps([" ".join(head.split()), texts, " ".join(tail.split())])
    return json.dumps([" ".join(prompt.split()), sorted(options) or row["completion"].strip()])


def shared(parts: Parts) -> dict[str, int]:
    """Documents of a later part that stand in an earlier one too: the same prompt and options, in whatever order."""
    known = {part: {content(row) for row in rows if not row["held_out"]} for part, rows in parts.items()}
    pairs = [("train", "validation"), ("train", "evaluation"), ("validation", "evaluation")]
    return {
        f"{first} and {second}": sum(content(row) in known[first] for row in parts[second])
        for first, second in pairs
        if first in parts and second in parts
    }


def refuse_shared(task: str, parts: Parts) -> int:
    """Raise `MolaError` where most of the evaluation is trained on: a split under two names."""
    known = {content(row) for row in parts["train"]}
    asked = parts.get("evaluation", [])
    count = sum(content(row) in known for row in asked)
    if count > MAX_SHARED * len(asked):
        raise MolaError(
            f"task {task}: {count} of {len(asked)} documents to evaluate on stand in train too; use other rows, or set "
            "training.drop_shared: true to leave them out of training"
        )
    return 0


def leave_shared_out(task: str, parts: Parts) -> int:
    """Leave training documents out that are asked in evaluation, or in validation where they are not held out for it."""
    if "evaluation" not in parts:
        return 0
    asked = {content(row) for row in parts["evaluation"]}
    chosen_on = {content(row) for row in parts["validation"]}
    kept = [
        row
        for row in parts["train"]
        if content(row) not in asked and (row["held_out"] or content(row) not in chosen_on)
    ]
    if not kept:
        raise MolaError(
            f"task {task}: every training document is asked in evaluation too; choose another task"
        )
    dropped = len(parts["train"]) - len(kept)
    parts["train"] = kept
    return dropped
