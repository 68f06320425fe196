"""The score matrix: one row per cell and document, read, checked and packed into arrays.

A *cell* is one trained and evaluated (study, model, task, method, seed). All cells of a task must have
answered the same documents: every later step pairs on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from mola_core.errors import MolaError

NAMES = ("study", "model", "task", "method")
COLUMNS = (*NAMES, "seed", "document", "correct")
_DICTIONARY = pa.dictionary(pa.int32(), pa.string())


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
    read = _read_csv if path.suffix.lower() == ".csv" else _read_parquet
    try:
        table = read(path)
    except pa.ArrowException as error:
        raise MolaError(f"{path}: not a readable score file ({str(error).splitlines()[0]})") from None
    if table.num_rows == 0:
        raise MolaError(f"{path}: no rows; a score file has one row per cell and document")
    for column in COLUMNS:
        if table[column].null_count:
            raise MolaError(
                f"{path}: column {column!r} has {table[column].null_count} empty fields; fill them"
            )
    return pd.DataFrame(
        {
            **{name: table[name].to_pandas() for name in (*NAMES, "document")},
            "seed": _whole_seeds(table["seed"], path),
            "correct": _zeros_and_ones(table["correct"], path),
        }
    )[list(COLUMNS)]


def _require(names: Sequence[str], path: Path) -> None:
    missing = [column for column in COLUMNS if column not in names]
    if missing:
        raise MolaError(
            f"{path}: column {', '.join(map(repr, missing))} missing; "
            f"a score file has the columns {', '.join(COLUMNS)}"
        )


def _read_parquet(path: Path) -> pa.Table:
    schema = pq.read_schema(path)
    _require(schema.names, path)
    strings = [name for name in (*NAMES, "document") if pa.types.is_string(schema.field(name).type)]
    table = pq.read_table(path, columns=list(COLUMNS), read_dictionary=strings)
    for name in (*NAMES, "document"):
        table = table.set_column(table.schema.get_field_index(name), name, _encode(table[name]))
    return table.unify_dictionaries()


def _encode(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Any column as one of strings, each kept once."""
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.string()).dictionary_encode()
    return column.cast(_DICTIONARY)


def _read_csv(path: Path) -> pa.Table:
    with open(path, encoding="utf-8", errors="replace") as handle:
        _require([name.strip().strip('"') for name in handle.readline().rstrip("\r\n").split(",")], path)
    convert = pyarrow.csv.ConvertOptions(
        include_columns=list(COLUMNS),
        column_types={name: _DICTIONARY for name in (*NAMES, "document")},
        strings_can_be_null=True,
        null_values=[""],
    )
    return pyarrow.csv.read_csv(path, convert_options=convert).unify_dictionaries()


def _whole_seeds(column: pa.ChunkedArray, path: Path) -> np.ndarray:
    try:
        return column.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        raise MolaError(f"{path}: column 'seed' must hold whole numbers") from None


def _zeros_and_ones(column: pa.ChunkedArray, path: Path) -> np.ndarray:
    kind = column.type
    if pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise MolaError(f"{path}: column 'correct' must be 0 or 1, not {kind}")
    bad = pc.invert(pc.is_in(column, pa.array([0, 1]).cast(column.type)))
    if (count := pc.sum(bad).as_py() or 0) > 0:
        example = column.filter(bad)[0].as_py()
        raise MolaError(f"{path}: column 'correct' must be 0 or 1; {count} rows are not, such as {example}")
    return column.cast(pa.uint8()).to_numpy()


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
