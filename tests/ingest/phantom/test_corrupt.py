"""Each kind of damage is what its name says, and leaves the rest of the file as it was."""

import io
import struct
import warnings
import zipfile
import zlib

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_fragments
from pydicom.errors import InvalidDicomError

from ingest.phantom.case import native_dataset
from ingest.phantom.corrupt import WAYS, assign_ways, reasons_covered
from ingest.phantom.dicom import serialise
from ingest.phantom.plan import CohortSpec, plan_cohort
from manifests.reasons import Reason

MAESTRO, TRITON, RADIAL = "maestro2_3d_macula_oct", "triton_macula_6x6_octa", "spectralis_onh_rc_hr_oct"
NEVER_ON_DISK = {"IO_UNREADABLE", "PARSER_CRASH", "SATURATED", "UNKNOWN_ERROR"}


def damage(case, name):
    outcome = WAYS[name].apply(case)
    return outcome.files[0][1], outcome


def parse(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged on purpose
        return pydicom.dcmread(io.BytesIO(data))


def fragments(dataset):
    return list(generate_fragments(dataset.PixelData))[1:]


def changed_elements(good, bad):
    """Keywords of top-level elements that differ."""
    keywords = {element.keyword for element in good} | {element.keyword for element in bad}
    return {keyword for keyword in keywords if good.get(keyword) != bad.get(keyword)}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("wrong_sop_class", {"SOPClassUID"}),
        ("enface_image", {"ImageType"}),
        ("flow_image", {"ImageType"}),
        ("other_participant", {"PatientID"}),
        ("other_device", {"Manufacturer", "ManufacturerModelName"}),
        ("other_eye", {"ImageLaterality", "SharedFunctionalGroupsSequence"}),
        ("no_eye", {"ImageLaterality", "SharedFunctionalGroupsSequence"}),
        ("burned_in", {"BurnedInAnnotation"}),
        ("frames_zero", {"NumberOfFrames"}),
        ("frames_empty", {"NumberOfFrames"}),
        ("rows_zero", {"Rows"}),
        ("no_pixels", {"PixelData"}),
        ("no_pixel_spacing", {"SharedFunctionalGroupsSequence"}),
        ("no_bscan_step", {"SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"}),
        ("spacing_disagrees", {"SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"}),
        ("position_repeated", {"PerFrameFunctionalGroupsSequence"}),
        ("position_gap", {"PerFrameFunctionalGroupsSequence"}),
        ("lost_group", {"PerFrameFunctionalGroupsSequence"}),
        ("half_frame", {"PixelData"}),
        ("broken_frame", {"PixelData"}),
        ("scrambled", {"PixelData"}),
        ("lost_fragment", {"PixelData"}),
        ("all_zero", {"PixelData"}),
        ("constant_frames", {"PixelData"}),
        ("saturated", {"PixelData"}),
    ],
)
def test_only_the_named_elements_change(case_of, name, expected):
    case = case_of(MAESTRO)
    assert changed_elements(parse(case.encode()), parse(damage(case, name)[0])) == expected


@pytest.mark.parametrize(("name", "text"), [("nan", "NaN"), ("inf", "inf"), ("negative", "-0.01"), ("zero", "0")])
def test_invalid_spacing_is_written_as_it_stands_and_in_the_manifest(case_of, name, text):
    data, outcome = damage(case_of(MAESTRO), f"spacing_{name}")
    raw = text.encode() + b"\\0.046875"
    assert raw in data
    assert outcome.manifest["pixel_spacing"].startswith(f"[{text},")


def test_missing_laterality_is_missing_everywhere(case_of):
    _, outcome = damage(case_of(MAESTRO), "no_eye")
    assert outcome.manifest["laterality"] == ""
    assert "_r_" not in outcome.files[0][0].rsplit("/", 1)[1]


def positions(data, index=0):
    groups = parse(data).PerFrameFunctionalGroupsSequence
    return np.array([g.OphthalmicFrameLocationSequence[0].ReferenceCoordinates[index] for g in groups])


def test_positions_repeat_or_jump_by_five_steps(case_of):
    case = case_of(MAESTRO)
    step = np.diff(positions(case.encode()))[0]
    repeated = np.diff(positions(damage(case, "position_repeated")[0])) / step
    jumped = np.diff(positions(damage(case, "position_gap")[0])) / step
    assert np.sum(np.abs(repeated) < 1e-3) == 1
    assert np.allclose(np.sort(jumped)[:-1], 1, atol=1e-3)
    assert jumped.max() == pytest.approx(5, abs=1e-3)


def test_per_frame_spacing_disagrees_by_a_tenth(case_of):
    groups = parse(damage(case_of(MAESTRO), "spacing_disagrees")[0]).PerFrameFunctionalGroupsSequence
    laterals = [float(group.PixelMeasuresSequence[0].PixelSpacing[1]) for group in groups]
    assert max(laterals) / min(laterals) == pytest.approx(1.1)


