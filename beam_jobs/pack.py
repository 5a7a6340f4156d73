"""Packing one shard: read each file once, convert it, settle duplicates, append samples to a tar, publish it."""

import dataclasses
import hashlib
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from beam_jobs.options import IngestJob
from beam_jobs.rows import accepted_row, outcome_row
from ingest.errors import IngestError
from ingest.facts import path_facts
from ingest.guard import Guard
from ingest.reader import SourceReader
from ingest.record import Rejection, VolumeRecord
from manifests.cohort import Participant
from manifests.keys import sample_key
from manifests.plan import Element, FileRef, ShardPlan
from manifests.reasons import Reason
from manifests.rows import SourceRow
from shards.codec import ShardWriter
from shards.publish import publish
from shards.schema import SampleRow, ShardRow
from shards.storage import fingerprint, locate, read_bytes, sha256

Seconds = defaultdict[str, defaultdict[str, float]]
"""Path -> stage -> seconds: for metrics, never for a manifest or a record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedShard:
    """What became of a shard's files; `shard` is None when none of them was accepted."""

    shard: ShardRow | None
    samples: tuple[SampleRow, ...]
    sources: tuple[SourceRow, ...]
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    publish_s: float = 0.0
    bytes_read: int = 0
    reused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One file of an element after it was read."""

    file: FileRef
    sha256: str | None
    result: VolumeRecord | Rejection


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What a worker keeps between files: the open SOURCE, and the process that parses and decodes."""

    reader: SourceReader
    guard: Guard

    def close(self) -> None:
        """Give both back."""
        self.reader.close()
        self.guard.close()


def pack_shard(plan: ShardPlan, job: IngestJob, participants: Mapping[str, Participant], tools: Tools) -> PackedShard:
    """Make the shard, or take it over when an earlier run of the same plan already committed it.

    Raises:
        GuardError: if the process that decodes is ended from outside; the shard is not written then.
    """
    earlier = _recorded(plan, job)
    if earlier:
        return earlier
    seconds: Seconds = defaultdict(lambda: defaultdict(float))
    sources: list[SourceRow] = []
    samples: list[SampleRow] = []
    with tempfile.TemporaryFile() as file:
        with ShardWriter(cast("BinaryIO", file), plan.shard) as writer:
            for element in plan.elements:
                for outcome in _outcomes(element, job, tools, seconds):
                    if isinstance(outcome.result, VolumeRecord):
                        started = time.perf_counter()
                        samples.append(_add(writer, element, outcome.result, job, participants))
                        seconds[outcome.file.path]["write"] += time.perf_counter() - started
                    sources.append(_source_row(outcome, element, plan.shard))
        started = time.perf_counter()
        shard = _publish(cast("BinaryIO", file), plan, job, len(samples)) if samples else None
        publish_s = time.perf_counter() - started
    packed = PackedShard(
        shard=shard,
        samples=tuple(samples),
        sources=tuple(sources),
        seconds=seconds,
        publish_s=publish_s,
        bytes_read=sum(ref.bytes for element in plan.elements for ref in (*element.files, *element.rivals)),
    )
    _record(packed, plan, job)
    return packed


def _outcomes(element: Element, job: IngestJob, tools: Tools, seconds: Seconds) -> list[Outcome]:
    """What became of the element's own files; its rivals are settled with them, and have their rows elsewhere."""
    contenders = sorted((*element.files, *element.rivals), key=lambda file: file.path)
    settled = _settle([_read(file, job, tools, seconds) for file in contenders])
    return [_in_its_place(outcome, element, job) for outcome in settled if outcome.file in element.files]


def _read(file: FileRef, job: IngestJob, tools: Tools, seconds: Seconds) -> Outcome:
    spent = seconds[file.path]
    started = time.perf_counter()
    data = _fetch(file, job, tools)
    if isinstance(data, Outcome):
        spent["read"] += time.perf_counter() - started
        return data
    digest = hashlib.sha256(data).hexdigest()
    read = time.perf_counter()
    result = tools.guard.convert(data, file.path, file.manifest, job.geometry, job.limits)
    inside = result.seconds if isinstance(result, VolumeRecord) else {}
    outside = time.perf_counter() - read - sum(inside.values())
    for stage, value in {"read": read - started, "check": outside, **inside}.items():
        spent[stage] += value
    return Outcome(file=file, sha256=digest, result=result)


def _fetch(file: FileRef, job: IngestJob, tools: Tools) -> bytes | Outcome:
    """All bytes of a file, or what became of it without them."""
    if file.bytes > job.limits.max_file_bytes:
        detail = f"the file has {file.bytes} bytes, the limit is {job.limits.max_file_bytes}."
        rejection = Rejection(reason=Reason.PARSE_LIMIT_EXCEEDED, detail=detail, facts=path_facts(file.path))
        return Outcome(file=file, sha256=tools.reader.sha256_or_none(file.path), result=rejection)
    try:
        data = tools.reader.read(file.path, file.bytes)
    except IngestError as error:
        return Outcome(
            file=file,
            sha256=None,
            result=Rejection(reason=error.reason, detail=error.detail, facts=path_facts(file.path)),
        )
    if len(data) != file.bytes:
        detail = f"the store gave {len(data)} bytes of {file.bytes} that it listed."
        rejection = Rejection(reason=Reason.IO_UNREADABLE, detail=detail, facts=path_facts(file.path))
        return Outcome(file=file, sha256=None, result=rejection)
    return data


