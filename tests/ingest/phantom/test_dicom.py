import dataclasses
import datetime
import io

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_fragments

from ingest.phantom.dicom import OPT_SOP_CLASS, encode_dicom, write_dicom
from ingest.phantom.errors import PhantomHeaderError
from ingest.phantom.header import HeaderSpec, Uids, plain_frames, plane_frames
from ingest.phantom.protocols import (
    EXPLICIT_LE,
    JPEG_2000,
    JPEG_2000_LOSSLESS,
    JPEG_LS_LOSSLESS,
    LOSSLESS,
    PROTOCOLS,
    RLE_LOSSLESS,
    TRANSFER_SYNTAXES,
    true_spacing_mm,
)

DECODERS = {
    JPEG_2000_LOSSLESS: imagecodecs.jpeg2k_decode,
    JPEG_2000: imagecodecs.jpeg2k_decode,
    JPEG_LS_LOSSLESS: imagecodecs.jpegls_decode,
}


def read(data):
    return pydicom.dcmread(io.BytesIO(data))


def pixels_of(dataset):
    decoder = DECODERS.get(dataset.file_meta.TransferSyntaxUID)
    if decoder is None:
        return dataset.pixel_array
    fragments = list(generate_fragments(dataset.PixelData))[1:]
    return np.stack([decoder(fragment.rstrip(b"\0") + b"\0") for fragment in fragments])


