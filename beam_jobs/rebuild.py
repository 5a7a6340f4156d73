"""Making shards of a finished dataset again from the files that they hold, with the same bytes or not at all."""

import hashlib
import json
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final, cast

import apache_beam as beam

from beam_jobs.options import IngestJob
from beam_jobs.pack import Tools, staging_url
from beam_jobs.transforms import Guarded
from ingest.errors import IngestError
from ingest.record import Rejection
from ingest.source import discover
from manifests.cohort import Participant
from manifests.columns import spelled
from manifests.committed import Tables
from manifests.plan import ManifestRow
from manifests.rows import SourceRow
from shards.codec import ShardWriter
from shards.publish import publish
from shards.schema import Sample, SampleRow, ShardRow, Split
from shards.storage import locate, names_below, read_bytes, remove_tree, sha256

OUTCOMES: Final = "repair"
"""The folder under `_staging` in which workers say what became of each shard."""

ELSE: Final = "or ingest into a new DATASET"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A sample to make again: its file, as SOURCE spells it (None: it is not there), and all else that decides it."""

    key: str
    path: str | None
    sha256: str | None
    split: Split
    manifest: ManifestRow | None
    participant: Participant


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuild:
    """A shard to make again, as it was committed, from its samples in key order."""

    shard: ShardRow
    parts: tuple[Part, ...]


class RebuildError(Exception):
    """A shard cannot be made again; the sentence says why, and what to do."""


def plan_rebuilds(source: str, tables: Tables, names: Collection[str]) -> list[Rebuild]:
    """What the named shards are made of; SOURCE is listed, since a manifest there may say the spacing of a file.

    Raises:
        SourceError: if SOURCE cannot be listed.
    """
    entries = {spelled(entry.path): entry for entry in discover(source).entries}
    samples = {row.key: row for row in tables.samples}
    by_shard: dict[str, list[Part]] = defaultdict(list)
    for row in tables.sources:
        if row.key and row.shard and row.shard in names:
            entry = entries.get(row.path)
            there = (entry.path, entry.manifest) if entry else (None, None)
            by_shard[row.shard].append(_part(row, samples[row.key], *there))
    return [
        Rebuild(shard=shard, parts=tuple(sorted(by_shard[shard.shard], key=lambda part: part.key)))
        for shard in tables.shards
        if shard.shard in names
    ]


def _part(row: SourceRow, sample: SampleRow, path: str | None, manifest: ManifestRow | None) -> Part:
    person = Participant(
        participant_id=sample.participant_id,
        clinical_site=sample.clinical_site,
        study_group=sample.study_group,
        age=sample.age,
        recommended_split=None,
    )
    split = cast("Split", sample.split)
    return Part(key=sample.key, path=path, sha256=row.sha256, split=split, manifest=manifest, participant=person)


def build_repair(pipeline: beam.Pipeline, job: IngestJob, rebuilds: Sequence[Rebuild]) -> None:
    """Add to a pipeline: each shard made again, somewhere."""
    _ = (
        pipeline
        | "Shards" >> beam.Create(rebuilds)
        | "SpreadShards" >> beam.Reshuffle()
        | "Rebuild" >> beam.ParDo(RebuildShard(job))
    )


class RebuildShard(Guarded):
    """`Rebuild` -> nothing: the shard is in its place, and what became of it in `_staging/repair`."""

    def process(self, rebuild: Rebuild) -> Iterator[None]:
        """Make the shard again, or say why not."""
        try:
            rebuild_shard(rebuild, self._job, self._tools)
            problem = None
        except RebuildError as error:
            problem = str(error)
        place = staging_url(self._job, f"{OUTCOMES}/{rebuild.shard.shard}.json")
        publish(place, json.dumps({"shard": rebuild.shard.shard, "problem": problem}).encode(), replace=True)
        yield from ()


def rebuild_shard(rebuild: Rebuild, job: IngestJob, tools: Tools) -> None:
    """Make a shard in a file of its own, and put it in its place when its sha256 is the committed one.

    Raises:
        RebuildError: if a file is not as it was, or the bytes come out otherwise.
        GuardError: if the process that decodes is ended from outside.
    """
    url = f"{job.dataset}/shards/{rebuild.shard.shard}"
    with tempfile.TemporaryFile() as file:
        with ShardWriter(cast("BinaryIO", file), rebuild.shard.shard) as writer:
            for part in rebuild.parts:
                writer.add(_sample(part, job, tools))
        file.seek(0)
        if hashlib.file_digest(file, "sha256").hexdigest() != rebuild.shard.sha256:
            raise RebuildError(
                "comes out with other bytes, though its files are as they were: make it again with the manifest.tsv, "
                f"the fovea and the libraries that it was made with, {ELSE}"
            )
        publish(url, cast("BinaryIO", file), replace=True)
    if sha256(url) != rebuild.shard.sha256:
        raise RebuildError("was written, and the store gives other bytes: look at the disk, and repair again")


def _sample(part: Part, job: IngestJob, tools: Tools) -> Sample:
    if part.path is None:
        raise RebuildError(
            f"cannot be made again: the file of sample {part.key} is not in SOURCE any more; bring it back "
            f"(manifests/sources.csv says which), {ELSE}"
        )
    try:
        data = tools.reader.read(part.path)
    except IngestError as error:
        raise RebuildError(
            f"cannot be made again now: of the file of sample {part.key} {error.detail.rstrip('.')}; repair again"
        ) from error
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise RebuildError(
            f"cannot be made again: the file of sample {part.key} has changed in SOURCE; bring it back as it was "
            f"(manifests/sources.csv says which), {ELSE}"
        )
    record = tools.guard.convert(data, part.path, part.manifest, job.geometry, job.limits)
    if isinstance(record, Rejection):
        raise RebuildError(
            f"cannot be made again: the file of sample {part.key} is as it was, and now {record.reason}; use the fovea "
            f"that made the dataset, {ELSE}"
        )
    return record.to_sample(key=part.key, split=part.split, participant=part.participant)


def read_outcomes(job: IngestJob) -> dict[str, str | None]:
    """Shard -> why it could not be made again; None if it was."""
    folder = locate(staging_url(job, OUTCOMES))
    found = [json.loads(read_bytes(folder / name, num_bytes)) for name, num_bytes in names_below(folder).items()]
    return {outcome["shard"]: outcome["problem"] for outcome in found}


def clear_outcomes(job: IngestJob) -> None:
    """What workers said goes, and nothing else: an append may wait there to be moved in."""
    staging = locate(f"{job.dataset}/_staging")
    remove_tree(staging / OUTCOMES)
    if not names_below(staging):
        remove_tree(staging)
