"""Manifests made again from what is left: every table is committed in two forms, and each says all of the other."""

import hashlib
import io
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow.parquet as pq

from manifests.columns import columns_of, to_table
from manifests.committed import Tables
from manifests.rows import SourceRow
from manifests.store import read_csv, write_csv, write_parquet
from shards.schema import SampleRow, ShardRow
from shards.tables import INERT_MARK

TABLES: Final[Mapping[str, type]] = {
    "sources": SourceRow,
    "rejected": SourceRow,
    "samples": SampleRow,
    "shards": ShardRow,
}
ORDER: Final = {"sources": "path", "rejected": "path", "samples": "key", "shards": "shard"}
WRITERS: Final = {"csv": write_csv, "parquet": write_parquet}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended:
    """Files to write anew, by name; `lost` are those that nothing gives back, `tables` None if it lacks one."""

    files: Mapping[str, bytes] = field(repr=False)
    lost: tuple[str, ...]
    tables: Tables | None = field(repr=False)


def mend(found: Mapping[str, bytes | None], hashes: Mapping[str, str]) -> Mended:
    """Make damaged manifests again; each must have the bytes that were committed.

    Args:
        found: manifests as they are, by name.
        hashes: sha256 by name, from `dataset.json`.
    """
    intact = {name: data for name, data in found.items() if data is not None and _sha256(data) == hashes.get(name)}
    rows = {table: _rows(table, intact) for table in TABLES}
    sources = rows["sources"]
    if rows["rejected"] is None and sources is not None:
        rows["rejected"] = [row for row in sources if row.status != "accepted"]
    damaged = [name for name in hashes if name not in intact]
    made = {name: _encoded(name, rows) for name in damaged}
    return Mended(
        files={name: data for name, data in made.items() if data is not None and _sha256(data) == hashes[name]},
        lost=tuple(name for name, data in made.items() if data is None or _sha256(data) != hashes[name]),
        tables=_tables(rows),
    )


def _rows(table: str, intact: Mapping[str, bytes]) -> list[Any] | None:
    row_type = TABLES[table]
    if data := intact.get(f"{table}.parquet"):
        return [row_type(**cells) for cells in pq.read_table(io.BytesIO(data)).to_pylist()]
    if data := intact.get(f"{table}.csv"):
        return [row_type(**_values(row_type, line)) for line in read_csv(data)]
    return None


def _values(row_type: type, line: Mapping[str, str]) -> dict[str, Any]:
    """The cells of a CSV as they were before `manifests.store.cell`: an empty one is None where a column may be."""
    hints = typing.get_type_hints(row_type)
    values: dict[str, Any] = {}
    for name, kind in columns_of(row_type).items():
        text = line[name].removeprefix(INERT_MARK) if kind is str else line[name]
        empty = not text and isinstance(hints[name], types.UnionType)
        values[name] = None if empty else kind(text)
    return values


def _encoded(name: str, rows: Mapping[str, Sequence[Any] | None]) -> bytes | None:
    table, _, form = name.partition(".")
    there = rows.get(table)
    if there is None or form not in WRITERS:
        return None
    file = io.BytesIO()
    WRITERS[form](to_table(TABLES[table], there, ORDER[table]), file)
    return file.getvalue()


def _tables(rows: Mapping[str, Sequence[Any] | None]) -> Tables | None:
    sources, samples, shards = (rows[table] for table in ("sources", "samples", "shards"))
    if sources is None or samples is None or shards is None:
        return None
    return Tables(sources=tuple(sources), samples=tuple(samples), shards=tuple(shards))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
