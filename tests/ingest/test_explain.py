"""What `explain` says is what a job does, check by check, and a file that kills its reader is explained too."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import JPEG2000Lossless

from ingest.errors import SourceError
from ingest.examine import CHECKS, examine
from ingest.explain import Explanation, explain
from ingest.findings import NOT_REACHED, OK, WARNING, Finding, Request
from ingest.geometry import BLOCK6
from ingest.guard import Guard
from ingest.phantom.case import Case, Outcome
from ingest.phantom.corrupt import WAYS, apply_way
from ingest.phantom.dicom import attach_native, encode_dicom, serialise
from ingest.record import Limits

MACULA, CIRRUS, RADIAL = "maestro2_3d_macula_oct", "cirrus_mac_oct", "spectralis_onh_rc_hr_oct"
CANARY = "CANARY^JANE"
SEEN_BY_A_JOB_ONLY = {"DUP_SOP_UID_IDENTICAL", "DUP_SOP_UID_CONFLICT"}


@pytest.fixture(scope="module")
def guard() -> Iterator[Guard]:
    with Guard() as found:
        yield found


@pytest.fixture
def at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examine in this process, for speed: what is isolated is tested beside it."""

    def run(request: Request) -> tuple[bytes, int, bool]:
        steps = examine(request)
        lines = [dataclasses.asdict(step) if isinstance(step, Finding) else {"begin": step.name} for step in steps]
        return "".join(json.dumps(line) + "\n" for line in lines).encode(), 0, False

    monkeypatch.setattr("ingest.explain._run_examination", run)


def as_case(scan: Any) -> Case:
    return Case(
        volume=scan.volume,
        header=scan.header,
        protocol=scan.protocol,
        path=scan.path,
        rng=np.random.default_rng(3),
    )


def write(folder: Path, outcome: Outcome) -> None:
    for path, payload in outcome.files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(payload)
    if outcome.manifest:
        table = "\n".join("\t".join(cells) for cells in (outcome.manifest.keys(), outcome.manifest.values()))
        (folder / "retinal_oct" / "manifest.tsv").write_text(table + "\n", encoding="utf-8")


def put(folder: Path, scan: Any, data: bytes) -> str:
    path: Path = folder / scan.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def outcomes(explanation: Explanation) -> dict[str, str]:
    return {finding.check: finding.outcome for finding in explanation.findings}


def found(explanation: Explanation, check: str) -> str:
    return next(finding.found for finding in explanation.findings if finding.check == check)


@pytest.mark.parametrize("protocol", [MACULA, CIRRUS])
@pytest.mark.parametrize("way", [name for name in WAYS if name != "missing"])
def test_the_verdict_is_the_truth_and_a_check_names_it(
    scan: Any, guard: Guard, at_hand: None, tmp_path: Path, way: str, protocol: str
) -> None:
    case = as_case(scan(protocol))
    if not WAYS[way].fits(case.protocol):
        case = as_case(scan(MACULA))
    outcome = apply_way(case, way)
    write(tmp_path, outcome)
    for path, truth in outcome.truth:
        said = explain(str(tmp_path / path), guard, geometry=BLOCK6)
        expected = "" if truth in SEEN_BY_A_JOB_ONLY else truth
        assert said.reason == expected, said.detail
        assert said.accepted is (expected == "")
        first = next((one.outcome for one in said.findings if one.failed), "")
        assert first == ("" if expected == "OUTSIDE_FILTER" else expected)
        assert "UNKNOWN_ERROR" not in outcomes(said).values()


def test_a_good_file_passes_every_check_that_one_file_can(scan: Any, guard: Guard, tmp_path: Path) -> None:
    """In a process of its own, as users run it."""
    good = scan(MACULA, JPEG2000Lossless)
    said = explain(put(tmp_path, good, good.encode()), guard, geometry=BLOCK6)
    assert said.verdict == "accepted"
    assert outcomes(said) == {"bytes": OK, **{check.name: OK for check in CHECKS}, "duplicates": NOT_REACHED}
    assert said.path == good.path
    assert "20 frames, each whole" in found(said, "frame structure")
    assert "block6: 64 x 384 x 384 voxels" in found(said, "grid")


