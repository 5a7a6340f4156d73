"""Codecs that crash, loop or ask for all memory, in the whole job: one row each, the other volumes whole."""

import csv
import datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import JPEG2000Lossless

from beam_jobs.launch import run_ingest
from beam_jobs.options import beam_options, make_job
from ingest.phantom.dicom import encode_dicom
from ingest.phantom.header import Subject, Uids, protocol_header
from ingest.phantom.protocols import PROTOCOLS
from shards.verify import verify

POISONS = {251: "ctypes.string_at(0)", 252: "os.abort()", 253: "panic()", 254: "bytearray(4 * 2**30)", 255: "loop()"}
WRAPPER = """
import ctypes, os
import imagecodecs

whole = imagecodecs.jpeg2k_decode

class Panic(BaseException):
    pass

def panic():
    raise Panic

def loop():
    while True:
        pass

def jpeg2k_decode(data, *args, **kwargs):
    pixels = whole(data, *args, **kwargs)
    {faults}
    return pixels

imagecodecs.jpeg2k_decode = jpeg2k_decode
"""


def write_scan(root: Path, name: str, number: int, poison: int) -> str:
    """A small scan whose middle B-scan begins with the grey level `poison`."""
    protocol = PROTOCOLS[name].small()
    subject = Subject(
        participant_id="4123",
        laterality="L",
        model="Maestro2",
        uids=Uids.from_entropy("guarded", str(number)),
        acquired=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
    )
    header = protocol_header(protocol, subject, JPEG2000Lossless)
    volume = np.random.default_rng(number).integers(1, 250, protocol.shape, dtype=np.uint8)
    volume[len(volume) // 2, 0, 0] = poison
    path = f"retinal_oct/structural_oct/topcon_maestro2/4123/4123_{name}_l_{header.uids.sop_instance}.dcm"
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(encode_dicom(volume, header))
    return path


@pytest.mark.parametrize("workers", [1, 2])
def test_faults_in_a_codec_cost_one_row_each(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = "; ".join(f"pixels[0, 0] == {poison} and {fault}" for poison, fault in POISONS.items())
    (tmp_path / "sitecustomize.py").write_text(WRAPPER.format(faults=faults), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    source, dataset = tmp_path / "source", tmp_path / "dataset"
    poisons = [1, 251, 2, 252, 3, 253, 4, 254, 5, 255, 6]
    paths = [write_scan(source, "maestro2_3d_macula_oct", number, poison) for number, poison in enumerate(poisons)]
    job = make_job(str(source), str(dataset), geometry="block6")
    result = run_ingest(job, beam_options([], num_workers=workers))
    with (dataset / "manifests/sources.csv").open(encoding="utf-8", newline="") as file:
        reasons = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert reasons == {
        path: "FRAME_UNDECODABLE" if poison in POISONS else "" for path, poison in zip(paths, poisons, strict=True)
    }
    assert result.dataset["counts"]["samples"] == 6
    assert not verify(str(dataset)).problems
