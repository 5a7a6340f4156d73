"""The last step: count, check that every input has its row, write the manifests, and clear what a restart needed."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import fsspec

from beam_jobs.errors import JobError
from beam_jobs.options import IngestJob, code_version
from ingest.geometry import BLOCK6, Geometry, content_share
from manifests.committed import Tables
from manifests.rows import SourceRow
from manifests.store import commit
from shards.schema import SCHEMA_VERSION, SampleRow, ShardRow, Spacing

HALF_WRITTEN: Final = (".dataset.json.", "._SUCCESS.")
"""How `manifests.store.publish` names these files until they are whole."""


def commit_dataset(
    job: IngestJob,
    *,
    sources: Sequence[SourceRow],
    samples: Sequence[SampleRow],
    shards: Sequence[ShardRow],
    other_files: Mapping[str, int],
) -> None:
    """Publish the manifests and `_SUCCESS`.

    Raises:
        JobError: if two rows are for one path, or rows of samples and shards do not agree.
    """
    tables = Tables(sources=tuple(sources), samples=tuple(samples), shards=tuple(shards))
    check_rows(tables)
    header = describe(job, tables, other_files)
    remove_strays(job, {row.shard for row in shards})
    commit(job.dataset, sources=sources, samples=samples, shards=shards, header=header)
    clear_staging(job)


def describe(job: IngestJob, tables: Tables, other_files: Mapping[str, int]) -> dict[str, Any]:
    """What `dataset.json` says of the job and its rows."""
    counts = count_rows(tables) | {
        "content_share": mean_content_share(tables.sources, job.geometry),
        "content_share_block6": mean_content_share(tables.sources, BLOCK6),
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "code_version": code_version(),
        "geometry": job.geometry.describe(),
        "config": job.config(),
        "config_sha256": job.config_sha256(),
        "counts": counts,
        "other_files": dict(other_files),
    }


def count_rows(tables: Tables) -> dict[str, Any]:
    """Totals for `dataset.json`: inputs = accepted + rejected + duplicate + excluded; accepted = samples."""
    sources, samples = tables.sources, tables.samples
    status = Counter(row.status for row in sources)
    return {
        "inputs": len(sources),
        **{name: status.get(name, 0) for name in ("accepted", "rejected", "duplicate", "excluded")},
        "samples": len(samples),
        "shards": len(tables.shards),
        "by_reason": dict(sorted(Counter(row.reason for row in sources if row.reason).items())),
        "by_device": dict(sorted(Counter(row.device for row in samples).items())),
        "by_split": dict(sorted(Counter(row.split for row in samples).items())),
    }


def mean_content_share(sources: Sequence[SourceRow], geometry: Geometry) -> float:
    """Mean over accepted scans of the share of the grid that their field of view fills."""
    shares = [content_share(_extent_mm(row), geometry) for row in sources if row.key]
    return round(math.fsum(shares) / len(shares), 4) if shares else 0.0


def _extent_mm(row: SourceRow) -> Spacing:
    return (
        (row.num_frames or 0) * (row.spacing_d_mm or 0.0),
        (row.rows or 0) * (row.spacing_h_mm or 0.0),
        (row.columns or 0) * (row.spacing_w_mm or 0.0),
    )


def check_rows(tables: Tables) -> None:
    """Nothing is counted twice and nothing is lost.

    Raises:
        JobError: with numbers, and no name of a file.
    """
    twice = len(tables.sources) - len({row.path for row in tables.sources})
    if twice:
        raise JobError(f"{twice} inputs have two rows. This is a defect of fovea.")
    keys = sorted(row.key for row in tables.sources if row.key)
    if len(set(keys)) < len(keys):
        raise JobError(f"{len(keys) - len(set(keys))} samples have the key of another. This is a defect of fovea.")
    num_samples = sum(row.num_samples for row in tables.shards)
    if keys != sorted(row.key for row in tables.samples) or len(keys) != num_samples:
        raise JobError("rows of files, samples and shards do not agree. This is a defect of fovea.")


def remove_strays(job: IngestJob, committed: Collection[str]) -> None:
    """Shards and half-written files of an earlier, interrupted run are no part of this dataset."""
    fs, root = fsspec.core.url_to_fs(job.dataset)
    for folder in (f"{root}/shards", f"{root}/manifests"):
        for path in fs.ls(folder, detail=False) if fs.exists(folder) else []:
            if path.rpartition("/")[2] not in committed:
                fs.rm(path)
    for path in fs.ls(root, detail=False):
        if path.rpartition("/")[2].startswith(HALF_WRITTEN):
            fs.rm(path)


def clear_staging(job: IngestJob) -> None:
    """Records of finished shards are of no use to a dataset that is complete."""
    fs, staging = fsspec.core.url_to_fs(f"{job.dataset}/_staging")
    if fs.exists(staging):
        fs.rm(staging, recursive=True)
