"""The manifests as sorted columns: a million rows take gigabytes as objects, and some hundred megabytes as columns.

Rows come in any order, from an iterable that may be read from somewhere else as it goes; only a chunk of them is held
as objects at a time.
"""

import dataclasses
import itertools
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from manifests.committed import Tables
from manifests.rows import SourceRow
from shards.schema import SampleRow, ShardRow

CHUNK_ROWS: Final = 2**12

_ARROW_TYPES: Final = {str: pa.string(), int: pa.int64(), float: pa.float64()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The tables of files, samples and shards, sorted by path, key and shard."""

    sources: pa.Table
    samples: pa.Table
    shards: pa.Table


def columns_of(row_type: type) -> dict[str, type]:
    """Column name -> str, int or float, in order, from the annotations of a row type."""
    hints = typing.get_type_hints(row_type)
    return {field.name: _plain(hints[field.name]) for field in dataclasses.fields(row_type)}


def _plain(hint: Any) -> type:
    if typing.get_origin(hint) is typing.Literal:
        return str
    if isinstance(hint, types.UnionType):
        return _plain(next(option for option in typing.get_args(hint) if option is not type(None)))
    return typing.cast("type", hint)


def spelled(text: str) -> str:
    """Text as the manifests hold it: lone surrogates (names of files that are not UTF-8) have escapes there."""
    return text.encode("utf-8", "backslashreplace").decode()


def to_columns(*, sources: Iterable[SourceRow], samples: Iterable[SampleRow], shards: Iterable[ShardRow]) -> Columns:
    """Rows in any order -> the sorted tables."""
    return Columns(
        sources=to_table(SourceRow, sources, "path"),
        samples=to_table(SampleRow, samples, "key"),
        shards=to_table(ShardRow, shards, "shard"),
    )


def as_columns(tables: Tables | Columns) -> Columns:
    """The same tables as columns."""
    if isinstance(tables, Columns):
        return tables
    return to_columns(sources=tables.sources, samples=tables.samples, shards=tables.shards)


def to_table(row_type: type, rows: Iterable[Any], by: str | None = None) -> pa.Table:
    """Rows -> a table with typed columns, in the order of the bytes of one of them; None is null."""
    kinds = columns_of(row_type)
    schema = pa.schema([(name, _ARROW_TYPES[kind]) for name, kind in kinds.items()])
    batches = list(_batches(schema, rows))
    columns = {name: pa.chunked_array([batch[name] for batch in batches], schema.field(name).type) for name in kinds}
    batches.clear()
    if by:
        _put_in_order(columns, pc.sort_indices(columns[by]))
    return pa.table(columns, schema=schema)


def _put_in_order(columns: dict[str, Any], order: pa.Array) -> None:
    """Column by column, so that only one at a time is held twice."""
    for name in tuple(columns):
        columns[name] = columns[name].combine_chunks().take(order)


def _batches(schema: pa.Schema, rows: Iterable[Any]) -> Iterator[pa.RecordBatch]:
    left = iter(rows)
    while chunk := list(itertools.islice(left, CHUNK_ROWS)):
        columns = [pa.array([_typed(getattr(row, field.name)) for row in chunk], field.type) for field in schema]
        yield pa.record_batch(columns, schema=schema)


def _typed(value: Any) -> Any:
    return spelled(value) if isinstance(value, str) else value


def with_text(table: pa.Table, name: str) -> pa.ChunkedArray:
    """The cells of a column that hold text."""
    column = table.column(name)
    return column.filter(pc.fill_null(pc.not_equal(column, ""), False))


def counted(table: pa.Table, name: str) -> dict[str, int]:
    """How often each text occurs in a column, by name; empty cells do not count."""
    counts = pc.value_counts(with_text(table, name)).to_pylist()
    return dict(sorted((one["values"], one["counts"]) for one in counts))


def num_repeated(ordered: pa.ChunkedArray) -> int:
    """How many cells of a sorted column are equal to the one before."""
    same = pc.sum(pc.equal(ordered[1:], ordered[:-1])).as_py() if len(ordered) > 1 else 0
    return int(same or 0)
