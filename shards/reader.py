"""Opening a dataset and reading its samples, from a path or from any address that fsspec knows.

Nothing here needs torch; `shards.loader` reads ahead for a training run.
"""

import difflib
import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from shards.codec import decode_meta, decode_volume, sample_sha256
from shards.errors import (
    DatasetCorruptError,
    DatasetIncompleteError,
    DatasetNotFoundError,
    DatasetUnreadableError,
    SchemaError,
    ShardError,
    UnknownKeyError,
    UnknownSelectionError,
)
from shards.retries import ShortFileError
from shards.schema import DEVICES, SCHEMA_VERSION, SPLITS, Sample, SampleMeta, SampleRow, ShardRow
from shards.storage import Place, exists, locate, read_bytes, read_range
from shards.tables import parse_rows

INFO_FILE: Final = "dataset.json"
SUCCESS_FILE: Final = "_SUCCESS"

AHEAD: Final = 16
"""Samples that `iterate` reads at once: a bucket answers after 0.1 s, and 16 volumes of 9 MB fit beside any model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A committed dataset, or a selection of its samples. `info` is `dataset.json`; samples are in key order."""

    url: str
    info: Mapping[str, Any] = field(repr=False)
    samples: tuple[SampleRow, ...] = field(repr=False)
    shards: tuple[ShardRow, ...] = field(repr=False)

    def select(
        self,
        *,
        splits: Collection[str] | None = None,
        devices: Collection[str] | None = None,
        protocols: Collection[str] | None = None,
        regions: Collection[str] | None = None,
    ) -> Self:
        """The samples whose column is among the values asked for (None: all), and the shards that hold them.

        Raises:
            UnknownSelectionError: if a value can match nothing, which is usually a misspelling.
        """
        wanted: dict[str, Collection[str] | None] = {
            "split": splits,
            "device": devices,
            "protocol": protocols,
            "anatomic_region": regions,
        }
        samples = self.samples
        for column, values in wanted.items():
            if values is not None:
                self._check_values(column, values)
                samples = tuple(row for row in samples if getattr(row, column) in values)
        kept = {row.shard for row in samples}
        return replace(self, samples=samples, shards=tuple(row for row in self.shards if row.shard in kept))

    def _check_values(self, column: str, values: Collection[str]) -> None:
        if isinstance(values, str):
            raise UnknownSelectionError(f"{column}: expected a list of names, not the single string {values!r}.")
        by_schema: dict[str, tuple[str, ...]] = {"split": SPLITS, "device": DEVICES}
        known = by_schema.get(column) or tuple(sorted({getattr(row, column) for row in self.samples}))
        for value in values:
            if value not in known:
                raise UnknownSelectionError(f"no sample has {column} {value!r}; there is {', '.join(known) or 'none'}.")

    def find(self, key: str) -> SampleRow:
        """The row of a sample.

        Raises:
            UnknownKeyError: with the nearest keys, if there is no such sample.
        """
        rows = {row.key: row for row in self.samples}
        if key not in rows:
            near = difflib.get_close_matches(key, rows, n=3, cutoff=0.0)
            raise UnknownKeyError(
                f"{self.url} has no sample {key!r}; the nearest keys are {', '.join(near) or 'none'}."
            )
        return rows[key]


def open_dataset(url: str | os.PathLike[str]) -> Dataset:
    """Read the manifests of a committed dataset; no shard is touched.

    Raises:
        AddressError: if `url` is of a kind that cannot be opened here.
        DatasetNotFoundError: if there is nothing at `url`.
        DatasetIncompleteError: without a `_SUCCESS` that holds the sha256 of `dataset.json`, or if a manifest
            is missing or not the one that was committed.
        SchemaError: if the dataset is of a schema version that this code does not read.
    """
    address = os.fspath(url).rstrip("/")
    place = locate(address)
    info = _read_info(place, address)
    manifests = {name: _read_manifest(place, name, sha256) for name, sha256 in info["manifests"].items()}
    samples = parse_rows("samples.csv", manifests["samples.csv"], SampleRow)
    shards = parse_rows("shards.csv", manifests["shards.csv"], ShardRow)
    return Dataset(
        url=address,
        info=info,
        samples=tuple(sorted(samples, key=lambda row: row.key)),
        shards=tuple(sorted(shards, key=lambda row: row.shard)),
    )


