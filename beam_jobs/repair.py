"""Mending a damaged dataset (`fovea verify --repair`): only what is damaged, to the committed bytes (ADR 0011).

`dataset.json` vouches for the manifests, and these for the shards. What was made again replaces what is there in one
step, after its sha256 was compared: no reader meets half of it, and nothing gets worse.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from beam_jobs.errors import JobOptionError
from beam_jobs.launch import run_pipeline
from beam_jobs.options import IngestJob, absolute, beam_options, code_version
from beam_jobs.rebuild import build_repair, clear_outcomes, plan_rebuilds, read_outcomes
from ingest.geometry import Geometry
from ingest.record import Limits
from manifests.committed import Tables
from manifests.mend import mend
from shards.publish import publish
from shards.reader import INFO_FILE, SUCCESS_FILE, check_folder, parse_info, read_file
from shards.schema import DEVICES, SPLITS, ShardRow
from shards.storage import Place, exists, locate, names_below, remove
from shards.verify import MANIFESTS, Problem, VerifyReport, verify

SHARD_NAME: Final = rf"(?:{'|'.join(SPLITS)})-(?:{'|'.join(DEVICES)})-\d{{5,}}\.tar"
OURS: Final = {
    "shards": re.compile(rf"{SHARD_NAME}|\.{SHARD_NAME}\.[0-9a-f]{{8,}}(?:\.\w+)?"),
    "manifests": re.compile(rf"\.(?:{'|'.join(map(re.escape, MANIFESTS))})\.[0-9a-f]{{8,}}(?:\.\w+)?"),
}
"""Names that only fovea gives, for good or until a file is whole: no part of a dataset that does not list them."""

STRAY: Final = "is not part of the dataset"
"""As `verify` says it."""

LOST: Final = "cannot be made again with the committed bytes: bring it back from a copy, or ingest into a new DATASET"


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """What a repair did; `left` is what it could not mend, each with what to do."""

    made_again: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    left: tuple[Problem, ...] = ()
    report: VerifyReport | None = None


def repair(dataset: str, source: str | None, on_shard: Callable[[ShardRow], None] | None = None) -> Repaired:
    """Find what is damaged, and make that again: manifests from their other form, shards from SOURCE.

    Args:
        dataset: path or URL.
        source: the cohort that it was made of; only damaged shards need it.
        on_shard: called after each shard was looked at.

    Raises:
        DatasetNotFoundError: if there is nothing at `dataset`.
        JobOptionError: if shards are damaged and no SOURCE was given.
        JobError: if the pipeline failed.
    """
    place = locate(absolute(dataset))
    check_folder(place, dataset)
    info, left = _read_head(place)
    if left:
        return Repaired(left=left)
    mended = mend({name: read_file(place / f"manifests/{name}") for name in MANIFESTS}, info["manifests"])
    for name, data in mended.files.items():
        publish(f"{place.url}/manifests/{name}", data, replace=True)
    made_again = [f"manifests/{name}" for name in mended.files]
    said: dict[str, str | None] = {f"manifests/{name}": LOST for name in mended.lost}
    if mended.tables is None:
        return Repaired(made_again=tuple(made_again), left=tuple(_left(said, info)))
    removed = tuple(_remove_strays(place, mended.tables))
    report = verify(place.url, on_shard=on_shard)
    outcomes = _rebuild(place, source, info, mended.tables, report)
    made_again += [name for name, problem in outcomes.items() if problem is None]
    said = {problem.file: problem.what for problem in report.problems} | said | outcomes
    return Repaired(made_again=tuple(made_again), removed=removed, left=tuple(_left(said, info)), report=report)


def _read_head(place: Place) -> tuple[Mapping[str, Any], tuple[Problem, ...]]:
    """`dataset.json`, if `_SUCCESS` vouches for it: nothing else in a dataset could."""
    body, success = read_file(place / INFO_FILE), read_file(place / SUCCESS_FILE)
    if success is None and exists(place / "_staging"):
        what = "is missing: the dataset was not finished; run the same `fovea ingest` again"
        return {}, (Problem(file=SUCCESS_FILE, what=what),)
    what = "and nothing else vouches for the rest: bring it back from a copy, or ingest into a new DATASET"
    if success is None or body is None:
        missing = SUCCESS_FILE if success is None else INFO_FILE
        return {}, (Problem(file=missing, what=f"is missing, {what}"),)
    if success.strip() != hashlib.sha256(body).hexdigest().encode():
        return {}, (Problem(file=INFO_FILE, what=f"is not the one that {SUCCESS_FILE} was written for, {what}"),)
    return parse_info(place.url, body), ()


def _remove_strays(place: Place, tables: Tables) -> Iterator[str]:
    """Files that are named as fovea names its own, and are no part of the dataset; others are somebody's."""
    committed = {row.shard for row in tables.shards} | set(MANIFESTS)
    for folder, ours in OURS.items():
        for name in names_below(place / folder):
            if name not in committed and ours.fullmatch(name):
                remove(place / folder / name)
                yield f"{folder}/{name}"


def _rebuild(
    place: Place, source: str | None, info: Mapping[str, Any], tables: Tables, report: VerifyReport
) -> dict[str, str | None]:
    """Name of a damaged shard's file -> why it could not be made again, or None."""
    damaged = {row.shard for row in tables.shards} & {
        problem.file.removeprefix("shards/") for problem in report.problems
    }
    if not damaged:
        return {}
    if source is None:
        raise JobOptionError(
            f"{len(damaged)} shards are damaged, and the argument SOURCE is missing: "
            f"`fovea verify {place.url} SOURCE --repair` makes them again from the files that they hold."
        )
    job = _job(place.url, absolute(source), info)
    rebuilds = plan_rebuilds(job.source, tables, damaged)
    clear_outcomes(job)
    try:
        run_pipeline(partial(build_repair, rebuilds=rebuilds), job, beam_options([]))
        return {f"shards/{name}": problem for name, problem in read_outcomes(job).items()}
    finally:
        clear_outcomes(job)


def _job(url: str, source: str, info: Mapping[str, Any]) -> IngestJob:
    """As much of the job as decides the bytes of a shard whose files, keys and splits are known."""
    geometry = info["geometry"]
    spacing = geometry["target_spacing_mm"]
    return IngestJob(
        source=source,
        dataset=url,
        geometry=Geometry(
            name=geometry["name"],
            target_spacing_mm=None if spacing is None else tuple(spacing),
            size=tuple(geometry["size"]),
            anchor=geometry["anchor"],
        ),
        limits=Limits(min_frames=info["config"]["min_frames"]),
        hash_key=b"",
    )


def _left(said: Mapping[str, str | None], info: Mapping[str, Any]) -> Iterator[Problem]:
    """What is not mended, in the order of names; None is."""
    made_by, own = info.get("code_version"), code_version()
    other = "" if made_by == own else f" (it was made by fovea {made_by}, this is {own})"
    for name, what in sorted(said.items()):
        if what is not None:
            stray = f"{what}, and is not named as fovea names files: move it away"
            yield Problem(file=name, what=stray if what == STRAY else f"{what}{other}")
