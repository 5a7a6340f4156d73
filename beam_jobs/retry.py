"""Which inputs a finished dataset takes in or tries again, and where what they give is put.

`--retry-rejected` and `--append` are packed beside the dataset, under `_staging/retry`, and moved in at the end
(ADR 0006, ADR 0011).
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from apache_beam.pvalue import TaggedOutput

from beam_jobs.options import IngestJob
from beam_jobs.transforms import SETTLED, shards_of
from ingest.reader import MEMBER_MARK
from ingest.source import COHORT_ROOT, discover, is_candidate
from manifests.columns import spelled
from manifests.committed import Committed, read_committed
from manifests.plan import Element, ShardPlan
from manifests.reasons import Reason
from manifests.rows import SourceRow
from shards.schema import shard_name
from shards.storage import locate, names_below, read_bytes, remove

TWIN_PREFIX: Final = "twin-"
"""Shards of files whose SOP Instance UID the dataset holds: packed to learn whether they are valid, never moved in."""

VALID: Final = frozenset({None, Reason.DUP_SOP_UID_IDENTICAL.value, Reason.DUP_SOP_UID_CONFLICT.value})
"""Reasons of files whose content passed every check."""

Shelf = tuple[str, str, bool]
"""Split, device, and whether the dataset holds the SOP Instance UID."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrownJob(IngestJob):
    """A job on a dataset that is complete: `labels_sha256` is of the table that it was first made with.

    `table_sha256` is of the participants' table now; `appends` says that new files are taken in (`--append`).
    """

    table_sha256: str | None = None
    appends: bool = False


def retry_job(job: IngestJob) -> IngestJob:
    """The same job with the place where a retry is packed as its dataset.

    What was packed with another participants' table is not taken over: the table decides bytes of samples.
    """
    place = dataclasses.replace(job, dataset=f"{job.dataset}/_staging/retry")
    return dataclasses.replace(place, labels_sha256=job.table_sha256) if isinstance(job, GrownJob) else place


def is_retryable(row: SourceRow) -> bool:
    """Whether another look at the file may end otherwise, without anybody changing it."""
    return row.reason is not None and Reason(row.reason).info.retryable


def canonical(path: str) -> str:
    """A path from the cohort's root: `manifest.tsv` lists files so, wherever that root lies in SOURCE."""
    return path.partition(COHORT_ROOT)[2] or path


def archives_of(path: str) -> list[str]:
    """The archives that a path may be a member of, by its marks; a file's own name may hold one."""
    return [path[: mark.start()] for mark in MEMBER_MARK.finditer(path)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """The inputs of a retry or an append, by their paths as the manifests spell them.

    `again` are those whose rows are redone; `missing` the canonical ones of files that were listed and not found;
    `known` all that have a row. With `new`, inputs that have none are in it, but for members of archives that have.
    """

    again: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()
    known: frozenset[str] = frozenset()
    new: bool = False

    def holds(self, path: str) -> bool:
        """Whether an input is one of them: by its row, by its archive's, as a missing file that has come, or as new."""
        name = spelled(path)
        archives = archives_of(name)
        if not self.again.isdisjoint([name, *archives]):
            return True
        if name in self.known:
            return False
        return canonical(name) in self.missing or (self.new and self.known.isdisjoint(archives))


def scope_of(sources: Iterable[SourceRow], *, append: bool = False) -> Scope:
    """The scope of a retry of these rows, or of an append to them, which redoes missing files only."""
    rows = tuple(sources)
    missing = frozenset(row.path for row in rows if row.reason == Reason.FILE_MISSING)
    return Scope(
        again=missing if append else frozenset(row.path for row in rows if is_retryable(row)),
        missing=frozenset(map(canonical, missing)),
        known=frozenset(row.path for row in rows),
        new=append,
    )


def count_changes(sources: Iterable[SourceRow], listing: Mapping[str, int], scope: Scope) -> tuple[int, int]:
    """How many files of SOURCE have changed or gone since they got their rows, and how many are new.

    Args:
        sources: the rows.
        listing: path -> bytes, now.
        scope: inputs that may have come, or have another size; one that had bytes may not go.
    """
    now = {spelled(path): size for path, size in listing.items()}
    rows = {row.path: row for row in sources if row.reason != Reason.FILE_MISSING}
    files = [row for path, row in rows.items() if rows.keys().isdisjoint(archives_of(path))]
    changed = [row.path for row in files if row.bytes is not None and now.get(row.path) != row.bytes]
    new = [path for path in now if path not in rows and _is_input(path)]
    return sum(path not in now or not scope.holds(path) for path in changed), sum(not scope.holds(path) for path in new)


def _is_input(path: str) -> bool:
    return is_candidate(path) or PurePosixPath(path).suffix.lower() == ".zip"


def forget_retryable(job: IngestJob) -> None:
    """Of an interrupted retry, shards are taken over but for those in which a file failed for a passing cause."""
    folder = locate(f"{retry_job(job).dataset}/_staging")
    codes = [f'"{reason}"'.encode() for reason in Reason if reason.info.retryable]
    for name, num_bytes in names_below(folder).items():
        record = read_bytes(folder / name, num_bytes)
        if any(code in record for code in codes):
            remove(folder / name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What planning must know of the dataset: the UIDs of its valid files, and each shelf's next shard number."""

    uids: frozenset[str]
    next_numbers: Mapping[str, int]


def read_held(url: str) -> Held:
    """Read in a worker: the rows of the dataset do not travel in the job graph."""
    before = read_committed(url)
    valid = (row.sop_instance_uid for row in before.tables.sources if row.reason in VALID)
    return Held(uids=frozenset(uid for uid in valid if uid), next_numbers=next_numbers(used_names(before)))


def used_names(before: Committed) -> list[str]:
    """Names of shards that are there or once were: a name never comes back with other bytes."""
    return [*(row.shard for row in before.tables.shards), *before.info.get("dropped_shards", [])]


def next_numbers(names: Iterable[str]) -> dict[str, int]:
    """`{split}-{device}` -> the number after the last."""
    numbers: dict[str, int] = {}
    for name in names:
        shelf, _, number = name.removesuffix(".tar").rpartition("-")
        numbers[shelf] = max(numbers.get(shelf, 0), int(number) + 1)
    return numbers


def discover_again(job: IngestJob) -> Iterator[Any]:
    """The job -> `Entry`s in the scope of its retry or append; tagged: inputs in it that the listing settles."""
    append = isinstance(job, GrownJob) and job.appends
    scope = scope_of(read_committed(job.dataset).tables.sources, append=append)
    found = discover(job.source)
    yield from (entry for entry in found.entries if scope.holds(entry.path))
    for settled in found.settled:
        if scope.holds(settled.path):
            yield TaggedOutput(SETTLED, settled)


def shelf_of(element: tuple[tuple[str, str], Element], held: Held) -> tuple[Shelf, Element]:
    """An element by split and device -> by its shelf: twins of files that are there lie apart."""
    (split, device), files = element
    return (split, device, files.files[0].sop_instance_uid in held.uids), files


def shards_again(shelf: tuple[Shelf, Iterable[Element]], job: IngestJob, held: Held) -> list[ShardPlan]:
    """Elements of one shelf -> shards numbered after the last that is there."""
    (split, device, twins), elements = shelf
    prefix = TWIN_PREFIX if twins else ""
    first = held.next_numbers.get(f"{split}-{device}", 0)
    return [
        dataclasses.replace(plan, shard=prefix + shard_name(split, device, first + number))
        for number, plan in enumerate(shards_of(((split, device), elements), job))
    ]