def _read_info(place: Place, address: str) -> Mapping[str, Any]:
    success = read_file(place / SUCCESS_FILE)
    if success is None:
        check_folder(place, address)
    body = read_file(place / INFO_FILE)
    if success is None or body is None:
        missing = SUCCESS_FILE if success is None else INFO_FILE
        raise DatasetIncompleteError(
            f"{address} has no {missing}: it was not finished; run the same `fovea ingest` again to finish it."
        )
    if success.strip() != hashlib.sha256(body).hexdigest().encode():
        raise _changed(address, INFO_FILE)
    return parse_info(address, body)


def check_folder(place: Place, address: str) -> None:
    """A dataset is a folder.

    Raises:
        DatasetNotFoundError: if there is none, or a file.
        DatasetUnreadableError: if the store does not say.
    """
    try:
        there = place.fs.isdir(place.path) if place.is_local else exists(place)
    except (OSError, ShardError) as error:
        raise _unreadable(address, error) from error
    if not there:
        raise DatasetNotFoundError(f"there is no dataset at {address}: give the folder that `fovea ingest` wrote.")


def parse_info(address: str, body: bytes) -> Mapping[str, Any]:
    """`dataset.json`, as far as every reader relies on it.

    Raises:
        SchemaError: if it is not JSON, of an unknown schema version, or lists too few manifests.
    """
    try:
        info = json.loads(body)
    except ValueError as error:
        raise SchemaError(f"{address}: dataset.json is not JSON ({error}): ingest again to a new DATASET.") from error
    version = info.get("schema_version") if isinstance(info, dict) else None
    if version != SCHEMA_VERSION:
        raise SchemaError(
            f"{address} has schema version {version!r}, this code reads {SCHEMA_VERSION}; "
            "use the fovea-oct that wrote it, or ingest again."
        )
    manifests = info.get("manifests")
    if not isinstance(manifests, dict) or not {"samples.csv", "shards.csv"} <= set(manifests):
        raise SchemaError(f"{address}: dataset.json must list the manifests samples.csv and shards.csv.")
    return dict(info)


def _read_manifest(place: Place, name: str, sha256: str) -> bytes:
    data = read_file(place / f"manifests/{name}")
    if data is None or hashlib.sha256(data).hexdigest() != sha256:
        raise _changed(place.url, f"manifests/{name}")
    return data


def _changed(address: str, file: str) -> DatasetIncompleteError:
    return DatasetIncompleteError(
        f"{address}: {file} is not the one that was committed; `fovea verify {address}` lists what changed."
    )


def read_file(place: Place) -> bytes | None:
    """The whole file, None if there is none.

    Raises:
        DatasetUnreadableError: if the file system refuses.
    """
    try:
        return read_bytes(place)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # every store's client has exceptions of its own
        raise _unreadable(place.url, error) from error


def _unreadable(path: str, error: Exception) -> DatasetUnreadableError:
    said = error if isinstance(error, OSError) else type(error).__name__
    return DatasetUnreadableError(f"{path} cannot be read ({said}); check permissions, credentials and the network.")


def read_sample(dataset: Dataset, row: SampleRow) -> Sample:
    """Read one sample with a single ranged read of its two members. The volume owns its memory, and is writable.

    Its sha256 is compared, always: a flipped bit in the metadata would scale all voxels, and nothing else would tell.
    `benchmarks/read_speed.py` times both together.

    Raises:
        DatasetCorruptError: naming shard and key, if the bytes are not those of the sample.
    """
    start = min(row.meta_offset, row.volume_offset)
    stop = max(row.meta_offset + row.meta_bytes, row.volume_offset + row.volume_bytes)
    span = _read_range(dataset, row, start, stop - start)
    meta_payload = span[row.meta_offset - start :][: row.meta_bytes]
    volume_payload = span[row.volume_offset - start :][: row.volume_bytes]
    if sample_sha256(volume_payload, meta_payload) != row.sha256:
        raise _corrupt(dataset, row, "its sha256 is not the committed one")
    try:
        return Sample(meta=_decode_meta(row, meta_payload), volume=decode_volume(volume_payload))
    except SchemaError as error:
        raise _corrupt(dataset, row, str(error)) from error


