"""Documents of a task rendered by lm-eval, twice: rows of examples, and a task that draws at random is found."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mola_core.errors import MolaError
from mola_core.tasks import (
    COLUMNS,
    PARTS,
    Example,
    cluster_of,
    evaluation_split,
    include,
    included,
    is_own,
    load_task,
)
from mola_core.tasks.rows import CLUSTER_FILE

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask


def rendered(task: str, protocol: str, rows: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each of `PARTS` by the prepared `rows` of a task: `COLUMNS` and `held_out`.

    Raises `MolaError` where a second rendering differs.
    """
    parts, again = _rendered(task, protocol, rows), _rendered_again(task, protocol, rows)
    for part in PARTS:
        _same(task, part, parts[part], again[part])
    return parts


def instruction_rows(rows: Path) -> list[dict[str, Any]]:
    """The prepared rows of instruction tuning, as `rendered` gives those of a task's train."""
    import pyarrow.parquet as pq

    return [
        {
            "document": str(row["id"]),
            "prompt": "",
            "completion": f"{row['question']}\n{row['response']}",
            "options": [],
            "answer": None,
            "cluster": None,
            "held_out": False,
        }
        for row in pq.read_table(rows / "train.parquet").to_pylist()
    ]


def _rendered(task: str, protocol: str, rows: Path) -> dict[str, list[dict[str, Any]]]:
    from mola_core.tasks.loading import make_examples

    plain, validated = load_task(task, protocol, rows), load_task(task, protocol, rows, validated=True)
    parts = {
        "train": make_examples(plain, "train", None),
        "validation": make_examples(validated, "validation", None),
        "evaluation": make_examples(plain, evaluation_split(task), None),
    }
    carved = validated.config.dataset_kwargs["hold_out"]
    # By document, not by row: a task may leave rows out or put them in another order.
    taken = {example.document for example in parts["validation"]} if carved else set()
    lost = len(taken - {example.document for example in parts["train"]})
    if lost:
        raise MolaError(
            f"task {task}: {lost} of {len(taken)} documents held out of training for validation are other documents in "
            "training: process_docs treats a row by its place among the others; let it go by the row alone, or give the task "
            "a validation split"
        )
    sources = {"train": "train", "validation": "validation", "evaluation": evaluation_split(task)}
    rendered = {}
    for part, examples in parts.items():
        if part == "validation" and carved:
            everywhere = _clusters(plain, task, rows, "train", parts["train"])
            known = {one.document: cluster for one, cluster in zip(parts["train"], everywhere, strict=True)}
            clusters = [known.get(example.document) for example in examples]
        else:
            loaded = validated if part == "validation" else plain
            clusters = _clusters(loaded, task, rows, sources[part], examples)
        rendered[part] = [
            {
                **{name: getattr(example, name) for name in COLUMNS},
                "cluster": cluster,
                "held_out": part == "train" and example.document in taken,
            }
            for example, cluster in zip(examples, clusters, strict=True)
        ]
    return rendered


def _rendered_again(task: str, protocol: str, rows: Path) -> dict[str, list[dict[str, Any]]]:
    """`_rendered`; of a foreign task with code of its own in a process of its own, in which Python hashes texts otherwise."""
    config = load_task(task, protocol, rows).config
    own = (config.process_docs, config.doc_to_text, config.doc_to_target, config.doc_to_choice)
    if is_own(task) or not any(map(callable, own)):
        return _rendered(task, protocol, rows)
    before = os.environ.get("PYTHONHASHSEED")
    os.environ["PYTHONHASHSEED"] = "1" if before == "0" else "0"
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context, initializer=include, initargs=(included(),)) as worker:
            return worker.submit(_rendered, task, protocol, rows).result()
    finally:
        del os.environ["PYTHONHASHSEED"]
        os.environ |= {} if before is None else {"PYTHONHASHSEED": before}


def _clusters(
    loaded: ConfigurableTask, task: str, rows: Path, split: str, examples: Sequence[Example]
) -> list[str | None]:
    """The cluster of each document of a split; none where the source does not say."""
    import pyarrow.parquet as pq

    from mola_core.tasks.loading import documents_of

    column = None if is_own(task) else cluster_of(task)
    if column is None or not loaded.config.process_docs:
        file = rows / CLUSTER_FILE.format(split)
        return pq.read_table(file)["cluster"].to_pylist() if file.is_file() else [None] * len(examples)
    # A user's process_docs may leave rows out or put them in another order: what a document itself says counts.
    documents = list(documents_of(loaded, split))
    if not all(column in document for document in documents):
        raise MolaError(
            f"task {task}: metadata.cluster: process_docs leaves column {column!r} out, so that which documents belong "
            "together cannot be told; let it keep the column"
        )
    return ["" if document[column] is None else str(document[column]) for document in documents]


def _same(task: str, part: str, first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> None:
    for number, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            raise MolaError(
                f"task {task}: row {number} of {part} differs between two renderings ({one['prompt'][-60:]!r}, "
                f"{other['prompt'][-60:]!r}): the task draws at random; give its shuffle a seed or choose another task"
            )
    if len(first) != len(second):
        raise MolaError(
            f"task {task}: {part} has {len(first)} documents at one rendering and {len(second)} at the next: the task "
            "draws at random; give it a seed or choose another task"
        )
