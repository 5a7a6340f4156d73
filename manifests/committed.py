"""A finished dataset's own tables as typed rows, for a job that goes on from them."""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow.parquet as pq

from manifests.errors import AuditError
from manifests.rows import SourceRow
from shards.schema import SampleRow, ShardRow
from shards.storage import read_bytes

Row = TypeVar("Row", SourceRow, SampleRow, ShardRow)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Rows of files, samples and shards that belong together."""

    sources: tuple[SourceRow, ...]
    samples: tuple[SampleRow, ...]
    shards: tuple[ShardRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """`dataset.json` and the rows that it vouches for."""

    info: Mapping[str, Any]
    tables: Tables = field(repr=False)


def read_committed(url: str) -> Committed:
    """The tables of a finished dataset.

    They are read from Parquet: a cell of a CSV may have an apostrophe that keeps it from being a formula, or not.

    Raises:
        AuditError: if `dataset.json` or a table is not the one that was committed.
    """
    body = _read(url, "dataset.json")
    _check(url, "dataset.json", body, _read(url, "_SUCCESS").decode("ascii", "replace").strip())
    info = json.loads(body)
    tables = Tables(
        sources=_rows(url, info, "sources", SourceRow),
        samples=_rows(url, info, "samples", SampleRow),
        shards=_rows(url, info, "shards", ShardRow),
    )
    return Committed(info=info, tables=tables)


def _rows(url: str, info: Mapping[str, Any], table: str, row_type: type[Row]) -> tuple[Row, ...]:
    name = f"{table}.parquet"
    data = _read(url, f"manifests/{name}")
    _check(url, f"manifests/{name}", data, _listed(url, info, name))
    return tuple(row_type(**cells) for cells in pq.read_table(io.BytesIO(data)).to_pylist())


def _listed(url: str, info: Mapping[str, Any], name: str) -> str:
    manifests = info.get("manifests")
    if not isinstance(manifests, dict) or name not in manifests:
        raise AuditError(f"{url}: dataset.json does not list {name}: ingest again to a new DATASET.")
    return str(manifests[name])


def _check(url: str, name: str, data: bytes, sha256: str) -> None:
    if hashlib.sha256(data).hexdigest() != sha256:
        raise AuditError(f"{url}: {name} is not the one that was committed; `fovea verify {url}` lists what changed.")


def _read(url: str, name: str) -> bytes:
    try:
        return read_bytes(f"{url}/{name}")
    except FileNotFoundError as error:
        raise AuditError(f"{url} has no {name}; `fovea verify {url}` lists what is missing.") from error
