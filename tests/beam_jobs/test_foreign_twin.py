"""Two participants' files with one SOP Instance UID: the whole one must not take the other's key, split and shard."""

import csv
import dataclasses
import datetime
from pathlib import Path

import numpy as np

from beam_jobs.launch import run_ingest
from beam_jobs.options import beam_options, make_job
from ingest.phantom.dicom import encode_dicom
from ingest.phantom.header import Subject, Uids, protocol_header
from ingest.phantom.protocols import PROTOCOLS


def test_a_whole_file_never_takes_the_place_of_anothers_broken_one(tmp_path: Path) -> None:
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
    for subject, lost in ((first, 5000), (second, 0)):
        name = f"{subject.participant_id}_{protocol.name}_l_{subject.uids.sop_instance}.dcm"
        path = tmp_path / "source/retinal_oct/structural_oct/topcon_maestro2" / subject.participant_id / name
        path.parent.mkdir(parents=True)
        data = encode_dicom(volume, protocol_header(protocol, subject))
        path.write_bytes(data[: len(data) - lost])
    job = make_job(str(tmp_path / "source"), str(tmp_path / "dataset"), geometry="block6")
    result = run_ingest(job, beam_options([], num_workers=1))
    with (tmp_path / "dataset/manifests/sources.csv").open(encoding="utf-8", newline="") as file:
        reasons = {row["participant_id"]: row["reason"] for row in csv.DictReader(file)}
    assert reasons == {"1001": "PIXELDATA_LENGTH_MISMATCH", "7002": "DUP_SOP_UID_CONFLICT"}
    assert result.dataset["counts"]["samples"] == 0
