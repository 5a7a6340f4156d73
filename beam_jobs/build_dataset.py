"""The ingest pipeline: discover -> probe -> plan -> pack -> commit (DESIGN section 4).

Voxel bytes are read once and written once, inside of one step: only references and rows are grouped.
"""

from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsIter, AsList, AsSingleton

from beam_jobs.commit import commit_dataset
from beam_jobs.commit_retry import commit_retry
from beam_jobs.metrics import NUM_SLOWEST, report_slowest, total_of
from beam_jobs.options import IngestJob
from beam_jobs.retry import discover_again, read_held, retry_job, shards_again, shelf_of
from beam_jobs.transforms import (
    OTHERS,
    SAMPLES,
    SETTLED,
    SOURCES,
    TIMES,
    Discover,
    Pack,
    Probe,
    Settle,
    elements_of,
    shards_of,
)
from ingest.source import read_source_file
from manifests.cohort import Participant, read_participants


def build(pipeline: beam.Pipeline, job: IngestJob) -> None:
    """Add the whole job to a pipeline."""
    participants = _participants(pipeline, job)
    found = (
        pipeline
        | "Source" >> beam.Create([job.source])
        | "Discover" >> beam.ParDo(Discover()).with_outputs(SETTLED, OTHERS, main="entries")
    )
    probed = _probe(found.entries, job)
    packed = (
        probed.files
        | "ByUid" >> beam.GroupBy(lambda file: file.sop_instance_uid)
        | "Elements" >> beam.FlatMap(elements_of, participants, job)
        | "ByShelf" >> beam.GroupByKey()
        | "CutShards" >> beam.FlatMap(shards_of, job)
        | "SpreadShards" >> beam.Reshuffle()
        | "Pack" >> beam.ParDo(Pack(job), participants).with_outputs(SOURCES, SAMPLES, TIMES, main="shards")
    )
    settled = found[SETTLED] | "Settle" >> beam.ParDo(Settle(job))
    sources = (settled, probed[SOURCES], packed[SOURCES]) | "AllRows" >> beam.Flatten()
    committed = (
        pipeline
        | "End" >> beam.Create([job])
        | "Commit"
        >> beam.Map(
            commit_dataset,
            sources=AsIter(sources),
            samples=AsIter(packed[SAMPLES]),
            shards=AsIter(packed.shards),
            other_files=AsSingleton(found[OTHERS]),
        )
    )
    _report(committed, job, probed[TIMES], packed[TIMES])


def build_retry(pipeline: beam.Pipeline, job: IngestJob) -> None:
    """Add to a pipeline what `--retry-rejected` does: the same steps, on the inputs that are worth another try."""
    participants = _participants(pipeline, job)
    held = AsSingleton(pipeline | "Dataset" >> beam.Create([job.dataset]) | "ReadHeld" >> beam.Map(read_held))
    found = (
        pipeline
        | "Source" >> beam.Create([job])
        | "Discover" >> beam.FlatMap(discover_again).with_outputs(SETTLED, main="entries")
    )
    probed = _probe(found.entries, job)
    packed = (
        probed.files
        | "ByUid" >> beam.GroupBy(lambda file: file.sop_instance_uid)
        | "Elements" >> beam.FlatMap(elements_of, participants, job)
        | "Shelf" >> beam.Map(shelf_of, held)
        | "ByShelf" >> beam.GroupByKey()
        | "CutShards" >> beam.FlatMap(shards_again, job, held)
        | "SpreadShards" >> beam.Reshuffle()
        | "Pack" >> beam.ParDo(Pack(retry_job(job)), participants).with_outputs(SOURCES, SAMPLES, TIMES, main="shards")
    )
    settled = found[SETTLED] | "Settle" >> beam.ParDo(Settle(job))
    sources = (settled, probed[SOURCES], packed[SOURCES]) | "AllRows" >> beam.Flatten()
    committed = (
        pipeline
        | "End" >> beam.Create([job])
        | "Commit"
        >> beam.Map(
            commit_retry,
            sources=AsList(sources),
            samples=AsList(packed[SAMPLES]),
            shards=AsList(packed.shards),
        )
    )
    _report(committed, job, probed[TIMES], packed[TIMES])


def _report(committed: beam.PCollection, job: IngestJob, *times: beam.PCollection) -> None:
    """The slowest files, which have their rows once the manifests are there."""
    slowest = times | "AllTimes" >> beam.Flatten() | "Slowest" >> beam.combiners.Top.Of(NUM_SLOWEST, key=total_of)
    _ = committed | "Report" >> beam.Map(report_slowest, job.dataset, AsSingleton(slowest))


def _participants(pipeline: beam.Pipeline, job: IngestJob) -> AsSingleton:
    return AsSingleton(pipeline | "Cohort" >> beam.Create([job.labels or ""]) | "ReadCohort" >> beam.Map(read_cohort))


def _probe(entries: beam.PCollection, job: IngestJob) -> Any:
    return (
        entries
        | "SpreadFiles" >> beam.Reshuffle()
        | "Probe" >> beam.ParDo(Probe(job)).with_outputs(SOURCES, TIMES, main="files")
    )


def read_cohort(url: str) -> dict[str, Participant]:
    """The participants of a cohort; none without a file."""
    return read_participants(read_source_file(url), name=url) if url else {}
