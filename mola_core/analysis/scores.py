"""The score matrix: one row per cell and document, read, checked and packed into arrays.

A *cell* is one trained and evaluated (study, model, task, method, seed). All cells of a task must have
answered the same documents: every later step pairs on them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from mola_core.errors import MolaError

NAMES = ("study", "model", "task", "method")
COLUMNS = (*NAMES, "seed", "document", "correct")
BATCH = 1 << 20
"""Rows read at a time: a file of ten million rows then never needs more than 2 GiB."""
CSV_BLOCK = 1 << 26
SPARSE = 50
"""Times the rows that a task's methods x seeds x documents may be: beyond, hardly a cell shares a document with another."""
_SPELLINGS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "-0": 0, "false": 0, "true": 1}


@dataclass(frozen=True)
class Block:
    """One task (of one model): what its cells answered.

    `correct` is (methods, seeds, documents), 0 or 1; `present` is (methods, seeds), false where the file has
    no such cell (its `correct` is then 0 and means nothing).
    """

    name: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    correct: np.ndarray
    present: np.ndarray

    @property
    def documents(self) -> int:
        return self.correct.shape[2]

    def common_seeds(self, methods: Sequence[str]) -> np.ndarray:
        """Positions of the seeds that all of `methods` have here; empty where a method is missing."""
        if any(method not in self.methods for method in methods):
            return np.empty(0, dtype=int)
        rows = [self.methods.index(method) for method in methods]
        return np.flatnonzero(self.present[rows].all(axis=0))

    def contrast(self, weights: dict[str, float]) -> np.ndarray:
        """Σ_m weight_m · correct_m, (seeds, documents) float64, over the seeds that all the methods share."""
        seeds = self.common_seeds(list(weights))
        total = np.zeros((len(seeds), self.documents))
        for method, weight in weights.items():
            total += weight * self.correct[self.methods.index(method)][seeds]
        return total

    def run_accuracy(self, seeds: np.ndarray) -> np.ndarray:
        """Accuracy of each run, (methods, seeds), for the methods that have all of these seeds."""
        complete = self.present[:, seeds].all(axis=1)
        return self.correct[complete][:, seeds].mean(axis=2)