@pytest.fixture(scope="module")
def speckled():
    protocol = PROTOCOLS["maestro2_3d_macula_oct"].small()
    rows = np.arange(protocol.rows)[:, None]
    grey = 40 + 120 * np.exp(-(((rows - 70) / 15) ** 2)) + np.random.default_rng(1).normal(0, 12, protocol.shape)
    return protocol, np.clip(grey, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("syntax", sorted(LOSSLESS))
@pytest.mark.parametrize("offset_table", [True, False])
def test_lossless_pixels_come_back_equal(header_of, speckled, syntax, offset_table):
    protocol, volume = speckled
    header = dataclasses.replace(header_of(protocol, syntax), offset_table=offset_table)
    dataset = read(encode_dicom(volume, header))
    assert dataset.file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(pixels_of(dataset), volume)


def test_lossy_pixels_are_close_and_declared(header_of, speckled):
    protocol, volume = speckled
    dataset = read(encode_dicom(volume, header_of(protocol, JPEG_2000)))
    error = pixels_of(dataset).astype(float) - volume
    assert 0 < np.sqrt(np.mean(error**2)) < 4
    assert dataset.LossyImageCompression == "01"
    assert dataset.LossyImageCompressionMethod == "ISO_15444_1"


def test_rle_runs_end_with_their_row(header_of, speckled):
    """PS3.5 G.3.1: each row is encoded on its own."""
    volume = np.full((4, 6, 10), 7, np.uint8)
    header = dataclasses.replace(header_of(speckled[0], RLE_LOSSLESS), frames=plain_frames(4))
    dataset = read(encode_dicom(volume, header))
    first = list(generate_fragments(dataset.PixelData))[1]
    assert first[64:] == b"\xf7\x07" * 6
    assert np.array_equal(dataset.pixel_array, volume)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_header_names_what_the_protocol_is(header_of, name):
    protocol = PROTOCOLS[name].small()
    dataset = read(encode_dicom(np.zeros(protocol.shape, np.uint8), header_of(protocol)))
    assert dataset.SOPClassUID == dataset.file_meta.MediaStorageSOPClassUID == OPT_SOP_CLASS
    assert (dataset.Modality, dataset.BitsAllocated, dataset.PhotometricInterpretation) == ("OPT", 8, "MONOCHROME2")
    assert (dataset.PatientID, dataset.PatientSex, dataset.ImageLaterality) == ("4321", "M", "R")
    assert dataset.SharedFunctionalGroupsSequence[0].FrameAnatomySequence[0].FrameLaterality == "R"
    assert len(dataset.PerFrameFunctionalGroupsSequence) == dataset.NumberOfFrames == protocol.num_frames
    assert dataset.file_meta.TransferSyntaxUID in TRANSFER_SYNTAXES[protocol.device]


def slow_positions(dataset, lateral_mm):
    """B-scan positions by the documented reading of each source, mm."""
    groups = dataset.PerFrameFunctionalGroupsSequence
    if "OphthalmicFrameLocationSequence" in groups[0]:
        lines = np.array([group.OphthalmicFrameLocationSequence[0].ReferenceCoordinates for group in groups])
        scale = dataset.Columns * lateral_mm / (lines[:, 3] - lines[:, 1])
        return lines[:, 0] * scale
    return np.array([float(group.PlanePositionSequence[0].ImagePositionPatient[2]) for group in groups])


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("name", [name for name, protocol in PROTOCOLS.items() if protocol.raster])
def test_spacing_in_the_header_is_the_truth_to_a_nanometre(header_of, name, small):
    protocol = PROTOCOLS[name].small() if small else PROTOCOLS[name]
    blank = np.zeros((protocol.num_frames, 2, protocol.columns), np.uint8)
    dataset = read(encode_dicom(blank, header_of(protocol, EXPLICIT_LE)))
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert all(len(str(value)) <= 16 for value in measures.PixelSpacing)
    step, axial, lateral = true_spacing_mm(protocol)
    assert [float(value) for value in measures.PixelSpacing] == pytest.approx([axial, lateral], abs=1e-6)
    if protocol.positions == "none":
        assert "PlanePositionSequence" not in dataset.PerFrameFunctionalGroupsSequence[0]
    else:
        positions = slow_positions(dataset, lateral)
        assert abs(np.ptp(positions) / (len(positions) - 1) - step) < 1e-6
        assert np.abs(np.abs(np.diff(positions)) - step).max() < 1e-5


def test_cirrus_overwrites_slice_thickness_with_the_lateral_spacing(header_of):
    protocol = PROTOCOLS["cirrus_mac_oct"]
    header = header_of(protocol)
    assert header.slice_thickness_mm == protocol.lateral_spacing_mm != protocol.bscan_step_mm


def test_topcon_leaves_the_plane_position_empty(header_of):
    protocol = PROTOCOLS["triton_macula_6x6_octa"].small()
    dataset = read(encode_dicom(np.zeros(protocol.shape, np.uint8), header_of(protocol)))
    for group in dataset.PerFrameFunctionalGroupsSequence:
        assert group.PlanePositionSequence[0].ImagePositionPatient is None


def test_reversed_frames_count_down_and_their_stack_positions_too(header_of):
    protocol = PROTOCOLS["spectralis_mac_20x20_hs_octa"].small()
    dataset = read(encode_dicom(np.zeros(protocol.shape, np.uint8), header_of(protocol)))
    ranks = [g.FrameContentSequence[0].InStackPositionNumber for g in dataset.PerFrameFunctionalGroupsSequence]
    assert ranks == list(range(protocol.num_frames, 0, -1))
    assert np.all(np.diff(slow_positions(dataset, protocol.lateral_spacing_mm)) < 0)


def test_radial_scan_turns_and_its_spacing_varies_per_frame(header_of):
    protocol = PROTOCOLS["spectralis_onh_rc_hr_oct"].small()
    dataset = read(encode_dicom(np.zeros(protocol.shape, np.uint8), header_of(protocol)))
    groups = dataset.PerFrameFunctionalGroupsSequence
    assert "PixelMeasuresSequence" not in dataset.SharedFunctionalGroupsSequence[0]
    laterals = [float(group.PixelMeasuresSequence[0].PixelSpacing[1]) for group in groups]
    assert len(set(laterals)) > 10
    directions = np.array([group.PlaneOrientationSequence[0].ImageOrientationPatient[:3] for group in groups], float)
    assert np.degrees(np.arccos(directions[0] @ directions[len(groups) // 2])) == pytest.approx(90)


def test_any_pixels_can_be_wrapped(tmp_path):
    volume = np.random.default_rng(2).integers(0, 255, (10, 49, 61)).astype(np.uint8)
    header = HeaderSpec(
        participant_id="1001",
        device="heidelberg_spectralis",
        protocol="spectralis_ppol_mac_hr_oct",
        anatomic_region="Macula",
        laterality="L",
        model="Spectralis",
        uids=Uids.from_entropy("wrapped"),
        acquired=datetime.datetime(2024, 1, 1),
        spacing_mm=(0.0039, 0.0113),
        frames=plane_frames([0.25 * index for index in range(10)], 61 * 0.0113),
    )
    write_dicom(tmp_path / "a" / "b.dcm", volume, header)
    dataset = pydicom.dcmread(tmp_path / "a" / "b.dcm")
    assert np.array_equal(dataset.pixel_array, volume)
    assert np.diff(slow_positions(dataset, 0.0113)) == pytest.approx(0.25)


def test_pixels_that_do_not_fit_the_header_are_refused(header_of):
    protocol = PROTOCOLS["cirrus_mac_oct"].small()
    with pytest.raises(PhantomHeaderError, match="as many frame geometries"):
        encode_dicom(np.zeros((3, 4, 5), np.uint8), header_of(protocol))
    with pytest.raises(PhantomHeaderError, match="uint8"):
        encode_dicom(np.zeros(protocol.shape, np.float32), header_of(protocol))
    with pytest.raises(PhantomHeaderError, match="no encoder"):
        encode_dicom(np.zeros(protocol.shape, np.uint8), header_of(protocol, "1.2.840.10008.1.2.4.50"))
    with pytest.raises(PhantomHeaderError, match="empty"):
        dataclasses.replace(header_of(protocol), frames=())
