"""Score files: Parquet or CSV with one row per cell and document, read batch by batch, every value checked."""

import hashlib
import json
from collections.abc import Iterator, Sequence
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
OPTIONAL = ("likelihood", "cluster")
"""Columns that a score file may have: the probability of the right option among a document's options, and what
documents belong together (a premise, a skill, a concept)."""
TEXT = (*NAMES, "document", "cluster")
CONTENT_KEY = b"mola_content_sha256"
"""Metadata of a Parquet score file: the checksum of each column (`Content`)."""
BATCH = 1 << 20
"""Rows read at a time: a file of ten million rows then never needs more than 2 GiB."""
CSV_BLOCK = 1 << 26
_SPELLINGS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "-0": 0, "false": 0, "true": 1}


def load_scores(path: str | Path) -> pd.DataFrame:
    """The rows of a score file (Parquet, or CSV with a header), names and documents as categoricals.

    Returns the seven `COLUMNS`, and of `OPTIONAL` those that the file has; `seed` is int64, `correct` uint8 and
    `likelihood` float32 (NaN where it is empty). Other columns of the file are not read. Raises `MolaError` for a
    missing file or column, an empty or unreadable file, an empty field, a seed that is not a whole number, a `correct`
    other than 0 and 1, a likelihood outside [0, 1], and a content that is not the one that was written.
    """
    path = Path(path)
    if not path.is_file():
        raise MolaError(f"{path}: no such score file; give a .parquet or .csv file")
    try:
        if path.suffix.lower() == ".csv":
            return _gather(_read_csv(path), _csv_header(path), path)
        return _gather(_read_parquet(path), pq.read_schema(path).names, path, expected_content(path))
    except MolaError:
        raise
    except Exception as error:  # a damaged file makes its reader raise anything, MemoryError included
        words = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise MolaError(f"{path}: not a readable score file ({words})") from None


def frame_scores(frame: pd.DataFrame) -> pd.DataFrame:
    """A data frame as `load_scores` returns one, after the same checks; study, model and task may be left out."""
    if not isinstance(frame, pd.DataFrame):
        raise MolaError(f"scores: a pandas DataFrame is needed, not {type(frame).__name__}")
    filled = {name: name for name in ("study", "model", "task") if name not in frame.columns}
    frame = frame.assign(**filled)
    names = [name for name in (*COLUMNS, *OPTIONAL) if name in frame.columns]
    require(list(map(str, frame.columns)), Path("scores"))
    try:
        table = pa.Table.from_pandas(frame[names], preserve_index=False)
        return _gather(iter(table.to_batches(BATCH)), names, Path("scores"))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise MolaError(f"scores: not readable as columns ({str(error).splitlines()[0][:200]})") from None


def _gather(
    batches: Iterator[pa.RecordBatch], names: Sequence[str], path: Path, content: dict[str, str] | None = None
) -> pd.DataFrame:
    """Check and join the batches; `content` is what `Content` said when the file was written."""
    require(names, path)
    kept = [*COLUMNS, *(name for name in OPTIONAL if name in names)]
    encoder = Content(kept)
    columns: dict[str, list[np.ndarray]] = {column: [] for column in kept}
    for batch in batches:
        for column in kept:
            values = batch.column(column)
            if values.null_count and column != "likelihood":
                raise MolaError(f"{path}: column {column!r} has empty fields; fill them")
            columns[column].append(encoder.add(column, values, path))
    if not sum(map(len, columns["seed"])):
        raise MolaError(f"{path}: no rows; a score file has one row per cell and document")
    if content is not None and any(content.get(name) != value for name, value in encoder.sums().items()):
        raise MolaError(f"{path}: not a readable score file (its content is not the one that was written)")
    if content is not None and any(name not in names for name in content):
        raise MolaError(f"{path}: not a readable score file (a column that was written is not there)")
    joined = {column: np.concatenate(columns.pop(column)) for column in kept}
    return pd.DataFrame({name: encoder.categorical(name, values) for name, values in joined.items()})


def require(names: Sequence[str], path: Path) -> None:
    known = [*COLUMNS, *OPTIONAL]
    for name in dict.fromkeys(names):
        meant = str(name).strip().casefold()
        if name not in known and meant in known:
            raise MolaError(f"{path}: column {name!r} would not be read; write it {meant!r}, or rename it")
        if name in known and list(names).count(name) > 1:
            raise MolaError(f"{path}: column {name!r} is there twice; remove one")
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

    def encode(self, column: pa.Array, trimmed: str | None = None) -> np.ndarray:
        """Positions of the column's values in `known`, which grows by those that are new, in their order.

        Raises `MolaError`, which begins with `trimmed`, for a value with blanks around it, where that is given.
        """
        if not pa.types.is_dictionary(column.type):
            column = column.cast(pa.string()).dictionary_encode()
        used = column.indices.unique()
        values = column.dictionary.cast(pa.string())
        new = values.take(used).filter(pc.is_null(pc.index_in(values.take(used), value_set=self.known)))
        blank = new.filter(pc.not_equal(new, pc.utf8_trim_whitespace(new)))
        if trimmed and len(blank):
            raise MolaError(
                f"{trimmed}: {blank[0].as_py()!r} has blanks around it and is another name than without; remove them"
            )
        self.known = pa.concat_arrays([self.known, new.unique()])
        return pc.index_in(values, value_set=self.known).to_numpy(zero_copy_only=False)[
            column.indices.to_numpy(zero_copy_only=False)
        ]


