"""Participant, device and laterality by path and header, which must agree."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset

from ingest.errors import IngestError
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


def refusal(scan: Any, edit: Callable[[Dataset], object] = bool, path: str | None = None) -> Reason:
    with pytest.raises(IngestError) as caught:
        identity(scan, edit, path)
    return caught.value.reason


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


def test_a_path_that_says_nothing_says_nothing() -> None:
    found = path_identity("some/where/image.dcm")
    assert (found.participant_id, found.device, found.protocol, found.laterality) == (None, None, None, None)


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


def test_laterality_is_in_the_header_and_agrees(scan: Any) -> None:
    good = scan(MACULA)
    assert refusal(good, lambda d: setattr(d, "ImageLaterality", "R")) is Reason.LATERALITY_MISSING_OR_CONFLICT
    assert refusal(good, lambda d: setattr(d, "ImageLaterality", "B")) is Reason.LATERALITY_MISSING_OR_CONFLICT
    assert refusal(good, path=good.path.replace("_l_", "_r_")) is Reason.LATERALITY_MISSING_OR_CONFLICT


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