def test_a_video_is_declared(case_of):
    assert parse(damage(case_of(MAESTRO), "video")[0]).file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.102"


def test_color_and_few_frames_are_honest_files(case_of):
    color = parse(damage(case_of(MAESTRO), "color")[0])
    assert color.pixel_array.shape == (20, 128, 128, 3)
    few = parse(damage(case_of("spectralis_ppol_mac_hr_oct"), "few_frames")[0])
    assert few.pixel_array.shape[0] == few.NumberOfFrames == len(few.PerFrameFunctionalGroupsSequence) == 4


def test_native_lengths_disagree_with_the_header(case_of):
    case = case_of(MAESTRO)
    declared = case.volume.size
    assert len(parse(damage(case, "native_long")[0]).PixelData) == declared + 128 * 128
    assert len(parse(damage(case, "native_short")[0]).PixelData) == declared - 128 * 128
    cut = damage(case, "native_cut")[0]
    assert struct.pack("<HH2sHL", 0x7FE0, 0x0010, b"OB", 0, declared) in cut
    assert len(parse(cut).PixelData) == declared - 7 * 128 * 64


def test_files_cut_in_a_fragment_or_in_the_header(case_of):
    case = case_of(MAESTRO)
    whole = case.encode()
    in_fragment = damage(case, "cut_in_fragment")[0]
    assert whole.startswith(in_fragment)
    assert 0.3 < len(in_fragment) / len(whole) < 0.7
    in_header = damage(case, "header_cut")[0]
    assert b"\xe0\x7f\x10\x00" not in in_header
    assert in_header == serialise(native_dataset(case))[: len(in_header)]
    assert in_header.endswith(struct.pack("<HH2sH", 0x0020, 0x9056, b"SH", 2) + b"1")


def test_frames_that_cannot_be_decoded(case_of):
    case = case_of(MAESTRO)
    good = fragments(parse(case.encode()))
    half = fragments(parse(damage(case, "half_frame")[0]))[case.middle].rstrip(b"\0")
    assert good[case.middle].startswith(half)
    assert not half.endswith(b"\xff\xd9")
    broken = fragments(parse(damage(case, "broken_frame")[0]))
    assert broken[case.middle].startswith(b"\xff\x4f\xff\x51")
    assert broken[case.middle].rstrip(b"\0").endswith(b"\xff\xd9")
    assert sum(a != b for a, b in zip(good, broken, strict=True)) == 1
    with pytest.raises(imagecodecs.Jpeg2kError):
        imagecodecs.jpeg2k_decode(broken[case.middle])


def test_jpeg_ls_frames_that_cannot_be_decoded(case_of):
    case = case_of(TRITON)
    half = fragments(parse(damage(case, "half_frame_jpeg_ls")[0]))[case.middle]
    assert half.startswith(b"\xff\xd8")
    assert not half.rstrip(b"\0").endswith(b"\xff\xd9")
    broken = fragments(parse(damage(case, "broken_frame_jpeg_ls")[0]))
    assert broken[case.middle].startswith(b"\xff\xd8")
    with pytest.raises(imagecodecs.JpeglsError):
        imagecodecs.jpegls_decode(broken[case.middle])
    assert imagecodecs.jpegls_decode(broken[0]).shape == (128, 128)


def test_scrambled_codestreams_have_no_marker(case_of):
    found = fragments(parse(damage(case_of(MAESTRO), "scrambled")[0]))
    assert len(found) == 20
    assert not any(b"\xff\x4f\xff\x51" in fragment for fragment in found)


def test_bytes_are_not_in_the_declared_syntax(case_of):
    case = case_of(TRITON)
    declared = parse(damage(case, "declared_otherwise")[0])
    assert declared.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.80"
    assert fragments(declared)[0].startswith(b"\xff\x4f\xff\x51")
    native = parse(damage(case, "native_declared_compressed")[0])
    assert native.file_meta.TransferSyntaxUID.is_compressed
    assert native.PixelData == case.volume.tobytes()


def test_one_fragment_or_one_group_too_few(case_of):
    case = case_of(MAESTRO)
    assert len(fragments(parse(damage(case, "lost_fragment")[0]))) == 19
    assert len(parse(damage(case, "lost_group")[0]).PerFrameFunctionalGroupsSequence) == 19


def test_grey_levels_go_wrong(case_of):
    case = case_of("spectralis_ppol_mac_hr_oct")
    assert not parse(damage(case, "all_zero")[0]).pixel_array.any()
    frames = parse(damage(case, "constant_frames")[0]).pixel_array
    constant = np.flatnonzero(np.ptp(frames, axis=(1, 2)) == 0)
    assert list(constant) == [8, 9, 10, 11]
    bright, outcome = damage(case, "saturated")
    assert 0.2 < np.mean(parse(bright).pixel_array == 255) < 0.35
    assert outcome.truth[0][1] == ""


