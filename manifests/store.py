"""Writing and reading the manifests: CSV for people, Parquet for programs, and the commit in the right order."""

import csv
import dataclasses
import hashlib
import io
import json
import shutil
import types
import typing
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO, Final

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.rows import SourceRow
from shards.schema import SampleRow, ShardRow

FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""A spreadsheet would run a cell that starts so (OWASP, CSV injection); the last four are the full-width forms."""
INERT_MARK: Final = "'"
"""Put before such a cell, and before a cell that starts with it: take one off and the text is back."""

COPY_BLOCK_BYTES: Final = 4 * 2**20

_ARROW_TYPES: Final = {str: pa.string(), int: pa.int64(), float: pa.float64()}


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


def csv_bytes(row_type: type, rows: Iterable[Any]) -> bytes:
    """RFC 4180, UTF-8, a header line; None is an empty cell; text cells are inert in a spreadsheet."""
    columns = columns_of(row_type)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([cell(getattr(row, name)) for name in columns])
    return text.getvalue().encode()


def cell(value: object) -> str:
    """A value as `read_csv` gives it back."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return repr(value)
    clean = _spelled(value).replace("\x00", "\\x00")
    runs = clean.lstrip(" ").startswith(FORMULA_STARTS)
    return f"{INERT_MARK}{clean}" if runs or clean.startswith(INERT_MARK) else clean


def _spelled(text: str) -> str:
    """Lone surrogates (undecodable file names) have no UTF-8 form."""
    return text.encode("utf-8", "backslashreplace").decode()


def parquet_bytes(row_type: type, rows: Sequence[Any]) -> bytes:
    """The same rows with typed columns; None is null."""
    columns = columns_of(row_type)
    arrays = [
        pa.array([_typed(getattr(row, name)) for row in rows], _ARROW_TYPES[kind]) for name, kind in columns.items()
    ]
    sink = io.BytesIO()
    pq.write_table(pa.table(arrays, names=list(columns)), sink, compression="zstd")
    return sink.getvalue()


def _typed(value: Any) -> Any:
    return _spelled(value) if isinstance(value, str) else value


def read_csv(data: bytes) -> list[dict[str, str]]:
    """Rows of a manifest as text, for auditors' tools."""
    return list(csv.DictReader(io.StringIO(data.decode("utf-8"), newline="")))


def publish(url: str, data: bytes) -> None:
    """Write under a unique temporary name, then move to the final one: nobody sees half a file."""
    publish_file(url, io.BytesIO(data))


def publish_file(url: str, file: BinaryIO) -> None:
    """Like `publish`, from the start of an open file, without holding it in memory."""
    fs, path = fsspec.core.url_to_fs(url)
    parent, _, name = path.rpartition("/")
    fs.makedirs(parent, exist_ok=True)
    temporary = f"{parent}/.{name}.{uuid.uuid4().hex}"
    file.seek(0)
    with fs.open(temporary, "wb") as target:
        shutil.copyfileobj(file, target, COPY_BLOCK_BYTES)
    fs.mv(temporary, path)


def commit(
    url: str,
    *,
    sources: Sequence[SourceRow],
    samples: Sequence[SampleRow],
    shards: Sequence[ShardRow],
    header: Mapping[str, Any],
) -> None:
    """Write the manifests, then `dataset.json` with their hashes, and `_SUCCESS` last.

    Args:
        url: the dataset; its shards are already there.
        sources: one row for every input file, in any order.
        samples: one row a sample.
        shards: one row a shard.
        header: what else `dataset.json` says (schema version, geometry, config, counts, ...).
    """
    hashes: dict[str, str] = {}
    for name, data in _manifests(sources, samples, shards).items():
        publish(f"{url}/manifests/{name}", data)
        hashes[name] = hashlib.sha256(data).hexdigest()
    body = json.dumps({**header, "manifests": hashes}, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"
    publish(f"{url}/dataset.json", body)
    publish(f"{url}/_SUCCESS", hashlib.sha256(body).hexdigest().encode() + b"\n")


def _manifests(
    sources: Sequence[SourceRow], samples: Sequence[SampleRow], shards: Sequence[ShardRow]
) -> dict[str, bytes]:
    by_path = sorted(sources, key=lambda row: row.path)
    tables: dict[str, tuple[type, Sequence[Any]]] = {
        "sources": (SourceRow, by_path),
        "rejected": (SourceRow, [row for row in by_path if row.status != "accepted"]),
        "samples": (SampleRow, sorted(samples, key=lambda row: row.key)),
        "shards": (ShardRow, sorted(shards, key=lambda row: row.shard)),
    }
    return {
        f"{name}.{suffix}": encode(row_type, rows)
        for name, (row_type, rows) in tables.items()
        for suffix, encode in (("csv", csv_bytes), ("parquet", parquet_bytes))
    }
