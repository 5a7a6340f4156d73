"""Starting an ingest: everything that can be refused is refused before the first file is read."""

import json
import logging
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import fsspec
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.build_dataset import build, read_cohort
from beam_jobs.errors import JobError, JobOptionError
from beam_jobs.metrics import read_counters
from beam_jobs.options import IngestJob, describe_run
from beam_jobs.pack import staging_url
from beam_jobs.progress import progress_line
from ingest.source import find_candidate, list_files
from manifests.store import publish, read_csv


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestResult:
    """What a run did; `dataset` is the parsed `dataset.json`."""

    dataset: Mapping[str, Any]
    counters: Mapping[str, int]
    run: Mapping[str, Any]
    seconds: float
    already_complete: bool = False

    @property
    def content_line(self) -> str:
        """What share of the voxels is content, and what `block6` would keep (DESIGN section 5)."""
        share = self.dataset["counts"]["content_share"]
        other = self.dataset["counts"]["content_share_block6"]
        name = self.dataset["geometry"]["name"]
        return f"{name}: {share:.0%} of the voxels are content (block6: {other:.0%})."


def run_ingest(job: IngestJob, options: PipelineOptions, *, progress: bool = False) -> IngestResult:
    """Check, run the pipeline to its end, and return what the dataset says of itself.

    Raises:
        JobOptionError: if the job cannot start as asked for (SOURCE, labels, an existing DATASET).
        JobError: if DATASET cannot be written, or the pipeline failed.
    """
    started = time.monotonic()
    earlier = check_start(job)
    if earlier:
        return IngestResult(dataset=earlier, counters={}, run=describe_run(options), seconds=0.0, already_complete=True)
    with progress_line(job) if progress else nullcontext():
        counters = _run(job, options)
    return IngestResult(
        dataset=json.loads(_read(f"{job.dataset}/dataset.json")),
        counters=counters,
        run=describe_run(options),
        seconds=time.monotonic() - started,
    )


def _run(job: IngestJob, options: PipelineOptions) -> dict[str, int]:
    # Beam logs every worker's start and a traceback per bundle; the error itself arrives as an exception.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    pipeline = beam.Pipeline(options=options)
    build(pipeline, job)
    try:
        result = pipeline.run()
        result.wait_until_finish()
    except Exception as error:
        # Beam wraps whatever a worker raised, of any type, in an exception of the runner's choice.
        raise JobError(f"the pipeline failed: {_last_line(error)} Run the same command again to go on.") from error
    return read_counters(result)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def check_start(job: IngestJob) -> dict[str, Any] | None:
    """Refuse what cannot work; returns `dataset.json` when DATASET is already complete for this SOURCE."""
    _check_places(job)
    read_cohort(job.labels or "")
    if find_candidate(job.source) is None:
        raise JobOptionError(f"SOURCE {job.source} holds no DICOM file (.dcm, .dicom, no extension, or .zip).")
    earlier = _complete(job)
    if earlier is None:
        _claim(job)
    return earlier


def _check_places(job: IngestJob) -> None:
    source, dataset = (place.rstrip("/") + "/" for place in (job.source, job.dataset))
    if dataset.startswith(source) or source.startswith(dataset):
        raise JobOptionError(f"SOURCE {job.source} and DATASET {job.dataset} lie in one another: keep them apart.")


def _complete(job: IngestJob) -> dict[str, Any] | None:
    """The finished dataset, if it is this job's and SOURCE has not changed since."""
    fs, root = fsspec.core.url_to_fs(job.dataset)
    if not fs.exists(f"{root}/_SUCCESS"):
        return None
    found: dict[str, Any] = json.loads(_read(f"{job.dataset}/dataset.json"))
    _check_config(job, found["config"], found.get("config_sha256"))
    rows = read_csv(_read(f"{job.dataset}/manifests/sources.csv"))
    before = {row["path"]: row["bytes"] for row in rows if "!" not in row["path"] and row["bytes"]}
    now = {path: str(size) for path, size in list_files(job.source).items()}
    changed = [path for path, size in before.items() if now.get(path.removeprefix("'")) != size]
    new = find_candidate(job.source, known=set(before))
    if changed or new:
        what = f"{len(changed)} files changed or gone" if changed else f"new files such as {new}"
        raise JobOptionError(
            f"DATASET {job.dataset} is complete, but SOURCE has changed since ({what}): give a new DATASET."
        )
    return found


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
            earlier = json.loads(_read(staging_url(job, "job.json")))
            _check_config(job, earlier["config"], earlier["config_sha256"])
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
