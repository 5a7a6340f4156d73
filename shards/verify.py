"""Is every byte of a dataset as it was committed? The chain goes from `_SUCCESS` down to each sample."""

import csv
import hashlib
import io
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, cast

from shards.codec import sample_sha256
from shards.errors import SchemaError
from shards.reader import INFO_FILE, SUCCESS_FILE, check_folder, parse_info, read_file
from shards.schema import SampleRow, ShardRow
from shards.storage import Place, RangedFile, locate, names_below, size
from shards.tables import parse_rows

MANIFESTS: Final = tuple(
    f"{table}.{suffix}" for table in ("rejected", "samples", "shards", "sources") for suffix in ("csv", "parquet")
)
STATUSES: Final = ("accepted", "rejected", "duplicate", "excluded")

BLOCK_BYTES: Final = 1 << 23
"""Between samples a shard is hashed in pieces of this size, so that memory does not grow with the shard."""

NAMED_KEYS: Final = 3
"""So many samples of a damaged shard are named; the others are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is not as committed; `file` is relative to the dataset."""

    file: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was looked at, and what is wrong with it: nothing, when `problems` is empty."""

    problems: tuple[Problem, ...]
    num_shards: int
    num_samples: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tables:
    samples: tuple[SampleRow, ...]
    shards: tuple[ShardRow, ...]
    sources: tuple[dict[str, str], ...]
    num_rejected_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _ShardResult:
    problems: tuple[Problem, ...]
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Folder:
    """The dataset as files with names relative to it."""

    place: Place

    def read(self, name: str) -> bytes | None:
        return read_file(self.place / name)

    def names(self, folder: str) -> set[str]:
        return set(names_below(self.place / folder))


def verify(url: str, on_shard: Callable[[ShardRow], None] | None = None) -> VerifyReport:
    """Hash everything again: `dataset.json`, each manifest, each shard, each sample; and add up the accounts.

    Shards are read once, several at a time, since hashing releases the GIL.

    Args:
        url: the dataset, a path or an fsspec address.
        on_shard: called after each shard, to show progress.

    Raises:
        DatasetNotFoundError: if there is nothing at `url`.
        DatasetUnreadableError: if the file system refuses a manifest; an unreadable shard is a problem.
    """
    place = locate(url.rstrip("/"))
    check_folder(place, url)
    folder = _Folder(place=place)
    manifests = {name: folder.read(f"manifests/{name}") for name in MANIFESTS}
    info, problems = _check_head(folder, url)
    problems += _check_manifests(info.get("manifests"), manifests, folder.names("manifests"))
    if manifests["samples.csv"] is None or manifests["shards.csv"] is None:
        return VerifyReport(problems=tuple(problems), num_shards=0, num_samples=0, bytes=0)
    try:
        tables = _parse_tables(manifests)
    except SchemaError as error:
        problems.append(Problem(file="manifests", what=f"{error} No shard could be checked"))
        return VerifyReport(problems=tuple(problems), num_shards=0, num_samples=0, bytes=0)
    problems += _check_accounts(info.get("counts"), tables)
    problems += _check_listing(tables.shards, folder.names("shards"))
    results = _check_shards(folder, tables, on_shard)
    return VerifyReport(
        problems=(*problems, *(problem for result in results for problem in result.problems)),
        num_shards=len(tables.shards),
        num_samples=len(tables.samples),
        bytes=sum(result.bytes for result in results),
    )


def _check_head(folder: _Folder, url: str) -> tuple[Mapping[str, Any], list[Problem]]:
    """What `dataset.json` says, empty if it cannot be read, and what is wrong with it."""
    body = folder.read(INFO_FILE)
    problems = [*_check_success(body, folder.read(SUCCESS_FILE))]
    if body is None:
        return {}, problems
    try:
        return parse_info(url, body), problems
    except SchemaError as error:
        return {}, [*problems, Problem(file=INFO_FILE, what=str(error))]


def _check_success(body: bytes | None, success: bytes | None) -> Iterator[Problem]:
    if success is None:
        yield Problem(
            file=SUCCESS_FILE, what="is missing: the dataset was not finished; run the same `fovea ingest` again"
        )
    if body is None:
        yield Problem(file=INFO_FILE, what="is missing")
    elif success is not None and success != f"{hashlib.sha256(body).hexdigest()}\n".encode():
        yield Problem(file=INFO_FILE, what=f"is not the one that {SUCCESS_FILE} was written for")


def _check_manifests(
    hashes: Mapping[str, str] | None, manifests: Mapping[str, bytes | None], present: set[str]
) -> Iterator[Problem]:
    """Compare each manifest with its hash; without hashes `dataset.json` is the problem, and only absence is told."""
    for name, data in manifests.items():
        if data is None:
            yield Problem(file=f"manifests/{name}", what="is missing")
        elif hashes is not None and hashlib.sha256(data).hexdigest() != hashes.get(name):
            yield Problem(file=f"manifests/{name}", what="differs from what was committed")
    for name in sorted(present - set(MANIFESTS)):
        yield Problem(file=f"manifests/{name}", what="is not part of the dataset")


def _parse_tables(manifests: Mapping[str, bytes | None]) -> _Tables:
    sources = _text_rows("sources.csv", manifests)
    return _Tables(
        samples=parse_rows("samples.csv", manifests["samples.csv"] or b"", SampleRow),
        shards=parse_rows("shards.csv", manifests["shards.csv"] or b"", ShardRow),
        sources=sources,
        num_rejected_rows=len(_text_rows("rejected.csv", manifests)),
    )


def _text_rows(name: str, manifests: Mapping[str, bytes | None]) -> tuple[dict[str, str], ...]:
    text = (manifests[name] or b"").decode("utf-8", "replace")
    try:
        return tuple(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise SchemaError(f"{name}: {error}.") from error


def _check_accounts(counts: Any, tables: _Tables) -> Iterator[Problem]:
    """Do the numbers in dataset.json, the rows of sources.csv, and the samples say the same?"""
    if not isinstance(counts, dict):
        yield Problem(file=INFO_FILE, what="has no counts to compare the manifests with")
        return
    by_status = Counter(row.get("status") for row in tables.sources)
    expected: dict[str, Any] = {status: by_status[status] for status in STATUSES}
    expected |= {
        "inputs": len(tables.sources),
        "samples": len(tables.samples),
        "shards": len(tables.shards),
        "by_reason": dict(Counter(row["reason"] for row in tables.sources if row.get("reason"))),
    }
    for name, value in expected.items():
        if counts.get(name) != value:
            yield Problem(file=INFO_FILE, what=f"counts {name} as {counts.get(name)}, the manifests as {value}")
    if sum(by_status[status] for status in STATUSES) != len(tables.sources):
        yield Problem(file="manifests/sources.csv", what=f"has a status other than {', '.join(STATUSES)}")
    if tables.num_rejected_rows != len(tables.sources) - by_status["accepted"]:
        yield Problem(file="manifests/rejected.csv", what="does not hold all rows of sources.csv that are not accepted")
    accepted = Counter(row.get("key") for row in tables.sources if row.get("status") == "accepted")
    if accepted != Counter(row.key for row in tables.samples):
        yield Problem(file="manifests/samples.csv", what="does not hold exactly the accepted files of sources.csv")
    per_shard = Counter(row.shard for row in tables.samples)
    if per_shard != Counter({row.shard: row.num_samples for row in tables.shards}):
        yield Problem(
            file="manifests/shards.csv", what="disagrees with samples.csv on the number of samples of a shard"
        )


def _check_listing(shards: Iterable[ShardRow], present: set[str]) -> Iterator[Problem]:
    listed = {row.shard for row in shards}
    for name in sorted(listed - present):
        yield Problem(file=f"shards/{name}", what="is missing")
    for name in sorted(present - listed):
        yield Problem(file=f"shards/{name}", what="is not part of the dataset")


def _check_shards(
    folder: _Folder, tables: _Tables, on_shard: Callable[[ShardRow], None] | None
) -> Sequence[_ShardResult]:
    by_shard: dict[str, list[SampleRow]] = defaultdict(list)
    for sample in tables.samples:
        by_shard[sample.shard].append(sample)
    present = folder.names("shards")
    rows = [row for row in tables.shards if row.shard in present]
    results = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        checks = pool.map(lambda row: _check_shard(folder, row, by_shard[row.shard]), rows)
        for row, result in zip(rows, checks, strict=True):
            results.append(result)
            if on_shard:
                on_shard(row)
    return results


def _check_shard(folder: _Folder, row: ShardRow, samples: Sequence[SampleRow]) -> _ShardResult:
    place = folder.place / f"shards/{row.shard}"
    try:
        num_bytes = size(place)
        with _open(place, num_bytes) as file:
            tape = _Tape(file, num_bytes)
            in_order = sorted(samples, key=lambda sample: sample.meta_offset)
            damaged = [sample.key for sample in in_order if _read_sha256(tape, sample) != sample.sha256]
            whole = tape.finish()
    except OSError as error:
        return _ShardResult(problems=(Problem(file=f"shards/{row.shard}", what=f"cannot be read: {error}"),))
    what = _describe(row, size=num_bytes, intact=whole == row.sha256, damaged=damaged)
    problems = (Problem(file=f"shards/{row.shard}", what=what),) if what else ()
    return _ShardResult(problems=problems, bytes=num_bytes)


def _open(place: Place, num_bytes: int) -> BinaryIO:
    if place.is_local:
        return cast("BinaryIO", place.fs.open(place.path, "rb"))
    return cast("BinaryIO", RangedFile(place, num_bytes, ahead_bytes=BLOCK_BYTES))


def _read_sha256(tape: "_Tape", sample: SampleRow) -> str:
    meta = tape.read(sample.meta_offset, sample.meta_bytes)
    volume = tape.read(sample.volume_offset, sample.volume_bytes)
    return sample_sha256(volume, meta)


def _describe(row: ShardRow, *, size: int, intact: bool, damaged: Sequence[str]) -> str:
    named = ", ".join(damaged[:NAMED_KEYS])
    if len(damaged) > NAMED_KEYS:
        named += f" and {len(damaged) - NAMED_KEYS} more"
    inside = f"; damaged samples: {named}" if damaged else "; no sample is damaged"
    if size != row.bytes:
        return f"has {size} bytes, {row.bytes} were committed{inside}"
    if not intact:
        return f"differs from what was committed{inside}"
    return f"is as committed, but samples.csv says otherwise of {named}" if damaged else ""


class _Tape:
    """Reads a file once, front to back, and hashes every byte on the way."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._position = 0
        self._digest = hashlib.sha256()

    def read(self, offset: int, size: int) -> bytes:
        """Bytes `[offset, offset + size)`; fewer, or none, if these do not lie ahead and inside the file."""
        if not self._position <= offset <= self._size or size < 0:
            return b""
        while self._position < offset and self._take(min(BLOCK_BYTES, offset - self._position)):
            pass
        return self._take(min(size, self._size - offset))

    def finish(self) -> str:
        """The sha256 of the whole file."""
        while self._take(BLOCK_BYTES):
            pass
        return self._digest.hexdigest()

    def _take(self, size: int) -> bytes:
        data = self._file.read(size)
        self._position += len(data)
        self._digest.update(data)
        return data
