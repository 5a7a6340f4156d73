"""Running an ingest: checked first, then run to its end, then what the dataset says of itself."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.build_dataset import build, build_retry
from beam_jobs.commit import clear_staging
from beam_jobs.dataflow import job_address, ready_to_send
from beam_jobs.errors import JobError
from beam_jobs.failures import what_failed
from beam_jobs.metrics import Measured, read_measured
from beam_jobs.options import IngestJob, describe_run
from beam_jobs.pipeline import new_pipeline
from beam_jobs.progress import progress_line
from beam_jobs.retry import forget_retryable, retry_job
from beam_jobs.start import check_start
from shards.storage import read_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestResult:
    """What a run did; `dataset` is the parsed `dataset.json`, `earlier` what it was if the run went on from it.

    `retryable` counts the inputs whose reason was retryable then.
    """

    dataset: Mapping[str, Any]
    measured: Measured
    run: Mapping[str, Any]
    seconds: float
    already_complete: bool = False
    retryable: int = 0
    earlier: Mapping[str, Any] | None = None

    @property
    def counters(self) -> Mapping[str, int]:
        return self.measured.counters

    @property
    def content_line(self) -> str:
        """What share of the voxels is content, and what `block6` would keep (DESIGN section 5)."""
        share = self.dataset["counts"]["content_share"]
        other = self.dataset["counts"]["content_share_block6"]
        name = self.dataset["geometry"]["name"]
        return f"{name}: {share:.0%} of the voxels are content (block6: {other:.0%})."


def run_ingest(
    job: IngestJob,
    options: PipelineOptions,
    *,
    progress: bool = False,
    retry_rejected: bool = False,
    append: bool = False,
) -> IngestResult:
    """Check, run the pipeline to its end, and return what the dataset says of itself.

    Args:
        job: what to do.
        options: of Beam.
        progress: draw a line on standard error meanwhile.
        retry_rejected: go on from a complete dataset, with the inputs whose reason is retryable.
        append: go on from a complete dataset, with the files that it lacks.

    Raises:
        JobOptionError: if the job cannot start as asked for (SOURCE, labels, the runner, an existing DATASET).
        JobError: if DATASET cannot be written, or the pipeline failed.
    """
    with ready_to_send(job, options), new_pipeline(options) as pipeline:
        return _run_checked(job, pipeline, options, progress=progress, retry_rejected=retry_rejected, append=append)


def _run_checked(
    job: IngestJob,
    pipeline: beam.Pipeline,
    options: PipelineOptions,
    *,
    progress: bool,
    retry_rejected: bool,
    append: bool,
) -> IngestResult:
    started = time.monotonic()
    earlier = check_start(job, retry_rejected=retry_rejected, append=append)
    if earlier and not (earlier.retryable or earlier.new):
        clear_staging(job)
    if earlier and not earlier.pending:
        return IngestResult(
            dataset=earlier.info,
            measured=Measured(),
            run=describe_run(options),
            seconds=0.0,
            already_complete=True,
            retryable=earlier.retryable,
        )
    if earlier:
        job = earlier.job
        forget_retryable(job)
    with progress_line(retry_job(job) if earlier else job) if progress else nullcontext():
        measured = _run(build_retry if earlier else build, job, pipeline)
    return IngestResult(
        dataset=json.loads(read_bytes(f"{job.dataset}/dataset.json")),
        measured=measured,
        run=describe_run(options),
        seconds=time.monotonic() - started,
        retryable=earlier.retryable if earlier else 0,
        earlier=earlier.info if earlier else None,
    )


def run_pipeline(add: Callable[[beam.Pipeline, IngestJob], None], job: IngestJob, options: PipelineOptions) -> Measured:
    """Run what `add` adds to its end, and return what was measured.

    Raises:
        JobOptionError: if there is no such runner.
        JobError: in one sentence, whatever a worker raised.
    """
    with new_pipeline(options) as pipeline:
        return _run(add, job, pipeline)


def _run(add: Callable[[beam.Pipeline, IngestJob], None], job: IngestJob, pipeline: beam.Pipeline) -> Measured:
    add(pipeline, job)
    try:
        result = pipeline.run()
        if address := job_address(result, pipeline.options):
            sys.stderr.write(f"ingest: the job runs on Dataflow, also without this command: {address}\n")
        result.wait_until_finish()
    except Exception as error:
        # Beam wraps whatever a worker raised, of any type, in an exception of the runner's choice.
        raise JobError(f"the pipeline failed: {what_failed(error)} Run the same command again to go on.") from error
    return read_measured(result)