def _in_its_place(outcome: Outcome, element: Element, job: IngestJob) -> Outcome:
    """The key and the split were planned from what the probe saw: a file that is another's by now may not take them."""
    if not isinstance(outcome.result, VolumeRecord):
        return outcome
    identity = outcome.result.probed.identity
    key = sample_key(
        participant_id=identity.participant_id,
        device=identity.device,
        laterality=identity.laterality,
        protocol=identity.protocol,
        sop_instance_uid=identity.sop_instance_uid,
        hash_key=job.hash_key,
    )
    if key == element.key:
        return outcome
    detail = "it changed while the job ran: its header was another when it was probed."
    rejection = Rejection(reason=Reason.IO_UNREADABLE, detail=detail, facts=outcome.result.facts)
    return dataclasses.replace(outcome, result=rejection)


def _settle(outcomes: list[Outcome]) -> list[Outcome]:
    """Files of one SOP Instance UID: equal bytes count once; several valid contents are a conflict (DESIGN 4.3)."""
    valid = [outcome for outcome in outcomes if isinstance(outcome.result, VolumeRecord)]
    first = valid[0] if valid else None
    conflict = len({outcome.sha256 for outcome in valid}) > 1

    def settled(outcome: Outcome) -> Outcome:
        if not isinstance(outcome.result, VolumeRecord) or (outcome is first and not conflict):
            return outcome
        reason = Reason.DUP_SOP_UID_CONFLICT if conflict else Reason.DUP_SOP_UID_IDENTICAL
        detail = f"{len(valid)} valid files share its SOP Instance UID."
        rejection = Rejection(reason=reason, detail=detail, facts=outcome.result.facts)
        return dataclasses.replace(outcome, result=rejection)

    return [settled(outcome) for outcome in outcomes]


def _add(
    writer: ShardWriter,
    element: Element,
    record: VolumeRecord,
    job: IngestJob,
    participants: Mapping[str, Participant],
) -> SampleRow:
    participant = participants.get(record.probed.identity.participant_id) if job.participant_metadata else None
    return writer.add(record.to_sample(key=element.key, split=element.split, participant=participant))


def _source_row(outcome: Outcome, element: Element, shard: str) -> SourceRow:
    if isinstance(outcome.result, Rejection):
        return outcome_row(outcome.file.path, outcome.file.bytes, outcome.sha256, outcome.result)
    row = accepted_row(outcome.file.path, outcome.file.bytes, outcome.sha256, outcome.result)
    return dataclasses.replace(row, split=element.split, key=element.key, shard=shard)


def _publish(file: BinaryIO, plan: ShardPlan, job: IngestJob, num_samples: int) -> ShardRow:
    done = publish(f"{job.dataset}/shards/{plan.shard}", file, replace=True)
    return ShardRow(
        shard=plan.shard,
        split=plan.split,
        device=plan.device,
        num_samples=num_samples,
        bytes=done.bytes,
        sha256=done.sha256,
    )


def staging_url(job: IngestJob, name: str) -> str:
    """Records of finished shards, kept until the dataset is complete."""
    return f"{job.dataset}/_staging/{name}"


def _record(packed: PackedShard, plan: ShardPlan, job: IngestJob) -> None:
    record = {
        "fingerprint": plan.fingerprint(job.config_sha256()),
        "shard": dataclasses.asdict(packed.shard) if packed.shard else None,
        "samples": [dataclasses.asdict(row) for row in packed.samples],
        "sources": [dataclasses.asdict(row) for row in packed.sources],
    }
    publish(staging_url(job, f"{plan.shard}.json"), json.dumps(record).encode(), replace=True)


def _recorded(plan: ShardPlan, job: IngestJob) -> PackedShard | None:
    """The earlier result of the same plan, if its shard is still there byte for byte."""
    place = locate(staging_url(job, f"{plan.shard}.json"))
    if fingerprint(place) is None:
        return None
    record: dict[str, Any] = json.loads(read_bytes(place))
    if record["fingerprint"] != plan.fingerprint(job.config_sha256()):
        return None
    if any(row["reason"] and Reason(row["reason"]).info.retryable for row in record["sources"]):
        return None  # what the store would not give then it may give now
    shard = ShardRow(**record["shard"]) if record["shard"] else None
    if shard and not _is_intact(f"{job.dataset}/shards/{plan.shard}", shard):
        return None
    return PackedShard(
        shard=shard,
        samples=tuple(SampleRow(**row) for row in record["samples"]),
        sources=tuple(SourceRow(**row) for row in record["sources"]),
        reused=True,
    )


def _is_intact(url: str, shard: ShardRow) -> bool:
    there = fingerprint(url)
    return there is not None and there.bytes == shard.bytes and sha256(url) == shard.sha256
