"""The last step: count, check that every input has its row, write the manifests, and clear what a restart needed."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import fsspec

from beam_jobs.errors import JobError
from beam_jobs.options import IngestJob, code_version
from ingest.geometry import BLOCK6, Geometry, content_share
from manifests.rows import SourceRow
from manifests.store import commit
from shards.schema import SCHEMA_VERSION, SampleRow, ShardRow, Spacing


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
    counts = count_rows(sources, samples, shards) | {
        "content_share": mean_content_share(sources, job.geometry),
        "content_share_block6": mean_content_share(sources, BLOCK6),
    }
    check_rows(sources, samples, shards)
    header = {
        "schema_version": SCHEMA_VERSION,
        "code_version": code_version(),
        "geometry": job.geometry.describe(),
        "config": job.config(),
        "config_sha256": job.config_sha256(),
        "counts": counts,
        "other_files": dict(other_files),
    }
    _remove_strays(job, {row.shard for row in shards})
    commit(job.dataset, sources=sources, samples=samples, shards=shards, header=header)
    fs, staging = fsspec.core.url_to_fs(f"{job.dataset}/_staging")
    if fs.exists(staging):
        fs.rm(staging, recursive=True)


def count_rows(
    sources: Sequence[SourceRow], samples: Sequence[SampleRow], shards: Sequence[ShardRow]
) -> dict[str, Any]:
    """Totals for `dataset.json`: inputs = accepted + rejected + duplicate + excluded; accepted = samples."""
    status = Counter(row.status for row in sources)
    return {
        "inputs": len(sources),
        **{name: status.get(name, 0) for name in ("accepted", "rejected", "duplicate", "excluded")},
        "samples": len(samples),
        "shards": len(shards),
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


def check_rows(sources: Sequence[SourceRow], samples: Sequence[SampleRow], shards: Sequence[ShardRow]) -> None:
    """Nothing is counted twice and nothing is lost."""
    twice = [path for path, times in Counter(row.path for row in sources).items() if times > 1]
    if twice:
        raise JobError(f"{len(twice)} inputs have two rows; the first is {min(twice)!r}. This is a defect of fovea.")
    keys = sorted(row.key for row in sources if row.key)
    if keys != sorted(row.key for row in samples) or len(samples) != sum(row.num_samples for row in shards):
        raise JobError("rows of files, samples and shards do not agree. This is a defect of fovea.")


def _remove_strays(job: IngestJob, committed: set[str]) -> None:
    """Shards and half-written files of an earlier, interrupted run are no part of this dataset."""
    for name in ("shards", "manifests"):
        fs, folder = fsspec.core.url_to_fs(f"{job.dataset}/{name}")
        found = fs.ls(folder, detail=False) if fs.exists(folder) else []
        for path in found:
            if path.rpartition("/")[2] not in committed:
                fs.rm(path)
