"""Before the first file is read: everything that can be refused is refused, and what is there already is found out."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from beam_jobs.append import as_first_made, check_participants
from beam_jobs.build_dataset import read_cohort
from beam_jobs.commit_retry import finish_retry, staged_retry
from beam_jobs.errors import JobError, JobOptionError
from beam_jobs.options import IngestJob
from beam_jobs.pack import staging_url
from beam_jobs.retry import Scope, count_changes, is_retryable, scope_of
from ingest.source import find_candidate, list_files
from manifests.cohort import Participant
from manifests.committed import Tables, read_committed
from shards.publish import publish
from shards.storage import exists, fingerprint, locate, read_bytes

Mode = Literal["ingest", "retry", "append"]
"""What is asked of a dataset that is complete: nothing, another look at what failed, or to take in what is new."""

OF_THE_TABLE: Final = {"labels_sha256", "hash_key_sha256"}
"""Parts of a configuration that another participants' table changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Complete:
    """A dataset that was finished before: `dataset.json`, and the job as it goes on from there.

    `retryable` counts its inputs with a retryable reason, `new` the files of SOURCE that it lacks, and `pending`
    what there is to do.
    """

    info: dict[str, Any]
    job: IngestJob
    retryable: int
    new: int
    pending: int


def check_start(job: IngestJob, *, retry_rejected: bool = False, append: bool = False) -> Complete | None:
    """Refuse what cannot work; returns what DATASET is when it is already complete for this SOURCE.

    A retry or an append that was interrupted while it was moved in is finished first.
    """
    mode = _mode(retry_rejected, append)
    _check_places(job)
    participants = read_cohort(job.labels or "")
    if find_candidate(job.source) is None:
        raise JobOptionError(f"SOURCE {job.source} holds no DICOM file (.dcm, .dicom, no extension, or .zip).")
    _finish_earlier(job, mode)
    earlier = _complete(job, mode, participants)
    if earlier is None and mode != "ingest":
        flag = "--append" if append else "--retry-rejected"
        raise JobOptionError(
            f"DATASET {job.dataset} is not complete: finish it first, with the same command without {flag}."
        )
    if earlier is None:
        _claim(job)
    return earlier


def _mode(retry_rejected: bool, append: bool) -> Mode:
    if retry_rejected and append:
        raise JobOptionError("--append and --retry-rejected are two jobs: give one, and then the other.")
    if retry_rejected:
        return "retry"
    return "append" if append else "ingest"


def _check_places(job: IngestJob) -> None:
    locate(job.dataset)
    source, dataset = (place.rstrip("/") + "/" for place in (job.source, job.dataset))
    if dataset.startswith(source) or source.startswith(dataset):
        raise JobOptionError(f"SOURCE {job.source} and DATASET {job.dataset} lie in one another: keep them apart.")


def _finish_earlier(job: IngestJob, mode: Mode) -> None:
    staged = staged_retry(job)
    if staged:
        job = as_first_made(job, staged, append=mode == "append")
        _check_config(job, staged["config"], staged["config_sha256"])
        try:
            finish_retry(job)
        except OSError as error:
            raise JobError(f"DATASET {job.dataset} cannot be written: {error}.") from error


def _complete(job: IngestJob, mode: Mode, participants: Mapping[str, Participant]) -> Complete | None:
    """The finished dataset, if it is this job's and SOURCE has not changed since, or only so as the mode allows."""
    if fingerprint(f"{job.dataset}/_SUCCESS") is None:
        return None
    found = _written_by_us(job, read_bytes(f"{job.dataset}/dataset.json"))
    job = as_first_made(job, found, append=mode == "append")
    _check_config(job, found["config"], found.get("config_sha256"), may_append=True)
    tables = read_committed(job.dataset).tables
    if mode == "append":
        check_participants(job, tables.samples, participants)
    new = _check_unchanged(job, tables, mode)
    retryable = sum(map(is_retryable, tables.sources))
    pending = {"ingest": 0, "retry": retryable, "append": new}[mode]
    return Complete(info=found, job=job, retryable=retryable, new=new, pending=pending)


def _written_by_us(job: IngestJob, text: bytes) -> dict[str, Any]:
    """The record of an earlier job, which has its configuration."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
        raise JobOptionError(f"DATASET {job.dataset} was damaged, or is not of fovea: give a new DATASET.")
    return found


def _check_unchanged(job: IngestJob, tables: Tables, mode: Mode) -> int:
    """The number of new files. What a mode takes in may have come; nothing else may differ from the rows."""
    listing = list_files(job.source)
    changed, new = count_changes(tables.sources, listing, Scope())
    if not (changed or new):
        return 0
    scopes = {"retry": scope_of(tables.sources), "append": scope_of(tables.sources, append=True)}
    beyond = {name: count_changes(tables.sources, listing, scope) for name, scope in scopes.items()}
    suits = {name for name, left in beyond.items() if left == (0, 0)}
    if mode in suits:
        return new
    changed, new = beyond.get(mode, (changed, new))
    what = (
        f"DATASET {job.dataset} is complete, but SOURCE has changed since ({changed} files changed or gone, {new} new)"
    )
    if "retry" in suits:
        raise JobOptionError(f"{what}: these are files that it lacked; --retry-rejected takes them in.")
    if "append" in suits:
        raise JobOptionError(f"{what}: --append takes new files in; or give a new DATASET.")
    raise JobOptionError(f"{what}: give a new DATASET.")


def _check_config(
    job: IngestJob, earlier: Mapping[str, Any], earlier_sha256: object, *, may_append: bool = False
) -> None:
    config = json.loads(json.dumps(job.config()))
    different = sorted(name for name in config.keys() | earlier.keys() if config.get(name) != earlier.get(name))
    if different:
        what = ", ".join(different)
        grown = may_append and "labels_sha256" in different and set(different) <= OF_THE_TABLE
        hint = "; --append takes new files in, if the participants' table has only grown" if grown else ""
        raise JobOptionError(
            f"DATASET {job.dataset} was made with another {what}: use a new DATASET, or the same options{hint}."
        )
    if earlier_sha256 != job.config_sha256():
        raise JobOptionError(f"DATASET {job.dataset} was made by another version of fovea: give a new DATASET.")


def _claim(job: IngestJob) -> None:
    """Write the configuration first: it proves that DATASET can be written, and what an unfinished job was."""
    claim = {"config": job.config(), "config_sha256": job.config_sha256()}
    record = staging_url(job, "job.json")
    try:
        if fingerprint(record) is not None:
            earlier = _written_by_us(job, read_bytes(record))
            _check_config(job, earlier["config"], earlier.get("config_sha256"))
        elif _is_taken(job.dataset):
            raise JobOptionError(
                f"DATASET {job.dataset} exists and is no dataset of fovea: give a new or empty folder."
            )
        publish(record, json.dumps(claim, sort_keys=True).encode(), replace=True)
    except OSError as error:
        raise JobError(f"DATASET {job.dataset} cannot be written: {error}.") from error


def _is_taken(url: str) -> bool:
    """Whether there is a file, or a folder with anything in it."""
    place = locate(url)
    if place.is_local:
        return bool(place.fs.exists(place.path) and (not place.fs.isdir(place.path) or place.fs.ls(place.path)))
    return exists(place)
