"""The decode function against hand-checked pixel facts: every transfer syntax, and files that must be refused."""

import hashlib
import json
import struct
from collections.abc import Callable
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.uid import HTJ2K, UID, HTJ2KLossless, JPEG2000Lossless, JPEGLossless

from ingest.errors import IngestError
from ingest.header import parse_file
from ingest.phantom.dicom import serialise
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


def items(*values: bytes) -> bytes:
    """Encapsulated pixels: a basic offset table, and fragments."""
    even = [value + b"\0" * (len(value) % 2) for value in values]
    return b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(value)) + value for value in even)


def coded(volume: Pixels, codecformat: str = "j2k") -> list[bytes]:
    frames = [bytes(imagecodecs.jpeg2k_encode(frame, level=0, codecformat=codecformat)) for frame in volume]
    return [frame + b"\0" * (len(frame) % 2) for frame in frames]


def parts(frame: bytes, *cuts: int) -> list[bytes]:
    """A frame in several fragments."""
    return [frame[start:stop] for start, stop in pairwise((0, *cuts, len(frame)))]


def offsets(lengths: list[int]) -> list[int]:
    """Of each of these fragments, from the first one's item on."""
    return [0, *accumulate(length + 8 for length in lengths)][:-1]


def in_fragments(
    scan: Any, fragments: list[bytes], table: bytes = b"", extended: list[int] | None = None, lengths: Any = None
) -> Any:
    good = scan("maestro2_3d_macula_oct", JPEG2000Lossless)
    dataset = good.dataset()
    dataset.add_new(0x7FE00010, "OB", items(table, *fragments))
    dataset["PixelData"].is_undefined_length = True
    for keyword, values in (("ExtendedOffsetTable", extended), ("ExtendedOffsetTableLengths", lengths)):
        if values is not None:
            setattr(dataset, keyword, struct.pack(f"<{len(values)}Q", *values))
    with disable_value_validation():
        return good, serialise(dataset)


def basic(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}L", *values)


@pytest.mark.parametrize("codecformat", ["j2k", "jp2"])
@pytest.mark.parametrize("cuts", [(200,), (86,), (12, 40), (300, 1000)])
def test_frames_in_several_fragments_are_joined_by_their_start(scan: Any, codecformat: str, cuts: Any) -> None:
    """Also where a JP2's boxes end and its codestream begins, which is no frame of its own."""
    frames = coded(scan("maestro2_3d_macula_oct").volume, codecformat)
    if codecformat == "jp2":  # an odd box more, so that a fragment may begin where the codestream does
        frames = [frame[:32] + b"\0\0\0\x09free\0" + frame[32:] for frame in frames]
        cuts = tuple(sorted({*cuts, frames[0].index(b"\xff\x4f\xff\x51")}))
    good, data = in_fragments(scan, [part for frame in frames for part in parts(frame, *cuts)])
    assert np.array_equal(decode(data), good.volume)


@pytest.mark.parametrize("kind", ["basic", "extended", "extended with lengths"])
def test_an_offset_table_joins_fragments_that_nothing_else_could(scan: Any, kind: str) -> None:
    """Every second part begins as a frame does."""
    start = b"\xff\x4f\xff\x51"
    frames = [frame + bytes(2) for frame in coded(scan("maestro2_3d_macula_oct").volume)]
    fragments = [part for frame in frames for part in (frame[:2], frame[2:])]
    assert not any(part.startswith(start) for part in fragments)
    starts = offsets([len(part) for part in fragments])[::2]
    table = basic(*starts) if kind == "basic" else b""
    extended = None if table else starts
    lengths = [len(frame) for frame in frames] if "lengths" in kind else None
    good, data = in_fragments(scan, fragments, table, extended, lengths)
    assert np.array_equal(decode(data), good.volume)
    assert refusal(in_fragments(scan, fragments)[1]) is Reason.NFRAMES_MISMATCH


LIES: dict[str, Callable[[list[int]], list[int]]] = {
    "inside of a fragment": lambda starts: [*starts[:5], starts[5] + 4, *starts[6:]],
    "beyond the end": lambda starts: [*starts[:-1], starts[-1] + 10**6],
    "far beyond the end": lambda starts: [*starts[:-1], 2**32 - 2],
    "backwards": lambda starts: starts[::-1],
    "two swapped": lambda starts: [*starts[:3], starts[4], starts[3], *starts[5:]],
    "rotated": lambda starts: [*starts[1:], starts[0]],
    "one twice": lambda starts: [*starts[:4], starts[3], *starts[5:]],
    "one too few": lambda starts: starts[:-1],
    "one too many": lambda starts: [*starts, starts[-1] + 8],
    "not from zero on": lambda starts: [start + 8 for start in starts],
    "only the first": lambda _: [0],
}


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("kind", ["basic", "extended"])
@pytest.mark.parametrize("lie", LIES)
def test_an_offset_table_that_lies_is_refused(scan: Any, lie: str, kind: str, pieces: int) -> None:
    """Readers that believe it see other frames, or in another order, than those that do not."""
    frames = coded(scan("maestro2_3d_macula_oct").volume)
    fragments = [part for frame in frames for part in (parts(frame, 200) if pieces == 2 else [frame])]
    starts = LIES[lie](offsets([len(part) for part in fragments])[::pieces])
    table, extended = (basic(*starts), None) if kind == "basic" else (b"", starts)
    assert refusal(in_fragments(scan, fragments, table, extended)[1]) is Reason.NFRAMES_MISMATCH


@pytest.mark.parametrize("pieces", [1, 2])
def test_an_offset_table_of_zeros_is_a_placeholder(scan: Any, pieces: int) -> None:
    frames = coded(scan("maestro2_3d_macula_oct").volume)
    fragments = [part for frame in frames for part in (parts(frame, 200) if pieces == 2 else [frame])]
    good, data = in_fragments(scan, fragments, basic(*[0] * len(frames)))
    assert np.array_equal(decode(data), good.volume)


def test_an_offset_table_of_half_a_number_is_refused(scan: Any) -> None:
    frames = coded(scan("maestro2_3d_macula_oct").volume)
    table = basic(*offsets([len(frame) for frame in frames]))
    assert refusal(in_fragments(scan, frames, table + b"\0\0")[1]) is Reason.NFRAMES_MISMATCH


def test_lengths_of_the_extended_offset_table_must_be_true(scan: Any) -> None:
    frames = coded(scan("maestro2_3d_macula_oct").volume)
    lengths = [len(frame) for frame in frames]
    good, data = in_fragments(scan, frames, b"", offsets(lengths), lengths)
    assert np.array_equal(decode(data), good.volume)
    for lie in ([*lengths[:-1], lengths[-1] - 40], [lengths[0] + 2, *lengths[1:]], lengths[:-1], []):
        result = in_fragments(scan, frames, b"", offsets(lengths), lie)[1]
        if lie:
            assert refusal(result) is Reason.NFRAMES_MISMATCH
        else:
            assert np.array_equal(decode(result), good.volume), "they may be absent"