def test_files_that_are_no_dicom(case_of):
    case = case_of(MAESTRO)
    assert damage(case, "empty")[0] == b""
    for name in ("login_page", "random_bytes"):
        with pytest.raises(InvalidDicomError):
            parse(damage(case, name)[0])
    assert "TransferSyntaxUID" not in parse(damage(case, "no_transfer_syntax")[0]).file_meta
    bare = damage(case, "no_meta")[0]
    assert bare[128:134] == b"DICM\x08\x00"


def test_a_bomb_is_small_and_inflates_to_more_than_a_gigabyte(case_of):
    data = damage(case_of("spectralis_ppol_mac_hr_oct"), "bomb")[0]
    assert len(data) < 2_000_000
    assert data[132:140] == struct.pack("<HH2sH", 0x0002, 0x0000, b"UL", 4)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated, pending = 0, data[144 + struct.unpack_from("<L", data, 140)[0] :]
    while pending:
        inflated += len(inflater.decompress(pending, 1 << 26))
        pending = inflater.unconsumed_tail
    assert inflated > 1_000_000_000


def test_five_hundred_nested_sequences(case_of):
    data = damage(case_of(MAESTRO), "deep")[0]
    assert data.count(struct.pack("<HH2sHL", 0x0009, 0x1010, b"SQ", 0, 0xFFFFFFFF)) == 500
    with pytest.raises(RecursionError):
        parse(data)


def test_copies_share_their_identifier(case_of):
    case = case_of(MAESTRO)
    whole = case.encode()
    for name, same in (("identical_copy", True), ("conflicting_copy", False), ("broken_copy", False)):
        (first_path, first), (copy_path, copy) = WAYS[name].apply(case).files
        assert first == whole
        assert first_path < copy_path
        assert (copy == whole) is same
        assert parse(copy).SOPInstanceUID == parse(whole).SOPInstanceUID
    assert WAYS["broken_copy"].apply(case).truth[0][1] == ""
    assert {reason for _, reason in WAYS["conflicting_copy"].apply(case).truth} == {"DUP_SOP_UID_CONFLICT"}


def test_archives(case_of):
    case = case_of(MAESTRO)
    name = case.path.rsplit("/", 1)[1]
    good, outcome = damage(case, "zipped")
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        assert archive.namelist() == [name]
        assert archive.read(name) == case.encode()
    assert outcome.manifest is None
    assert [reason for _, reason in outcome.truth] == ["OUTSIDE_FILTER", ""]
    with zipfile.ZipFile(io.BytesIO(damage(case, "zip_climbs")[0])) as archive:
        assert archive.namelist() == [f"../{name}"]
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(io.BytesIO(damage(case, "zip_cut")[0]))


def test_a_missing_file_is_listed_and_not_written(case_of):
    outcome = WAYS["missing"].apply(case_of(MAESTRO))
    assert outcome.files == ()
    assert outcome.manifest["filepath"] == "/" + outcome.truth[0][0]


def test_damage_to_a_radial_scan_does_not_hide_that_it_is_one(case_of):
    case = case_of(RADIAL)
    assert WAYS["all_zero"].apply(case).truth[0][1] == "NOT_RASTER"
    assert WAYS["wrong_sop_class"].apply(case).truth[0][1] == "WRONG_SOP_CLASS"
    assert not WAYS["position_gap"].fits(case.protocol)


@pytest.mark.parametrize("name", [way.name for way in WAYS.values() if way.reason])
def test_truth_gives_the_reason_of_the_way(case_of, name):
    outcome = WAYS[name].apply(case_of(MAESTRO))
    assert WAYS[name].reason in {reason for _, reason in outcome.truth}


def test_every_reason_that_a_file_can_show_has_a_way():
    assert {reason.value for reason in reasons_covered()} == {reason.value for reason in Reason} - NEVER_ON_DISK


def test_few_broken_files_already_show_many_reasons():
    plans = plan_cohort(CohortSpec(participants=24))
    ways = [name for name in assign_ways(plans, 10 / 96, seed=1).values() if WAYS[name].breaks]
    assert len(ways) == 10
    assert len({WAYS[name].reason for name in ways}) == 10


def test_assignment_is_deterministic_and_spares_radial_scans():
    plans = plan_cohort(CohortSpec(participants=24))
    ways = assign_ways(plans, 0.5, seed=4)
    assert ways == assign_ways(plans, 0.5, seed=4) != assign_ways(plans, 0.5, seed=5)
    assert all(plan.protocol.raster for plan in plans if plan.number in ways)
    assert assign_ways(plans, 0.0, seed=4) == {}
    assert sum(WAYS[name].breaks for name in assign_ways(plans, 1.0, seed=4).values()) == 96
