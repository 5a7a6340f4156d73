"""Writing and reading the manifests: CSV for people, Parquet for programs, and the commit in the right order."""

import csv
import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Final, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.columns import CHUNK_ROWS, Columns, spelled, to_columns, to_table
from manifests.rows import SourceRow
from shards.publish import publish
from shards.schema import SampleRow, ShardRow
from shards.tables import INERT_MARK

FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""A spreadsheet would run a cell that starts so (OWASP, CSV injection); the last four are the full-width forms."""


def csv_bytes(row_type: type, rows: Iterable[Any]) -> bytes:
    """As `write_csv`, of a few rows in their own order."""
    file = io.BytesIO()
    write_csv(to_table(row_type, rows), file)
    return file.getvalue()


def write_csv(table: pa.Table, file: BinaryIO) -> None:
    """RFC 4180, UTF-8, a header line; None is an empty cell; text cells are inert in a spreadsheet."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(table.column_names)
    for batch in table.to_batches(CHUNK_ROWS):
        writer.writerows(zip(*(_cells(column.to_pylist()) for column in batch.columns), strict=True))
    text.detach()


def _cells(values: list[Any]) -> list[str]:
    """Columns repeat themselves: a device, a reason. Equal texts are equal cells."""
    known = {value: cell(value) for value in set(values) if isinstance(value, str)}
    return [known[value] if isinstance(value, str) else cell(value) for value in values]


def cell(value: object) -> str:
    """A value as `read_csv` gives it back."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return repr(value)
    clean = spelled(value).replace("\x00", "\\x00")
    runs = clean.lstrip(" ").startswith(FORMULA_STARTS)
    return f"{INERT_MARK}{clean}" if runs or clean.startswith(INERT_MARK) else clean


def parquet_bytes(row_type: type, rows: Iterable[Any]) -> bytes:
    """As `write_parquet`, of a few rows in their own order."""
    file = io.BytesIO()
    write_parquet(to_table(row_type, rows), file)
    return file.getvalue()


def write_parquet(table: pa.Table, file: BinaryIO) -> None:
    """The same rows with typed columns; None is null."""
    pq.write_table(table, file, compression="zstd")


def read_csv(data: bytes) -> list[dict[str, str]]:
    """Rows of a manifest as text, for auditors' tools."""
    return list(csv.DictReader(io.StringIO(data.decode("utf-8"), newline="")))


def commit(
    url: str,
    *,
    sources: Iterable[SourceRow],
    samples: Iterable[SampleRow],
    shards: Iterable[ShardRow],
    header: Mapping[str, Any],
) -> None:
    """As `commit_columns`, of rows in any order: one for every input file, one a sample, one a shard."""
    commit_columns(url, to_columns(sources=sources, samples=samples, shards=shards), header)


def commit_columns(url: str, columns: Columns, header: Mapping[str, Any]) -> None:
    """Write the manifests, then `dataset.json` with their hashes, and `_SUCCESS` last.

    Args:
        url: the dataset; its shards are already there.
        columns: the tables.
        header: what else `dataset.json` says (schema version, geometry, config, counts, ...).
    """
    hashes = {
        f"{name}.{suffix}": _publish_table(f"{url}/manifests/{name}.{suffix}", table, write)
        for name, table in _tables(columns)
        for suffix, write in (("csv", write_csv), ("parquet", write_parquet))
    }
    body = json.dumps({**header, "manifests": hashes}, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"
    publish(f"{url}/dataset.json", body, replace=True)
    publish(f"{url}/_SUCCESS", hashlib.sha256(body).hexdigest().encode() + b"\n", replace=True)


def _tables(columns: Columns) -> Iterator[tuple[str, pa.Table]]:
    yield "sources", columns.sources
    yield "rejected", columns.sources.filter(pc.not_equal(columns.sources.column("status"), "accepted"))
    yield "samples", columns.samples
    yield "shards", columns.shards


def _publish_table(url: str, table: pa.Table, write: Callable[[pa.Table, BinaryIO], None]) -> str:
    """Write a table by way of the disk, not of memory; returns its sha256."""
    with tempfile.TemporaryFile() as file:
        stream = cast("BinaryIO", file)
        write(table, stream)
        return publish(url, stream, replace=True).sha256
