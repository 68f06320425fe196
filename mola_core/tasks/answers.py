"""Functions that the YAML files here name: which rows are kept, and how an answer is read from generated text."""

import re
from typing import Any

UNREADABLE = ""


def text_only(dataset: Any) -> Any:
    """ScienceQA without the questions that have an image; prepared files have none and lack the column."""
    if "image" not in dataset.column_names:
        return dataset
    images = dataset.with_format("arrow")["image"]
    return dataset.select([row for row, image in enumerate(images) if not image.is_valid]).remove_columns(
        "image"
    )


def read_answer(text: str, pattern: str) -> str:
    """The answer in generated `text`: what `pattern` captures, if it matches exactly once, else "".

    As the paper's released code reads it: text after a second "### Response:" does not count, and an answer given
    twice is no answer.
    """
    found = re.findall(pattern, text.split("### Response:")[0])
    return found[0].strip() if len(found) == 1 else UNREADABLE


def acc(references: list[str], predictions: list[str], pattern: str) -> float:
    """1.0 where the answer read from the generated text is the one in the target text."""
    return float(read_answer(predictions[0], pattern) == read_answer(references[0], pattern))


def mcc(references: list[str], predictions: list[str], pattern: str) -> tuple[str, str]:
    """(target, prediction) for Matthews' coefficient; an unreadable answer counts as a label of its own."""
    return read_answer(references[0], pattern), read_answer(predictions[0], pattern)
