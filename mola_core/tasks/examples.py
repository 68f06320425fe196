"""Examples as files: each document's prompt, options and right answer, rendered once by lm-eval and read by all else.

`write_examples` makes `{train,validation,evaluation}.parquet` and, last, `examples.json` in a folder a task. Training
reads them, evaluation compares with them what lm-eval asks, and the cells' keys hash them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mola_core.errors import MolaError
from mola_core.files import atomic_write, read_json, sha256_file, write_json
from mola_core.models.tokens import encode, encode_text
from mola_core.study.sections import INSTRUCTION
from mola_core.tasks import COLUMNS, Example, task_config
from mola_core.tasks.check import (
    check_answers,
    check_options,
    leave_shared_out,
    refuse_shared,
    shared,
)
from mola_core.tasks.rendering import instruction_rows, rendered

if TYPE_CHECKING:
    import pyarrow
    from transformers import PreTrainedTokenizerBase

RECORD = "examples.json"


def write_examples(
    task: str,
    protocol: str,
    rows: Path,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    identity: str,
    positions: int = sys.maxsize,
    drop_shared: bool = False,
) -> dict[str, Any]:
    """Render the prepared `rows` of a task, or of `instruction`, into `folder`, whole or not at all; returns the record.

    A row has, beside `COLUMNS`: `held_out` (a training document that validation has instead, where an epoch is chosen),
    `tokens` (of prompt and answer under this tokenizer; elsewhere than in training the longest option) and `cut` (tokens
    that the prompt loses at `max_length` in training, at the model's own `positions` in evaluation). `drop_shared` leaves
    training documents out that are asked in evaluation too. `identity` is kept in the record for `current`. Raises
    `MolaError` where two renderings differ, a document is no fair question (`mola_core.tasks.check`), or an answer does not
    fit.
    """
    if task == INSTRUCTION:
        parts = {"train": instruction_rows(rows)}
        measure: Callable[[int, str, str], tuple[int, int]] = functools.partial(_text_size, tokenizer)
    else:
        parts = rendered(task, protocol, rows)
        measure = functools.partial(_size, tokenizer, protocol == "generate")
    answers = 0
    if protocol == "generate" and task != INSTRUCTION:
        answers = task_config(task, protocol)["generation_kwargs"]["max_gen_toks"]
    record: dict[str, Any] = {
        "task": task,
        "protocol": protocol,
        "max_length": max_length,
        "identity": identity,
        "shared": shared(parts),
        "dropped": leave_shared_out(task, parts) if drop_shared else refuse_shared(task, parts),
        "parts": {},
    }
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        for part, examples in parts.items():
            room = max_length if part == "train" else positions
            facts: dict[str, Any] = {}
            if task != INSTRUCTION:
                check_answers(task, part, examples)
                if part != "train":
                    facts = check_options(task, part, examples, tokenizer)
            for number, row in enumerate(examples):
                try:
                    texts = [row["completion"]] if part == "train" else row["options"] or [row["completion"]]
                    row["tokens"], row["cut"] = max(measure(room, row["prompt"], text) for text in texts)
                    if answers and part != "train":
                        row["cut"] = _cut_before_generation(tokenizer, positions - answers, row["prompt"])
                except ValueError as error:
                    raise MolaError(f"task {task}: row {number} of {part}: {error}") from None
            file = temporary / f"{part}.parquet"
            _write(file, examples)
            record["parts"][part] = {
                "documents": len(examples),
                "held_out": sum(row["held_out"] for row in examples),
                "cut": sum(row["cut"] > 0 for row in examples),
                **facts,
                "sha256": sha256_file(file),
            }
        write_json(temporary / RECORD, record)
    for line in remarks(record):
        print(f"task {task}: {line}", file=sys.stderr)
    return record


def remarks(record: dict[str, Any]) -> list[str]:
    """What a reader of the results must know of a task's examples: shared and cut documents, by their record."""
    lines = []
    for pair, count in record.get("shared", {}).items():
        if count:
            lines.append(f"{count} documents stand in {pair}")
    if record.get("dropped"):
        lines.append(f"{record['dropped']} of them were left out of training")
    for part, facts in record["parts"].items():
        if facts["cut"]:
            # A text that is trained on as a whole is cut where a prompt is not.
            text, lost = ("texts", "end") if record["task"] == INSTRUCTION else ("prompts", "beginning")
            lines.append(f"{facts['cut']} of {facts['documents']} {text} of {part} lose their {lost}")
        if facts.get("twins"):
            lines.append(
                f"in {facts['twins']} of {facts['documents']} documents of {part} another option is the same as the right "
                "one, and the first of them is taken"
            )
        if facts.get("merged"):
            lines.append(
                f"in {facts['merged']} of {facts['documents']} documents of {part} an option's first letters merge with "
                "the prompt, and lm-eval leaves that token out of its likelihood"
            )
    return lines


def current(folder: Path, identity: str) -> bool:
    """Whether `folder` holds examples made from what `identity` names."""
    try:
        return read_json(folder / RECORD)["identity"] == identity
    except (MolaError, KeyError, TypeError):
        return False


def read_record(folder: Path) -> dict[str, Any]:
    """`examples.json`, after the files were compared with the hashes in it. Raises `MolaError` where they differ."""
    record = read_json(folder / RECORD)
    for part, facts in record["parts"].items():
        file = folder / f"{part}.parquet"
        if not file.is_file() or sha256_file(file) != facts["sha256"]:
            raise MolaError(f"{file}: missing or altered since it was made; remove {folder} and run again")
    return record


def read_examples(
    folder: Path, part: str, documents: int | None = None, without_held_out: bool = False
) -> list[Example]:
    """The first `documents` examples of a part (`train`, `validation` or `evaluation`) in the order of their rows."""
    read_record(folder)
    return [
        Example(*(row[name] for name in COLUMNS)) for row in _rows(folder, part, documents, without_held_out)
    ]


def examples_hash(
    folder: Path, part: str, documents: int | None = None, without_held_out: bool = False
) -> str:
    """sha256 of what `read_examples` would give, whatever the file's encoding."""
    state = (folder / f"{part}.parquet").stat()
    return _hash(folder, part, documents, without_held_out, state.st_mtime_ns, state.st_ino)


@functools.lru_cache(maxsize=4096)
def _hash(folder: Path, part: str, documents: int | None, without_held_out: bool, *state: int) -> str:
    content = hashlib.sha256()
    for row in _rows(folder, part, documents, without_held_out):
        content.update(json.dumps([row[name] for name in COLUMNS], ensure_ascii=False).encode())
    return content.hexdigest()


def _rows(folder: Path, part: str, documents: int | None, without_held_out: bool) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = folder / f"{part}.parquet"
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise MolaError(f"{file}: cannot be read ({reason}); remove {folder} and run again") from None
    rows = table.to_pylist()
    if without_held_out:
        rows = [row for row in rows if not row["held_out"]]
    return rows[:documents]


def _size(
    tokenizer: PreTrainedTokenizerBase, end: bool, max_length: int, prompt: str, completion: str
) -> tuple[int, int]:
    whole = len(encode(tokenizer, prompt, completion, sys.maxsize, end).tokens)
    if whole <= max_length:
        return whole, 0
    # An answer that does not fit is an error here, not in the middle of a training.
    return whole, whole - len(encode(tokenizer, prompt, completion, max_length, end).tokens)


def _cut_before_generation(tokenizer: PreTrainedTokenizerBase, room: int, prompt: str) -> int:
    """Tokens that a prompt loses where lm-eval keeps the rest of the model's positions for the answer."""
    return max(0, len(tokenizer(prompt).input_ids) - room)


def _text_size(
    tokenizer: PreTrainedTokenizerBase, max_length: int, prompt: str, completion: str
) -> tuple[int, int]:
    tokens = len(encode_text(tokenizer, completion, sys.maxsize).tokens)
    return tokens, max(0, tokens - max_length)


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema: pyarrow.Schema = pa.schema(
        [
            ("document", pa.string()),
            ("prompt", pa.string()),
            ("completion", pa.string()),
            ("options", pa.list_(pa.string())),
            ("answer", pa.int64()),
            ("cluster", pa.string()),
            ("held_out", pa.bool_()),
            ("tokens", pa.int64()),
            ("cut", pa.int64()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file, compression="zstd")
