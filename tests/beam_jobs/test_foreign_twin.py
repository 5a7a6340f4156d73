"""Two participants' files with one SOP Instance UID: a whole one is accepted in its own place, never in the other's."""

import csv
import dataclasses
import datetime
from pathlib import Path

import numpy as np
import pytest

from beam_jobs.launch import run_ingest
from beam_jobs.options import beam_options, make_job
from ingest.phantom.dicom import encode_dicom
from ingest.phantom.header import Subject, Uids, protocol_header
from ingest.phantom.protocols import PROTOCOLS
from manifests.keys import hashed_split


@pytest.mark.parametrize(
    ("lost", "reasons"),
    [
        ((5000, 0), {"1001": "PIXELDATA_LENGTH_MISMATCH", "7002": ""}),
        ((0, 5000), {"1001": "", "7002": "PIXELDATA_LENGTH_MISMATCH"}),
        ((0, 0), {"1001": "DUP_SOP_UID_CONFLICT", "7002": "DUP_SOP_UID_CONFLICT"}),
    ],
)
def test_a_whole_file_never_takes_the_place_of_anothers(
    lost: tuple[int, int], reasons: dict[str, str], tmp_path: Path
) -> None:
    protocol = PROTOCOLS["maestro2_3d_macula_oct"].small()
    first = Subject(
        participant_id="1001",
        laterality="L",
        model="Maestro2",
        uids=Uids.from_entropy("shared"),
        acquired=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
    )
    second = dataclasses.replace(first, participant_id="7002")
    volume = np.random.default_rng(0).integers(1, 250, protocol.shape, dtype=np.uint8)
    for subject, missing in zip((first, second), lost, strict=True):
        name = f"{subject.participant_id}_{protocol.name}_l_{subject.uids.sop_instance}.dcm"
        path = tmp_path / "source/retinal_oct/structural_oct/topcon_maestro2" / subject.participant_id / name
        path.parent.mkdir(parents=True)
        data = encode_dicom(volume, protocol_header(protocol, subject))
        path.write_bytes(data[: len(data) - missing])
    job = make_job(str(tmp_path / "source"), str(tmp_path / "dataset"), geometry="block6")
    run_ingest(job, beam_options([], num_workers=1))
    with (tmp_path / "dataset/manifests/sources.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["participant_id"]: row for row in csv.DictReader(file)}
    assert {participant: row["reason"] for participant, row in rows.items()} == reasons
    for participant, row in rows.items():
        expected = "" if reasons[participant] else hashed_split(participant, job.hash_key)
        assert row["split"] == expected
        assert row["key"].startswith(f"{participant}-") == (not reasons[participant])
