"""Writes an AI-READI-shaped tree: DICOM files, `manifest.tsv`, `participants.tsv`, and `truth.csv`."""

import csv
import itertools
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ingest.phantom.case import Case
from ingest.phantom.corrupt import WAYS, apply_way, assign_ways
from ingest.phantom.errors import PhantomUsageError
from ingest.phantom.participants import participant_cells, recruit
from ingest.phantom.plan import CohortSpec, VolumePlan, plan_cohort, realise

MANIFEST_PATH: Final = "retinal_oct/manifest.tsv"
Progress = Callable[[int, int], None]

PARALLEL_FROM: Final = 16
"""Fewer volumes than this are written before a second process has started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortSummary:
    """What was written: input files on disk (a ZIP is one), and how many `truth.csv` expects of each reason."""

    root: str
    participants: int
    files: int
    bytes: int
    broken: int
    reasons: Mapping[str, int]
    by_device: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What a worker reports of one volume."""

    num_files: int
    num_bytes: int
    truth: tuple[tuple[str, str], ...]
    manifest: Mapping[str, str] | None


def write_cohort(
    out: str | os.PathLike[str], spec: CohortSpec, *, workers: int | None = None, progress: Progress | None = None
) -> CohortSummary:
    """Write the cohort that `spec` describes.

    Args:
        out: a folder that does not exist yet, or is empty.
        spec: what to write; the bytes depend on nothing else.
        workers: processes; all usable cores by default.
        progress: called with (volumes done, volumes in all) after each one.

    Raises:
        PhantomUsageError: if `out` is a file or has something in it.
    """
    root = Path(out)
    _claim(root)
    plans = plan_cohort(spec)
    ways = assign_ways(plans, spec.corrupt, spec.seed)
    written = []
    for item in _write_all(root, plans, ways, workers):
        written.append(item)
        if progress is not None:
            progress(len(written), len(plans))
    truth = sorted(row for item in written for row in item.truth)
    _write_table(root / "participants.tsv", [participant_cells(p) for p in recruit(spec.participants, spec.seed)])
    _write_table(root / MANIFEST_PATH, [item.manifest for item in written if item.manifest is not None])
    _write_truth(root / "truth.csv", truth)
    return CohortSummary(
        root=str(root),
        participants=spec.participants,
        files=sum(item.num_files for item in written),
        bytes=sum(item.num_bytes for item in written),
        broken=sum(WAYS[way].breaks for way in ways.values()),
        reasons=dict(sorted(Counter(reason for _, reason in truth if reason).items())),
        by_device=dict(sorted(Counter(str(plan.protocol.device) for plan in plans).items())),
    )


def _claim(root: Path) -> None:
    """Make the folder, or refuse one that holds something."""
    if root.exists() and not root.is_dir():
        raise PhantomUsageError(f"{root} is a file; name a new or empty folder for the cohort.")
    if root.exists() and any(root.iterdir()):
        raise PhantomUsageError(f"{root} is not empty; name a new folder for the cohort, or remove what is in it.")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PhantomUsageError(f"{root} cannot be made ({error.strerror}); name another folder.") from error


def _write_all(
    root: Path, plans: Sequence[VolumePlan], ways: Mapping[int, str], workers: int | None
) -> Iterator[_Written]:
    """Render, damage and write every volume, in order; the bytes do not depend on the number of processes."""
    count = workers or _usable_cores()
    chosen = [ways.get(plan.number) for plan in plans]
    roots = itertools.repeat(root)
    if count == 1 or len(plans) < PARALLEL_FROM:
        yield from map(_write_volume, roots, plans, chosen)
        return
    # A fresh interpreter: forking a process that already runs threads (a test runner, a notebook) can deadlock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        yield from pool.map(_write_volume, roots, plans, chosen)


def _usable_cores() -> int:
    """Cores that this process may run on; not every system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _write_volume(root: Path, plan: VolumePlan, way: str | None) -> _Written:
    volume, header = realise(plan)
    case = Case(
        volume=np.ascontiguousarray(volume),
        header=header,
        protocol=plan.protocol,
        path=plan.path,
        rng=np.random.default_rng([plan.seed, 19, plan.number]),
    )
    outcome = apply_way(case, way)
    for path, payload in outcome.files:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(payload)
    return _Written(
        num_files=len(outcome.files),
        num_bytes=sum(len(payload) for _, payload in outcome.files),
        truth=outcome.truth,
        manifest=outcome.manifest,
    )


def _write_table(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Tab-separated values with a header line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(rows[0]) if rows else ["person_id", "filepath"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_truth(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    """`path,reason` for every input and every listed file that is missing; an empty reason means accepted."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "reason"))
        writer.writerows(rows)