def test_a_radial_scan_is_known_by_its_lines(scan: Any, guard: Guard, at_hand: None, tmp_path: Path) -> None:
    said = explain(put(tmp_path, scan(RADIAL), scan(RADIAL).encode()), guard, geometry=BLOCK6)
    assert said.reason == "NOT_RASTER"
    assert [name for name, outcome in outcomes(said).items() if outcome == "NOT_RASTER"] == ["raster"]
    assert outcomes(said)["decoding"] == OK


def test_every_source_of_spacing_is_shown_and_the_winner_named(
    scan: Any, guard: Guard, at_hand: None, tmp_path: Path
) -> None:
    macula, cirrus = (
        explain(put(tmp_path, scan(name), scan(name).encode()), guard, geometry=BLOCK6) for name in (MACULA, CIRRUS)
    )
    assert "shared: 0.0179" in found(macula, "pixel spacing")
    assert "x 0.046875 mm (used)" in found(macula, "pixel spacing")
    assert "frame_locations: 20 of 20 frames over" in found(macula, "B-scan distance")
    assert "localizer pixels (used)" in found(macula, "B-scan distance")
    assert "cirrus_field_of_view: a correction for this device (used)" in found(cirrus, "B-scan distance")
    assert "slice_thickness: 0.046875 mm;" in found(cirrus, "B-scan distance")
    assert "0.375 x 0.015625 x 0.046875 mm" in found(cirrus, "spacing")


def test_the_row_of_a_manifest_counts_as_in_a_job(scan: Any, guard: Guard, at_hand: None, tmp_path: Path) -> None:
    good = scan(MACULA)
    dataset = good.dataset()
    del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    attach_native(dataset, good.volume)
    file = put(tmp_path, good, serialise(dataset))
    alone = explain(file, guard, geometry=BLOCK6)
    assert alone.reason == "SPACING_MISSING"
    assert "manifest: none" in found(alone, "pixel spacing")
    rows = f"filepath\tpixel_spacing\n/{good.path}\t[0.018, 0.046875]\n"
    (tmp_path / "retinal_oct" / "manifest.tsv").write_text(rows, encoding="utf-8")
    listed = explain(file, guard, geometry=BLOCK6)
    assert listed.accepted, listed.detail
    assert "manifest: 0.018 x 0.046875 mm (used)" in found(listed, "pixel spacing")


def test_a_failed_check_stops_only_what_needs_it(scan: Any, guard: Guard, at_hand: None, tmp_path: Path) -> None:
    good = scan(MACULA)
    dataset = good.dataset()
    dataset.PatientID, dataset.Modality, dataset.BurnedInAnnotation = "9999", "OT", "YES"
    del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    attach_native(dataset, np.zeros_like(good.volume))
    said = explain(put(tmp_path, good, serialise(dataset)), guard, geometry=BLOCK6)
    failed = [(one.check, one.outcome) for one in said.findings if one.failed]
    assert failed == [
        ("image kind", "MODALITY_ENFACE_OR_OCTA"),
        ("participant", "PARTICIPANT_PATH_MISMATCH"),
        ("spacing", "SPACING_MISSING"),
        ("content", "ALL_ZERO"),
        ("annotation", "BURNED_IN_SUSPECT"),
    ]
    assert said.reason == failed[0][1]
    not_reached = [one.check for one in said.findings if one.outcome == NOT_REACHED]
    assert not_reached == ["identity", "positions", "agreement", "grid", "duplicates"]


def test_a_field_of_view_of_another_protocol_is_a_warning(
    scan: Any, guard: Guard, at_hand: None, tmp_path: Path
) -> None:
    """And no reason to reject: the verdict says so too."""
    good = scan(MACULA)
    path = good.path.replace(MACULA, "maestro2_3d_wide_oct")
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_bytes(good.encode())
    said = explain(str(tmp_path / path), guard, geometry=BLOCK6)
    assert said.accepted
    assert outcomes(said)["agreement"] == WARNING
    assert found(said, "agreement").startswith("SPACING_INCONSISTENT: the scan covers 6.3 x 6.0 mm")
    assert said.verdict == f"accepted; {found(said, 'agreement')}"


