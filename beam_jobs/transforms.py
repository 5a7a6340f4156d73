"""DoFns that only call rooms: what they emit is rows and references, never voxels."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from beam_jobs.errors import JobError
from beam_jobs.metrics import (
    FileTime,
    count,
    count_row,
    device_of,
    in_milliseconds,
    observe,
    observe_stages,
    timed,
)
from beam_jobs.options import IngestJob
from beam_jobs.pack import PackedShard, Tools, pack_shard
from beam_jobs.rows import outcome_row, settled_row
from ingest.errors import IngestError
from ingest.facts import path_facts
from ingest.guard import Guard
from ingest.reader import SourceReader
from ingest.record import Probed, Rejection
from ingest.source import Entry, Settled, discover
from manifests.cohort import Participant
from manifests.plan import Element, FileRef, ShardPlan, cut_shards, make_elements
from manifests.reasons import Reason
from manifests.rows import SourceRow

SOURCES: Final = "sources"
SAMPLES: Final = "samples"
SETTLED: Final = "settled"
OTHERS: Final = "others"
TIMES: Final = "times"


class Discover(beam.DoFn):
    """SOURCE -> `Entry`s; tagged: inputs settled by the listing, and counts of other files."""

    def process(self, source: str) -> Iterator[Any]:
        """List SOURCE once, inside of the pipeline."""
        with timed("discover"):
            found = discover(source)
        if not found.entries and not found.settled:
            raise JobError(f"SOURCE {source} holds no DICOM file.")
        count("files_found", len(found.entries) + len(found.settled))
        yield from found.entries
        for settled in found.settled:
            yield TaggedOutput(SETTLED, settled)
        yield TaggedOutput(OTHERS, found.other_files)


class Guarded(beam.DoFn):
    """A step that opens files: each of its instances has its own process for parsing and decoding."""

    def __init__(self, job: IngestJob) -> None:
        self._job = job

    def setup(self) -> None:
        """Called by Beam in the worker, once for each instance."""
        self._tools = Tools(reader=SourceReader(self._job.source), guard=Guard())
        self._tools.guard.start()

    def teardown(self) -> None:
        """Called by Beam when it is done with the instance; a worker that is killed takes the process with it."""
        self._tools.close()


class Probe(Guarded):
    """`Entry` -> `FileRef` of a file whose header is good; tagged: rows of all others, and what each file took."""

    def process(self, entry: Entry) -> Iterator[Any]:
        """Read the header, and the whole file once more for its hash if that settles it."""
        started = time.perf_counter()
        result = self._probe(entry)
        if isinstance(result, Probed):
            yield result.file_ref(entry.path, entry.bytes, entry.manifest)
        else:
            unread = result.reason in {Reason.OUTSIDE_FILTER, Reason.IO_UNREADABLE}
            sha256 = None if unread else self._tools.reader.sha256_or_none(entry.path)
            row = outcome_row(entry.path, entry.bytes, sha256, result)
            count_row(row)
            yield TaggedOutput(SOURCES, row)
        spent = {"probe": in_milliseconds(time.perf_counter() - started)}
        observe_stages(spent, device_of(result.facts.device))
        yield TaggedOutput(TIMES, FileTime(path=entry.path, milliseconds=spent))

    def _probe(self, entry: Entry) -> Probed | Rejection:
        facts = path_facts(entry.path)
        outside = Rejection(reason=Reason.OUTSIDE_FILTER, detail="the device is outside of --devices.", facts=facts)
        if facts.device and facts.device not in self._job.devices:
            return outside
        try:
            with self._tools.reader.open(entry.path, entry.bytes) as stream:
                result = self._tools.guard.probe(stream, entry.path, entry.manifest, self._job.limits)
        except IngestError as error:
            return Rejection(reason=error.reason, detail=error.detail, facts=facts)
        if isinstance(result, Probed) and result.identity.device not in self._job.devices:
            return outside
        return result


class Settle(beam.DoFn):
    """Inputs that the listing settled -> their rows."""

    def __init__(self, job: IngestJob) -> None:
        self._job = job

    def process(self, settled: Settled) -> Iterator[SourceRow]:
        """A rejected archive is hashed; an excluded one is not read whole, and a missing file has nothing to hash."""
        unread = settled.bytes is None or settled.reason is Reason.OUTSIDE_FILTER
        with SourceReader(self._job.source) as reader:
            sha256 = None if unread else reader.sha256_or_none(settled.path)
        row = settled_row(settled, sha256)
        count_row(row)
        yield row


def elements_of(
    group: tuple[str, Iterable[FileRef]], participants: Mapping[str, Participant], job: IngestJob
) -> list[tuple[tuple[str, str], Element]]:
    """Files of one SOP Instance UID -> their elements, by split and device."""
    elements = make_elements(group[1], participants, job.hash_key)
    return [((element.split, element.device), element) for element in elements]


def shards_of(shelf: tuple[tuple[str, str], Iterable[Element]], job: IngestJob) -> list[ShardPlan]:
    """Elements of one split and device -> shards of about the target size."""
    depth, height, width = job.geometry.size
    samples_per_shard = max(1, job.target_shard_bytes // (depth * height * width))
    return cut_shards(shelf[1], samples_per_shard=samples_per_shard)


class Pack(Guarded):
    """`ShardPlan` -> `ShardRow`; tagged: rows of its samples and of its files, and what each file took.

    Voxels end in the shard, not here.
    """

    def process(self, plan: ShardPlan, participants: Mapping[str, Participant]) -> Iterator[Any]:
        """Make the shard and report."""
        packed = pack_shard(plan, self._job, participants, self._tools)
        count("bytes_read", packed.bytes_read)
        count("shards_reused" if packed.reused else "shards_packed")
        yield from _times(plan, packed)
        for row in packed.sources:
            count_row(row)
            yield TaggedOutput(SOURCES, row)
        count("samples_reused" if packed.reused else "samples_packed", len(packed.samples))
        for sample in packed.samples:
            yield TaggedOutput(SAMPLES, sample)
        if packed.shard:
            count("bytes_written", packed.shard.bytes)
            yield packed.shard


def _times(plan: ShardPlan, packed: PackedShard) -> Iterator[Any]:
    """Observe what each file of a shard took, and hand it on; a shard that was taken over took nothing."""
    if packed.reused:
        return
    observe_stages({"publish": in_milliseconds(packed.publish_s)})
    for file in {file for element in plan.elements for file in (*element.files, *element.rivals)}:
        spent = {stage: in_milliseconds(value) for stage, value in packed.seconds.get(file.path, {}).items()}
        observe_stages(spent, file.device)
        observe("bytes", file.bytes, file.device)
        yield TaggedOutput(TIMES, FileTime(path=file.path, milliseconds=spent))
