"""The rows of a dataset after a retry or an append: a pure function of its rows and of what the inputs gave."""

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePosixPath

from beam_jobs.retry import TWIN_PREFIX, VALID, canonical
from beam_jobs.rows import STATUS
from ingest.reader import MEMBER_MARK
from manifests.columns import spelled
from manifests.committed import Tables
from manifests.reasons import Reason
from manifests.rows import SourceRow
from shards.schema import SampleRow, ShardRow


def merge(before: Tables, fresh: Tables, *, append: bool = False) -> Tables:
    """Replace the rows of retried inputs, add those of new ones, and settle duplicates between them and what is there.

    After a retry the sample of a file that turned out to be in conflict has no row any more; its shard still has one.
    An append takes nothing away.
    """
    new = {spelled(row.path) for row in fresh.sources}
    gone = new | come(before.sources, new)
    settled = (settle_newcomers if append else settle_twins)(before.sources, fresh.sources)
    kept = (row for row in before.sources if row.path not in gone)
    sources = [settled.get(spelled(row.path), row) for row in (*kept, *fresh.sources)]
    keys = {row.key for row in sources if row.key}
    samples = (row for row in (*before.samples, *fresh.samples) if row.key in keys and not _is_twin(row.shard))
    shards = (row for row in (*before.shards, *fresh.shards) if not _is_twin(row.shard))
    return in_order(sources, samples, shards)


def in_order(sources: Iterable[SourceRow], samples: Iterable[SampleRow], shards: Iterable[ShardRow]) -> Tables:
    """Each table in the order of its file."""
    return Tables(
        sources=tuple(sorted(sources, key=lambda row: row.path)),
        samples=tuple(sorted(samples, key=lambda row: row.key)),
        shards=tuple(sorted(shards, key=lambda row: row.shard)),
    )


def _is_twin(shard: str) -> bool:
    return shard.startswith(TWIN_PREFIX)


def come(before: Sequence[SourceRow], new: Collection[str]) -> set[str]:
    """Paths of missing files that have come under another path, which has its own row: in an archive, for one."""
    known = {row.path for row in before}
    arrived = [path for path in new if path not in known]
    roots = {canonical(path) for path in arrived}
    members = [path[mark.end() :] for path in arrived for mark in MEMBER_MARK.finditer(path)]
    names = {PurePosixPath(member).name for member in members}
    missing = (row.path for row in before if row.reason == Reason.FILE_MISSING)
    return {path for path in missing if canonical(path) in roots or PurePosixPath(path).name in names}


def settle_twins(before: Sequence[SourceRow], fresh: Sequence[SourceRow]) -> dict[str, SourceRow]:
    """Path -> row, where a retried file shares its SOP Instance UID with one that is there (DESIGN 4.3).

    The same bytes: what was accepted stands. Others, and valid: all are in conflict. Retried files that only share
    it with one another were settled when they were packed.
    """
    held = _valid_by_uid(before)
    return {
        spelled(row.path): row
        for uid, twins in _valid_by_uid(fresh).items()
        if uid in held
        for row in _settled(held[uid], twins)
    }


def settle_newcomers(before: Sequence[SourceRow], fresh: Sequence[SourceRow]) -> dict[str, SourceRow]:
    """Path -> row, where a new file shares its SOP Instance UID with one that is there: what is there stands.

    The bytes of an accepted file: a duplicate of it. Others, and valid: the new file alone is in conflict.
    """
    held = _valid_by_uid(before)
    return {
        spelled(row.path): _newcomer(row, held[uid])
        for uid, newcomers in _valid_by_uid(fresh).items()
        if uid in held
        for row in newcomers
    }


def _newcomer(row: SourceRow, held: list[SourceRow]) -> SourceRow:
    same = row.sha256 in {one.sha256 for one in held if one.reason is None}
    reason = Reason.DUP_SOP_UID_IDENTICAL if same else Reason.DUP_SOP_UID_CONFLICT
    return _unaccepted(row, reason, "a file that was there before has its SOP Instance UID.")


def _valid_by_uid(rows: Iterable[SourceRow]) -> dict[str, list[SourceRow]]:
    found: dict[str, list[SourceRow]] = defaultdict(list)
    for row in rows:
        if row.reason in VALID and row.sop_instance_uid:
            found[row.sop_instance_uid].append(row)
    return found


def _settled(held: list[SourceRow], twins: list[SourceRow]) -> list[SourceRow]:
    together = sorted((*held, *twins), key=lambda row: row.path)
    detail = f"{len(together)} files share the SOP Instance UID."
    if len({row.sha256 for row in together}) == 1:
        return [_unaccepted(row, Reason.DUP_SOP_UID_IDENTICAL, detail) for row in twins]
    known = [row for row in held if row.reason == Reason.DUP_SOP_UID_CONFLICT]
    return [_unaccepted(row, Reason.DUP_SOP_UID_CONFLICT, detail) for row in together if row not in known]


def _unaccepted(row: SourceRow, reason: Reason, detail: str) -> SourceRow:
    return dataclasses.replace(
        row,
        status=STATUS.get(reason, "rejected"),
        reason=reason.value,
        severity=reason.info.severity,
        stage=reason.info.stage,
        detail=detail,
        split=None,
        key=None,
        shard=None,
    )