def read_meta(dataset: Dataset, row: SampleRow) -> SampleMeta:
    """Read the metadata of one sample without its voxels, and so without its hash: what is in the row, too, must agree.

    Raises:
        DatasetCorruptError: naming shard and key, if the bytes are not those of the sample.
    """
    try:
        return _decode_meta(row, _read_range(dataset, row, row.meta_offset, row.meta_bytes))
    except SchemaError as error:
        raise _corrupt(dataset, row, str(error)) from error


def _decode_meta(row: SampleRow, payload: memoryview) -> SampleMeta:
    meta = decode_meta(payload)
    if meta.key != row.key:
        raise SchemaError(f"the metadata there is of sample {meta.key!r}.")
    spacing = (row.spacing_d_mm, row.spacing_h_mm, row.spacing_w_mm)
    theirs = (row.split, row.device, row.laterality, row.content_tokens, spacing)
    if (meta.split, meta.device, meta.laterality, meta.content_tokens, meta.spacing_mm) != theirs:
        raise SchemaError("the metadata there is not that of samples.csv.")
    return meta


def _read_range(dataset: Dataset, row: SampleRow, start: int, size: int) -> memoryview:
    """Bytes `[start, start + size)` of the shard, in memory of their own."""
    place = locate(dataset.url) / f"shards/{row.shard}"
    try:
        data = _read_local(place, start, size) if place.is_local else _get(place, start, size)
    except FileNotFoundError as error:
        raise _corrupt(dataset, row, "the shard is missing") from error
    except ShortFileError as error:
        data = np.empty(max(0, error.bytes - start), np.uint8)
    except OSError as error:
        raise _unreadable(place.url, error) from error
    if len(data) != size:
        raise _corrupt(dataset, row, f"the shard ends {size - len(data)} bytes too early")
    return data.data


def _read_local(place: Place, start: int, size: int) -> npt.NDArray[np.uint8]:
    """Read straight into the sample's memory; opening takes under 0.1 of 2.5 ms, so no open file is kept."""
    data = np.empty(size, np.uint8)
    with place.fs.open(place.path, "rb") as file:
        file.seek(start)
        return data[: file.readinto(data)]


def _get(place: Place, start: int, size: int) -> npt.NDArray[np.uint8]:
    """One ranged GET; copied because torch wants memory that it may write."""
    return np.frombuffer(read_range(place, start, size), np.uint8).copy()


def _corrupt(dataset: Dataset, row: SampleRow, what: str) -> DatasetCorruptError:
    return DatasetCorruptError(
        f"{row.shard}: sample {row.key}: {what.rstrip('.')}; `fovea verify {dataset.url}` lists what changed."
    )


def iterate(dataset: Dataset) -> Iterator[Sample]:
    """Read every sample in the order of its rows, several at once; training has an order of its own (`shards.order`).

    Raises:
        ShardError: at the sample that cannot be read.
    """
    coming: deque[Future[Sample]] = deque()
    for row in dataset.samples:
        coming.append(_begin(dataset, row))
        if len(coming) == AHEAD:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()


def _begin(dataset: Dataset, row: SampleRow) -> Future[Sample]:
    """A read under way. Its thread holds up no process that ends, as one of an executor would."""
    future: Future[Sample] = Future()
    threading.Thread(target=_settle, args=(future, dataset, row), name="read", daemon=True).start()
    return future


def _settle(future: Future[Sample], dataset: Dataset, row: SampleRow) -> None:
    try:
        future.set_result(read_sample(dataset, row))
    except BaseException as error:  # noqa: BLE001 - who waits for the sample raises it
        future.set_exception(error)