def test_a_moved_file_is_judged_by_the_path_that_is_given(
    scan: Any, guard: Guard, at_hand: None, tmp_path: Path
) -> None:
    good = scan(MACULA)
    moved = tmp_path / "4999" / "x.dcm"
    moved.parent.mkdir()
    moved.write_bytes(good.encode())
    assert explain(str(moved), guard, geometry=BLOCK6).reason == "PARTICIPANT_PATH_MISMATCH"
    assert explain(str(moved), guard, path=good.path, geometry=BLOCK6).accepted


def test_a_file_over_the_limit_is_not_read(scan: Any, guard: Guard, tmp_path: Path) -> None:
    good = scan(MACULA)
    file = put(tmp_path, good, good.encode())
    said = explain(file, guard, geometry=BLOCK6, limits=Limits(max_file_bytes=20_000))
    assert said.reason == "PARSE_LIMIT_EXCEEDED"
    assert outcomes(said) == {"bytes": "PARSE_LIMIT_EXCEEDED", **{check.name: NOT_REACHED for check in CHECKS}}


def test_what_is_not_there_is_one_sentence(scan: Any, guard: Guard, tmp_path: Path) -> None:
    archive = apply_way(as_case(scan(MACULA)), "zipped")
    write(tmp_path, archive)
    for file, says in (
        (str(tmp_path / "none.dcm"), "does not exist"),
        (str(tmp_path), "is a folder"),
        (f"{tmp_path / archive.files[0][0]}!none.dcm", "no file of that name"),
        ("nowhere://x.dcm", "cannot be read"),
    ):
        with pytest.raises(SourceError, match=says) as raised:
            explain(file, guard, geometry=BLOCK6)
        assert raised.value.exit_code == 2


def test_no_finding_quotes_the_header(scan: Any, guard: Guard, at_hand: None, tmp_path: Path) -> None:
    good = scan(MACULA)
    keywords = [element.keyword for element in good.dataset() if element.VR not in {"SQ", "UI", "OB", "OW"}]
    assert len(keywords) > 20
    for keyword in keywords:
        dataset = good.dataset()
        tag = dataset[keyword].tag
        dataset.pop(keyword)
        dataset.add_new(tag, "LO", CANARY)
        attach_native(dataset, good.volume)
        said = explain(put(tmp_path, good, serialise(dataset)), guard, geometry=BLOCK6)
        assert CANARY not in json.dumps(said.to_json()), keyword
        assert "UNKNOWN_ERROR" not in outcomes(said).values(), keyword


SEGFAULT = """
import ctypes, imagecodecs
whole = imagecodecs.jpeg2k_decode
def jpeg2k_decode(data, *args, **kwargs):
    pixels = whole(data, *args, **kwargs)
    if pixels[0, 0] == 251:
        {fault}
    return pixels
imagecodecs.jpeg2k_decode = jpeg2k_decode
"""


@pytest.mark.parametrize(("fault", "how"), [("ctypes.string_at(0)", "SIGSEGV"), ("raise BaseException", "exit code 1")])
def test_a_decoder_that_dies_is_a_finding_after_those_before_it(
    scan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, how: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SEGFAULT.format(fault=fault), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    good = scan(MACULA, JPEG2000Lossless)
    volume = good.volume.copy()
    volume[len(volume) // 2, 0, 0] = 251
    with Guard() as own:
        said = explain(put(tmp_path, good, encode_dicom(volume, good.header)), own, geometry=BLOCK6)
    assert said.reason == "FRAME_UNDECODABLE"
    assert outcomes(said)["frame structure"] == OK
    assert outcomes(said)["decoding"] == "FRAME_UNDECODABLE"
    assert how in found(said, "decoding")
    assert outcomes(said)["content"] == outcomes(said)["duplicates"] == NOT_REACHED


def test_a_defect_of_ours_is_a_finding_and_says_where(
    scan: Any, guard: Guard, at_hand: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.checkup.check_content", lambda *_: 1 / 0)
    said = explain(put(tmp_path, scan(MACULA), scan(MACULA).encode()), guard, geometry=BLOCK6)
    assert outcomes(said)["content"] == "UNKNOWN_ERROR"
    assert "ZeroDivisionError" in found(said, "content")
    assert outcomes(said)["annotation"] == OK
