"""The last step of a retry or an append: merge what it gave, so that an interruption at any point can be mended."""

import json
from collections.abc import Sequence
from typing import Any

from beam_jobs.append import appended_entries
from beam_jobs.commit import check_rows, clear_staging, describe, remove_strays
from beam_jobs.errors import JobError
from beam_jobs.merge import in_order, merge
from beam_jobs.metrics import timed
from beam_jobs.options import IngestJob
from beam_jobs.retry import GrownJob, retry_job, used_names
from beam_jobs.rewrite import rewrite_shards
from ingest.source import discover
from manifests.committed import Committed, Tables, read_committed
from manifests.rows import SourceRow
from manifests.store import commit
from shards.publish import publish
from shards.schema import SampleRow, ShardRow
from shards.storage import exists, move, read_bytes, remove


@timed("commit")
def commit_retry(
    job: IngestJob, *, sources: Sequence[SourceRow], samples: Sequence[SampleRow], shards: Sequence[ShardRow]
) -> None:
    """Merge what a retry or an append gave into the dataset; when nothing came of it, nothing is written.

    Everything is made ready under `_staging/retry`, and its own `_SUCCESS` there says so. Only then the dataset
    loses its `_SUCCESS`, until all is in place: `finish_retry` can do that part again and again.

    Raises:
        JobError: if rows do not agree.
    """
    if not finish_retry(job):
        before = read_committed(job.dataset)
        _stage(job, before, Tables(sources=tuple(sources), samples=tuple(samples), shards=tuple(shards)))
        finish_retry(job)
    _clear(job)


def _stage(job: IngestJob, before: Committed, fresh: Tables) -> None:
    old = in_order(before.tables.sources, before.tables.samples, before.tables.shards)
    append = isinstance(job, GrownJob) and job.appends
    merged = merge(old, fresh, append=append)
    if merged == old:
        return
    place, used = retry_job(job).dataset, used_names(before)
    tables = rewrite_shards(job.dataset, f"{place}/shards", merged, used)
    check_rows(tables)
    header = describe(job, tables, discover(job.source).other_files if append else before.info["other_files"])
    header |= _history(job, before, tables)
    commit(place, sources=tables.sources, samples=tables.samples, shards=tables.shards, header=header)


def _history(job: IngestJob, before: Committed, tables: Tables) -> dict[str, Any]:
    """Names of shards that never come back, and what each append brought; nothing of either when there was none."""
    dropped = sorted(set(used_names(before)) - {row.shard for row in tables.shards})
    history = {"dropped_shards": dropped, "appended": appended_entries(job, before, tables)}
    return {name: values for name, values in history.items() if values}


def staged_retry(job: IngestJob) -> dict[str, Any] | None:
    """`dataset.json` of a retry that is ready to be moved in, which an interruption left behind."""
    place = retry_job(job).dataset
    if not exists(f"{place}/_SUCCESS"):
        return None
    info: dict[str, Any] = json.loads(read_bytes(f"{place}/dataset.json"))
    return info


def finish_retry(job: IngestJob) -> bool:
    """Move a retry in that is ready; False when there is none. An interruption at any point may be followed by another.

    Raises:
        JobError: before anything is changed, if a shard is neither in its place nor ready.
    """
    place = retry_job(job).dataset
    if not exists(f"{place}/_SUCCESS"):
        return False
    success = read_bytes(f"{place}/_SUCCESS")
    if not exists(f"{job.dataset}/_SUCCESS") or read_bytes(f"{job.dataset}/_SUCCESS") != success:
        _move_in(job, place, success)
    _clear(job)
    return True


def _move_in(job: IngestJob, place: str, success: bytes) -> None:
    ready = read_committed(place)
    names = {row.shard for row in ready.tables.shards}
    coming = {name for name in names if exists(f"{place}/shards/{name}")}
    gone = sum(not exists(f"{job.dataset}/shards/{name}") for name in names - coming)
    if gone:
        raise JobError(f"DATASET {job.dataset} has lost {gone} shards: ingest into a new DATASET.")
    remove(f"{job.dataset}/_SUCCESS")
    for name in sorted(coming):
        move(f"{place}/shards/{name}", f"{job.dataset}/shards/{name}")
    manifests = [f"manifests/{name}" for name in ready.info["manifests"]]
    remove_strays(job, {*(f"shards/{name}" for name in names), *manifests})
    for name in (*manifests, "dataset.json"):
        publish(f"{job.dataset}/{name}", read_bytes(f"{place}/{name}"), replace=True)
    publish(f"{job.dataset}/_SUCCESS", success, replace=True)


def _clear(job: IngestJob) -> None:
    """The mark of a retry goes first: without it, what is left of the rest is never taken for a whole one."""
    remove(f"{retry_job(job).dataset}/_SUCCESS")
    clear_staging(job)
