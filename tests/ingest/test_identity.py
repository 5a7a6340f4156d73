"""Participant, device and laterality by path and header, which must agree."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset

from ingest.errors import IngestError
from ingest.facts import path_facts
from ingest.identity import (
    PROTOCOL_PATTERN,
    PROTOCOL_WORDS,
    UNKNOWN,
    anatomic_region,
    check_image_kind,
    identify,
    known_protocol,
    path_identity,
)
from ingest.phantom.protocols import PROTOCOLS
from ingest.record import Identity
from manifests.plan import ManifestRow
from manifests.reasons import Reason

MACULA = "maestro2_3d_macula_oct"


def identity(scan: Any, edit: Callable[[Dataset], object] = bool, path: str | None = None) -> Identity:
    dataset = scan.dataset()
    edit(dataset)
    check_image_kind(dataset)
    return identify(dataset, path or scan.path, None)


def refused(scan: Any, edit: Callable[[Dataset], object] = bool, path: str | None = None) -> IngestError:
    with pytest.raises(IngestError) as caught:
        identity(scan, edit, path)
    return caught.value


def refusal(scan: Any, edit: Callable[[Dataset], object] = bool, path: str | None = None) -> Reason:
    return refused(scan, edit, path).reason


@given(st.from_regex(r"[1-9][0-9]{3}", fullmatch=True))
def test_ids_of_every_site_are_matched_by_structure(participant: str) -> None:
    """PREDECESSOR 5: only ids starting with 1 matched, and two of three clinical sites were lost."""
    name = f"{participant}_spectralis_ppol_mac_hr_oct_l_1.2.840.1.dcm"
    found = path_identity(f"retinal_oct/structural_oct/heidelberg_spectralis/{participant}/{name}")
    assert found.participant_id == participant
    assert (found.device, found.laterality) == ("heidelberg_spectralis", "L")


@pytest.mark.parametrize(
    ("path", "protocol"),
    [
        ("a/topcon_triton/7001/7001_triton_3d_radial_oct_r_1.2.3.dcm", "triton_3d_radial_oct"),
        ("dataset/retinal_oct/structural_oct/zeiss_cirrus/4001/4001_cirrus_mac_oct_r_1.2.DCM", "cirrus_mac_oct"),
        (
            "heidelberg_spectralis.zip!1001/1001_spectralis_ppol_mac_hr_oct_oct_l_1.2.dcm",
            "spectralis_ppol_mac_hr_oct",
        ),
        ("topcon_triton/7001/7001_triton_macula_6x6_octa_l_1.2", "triton_macula_6x6_octa"),
    ],
)
def test_protocol_is_what_stands_between_id_and_laterality(path: str, protocol: str) -> None:
    found = path_identity(path)
    assert found.protocol == protocol
    assert found.device is not None


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_of_the_cohort_keeps_its_name(name: str) -> None:
    assert known_protocol(name) == name
    assert known_protocol(name.upper()) == name
    assert known_protocol(f"{name}_{name.rpartition('_')[2]}") == name


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("jane_doe_mac_oct", "mac_oct"),
        ("cirrus_512x128_macular_cube_oct", "cirrus_512x128_macular_cube_oct"),
        ("hd_21line_raster", "hd_21line_raster"),
        ("spectralis_glaucoma_wide_volume_3d", "spectralis_glaucoma_wide_volume_3d"),
        ("mac_19850312_oct", "mac_oct"),
        ("mac_1985x0312_oct", "mac_oct"),
        ("mac_2024x1231", "mac"),
        ("serial887654_triton", "triton"),
        ("macjane", "unknown"),
        ("maculaé_oct", "oct"),
        ("maestro2 3d", "unknown"),
        ("<b>", "unknown"),
        ("=1+1", "unknown"),
        ("", "unknown"),
        ("___", "unknown"),
    ],
)
def test_words_that_are_not_of_scanning_are_dropped_from_a_protocol(words: str, kept: str) -> None:
    assert known_protocol(words) == kept


@given(st.text())
def test_nothing_but_known_words_comes_out_of_a_name(text: str) -> None:
    kept = known_protocol(text)
    assert known_protocol(kept) == kept
    assert all(
        word in PROTOCOL_WORDS or PROTOCOL_PATTERN.fullmatch(word) for word in kept.split("_") if kept != UNKNOWN
    )


def test_a_name_with_other_words_still_says_who_and_which_eye() -> None:
    found = path_identity("zeiss_cirrus/4001/4001_Jane Doe, 12 März_mac_oct_r_1.2.dcm")
    assert (found.participant_id, found.protocol, found.laterality) == ("4001", "mac_oct", "R")


def test_digits_of_other_scripts_are_no_participant() -> None:
    assert path_identity("٤١٢٣/٤١٢٣_mac_oct_l_1.2.dcm").participant_id is None


@pytest.mark.parametrize("path", ["some/where/image.dcm", "image.dcm", "4123/raw/image.dcm", "4123/05/image.dcm"])
def test_a_path_that_says_nothing_says_nothing(path: str) -> None:
    found = path_identity(path)
    assert (found.participant_id, found.device, found.protocol, found.laterality) == (None, None, None, None)


NAMED = "4123_maestro2_3d_macula_oct_l_1.2.dcm"


@pytest.mark.parametrize(
    "folders",
    [
        "4123", "4123/2023", "4123/202305", "4123/20230531", "4123/2023/05", "4123/1999/20000101", "4123/4999",
        "4123/raw", "2023", "20230531", "2023/4123", "300/4123", "300/data", "300/topcon_maestro2",
        "300/topcon_maestro2/2023", "raw", "",
    ],
)  # fmt: skip
def test_a_file_named_after_a_participant_may_lie_below_dates(folders: str, scan: Any) -> None:
    assert path_identity(f"{folders}/{NAMED}").participant_id == "4123"
    assert identity(scan(MACULA), path=f"{folders}/{NAMED}").participant_id == "4123"


@pytest.mark.parametrize(
    "folders", ["4999", "4999/2023", "4999/2023/20230531", "4999/202305", "41230", "2023/4999", "2100"]
)
def test_a_file_in_the_folder_of_another_participant_is_found(folders: str, scan: Any) -> None:
    with pytest.raises(IngestError, match="folder and file name give different participants"):
        path_identity(f"{folders}/{NAMED}")
    assert refusal(scan(MACULA), path=f"{folders}/{NAMED}") is Reason.PARTICIPANT_PATH_MISMATCH


@pytest.mark.parametrize("number", ["1985", "2023", "202305", "20230531"])
def test_a_participant_may_have_the_number_of_a_year(number: str, scan: Any) -> None:
    def edit(dataset: Dataset) -> None:
        dataset.PatientID = number

    assert identity(scan(MACULA), edit, f"{number}/image.dcm").participant_id == number
    assert identity(scan(MACULA), edit, f"{number}/{number}_mac_l_1.2.dcm").participant_id == number
    assert refusal(scan(MACULA), path=f"{number}/image.dcm") is Reason.PARTICIPANT_PATH_MISMATCH
    assert refusal(scan(MACULA), edit, f"{number}/{NAMED}") is Reason.PARTICIPANT_PATH_MISMATCH


@pytest.mark.parametrize(
    "folders", ["4123/2023", "4123/visit/2023", "4123/2023/20230531", "2023/4123", "4123/300/2023"]
)
def test_without_a_name_the_header_says_which_of_several_numbers_is_the_participant(folders: str, scan: Any) -> None:
    assert identity(scan(MACULA), path=f"{folders}/image.dcm").participant_id == "4123"


@pytest.mark.parametrize(
    "folders", ["4999/2023", "4123/4999", "4123/1000", "2023/1985", "4123/202313", "4123/20230532"]
)
def test_without_a_name_a_parent_that_is_no_date_is_the_participant(folders: str, scan: Any) -> None:
    assert refusal(scan(MACULA), path=f"{folders}/image.dcm") is Reason.PARTICIPANT_PATH_MISMATCH


@pytest.mark.parametrize(
    ("path", "participant"),
    [("4123/2023/image.dcm", "4123"), ("2023/image.dcm", "2023"), ("2023/1985/image.dcm", "1985"), ("2023/IM", "2023")],
)
def test_of_several_numbers_the_row_has_the_likeliest(path: str, participant: str) -> None:
    assert path_facts(path).participant_id == participant


def test_what_a_path_contradicts_is_unknown_and_the_rest_is_known() -> None:
    participant = path_facts(f"topcon_maestro2/4999/{NAMED}")
    assert (participant.participant_id, participant.device, participant.laterality) == (None, "topcon_maestro2", "L")
    device = path_facts(f"zeiss_cirrus/4123/{NAMED}")
    assert (device.participant_id, device.device, device.protocol) == ("4123", None, MACULA)


def test_good_file_is_identified(scan: Any) -> None:
    found = identity(scan(MACULA))
    assert (found.participant_id, found.device, found.laterality) == ("4123", "topcon_maestro2", "L")
    assert (found.manufacturer_model, found.protocol, found.anatomic_region) == ("Maestro2", MACULA, "Macula")


def test_folder_file_name_and_header_must_name_one_participant(scan: Any) -> None:
    good = scan(MACULA)
    assert refusal(good, lambda d: setattr(d, "PatientID", "4124")) is Reason.PARTICIPANT_PATH_MISMATCH
    assert refusal(good, lambda d: delattr(d, "PatientID")) is Reason.PARTICIPANT_PATH_MISMATCH
    assert refusal(good, path=good.path.replace("/4123/", "/4999/")) is Reason.PARTICIPANT_PATH_MISMATCH


def test_folder_and_header_must_name_one_device(scan: Any) -> None:
    good = scan(MACULA)
    assert refusal(good, path=good.path.replace("topcon_maestro2", "zeiss_cirrus")) is Reason.DEVICE_PATH_MISMATCH
    assert refusal(good, lambda d: setattr(d, "ManufacturerModelName", "Triton plus")) is Reason.DEVICE_PATH_MISMATCH

    def nameless(dataset: Dataset) -> None:
        dataset.ManufacturerModelName = dataset.Manufacturer = "Acme"

    assert refusal(good, nameless) is Reason.DEVICE_PATH_MISMATCH


NEITHER = "a laterality in the header is neither R nor L."


@pytest.mark.parametrize(
    ("keyword", "value", "detail"),
    [
        ("ImageLaterality", "R", "the header gives both lateralities, R and L."),
        ("ImageLaterality", "L\\R", "the header gives both lateralities, R and L."),
        ("Laterality", "R", "the header gives both lateralities, R and L."),
        *(
            (keyword, value, NEITHER)
            for keyword in ("ImageLaterality", "Laterality")
            for value in ("l", "r", "OS", "B")
        ),
        ("ImageLaterality", "L\\U", NEITHER),
    ],
)
def test_laterality_in_the_header_is_one_of_two_letters(scan: Any, keyword: str, value: str, detail: str) -> None:
    with disable_value_validation():
        fault = refused(scan(MACULA), lambda d: d.add_new(keyword, "CS", value.split("\\")))
    assert (fault.reason, fault.detail) == (Reason.LATERALITY_MISSING_OR_CONFLICT, detail)


@pytest.mark.parametrize("value", ["L ", " L", "  L  ", "L\0"])
def test_padding_is_no_part_of_a_laterality(scan: Any, value: str) -> None:
    with disable_value_validation():
        assert identity(scan(MACULA), lambda d: setattr(d, "ImageLaterality", value)).laterality == "L"


def test_header_and_name_say_the_same_eye(scan: Any) -> None:
    good = scan(MACULA)
    fault = refused(good, path=good.path.replace("_l_", "_r_"))
    assert fault.reason is Reason.LATERALITY_MISSING_OR_CONFLICT
    assert fault.detail == "header and name give different lateralities."


def other_frames(dataset: Dataset) -> None:
    """No sequence where one must be: PARSER_CRASH."""
    del dataset.PerFrameFunctionalGroupsSequence
    dataset.add_new("PerFrameFunctionalGroupsSequence", "LO", "x")


FAULTS: dict[str, tuple[Reason, Callable[[Dataset], object], Callable[[str], str]]] = {
    "uid": (Reason.META_HEADER_INVALID, lambda d: delattr(d, "SOPInstanceUID"), str),
    "frames": (Reason.PARSER_CRASH, other_frames, str),
    "patient": (Reason.PARTICIPANT_PATH_MISMATCH, lambda d: setattr(d, "PatientID", "4124"), str),
    "folder": (Reason.PARTICIPANT_PATH_MISMATCH, bool, lambda path: path.replace("/4123/", "/4999/")),
    "device": (Reason.DEVICE_PATH_MISMATCH, lambda d: setattr(d, "Manufacturer", "Zeiss"), str),
    "device_folder": (
        Reason.DEVICE_PATH_MISMATCH,
        bool,
        lambda path: path.replace("topcon_maestro2/", "zeiss_cirrus/"),
    ),
    "eye": (Reason.LATERALITY_MISSING_OR_CONFLICT, lambda d: setattr(d, "ImageLaterality", "R"), str),
    "name": (Reason.LATERALITY_MISSING_OR_CONFLICT, bool, lambda path: path.replace("_l_", "_r_")),
}


@pytest.mark.parametrize(("one", "other"), list(combinations(FAULTS, 2)))
def test_of_two_faults_in_path_or_header_the_earlier_code_is_told(scan: Any, one: str, other: str) -> None:
    (first, edit_one, move_one), (second, edit_other, move_other) = FAULTS[one], FAULTS[other]
    path = move_other(move_one(scan(MACULA).path))
    found = refusal(scan(MACULA), lambda dataset: (edit_other(dataset), edit_one(dataset)), path)
    assert found is min(first, second, key=lambda reason: reason.precedence)


def test_en_face_and_flow_are_known_by_image_type_not_by_name(scan: Any) -> None:
    good = scan(MACULA)
    en_face = ["DERIVED", "SECONDARY", "", "ENFACE"]
    assert refusal(good, lambda d: setattr(d, "ImageType", en_face)) is Reason.MODALITY_ENFACE_OR_OCTA
    assert refusal(good, lambda d: setattr(d, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.4")) is Reason.WRONG_SOP_CLASS
    assert identity(scan("triton_macula_6x6_octa")).protocol == "triton_macula_6x6_octa"


def test_region_is_the_manifests_if_it_is_a_known_one() -> None:
    assert anatomic_region("maestro2_macula_6x6_octa", ManifestRow(anatomic_region="Macula, 6 x 6")) == "Macula, 6 x 6"
    assert anatomic_region("cirrus_disc_oct", ManifestRow(anatomic_region="Jane Doe")) == "Optic Disc"
    assert anatomic_region("cirrus_mac_oct", ManifestRow(anatomic_region="Macula, 1985 x 0312")) == "Macula"
    assert anatomic_region("maestro2_3d_wide_oct", None) == "Wide Field"


@pytest.mark.parametrize(
    ("keyword", "reason"), [("SOPInstanceUID", "META_HEADER_INVALID"), ("PatientID", "PARTICIPANT_PATH_MISMATCH")]
)
def test_who_it_is_is_said_once(scan: Any, keyword: str, reason: str) -> None:
    dataset = scan("cirrus_mac_oct").dataset()
    values = [str(dataset[keyword].value), "4999"]
    del dataset[keyword]
    with disable_value_validation():
        dataset.add_new(keyword, "LO", values)
        with pytest.raises(IngestError) as caught:
            identify(dataset, scan("cirrus_mac_oct").path, None)
    assert caught.value.reason is Reason[reason]
