"""The decode function against hand-checked pixel facts: every transfer syntax, and files that must be refused."""

import hashlib
import json
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import HTJ2K, UID, HTJ2KLossless, JPEGLossless

from ingest.errors import IngestError
from ingest.header import parse_file
from ingest.pixels import decode_file
from ingest.record import Limits
from ingest.syntaxes import Pixels, codec_of
from manifests.reasons import Reason

DATA = Path(__file__).parents[1] / "data/dicom"
EXPECTED = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))
EXACT = sorted(
    path.name
    for path in DATA.glob("*.dcm")
    if EXPECTED[path.name]["expect"] == "decodes" and path.name != "JPEGExtended_1s_1f_u_16_12.dcm"
)


def decode(data: bytes) -> Pixels:
    return decode_file(parse_file(data, Limits()))


def refusal(data: bytes) -> Reason:
    with pytest.raises(IngestError) as caught:
        decode(data)
    return caught.value.reason


@pytest.mark.parametrize("name", EXACT)
def test_pixels_are_as_expected(name: str) -> None:
    facts = EXPECTED[name]
    pixels = decode((DATA / name).read_bytes())
    assert pixels.shape == (facts["frames"], facts["rows"], facts["cols"])
    assert hashlib.sha256(pixels.astype(facts["dtype"]).tobytes()).hexdigest() == facts["sha256"]


def test_lossy_jpeg_extended_is_within_one_grey_level() -> None:
    """The reference is another decoder's output, whose sha256 `expected.json` gives."""
    name = "JPEGExtended_1s_1f_u_16_12"
    reference = np.load(DATA / f"{name}.reference.npz", allow_pickle=False)["pixels"]
    assert hashlib.sha256(reference.astype("<u2").tobytes()).hexdigest() == EXPECTED[f"{name}.dcm"]["sha256"]
    difference = decode((DATA / f"{name}.dcm").read_bytes())[0].astype(int) - reference.astype(int)
    assert np.abs(difference).max() <= 1


def test_equal_pixels_in_five_transfer_syntaxes() -> None:
    names = ["", "_RLE", "_big_endian", "_jpeg_2k_lossless", "_jpeg_ls_lossless"]
    hashes = {decode((DATA / f"emri_small{name}.dcm").read_bytes()).tobytes() for name in names}
    assert len(hashes) == 1


def test_truncated_native_pixels_are_refused() -> None:
    assert refusal((DATA / "MR_truncated.dcm").read_bytes()) is Reason.PIXELDATA_LENGTH_MISMATCH


def test_truncated_encapsulated_pixels_are_refused() -> None:
    data = (DATA / "emri_small_jpeg_2k_lossless_too_short.dcm").read_bytes()
    assert refusal(data) in {Reason.PIXELDATA_MISSING, Reason.TRUNCATED_DATASET}


def declared_as(name: str, syntax: str) -> bytes:
    """The file with another transfer syntax of the same length in its file meta information."""
    dataset = dcmread(DATA / name)
    old = str(dataset.file_meta.TransferSyntaxUID)
    assert len(old) + len(old) % 2 == len(syntax) + len(syntax) % 2
    return (DATA / name).read_bytes().replace(old.encode(), syntax.ljust(len(old), "\0").encode(), 1)


def test_process_14_is_decoded_like_its_first_selection_value() -> None:
    data = declared_as("JPEGLosslessP14SV1_1s_1f_u_08_08.dcm", JPEGLossless)
    assert parse_file(data, Limits()).transfer_syntax_uid == JPEGLossless
    assert decode(data).tobytes() == decode((DATA / "JPEGLosslessP14SV1_1s_1f_u_08_08.dcm").read_bytes()).tobytes()


@pytest.mark.parametrize(
    ("name", "syntax"),
    [
        ("emri_small_jpeg_2k_lossless.dcm", "1.2.840.10008.1.2.4.80"),
        ("emri_small_jpeg_ls_lossless.dcm", "1.2.840.10008.1.2.4.90"),
        ("emri_small_jpeg_ls_lossless.dcm", "1.2.840.10008.1.2.4.70"),
        ("JPEGBaseline_1s_1f_u_08_08.dcm", "1.2.840.10008.1.2.4.80"),
    ],
)
def test_bytes_of_another_syntax_are_refused(name: str, syntax: str) -> None:
    assert refusal(declared_as(name, syntax)) is Reason.TS_MISMATCH


def test_native_bytes_under_a_compressed_syntax_are_refused() -> None:
    data = (DATA / "emri_small.dcm").read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0", 1)
    assert refusal(data) is Reason.TS_MISMATCH


def test_unknown_syntax_is_refused() -> None:
    assert refusal(declared_as("emri_small_jpeg_2k_lossless.dcm", "1.2.840.10008.1.2.4.99")) is Reason.TS_UNSUPPORTED


@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2K])
def test_high_throughput_jpeg_2000_decodes(syntax: UID) -> None:
    frame = np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8)
    codestream = imagecodecs.htj2k_encode(frame)
    codec = codec_of(syntax)
    codec.check(codestream, (48, 64), 8, 0)
    assert np.array_equal(codec.decode(codestream, (48, 64), 8), frame)


@pytest.mark.parametrize(
    "name",
    ["emri_small_RLE.dcm", "emri_small_jpeg_2k_lossless.dcm", "emri_small_jpeg_ls_lossless.dcm", "image_dfl.dcm"],
)
def test_every_truncation_is_refused(name: str) -> None:
    data = (DATA / name).read_bytes()
    end = len(data) - (8 if name == "image_dfl.dcm" else 0)  # a gzip trailer, which is no part of the data set
    cuts = {*range(end - 64, end), *range(0, end, max(1, end // 60))}
    for cut in sorted(cuts):
        with pytest.raises(IngestError):
            decode(data[:cut])


def test_a_failed_decode_is_never_read_as_raw_pixels() -> None:
    """PREDECESSOR 2: the transfer syntax was overwritten, and compressed bytes were read as pixels."""
    data = bytearray((DATA / "emri_small_jpeg_ls_lossless.dcm").read_bytes())
    middle = data.index(b"\xff\xd8\xff", len(data) // 2)
    data[middle + 200 : middle + 400] = bytes(200)
    assert refusal(bytes(data)) is Reason.FRAME_UNDECODABLE