class Content:
    """The values of score columns as they are read or written, checked, as numbers, and a checksum of each column.

    The checksums do not depend on how a file is cut into batches or compressed; a file that `collect` wrote holds them
    in its metadata, so that another value cannot be read without a word.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._names = {column: _Names() for column in columns if column in TEXT}
        self._sums = {column: hashlib.sha256() for column in columns}

    def add(self, column: str, values: pa.Array, path: Path) -> np.ndarray:
        """The next values of a column: codes of names, int64 seeds, uint8 0 or 1, float32 likelihoods."""
        if column in self._names:
            where = f"{path}: column {column!r}" if column in NAMES else None
            numbers = self._names[column].encode(values, where).astype(np.int32)
        elif column == "seed":
            numbers = _whole_seeds(values, path)
        elif column == "correct":
            numbers = _zeros_and_ones(values, path)
        else:
            numbers = _floats(values, column, path)
        self._sums[column].update(np.ascontiguousarray(numbers))
        return numbers

    def sums(self) -> dict[str, str]:
        """Column -> sha256 of its values so far."""
        found = {}
        for column, running in self._sums.items():
            whole = running.copy()
            if column in self._names:
                whole.update(json.dumps(self._names[column].known.to_pylist()).encode())
            found[column] = whole.hexdigest()
        return found

    def categorical(self, column: str, values: np.ndarray) -> Any:
        if column not in self._names:
            return values
        return pd.Categorical.from_codes(values, self._names[column].known.to_pandas())


def expected_content(path: Path) -> dict[str, str] | None:
    """The checksums that a Parquet score file was written with; None for a file of others."""
    stored = (pq.read_schema(path).metadata or {}).get(CONTENT_KEY)
    if stored is None:
        stored = (pq.read_metadata(path).metadata or {}).get(CONTENT_KEY)
    return None if stored is None else json.loads(stored)


def _read_parquet(path: Path) -> Iterator[pa.RecordBatch]:
    schema = pq.read_schema(path)
    require(schema.names, path)
    strings = [name for name in TEXT if name in schema.names and pa.types.is_string(schema.field(name).type)]
    columns = [*COLUMNS, *(name for name in OPTIONAL if name in schema.names)]
    # A bit that flipped in a page is noticed where the writer gave checksums, as `collect` does.
    with pq.ParquetFile(path, read_dictionary=strings, page_checksum_verification=True) as file:
        yield from file.iter_batches(BATCH, columns=columns)


def _csv_header(path: Path) -> list[str]:
    with open(path, encoding="utf-8-sig", errors="replace") as handle:
        return [name.strip('"') for name in handle.readline().rstrip("\r\n").split(",")]


def _read_csv(path: Path) -> Iterator[pa.RecordBatch]:
    names = _csv_header(path)
    require(names, path)
    # Types are stated, since a reader of blocks would otherwise judge by the first one alone.
    convert = pyarrow.csv.ConvertOptions(
        include_columns=[*COLUMNS, *(name for name in OPTIONAL if name in names)],
        column_types={name: pa.string() for name in TEXT}
        | {"seed": pa.string(), "correct": pa.string(), "likelihood": pa.float64()},
        strings_can_be_null=True,
        null_values=[""],
    )
    options = pyarrow.csv.ReadOptions(block_size=CSV_BLOCK)
    with pyarrow.csv.open_csv(path, read_options=options, convert_options=convert) as reader:
        yield from reader


def _whole_seeds(column: pa.Array, path: Path) -> np.ndarray:
    try:
        if pa.types.is_string(column.type):  # of a CSV file; 3.0 is 3
            try:
                column = column.cast(pa.int64())
            except pa.ArrowInvalid:
                column = column.cast(pa.float64())
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


def _floats(column: pa.Array, name: str, path: Path) -> np.ndarray:
    """float32, NaN where the field is empty; a likelihood must be a probability."""
    try:
        numbers = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        raise MolaError(f"{path}: column {name!r} must hold numbers") from None
    given = numbers[column.is_valid().to_numpy(zero_copy_only=False)]
    if name == "likelihood" and not ((given >= 0) & (given <= 1)).all():
        example = given[~((given >= 0) & (given <= 1))][0]
        raise MolaError(f"{path}: column 'likelihood' must be a probability between 0 and 1, not {example:g}")
    return numbers.astype(np.float32)
