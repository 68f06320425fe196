"""Parquet files of strangers: read only as far as what they unfold to fits a bound.

A text or a number that stands a million times takes the room of one, within a row too, and a file says nothing of what it
unfolds to. Texts are therefore read as dictionaries, and unfolded when their sizes are known.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

WIDEST = 12
"""Bytes of parquet's widest number."""


class TooLarge(Exception):
    """The file unfolds to more than it may."""


def read_bounded(file: Path, most: int) -> pa.Table:
    """The file's rows, texts unfolded. Raises `TooLarge` above `most` bytes, and what
    pyarrow raises for a damaged file."""
    found = pq.read_metadata(file)
    columns = [found.schema.column(place) for place in range(found.num_columns)]
    groups = [found.row_group(number) for number in range(found.num_row_groups)]
    values = sum(
        group.column(place).num_values * max(WIDEST, column.length or 0)
        for group in groups
        for place, column in enumerate(columns)
    )
    if max(values, sum(group.total_byte_size for group in groups)) > most:
        raise TooLarge
    texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    source = pq.ParquetFile(file, read_dictionary=texts)
    schema = pa.schema(map(_plain_field, source.schema_arrow), metadata=source.schema_arrow.metadata)
    parts, size = [], values
    for part in source.iter_batches(1024):
        size += sum(map(_text_bytes, part.columns))
        if size > most:
            raise TooLarge
        parts.append(pa.Table.from_batches([part]).cast(schema))
    return pa.concat_tables(parts) if parts else schema.empty_table()


def _text_bytes(column: pa.Array) -> int:
    """Bytes of a column's texts, each as often as it stands."""
    if pa.types.is_dictionary(column.type):
        lengths = pc.binary_length(column.dictionary).take(column.indices)
        return int(pc.sum(pc.cast(lengths, pa.int64())).as_py() or 0)
    if pa.types.is_struct(column.type):
        return sum(map(_text_bytes, column.flatten()))
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return _text_bytes(column.flatten())
    return 0


def _plain_field(field: pa.Field) -> pa.Field:
    return field.with_type(_plain(field.type))


def _plain(kind: pa.DataType) -> pa.DataType:
    """A type with texts in place of dictionaries."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_struct(kind):
        return pa.struct([_plain_field(kind.field(place)) for place in range(kind.num_fields)])
    if pa.types.is_large_list(kind):
        return pa.large_list(_plain_field(kind.value_field))
    if pa.types.is_list(kind):
        return pa.list_(_plain_field(kind.value_field))
    return kind
