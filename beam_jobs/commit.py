"""The last step: count, check that every input has its row, write the manifests, and clear what a restart needed."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.errors import JobError
from beam_jobs.metrics import timed
from beam_jobs.options import IngestJob, code_version
from ingest.geometry import BLOCK6, Geometry, content_share
from manifests.columns import CHUNK_ROWS, Columns, as_columns, counted, num_repeated, to_columns, with_text
from manifests.committed import Tables
from manifests.rows import SourceRow
from manifests.store import commit_columns
from shards.publish import PROBE_NAME
from shards.schema import SCHEMA_VERSION, SampleRow, ShardRow, Spacing
from shards.storage import locate, names_below, remove, remove_tree

HALF_WRITTEN: Final = (".dataset.json.", "._SUCCESS.", PROBE_NAME)
"""How `shards.publish` names these files until they are whole, and what it tries a store with."""

EXTENT: Final = ("num_frames", "spacing_d_mm", "rows", "spacing_h_mm", "columns", "spacing_w_mm")
"""Columns of `sources.csv` whose pairs multiply to a scan's extent in mm."""


@timed("commit")
def commit_dataset(
    job: IngestJob,
    *,
    sources: Iterable[SourceRow],
    samples: Iterable[SampleRow],
    shards: Iterable[ShardRow],
    other_files: Mapping[str, int],
) -> None:
    """Publish the manifests and `_SUCCESS`. Rows are read once, a chunk at a time.

    Raises:
        JobError: if two rows are for one path, or rows of samples and shards do not agree.
    """
    columns = to_columns(sources=sources, samples=samples, shards=shards)
    check_rows(columns)
    header = describe(job, columns, other_files)
    remove_strays(job, {f"shards/{name}" for name in columns.shards.column("shard").to_pylist()})
    commit_columns(job.dataset, columns, header)
    clear_staging(job)


def describe(job: IngestJob, tables: Tables | Columns, other_files: Mapping[str, int]) -> dict[str, Any]:
    """What `dataset.json` says of the job and its rows."""
    columns = as_columns(tables)
    counts = count_rows(columns) | {
        "content_share": mean_content_share(columns.sources, job.geometry),
        "content_share_block6": mean_content_share(columns.sources, BLOCK6),
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


def count_rows(columns: Columns) -> dict[str, Any]:
    """Totals for `dataset.json`: inputs = accepted + rejected + duplicate + excluded; accepted = samples."""
    status = counted(columns.sources, "status")
    return {
        "inputs": columns.sources.num_rows,
        **{name: status.get(name, 0) for name in ("accepted", "rejected", "duplicate", "excluded")},
        "samples": columns.samples.num_rows,
        "shards": columns.shards.num_rows,
        "by_reason": counted(columns.sources, "reason"),
        "by_device": counted(columns.samples, "device"),
        "by_split": counted(columns.samples, "split"),
    }


def mean_content_share(sources: pa.Table, geometry: Geometry) -> float:
    """Mean over accepted scans of the share of the grid that their field of view fills."""
    known: dict[Spacing, float] = {}
    shares = []
    for batch in sources.select(["key", *EXTENT]).to_batches(CHUNK_ROWS):
        for key, *sizes in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if key:
                extent = _extent_mm(*sizes)
                if extent not in known:
                    known[extent] = content_share(extent, geometry)
                shares.append(known[extent])
    return round(math.fsum(shares) / len(shares), 4) if shares else 0.0


def _extent_mm(*sizes: float | None) -> Spacing:
    frames, spacing_d_mm, rows, spacing_h_mm, columns, spacing_w_mm = (size or 0 for size in sizes)
    return frames * spacing_d_mm, rows * spacing_h_mm, columns * spacing_w_mm


def check_rows(tables: Tables | Columns) -> None:
    """Nothing is counted twice and nothing is lost.

    Raises:
        JobError: with numbers, and no name of a file.
    """
    columns = as_columns(tables)
    twice = num_repeated(columns.sources.column("path"))
    if twice:
        raise JobError(f"{twice} inputs have two rows. This is a defect of fovea.")
    keys = with_text(columns.sources, "key")
    keys = keys.take(pc.sort_indices(keys))
    repeated = num_repeated(keys)
    if repeated:
        raise JobError(f"{repeated} samples have the key of another. This is a defect of fovea.")
    num_samples = pc.sum(columns.shards.column("num_samples")).as_py() or 0
    if not keys.equals(columns.samples.column("key")) or len(keys) != num_samples:
        raise JobError("rows of files, samples and shards do not agree. This is a defect of fovea.")


def remove_strays(job: IngestJob, kept: Collection[str]) -> None:
    """Shards and half-written files of an earlier, interrupted run are no part of this dataset."""
    for name in names_below(job.dataset):
        in_rooms = name.startswith(("shards/", "manifests/"))
        if (in_rooms and name not in kept) or ("/" not in name and name.startswith(HALF_WRITTEN)):
            remove(f"{job.dataset}/{name}")


def clear_staging(job: IngestJob) -> None:
    """Records of finished shards are of no use to a dataset that is complete."""
    remove_tree(locate(f"{job.dataset}/_staging"))
