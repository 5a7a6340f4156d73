"""Starting an ingest: everything that can be refused is refused before the first file is read."""

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final

import apache_beam as beam
import fsspec
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.build_dataset import build, build_retry, read_cohort
from beam_jobs.commit import clear_staging
from beam_jobs.commit_retry import finish_retry, staged_retry
from beam_jobs.errors import JobError, JobOptionError
from beam_jobs.metrics import read_counters
from beam_jobs.options import IngestJob, describe_run
from beam_jobs.pack import staging_url
from beam_jobs.progress import progress_line
from beam_jobs.retry import Scope, count_changes, forget_retryable, is_retryable, retry_job, scope_of
from ingest.source import find_candidate, list_files
from manifests.committed import Tables, read_committed
from manifests.store import publish
from shards.reader import locate

OWN_ERRORS: Final = {"JobError", "GuardError", "SourceError", "CohortError", "GeometryError"}
RUNNING: Final = " [while running"
STEP: Final = re.compile(r"\[while running '(\w+)")
RAISED: Final = re.compile(r"Traceback \(most recent call last\):\n(?:[ \t].*\n)+(?P<kind>[\w.]+)(?:: (?P<said>.*))?")
"""The end of a worker's traceback; what stands further down may be a file's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestResult:
    """What a run did; `dataset` is the parsed `dataset.json`, `earlier` what it was if the run went on from it.

    `retryable` counts the inputs whose reason was retryable then.
    """

    dataset: Mapping[str, Any]
    counters: Mapping[str, int]
    run: Mapping[str, Any]
    seconds: float
    already_complete: bool = False
    retryable: int = 0
    earlier: Mapping[str, Any] | None = None

    @property
    def content_line(self) -> str:
        """What share of the voxels is content, and what `block6` would keep (DESIGN section 5)."""
        share = self.dataset["counts"]["content_share"]
        other = self.dataset["counts"]["content_share_block6"]
        name = self.dataset["geometry"]["name"]
        return f"{name}: {share:.0%} of the voxels are content (block6: {other:.0%})."


@dataclass(frozen=True, slots=True, kw_only=True)
class Complete:
    """A dataset that was finished before: `dataset.json`, and how many of its inputs have a retryable reason."""

    info: dict[str, Any]
    retryable: int


def run_ingest(
    job: IngestJob, options: PipelineOptions, *, progress: bool = False, retry_rejected: bool = False
) -> IngestResult:
    """Check, run the pipeline to its end, and return what the dataset says of itself.

    Args:
        job: what to do.
        options: of Beam.
        progress: draw a line on standard error meanwhile.
        retry_rejected: go on from a complete dataset, with the inputs whose reason is retryable.

    Raises:
        JobOptionError: if the job cannot start as asked for (SOURCE, labels, the runner, an existing DATASET).
        JobError: if DATASET cannot be written, or the pipeline failed.
    """
    started = time.monotonic()
    pipeline = _pipeline(options)
    earlier = check_start(job, retry_rejected=retry_rejected)
    if earlier and not earlier.retryable:
        clear_staging(job)
    if earlier and not (retry_rejected and earlier.retryable):
        return IngestResult(
            dataset=earlier.info,
            counters={},
            run=describe_run(options),
            seconds=0.0,
            already_complete=True,
            retryable=earlier.retryable,
        )
    if earlier:
        forget_retryable(job)
    with progress_line(retry_job(job) if earlier else job) if progress else nullcontext():
        counters = _run(build_retry if earlier else build, job, pipeline)
    return IngestResult(
        dataset=json.loads(_read(f"{job.dataset}/dataset.json")),
        counters=counters,
        run=describe_run(options),
        seconds=time.monotonic() - started,
        retryable=earlier.retryable if earlier else 0,
        earlier=earlier.info if earlier else None,
    )


def _pipeline(options: PipelineOptions) -> beam.Pipeline:
    """An empty pipeline; making it proves that there is such a runner and that it has the options that it needs."""
    # Beam logs every worker's start and a traceback per bundle; the error itself arrives as an exception.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL + 1)
    try:
        return beam.Pipeline(options=options)
    except (ValueError, ImportError, AttributeError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise JobOptionError(f"Apache Beam cannot start its runner: {said}.") from error


def _run(add: Callable[[beam.Pipeline, IngestJob], None], job: IngestJob, pipeline: beam.Pipeline) -> dict[str, int]:
    add(pipeline, job)
    try:
        result = pipeline.run()
        result.wait_until_finish()
    except Exception as error:
        # Beam wraps whatever a worker raised, of any type, in an exception of the runner's choice.
        raise JobError(f"the pipeline failed: {_what_failed(error)} Run the same command again to go on.") from error
    return read_counters(result)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _what_failed(error: Exception) -> str:
    """What a worker said, if it is our own sentence; of others, which may quote a file, the kind and the step."""
    for known in _chain(error):
        if type(known).__name__ in OWN_ERRORS:
            return str(known).partition(RUNNING)[0]
    raised = [*RAISED.finditer(str(error))]
    kind = raised[-1]["kind"].rpartition(".")[2] if raised else type(error).__name__
    if raised and kind in OWN_ERRORS:
        return str(raised[-1]["said"]).partition(RUNNING)[0]
    steps = STEP.findall(str(error))
    return f"{kind}{f' in the step {steps[-1]}' if steps else ''}; --debug shows the rest."


def check_start(job: IngestJob, *, retry_rejected: bool = False) -> Complete | None:
    """Refuse what cannot work; returns what DATASET is when it is already complete for this SOURCE.

    A retry that was interrupted while it was moved in is finished first.
    """
    _check_places(job)
    read_cohort(job.labels or "")
    if find_candidate(job.source) is None:
        raise JobOptionError(f"SOURCE {job.source} holds no DICOM file (.dcm, .dicom, no extension, or .zip).")
    _finish_earlier(job)
    earlier = _complete(job, retry_rejected=retry_rejected)
    if earlier is None and retry_rejected:
        raise JobOptionError(
            f"DATASET {job.dataset} is not complete: finish it first, with the same command without --retry-rejected."
        )
    if earlier is None:
        _claim(job)
    return earlier


def _check_places(job: IngestJob) -> None:
    locate(job.dataset)
    source, dataset = (place.rstrip("/") + "/" for place in (job.source, job.dataset))
    if dataset.startswith(source) or source.startswith(dataset):
        raise JobOptionError(f"SOURCE {job.source} and DATASET {job.dataset} lie in one another: keep them apart.")


def _finish_earlier(job: IngestJob) -> None:
    staged = staged_retry(job)
    if staged:
        _check_config(job, staged["config"], staged["config_sha256"])
        try:
            finish_retry(job)
        except OSError as error:
            raise JobError(f"DATASET {job.dataset} cannot be written: {error}.") from error


def _complete(job: IngestJob, *, retry_rejected: bool) -> Complete | None:
    """The finished dataset, if it is this job's and SOURCE has not changed since."""
    fs, root = fsspec.core.url_to_fs(job.dataset)
    if not fs.exists(f"{root}/_SUCCESS"):
        return None
    found = _written_by_us(job, _read(f"{job.dataset}/dataset.json"))
    _check_config(job, found["config"], found.get("config_sha256"))
    tables = read_committed(job.dataset).tables
    _check_unchanged(job, tables, retry_rejected=retry_rejected)
    return Complete(info=found, retryable=sum(map(is_retryable, tables.sources)))


