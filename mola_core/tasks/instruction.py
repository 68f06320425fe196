"""Instruction rows for the paper's setting 2: OpenOrca, sampled in proportion to its sources, as plain text.

The rows come from the study's own data source: `hub` (Open-Orca/OpenOrca), `directory` (`<root>/openorca/*.parquet`
with OpenOrca's columns) or `builtin` (a small stand-in). A row's source is what its id begins with: flan, t0, niv or
cot.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mola_core.code_hash import code_hash
from mola_core.errors import MolaError
from mola_core.files import atomic_write, remembered_sha256, write_json
from mola_core.study.sections import INSTRUCTION, BuiltinData, DirectoryData, HubData
from mola_core.study.study import Study
from mola_core.tasks.builtin_rows import builtin_rows
from mola_core.tasks.rows import FINGERPRINT, fetch_dataset, rows_sha256

if TYPE_CHECKING:
    import pyarrow

HUB_ID = "Open-Orca/OpenOrca"
COLUMNS = ("id", "question", "response")


def instruction_identity(study: Study) -> dict[str, Any]:
    """What decides the study's instruction rows, without reading them. Raises `MolaError` where files are missing."""
    source, settings = study.data, study.instruction
    assert settings is not None
    identity: dict[str, Any] = {
        "task": INSTRUCTION,
        "source": source.source,
        "code": code_hash("mola_core.tasks.instruction:prepare_instruction"),
        "documents": settings.documents,
        "seed": settings.seed,
    }
    if isinstance(source, BuiltinData):
        return identity
    if isinstance(source, DirectoryData):
        return identity | {"files": {file.name: remembered_sha256(file) for file in _files(source)}}
    return identity | {"id": HUB_ID, "revision": source.revisions.get(INSTRUCTION)}


def prepare_instruction(study: Study, folder: str | Path) -> None:
    """Write `train.parquet` (id, question, response) and `fingerprint.json` into `folder`, whole or not at all.

    Rows without a question or a response are left out, which is told and recorded. Raises `MolaError` where the source cannot
    be read, lacks a column or has fewer rows than are asked for.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    settings = study.instruction
    assert settings is not None
    every, origin = _read(study)
    table = every.filter(_says_something(every, "question", "response"))
    left_out = every.num_rows - table.num_rows
    if left_out:
        print(
            f"instruction rows: {left_out:,} of {every.num_rows:,} have no question or no response and are left out",
            file=sys.stderr,
        )
    if table.num_rows < settings.documents:
        raise MolaError(
            f"instruction.documents: {settings.documents}, but the source has {table.num_rows} rows with text; lower it"
        )
    sources = [str(name).split(".")[0] for name in table["id"].to_pylist()]
    chosen = proportional_sample(sources, settings.documents, settings.seed)
    # Through Python values: sources differ in their string types.
    table = pa.Table.from_pylist(table.take(pa.array(chosen)).to_pylist())
    counts = {name: [sources[row] for row in chosen].count(name) for name in sorted(set(sources))}
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        pq.write_table(table, temporary / "train.parquet", compression="zstd")
        fingerprint = {
            "task": INSTRUCTION,
            "source": study.data.source,
            **origin,
            "stand_in": study.data.source == "builtin",
            "left_out": left_out,
            "sources": counts,
            "splits": {"train": {"rows": table.num_rows, "sha256": rows_sha256(table)}},
        }
        write_json(temporary / FINGERPRINT, fingerprint)


def proportional_sample(sources: list[str], count: int, seed: int) -> list[int]:
    """`count` different rows, in their order, of which each source has its share of all rows.

    Shares are rounded by largest remainder; within a source rows are drawn at random.
    """
    names, labels = np.unique(sources, return_inverse=True)
    quotas = np.bincount(labels) * count / len(labels)
    sizes = quotas.astype(int)
    left = np.argsort(sizes - quotas, kind="stable")[: count - sizes.sum()]
    sizes[left] += 1
    random = np.random.default_rng(seed)
    chosen = [
        random.choice(np.flatnonzero(labels == index), size, replace=False)
        for index, size in enumerate(sizes)
    ]
    return sorted(int(row) for part in chosen for row in part)


def _read(study: Study) -> tuple[pyarrow.Table, dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = study.data
    if isinstance(source, BuiltinData):
        assert study.instruction is not None
        return pa.Table.from_pylist(_builtin(study.instruction.documents)), {}
    if isinstance(source, DirectoryData):
        try:
            found = {str(file): pq.read_table(file) for file in _files(source)}
            for table in found.values():
                table.validate(full=True)  # of text that is no UTF-8
        except (pa.ArrowException, OSError) as error:
            raise MolaError(
                f"instruction rows: {source.root}/openorca cannot be read ({error}); replace it"
            ) from None
        parts = [_texts(table, where) for where, table in found.items()]
        return pa.concat_tables(parts), {"dataset": "openorca"}
    return _from_hub(source)


def _texts(table: pyarrow.Table, where: str) -> pyarrow.Table:
    """The columns that are used, as text. Raises `MolaError` where one is not there or no text, and for a row without an id."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for column in COLUMNS:
        if column not in table.column_names:
            raise MolaError(
                f"instruction rows: {where} has no column {column!r}; name the columns as OpenOrca does"
            )
        kind = table[column].type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)):
            raise MolaError(f"instruction rows: {where} has {kind} in column {column!r}; write text")
    texts = table.select(COLUMNS).cast(pa.schema([(column, pa.large_string()) for column in COLUMNS]))
    row = pc.index(_says_something(texts, "id"), False).as_py()
    if row >= 0:
        raise MolaError(f"instruction rows: {where}: row {row} has no text in column 'id'; fill it")
    return texts


def _says_something(table: pyarrow.Table, *columns: str) -> pyarrow.ChunkedArray:
    """For each row whether all of `columns` hold more than blanks."""
    import pyarrow.compute as pc

    masks = [pc.fill_null(pc.match_substring_regex(table[column], r"\S"), False) for column in columns]
    return functools.reduce(pc.and_, masks)


def _files(source: DirectoryData) -> list[Path]:
    folder = Path(source.root).expanduser() / "openorca"
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise MolaError(
            f"instruction rows: no parquet file in {folder}; put OpenOrca's there or correct data_root"
        )
    return files


def _from_hub(source: HubData) -> tuple[pyarrow.Table, dict[str, Any]]:
    loaded, revision = fetch_dataset(INSTRUCTION, HUB_ID, None, {}, source.revisions.get(INSTRUCTION))
    table = loaded["train"].select_columns(list(COLUMNS)).with_format("arrow")[:]
    return _texts(table, HUB_ID), {"dataset": HUB_ID, "revision": revision}


def _builtin(count: int) -> list[dict[str, Any]]:
    """Twice as many made-up rows as are wanted: judging sentences, and answering questions in words."""
    sentences = [
        {
            "id": f"flan.{number}",
            "question": f"Is this sentence good English? {row['sentence']}",
            "response": "Yes, it is." if row["label"] else "No, it breaks a rule.",
        }
        for number, row in enumerate(builtin_rows("cola", "train", count))
    ]
    questions = [
        {
            "id": f"cot.{number}",
            "question": f"{row['hint']} {row['question']} Choose from: {', '.join(row['choices'])}.".strip(),
            "response": f"It is {row['choices'][row['answer']]}.",
        }
        for number, row in enumerate(builtin_rows("scienceqa", "train", count))
    ]
    return sentences + questions
