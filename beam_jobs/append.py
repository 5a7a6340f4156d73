"""Growing a finished dataset (`--append`): what must be as it was, and what may have come (ADR 0011)."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from beam_jobs.errors import JobError, JobOptionError
from beam_jobs.options import IngestJob
from beam_jobs.retry import GrownJob
from manifests.cohort import Participant
from manifests.committed import Committed, Tables
from manifests.keys import default_hash_key
from manifests.plan import split_of
from shards.schema import SampleRow


def last_table(info: Mapping[str, Any]) -> str | None:
    """The sha256 of the participants' table that a dataset was made or last grown with."""
    last = info["appended"][-1] if info.get("appended") else info["config"]
    sha256: str | None = last.get("labels_sha256")
    return sha256


def as_first_made(job: IngestJob, info: Mapping[str, Any], *, append: bool = False) -> IngestJob:
    """The job with the table and the default key that the dataset was first made with, when it may go on from there.

    It may if its table is the one that the dataset has by now; an append may bring another, which
    `check_participants` compares. Otherwise the job stays as it is, and its configuration is another.

    Raises:
        JobOptionError: if the table is not the one that the dataset was last grown with.
    """
    if not append and job.labels_sha256 != last_table(info):
        if info.get("appended"):
            raise JobOptionError(
                f"DATASET {job.dataset} was grown with another labels_sha256: give the participants' table of the last "
                "--append; --append takes new files in, if the table has only grown since."
            )
        return job
    first = info["config"].get("labels_sha256")
    values = {field.name: getattr(job, field.name) for field in dataclasses.fields(IngestJob)}
    values["labels_sha256"] = first
    if job.hash_key_source == "default":
        values["hash_key"] = default_hash_key(first)
    return GrownJob(**values, table_sha256=job.labels_sha256, appends=append)


def check_participants(job: IngestJob, samples: Sequence[SampleRow], participants: Mapping[str, Participant]) -> None:
    """A table may have grown, and must say of the participants that a dataset holds what it said before.

    Raises:
        JobOptionError: with numbers; an id is nobody's business here.
    """
    there = {row.participant_id: row for row in samples}
    other = sum(not _agrees(job, row, participants) for row in there.values())
    if other:
        raise JobOptionError(
            f"the participants' table gives {other} of the {len(there)} participants in DATASET {job.dataset} another "
            "site, group, age or split than samples.csv: give them what is there, or ingest into a new DATASET."
        )


def _agrees(job: IngestJob, row: SampleRow, participants: Mapping[str, Participant]) -> bool:
    if split_of(row.participant_id, participants, job.hash_key) != row.split:
        return False
    person = participants.get(row.participant_id) if job.participant_metadata else None
    said = (person.clinical_site, person.study_group, person.age) if person else (None, None, None)
    return said == (row.clinical_site, row.study_group, row.age)


def appended_entries(job: IngestJob, before: Committed, merged: Tables) -> list[dict[str, Any]]:
    """What `dataset.json` says of each append so far, and of the one that gave `merged`.

    Raises:
        JobError: if a shard or a sample of the dataset would change.
    """
    earlier = list(before.info.get("appended", []))
    if not (isinstance(job, GrownJob) and job.appends):
        return earlier
    tables = before.tables
    lost = _missing(tables.shards, merged.shards) + _missing(tables.samples, merged.samples)
    if lost:
        raise JobError(f"an append would change {lost} rows of what DATASET holds. This is a defect of fovea.")
    entry = {
        "labels_sha256": job.table_sha256,
        "inputs": _missing(merged.sources, tables.sources),
        "samples": _missing(merged.samples, tables.samples),
    }
    return [*earlier, entry]


def _missing(rows: Iterable[object], among: Iterable[object]) -> int:
    return len(set(rows) - set(among))