def _written_by_us(job: IngestJob, text: bytes) -> dict[str, Any]:
    """The record of an earlier job, which has its configuration."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
        raise JobOptionError(f"DATASET {job.dataset} was damaged, or is not of fovea: give a new DATASET.")
    return found


def _check_unchanged(job: IngestJob, tables: Tables, *, retry_rejected: bool) -> None:
    """A retry may find what was missing or unreadable; nothing else may differ from when the rows were written."""
    listing, scope = list_files(job.source), scope_of(tables.sources)
    changed, new = count_changes(tables.sources, listing, scope if retry_rejected else Scope())
    if not changed and not new:
        return
    what = (
        f"DATASET {job.dataset} is complete, but SOURCE has changed since ({changed} files changed or gone, {new} new)"
    )
    if not retry_rejected and count_changes(tables.sources, listing, scope) == (0, 0):
        raise JobOptionError(f"{what}: these are files that it lacked; --retry-rejected takes them in.")
    raise JobOptionError(f"{what}: give a new DATASET.")


def _check_config(job: IngestJob, earlier: Mapping[str, Any], earlier_sha256: object) -> None:
    config = json.loads(json.dumps(job.config()))
    different = sorted(name for name in config.keys() | earlier.keys() if config.get(name) != earlier.get(name))
    if different:
        what = ", ".join(different)
        raise JobOptionError(
            f"DATASET {job.dataset} was made with another {what}: use a new DATASET, or the same options."
        )
    if earlier_sha256 != job.config_sha256():
        raise JobOptionError(f"DATASET {job.dataset} was made by another version of fovea: give a new DATASET.")


def _claim(job: IngestJob) -> None:
    """Write the configuration first: it proves that DATASET can be written, and what an unfinished job was."""
    fs, root = fsspec.core.url_to_fs(job.dataset)
    claim = {"config": job.config(), "config_sha256": job.config_sha256()}
    try:
        if fs.exists(f"{root}/_staging/job.json"):
            earlier = _written_by_us(job, _read(staging_url(job, "job.json")))
            _check_config(job, earlier["config"], earlier.get("config_sha256"))
        elif fs.exists(root) and (not fs.isdir(root) or fs.ls(root, detail=False)):
            raise JobOptionError(
                f"DATASET {job.dataset} exists and is no dataset of fovea: give a new or empty folder."
            )
        publish(staging_url(job, "job.json"), json.dumps(claim, sort_keys=True).encode())
    except OSError as error:
        raise JobError(f"DATASET {job.dataset} cannot be written: {error}.") from error


def _read(url: str) -> bytes:
    fs, path = fsspec.core.url_to_fs(url)
    data: bytes = fs.cat_file(path)
    return data