@dataclass(frozen=True)
class ScoreMatrix:
    """The blocks of a score file, in the order of their names, and what it covers."""

    blocks: tuple[Block, ...]
    studies: tuple[str, ...]
    models: tuple[str, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(sorted({method for block in self.blocks for method in block.methods}))


def load_scores(path: str | Path) -> pd.DataFrame:
    """The rows of a score file (Parquet, or CSV with a header), names and documents as categoricals.

    Returns the seven `COLUMNS`; `seed` is int64 and `correct` uint8. Other columns of the file are not read.
    Raises `MolaError` for a missing file or column, an empty or unreadable file, an empty field, a seed that
    is not a whole number and a `correct` other than 0 and 1.
    """
    path = Path(path)
    if not path.is_file():
        raise MolaError(f"{path}: no such score file; give a .parquet or .csv file")
    names = {name: _Names() for name in (*NAMES, "document")}
    codes: dict[str, list[np.ndarray]] = {column: [] for column in COLUMNS}
    try:
        for batch in _read_csv(path) if path.suffix.lower() == ".csv" else _read_parquet(path):
            for column in COLUMNS:
                values = batch.column(column)
                if values.null_count:
                    raise MolaError(f"{path}: column {column!r} has empty fields; fill them")
                if column in names:
                    codes[column].append(names[column].encode(values))
                elif column == "seed":
                    codes[column].append(_whole_seeds(values, path))
                else:
                    codes[column].append(_zeros_and_ones(values, path))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise MolaError(f"{path}: not a readable score file ({str(error).splitlines()[0][:200]})") from None
    if not sum(map(len, codes["seed"])):
        raise MolaError(f"{path}: no rows; a score file has one row per cell and document")
    columns: dict[str, Any] = {}
    for column in COLUMNS:
        joined = np.concatenate(codes.pop(column))
        columns[column] = names[column].categorical(joined) if column in names else joined
    return pd.DataFrame(columns)


def _require(names: Sequence[str], path: Path) -> None:
    missing = [column for column in COLUMNS if column not in names]
    if missing:
        raise MolaError(
            f"{path}: column {', '.join(map(repr, missing))} missing; "
            f"a score file has the columns {', '.join(COLUMNS)}"
        )


class _Names:
    """The distinct strings of a column that is read batch by batch, each kept once."""

    def __init__(self) -> None:
        self.known = pa.array([], pa.string())

    def encode(self, column: pa.Array) -> np.ndarray:
        """Positions of the column's values in `known`, which grows by those that are new."""
        if not pa.types.is_dictionary(column.type):
            column = column.cast(pa.string()).dictionary_encode()
        values = column.dictionary.cast(pa.string())
        new = values.filter(pc.is_null(pc.index_in(values, value_set=self.known)))
        self.known = pa.concat_arrays([self.known, new.unique()])
        return pc.index_in(values, value_set=self.known).to_numpy()[column.indices.to_numpy()]

    def categorical(self, codes: np.ndarray) -> pd.Categorical:
        return pd.Categorical.from_codes(codes, self.known.to_pandas())


def _read_parquet(path: Path) -> Iterator[pa.RecordBatch]:
    schema = pq.read_schema(path)
    _require(schema.names, path)
    strings = [name for name in (*NAMES, "document") if pa.types.is_string(schema.field(name).type)]
    with pq.ParquetFile(path, read_dictionary=strings) as file:
        yield from file.iter_batches(BATCH, columns=list(COLUMNS))


def _read_csv(path: Path) -> Iterator[pa.RecordBatch]:
    with open(path, encoding="utf-8", errors="replace") as handle:
        _require([name.strip().strip('"') for name in handle.readline().rstrip("\r\n").split(",")], path)
    strings = {name: pa.string() for name in (*NAMES, "document")}
    # Types are stated, since a reader of blocks would otherwise judge by the first one alone.
    convert = pyarrow.csv.ConvertOptions(
        include_columns=list(COLUMNS),
        column_types={**strings, "seed": pa.float64(), "correct": pa.string()},
        strings_can_be_null=True,
        null_values=[""],
    )
    options = pyarrow.csv.ReadOptions(block_size=CSV_BLOCK)
    with pyarrow.csv.open_csv(path, read_options=options, convert_options=convert) as reader:
        yield from reader


def _whole_seeds(column: pa.Array, path: Path) -> np.ndarray:
    try:
        return column.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        raise MolaError(f"{path}: column 'seed' must hold whole numbers") from None


def _zeros_and_ones(column: pa.Array, path: Path) -> np.ndarray:
    """0/1 as numbers, truth values or their spelling in a CSV file."""
    if pa.types.is_boolean(column.type):
        return column.cast(pa.uint8()).to_numpy()
    spelt = pc.utf8_lower(column.cast(pa.string()))
    known = pc.index_in(spelt, value_set=pa.array(list(_SPELLINGS)))
    if known.null_count:
        example = column.filter(pc.is_null(known))[0].as_py()
        raise MolaError(f"{path}: column 'correct' must be 0 or 1, not {example}")
    return np.array(list(_SPELLINGS.values()), dtype=np.uint8)[known.to_numpy()]


def score_matrix(scores: pd.DataFrame) -> ScoreMatrix:
    """Pack rows into one array per task. Where a file holds several studies or models, each has its own
    blocks.

    Raises `MolaError` for two rows of the same cell and document, and for cells of one task that did not
    answer the same documents.
    """
    _require(scores.columns, Path("scores"))
    codes, categories = {}, {}
    for name in (*NAMES, "document"):
        column = scores[name].astype("category").cat.remove_unused_categories()
        if name in NAMES:
            column = column.cat.reorder_categories(sorted(column.cat.categories))
            categories[name] = column.cat.categories.astype(str).tolist()
        codes[name] = column.cat.codes.to_numpy()
    # One stable sort by block; the order of the rows in the file then has no influence on anything.
    block_of_row = codes["study"].astype(np.int64)
    for name in ("model", "task"):
        block_of_row = block_of_row * len(categories[name]) + codes[name]
    order = np.argsort(block_of_row, kind="stable")
    starts = np.flatnonzero(np.diff(block_of_row[order], prepend=-1))
    several = [name for name in ("study", "model") if len(categories[name]) > 1]
    blocks = []
    for rows in np.split(order, starts[1:]):
        label = "/".join(categories[name][codes[name][rows[0]]] for name in (*several, "task"))
        blocks.append(
            _block(
                label,
                categories["method"],
                codes["method"][rows],
                scores["seed"].to_numpy()[rows],
                codes["document"][rows],
                scores["correct"].to_numpy()[rows],
            )
        )
    return ScoreMatrix(
        tuple(sorted(blocks, key=lambda block: block.name)),
        tuple(sorted(categories["study"])),
        tuple(sorted(categories["model"])),
    )


def _block(
    name: str,
    names: Sequence[str],
    method: np.ndarray,
    seed: np.ndarray,
    document: np.ndarray,
    correct: np.ndarray,
) -> Block:
    """Pack the rows of one block; `method` and `document` are codes, `names` what the former stand for."""
    found, m = np.unique(method, return_inverse=True)
    methods = [names[code] for code in found]
    seeds, s = np.unique(seed, return_inverse=True)
    documents, d = np.unique(document, return_inverse=True)
    shape = (len(methods), len(seeds), len(documents))
    if math.prod(shape) > SPARSE * len(correct) + 1_000_000:
        raise MolaError(
            f"task {name}: documents are not paired: {len(correct)} rows for {shape[0]} methods, {shape[1]} seeds and "
            f"{shape[2]} documents; name documents and seeds alike in all cells"
        )
    key = (m * shape[1] + s) * shape[2] + d
    seen = np.bincount(key, minlength=np.prod(shape)).reshape(shape)
    present = seen.any(axis=2)

    def cell(position: np.ndarray) -> str:
        return f"{methods[position[0]]}, seed {seeds[position[1]]}"

    if (seen > 1).any():
        first = np.argwhere(seen > 1)[0]
        raise MolaError(
            f"task {name}: {int((seen > 1).sum())} (cell, document) pairs have more than one row, first in "
            f"{cell(first)}; keep one row each"
        )
    if (seen[present] == 0).any():
        lacking = present & (seen == 0).any(axis=2)
        first = np.argwhere(lacking)[0]
        count = int(seen[tuple(first)].sum())
        raise MolaError(
            f"task {name}: documents are not paired: {cell(first)} has {count} of the {shape[2]} documents "
            "that the cells of this task answered; evaluate every cell on the same documents"
        )
    packed = np.zeros(shape, dtype=np.uint8)
    packed.reshape(-1)[key] = correct
    return Block(name, tuple(methods), tuple(map(int, seeds)), packed, present)
