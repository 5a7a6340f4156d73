"""Faults of the image's own attributes: pixels present, transfer syntax, frames, rows and columns, samples."""

from collections.abc import Iterator
from typing import Final

from pydicom.dataset import Dataset
from pydicom.uid import UID

from ingest.phantom.protocols import DEFLATED_LE, EXPLICIT_LE, IMPLICIT_LE, JPEG_2000_LOSSLESS
from ingest.phantom.stream import file_bytes
from manifests.reasons import Reason

from .build import (
    BIG_ENDIAN,
    CANARY,
    JPEG_LS_NEAR,
    NAME,
    NATIVE,
    RASTERS,
    RLE_LOSSLESS,
    SYNTAXES,
    Case,
    Edit,
    Seed,
    both,
    by_bytes,
    by_edit,
    put,
    put_numbers,
    put_text,
    seeds,
    without,
)


def _turn(place: int) -> Seed:
    return Seed(name=RASTERS[place % len(RASTERS)], syntax=SYNTAXES[place % len(SYNTAXES)])


def _floats(tag: int, vr: str, size: int) -> Edit:
    """Floating-point pixels in the place of (7FE0,0010)."""

    def edit(dataset: Dataset) -> None:
        del dataset.PixelData
        dataset.add_new(tag, vr, bytes(size * dataset.Rows * dataset.Columns))

    return edit


def _elsewhere(dataset: Dataset) -> None:
    """Pixels in the icon only (PS3.3 C.7.6.1.1.6)."""
    icon = Dataset()
    icon.Rows, icon.Columns, icon.SamplesPerPixel, icon.BitsAllocated = 2, 2, 1, 8
    icon.PhotometricInterpretation, icon.PixelRepresentation = "MONOCHROME2", 0
    icon.PixelData = bytes(4)
    icon["PixelData"].VR = "OB"
    dataset.IconImageSequence = [icon]
    del dataset.PixelData


def _provided_by_url(dataset: Dataset) -> None:
    dataset.PixelDataProviderURL = f"https://{CANARY}.example/pixels"
    del dataset.PixelData


def _private_pixels(dataset: Dataset) -> None:
    dataset.private_block(0x0029, "FOVEA TESTS", create=True).add_new(0x10, "OB", dataset.PixelData)
    del dataset.PixelData


def no_pixels() -> Iterator[Case]:
    reason = Reason.PIXELDATA_MISSING
    for seed in seeds():
        yield by_edit(reason, "gone", without("PixelData"), seed)
    native = seeds(syntaxes=NATIVE)
    for edit, name in ((_elsewhere, "in_the_icon"), (_provided_by_url, "elsewhere"), (_private_pixels, "private")):
        for seed in native[:2]:
            yield by_edit(reason, name, edit, seed)
    for tag, vr, size in ((0x7FE00008, "OF", 4), (0x7FE00009, "OD", 8)):
        for seed in native[:3]:
            yield by_edit(reason, f"floating_{vr}", _floats(tag, vr, size), seed)


STRANGE_SYNTAXES: Final = {
    "mpeg2": "1.2.840.10008.1.2.4.100",
    "mpeg2_high": "1.2.840.10008.1.2.4.101",
    "mpeg4": "1.2.840.10008.1.2.4.102",
    "mpeg4_bd": "1.2.840.10008.1.2.4.103",
    "mpeg4_42": "1.2.840.10008.1.2.4.104",
    "hevc_main": "1.2.840.10008.1.2.4.107",
    "hevc_main_10": "1.2.840.10008.1.2.4.108",
    "jpeg_xl_lossless": "1.2.840.10008.1.2.4.110",
    "jpeg_xl_recompressed": "1.2.840.10008.1.2.4.111",
    "jpeg_xl": "1.2.840.10008.1.2.4.112",
    "jpeg_2000_part_2_lossless": "1.2.840.10008.1.2.4.92",
    "jpeg_2000_part_2": "1.2.840.10008.1.2.4.93",
    "jpip": "1.2.840.10008.1.2.4.94",
    "jpip_deflated": "1.2.840.10008.1.2.4.95",
    "jpeg_progressive": "1.2.840.10008.1.2.4.55",
    "jpeg_spectral": "1.2.840.10008.1.2.4.53",
    "jpeg_hierarchical": "1.2.840.10008.1.2.4.59",
    "jpeg_lossless_15": "1.2.840.10008.1.2.4.58",
    "jpip_htj2k": "1.2.840.10008.1.2.4.204",
    "deflated_frames": "1.2.840.10008.1.2.8.1",
    "rfc_2557": "1.2.840.10008.1.2.6.1",
    "xml": "1.2.840.10008.1.2.6.2",
    "smpte": "1.2.840.10008.1.2.7.1",
    "private": "1.2.276.0.99.4.1",
    "a_sop_class": "1.2.840.10008.5.1.4.1.1.77.1.5.4",
}


def _declared(uid: str) -> Edit:
    def edit(dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = UID(uid)

    return edit


def strange_syntaxes() -> Iterator[Case]:
    for place, (name, uid) in enumerate(STRANGE_SYNTAXES.items()):
        written = (JPEG_2000_LOSSLESS, RLE_LOSSLESS, EXPLICIT_LE, JPEG_LS_NEAR)[place % 4]
        seed = Seed(name=RASTERS[place % len(RASTERS)], syntax=written)

        def make(seed: Seed = seed, uid: str = uid) -> bytes:
            dataset = seed.dataset()
            _declared(uid)(dataset)
            return file_bytes(dataset)

        known = {"transfer_syntax_uid": uid if uid.startswith("1.2.840.10008.") else None}
        yield Case(reason=Reason.TS_UNSUPPORTED, name=name, seed=seed, make=make, known=known)


def frame_counts() -> Iterator[Case]:
    reason = Reason.NFRAMES_INVALID
    texts = ("0", "00", "-1", "-10", "1.5", "10.5", "ten", "NaN", "inf", "0x0A", "10 frames", "1A", NAME, "1,000", "--")
    for place, value in enumerate(texts):
        count = int(value) if value.lstrip("-").isdigit() else None
        known = {"num_frames": count}
        yield by_edit(reason, f"{value}", put_text("NumberOfFrames", value), _turn(place), known=known)
    blank = {"num_frames": None}
    for place, value in enumerate(("", " ", "10\\10", "\\", "10\\11\\12")):
        yield by_edit(reason, f"text_{value!r}", put_text("NumberOfFrames", value), _turn(place + 4), known=blank)
    yield by_edit(reason, "absent", without("NumberOfFrames"), _turn(4), known=blank)
    yield by_edit(reason, "absent", without("NumberOfFrames"), _turn(9), known=blank)


def dimensions() -> Iterator[Case]:
    reason = Reason.DIMENSIONS_INVALID
    place = 0
    for keyword, fact in (("Rows", "rows"), ("Columns", "columns")):
        for value in (0, 1, 8193, 20000, 65535):
            place += 1
            known = {fact: value}
            yield by_edit(reason, f"{keyword}_{value}", put_numbers(keyword, value), _turn(place), known=known)
        unknown = {fact: None}
        yield by_edit(reason, f"{keyword}_absent", without(keyword), _turn(place), known=unknown)
        yield by_edit(reason, f"{keyword}_empty", lambda d, k=keyword: put(d, k, b""), _turn(place + 1), known=unknown)
        yield by_edit(reason, f"{keyword}_two", put_numbers(keyword, 64, 64), _turn(place + 2), known=unknown)
        seed = Seed(syntax=(EXPLICIT_LE, BIG_ENDIAN)[place % 2])
        yield by_edit(reason, f"{keyword}_text", put_text(keyword, "JANE", "LO"), seed, known=unknown)
        seed = Seed(syntax=DEFLATED_LE)
        negative = put_numbers(keyword, -64, form="h", vr="SS")
        yield by_edit(reason, f"{keyword}_negative", negative, seed, known={fact: -64})
    nothing = both(put_numbers("Rows", 0), put_numbers("Columns", 0))
    for seed in seeds(syntaxes=(IMPLICIT_LE, JPEG_2000_LOSSLESS)):
        yield by_edit(reason, "both_zero", nothing, seed, known={"rows": 0, "columns": 0})


def samples() -> Iterator[Case]:
    reason = Reason.PHOTOMETRIC_UNSUPPORTED
    words = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "PALETTE COLOR", "ARGB", "CMYK", "HSV")
    words += ("MONOCHROME", "MONOCHROME3", "", NAME, "XYB")
    for place, word in enumerate(words):
        yield by_edit(reason, f"colour_{word}", put_text("PhotometricInterpretation", word), _turn(place))
    yield by_edit(reason, "colour_absent", without("PhotometricInterpretation"), _turn(5))
    for place, count in enumerate((0, 2, 3, 4, 65535)):
        yield by_edit(reason, f"{count}_samples", put_numbers("SamplesPerPixel", count), _turn(place + 6))
    for place, bits in enumerate((0, 1, 4, 12, 24, 32, 64)):
        yield by_edit(reason, f"{bits}_bits_allocated", put_numbers("BitsAllocated", bits), _turn(place))
    yield by_edit(reason, "no_bits_allocated", without("BitsAllocated"), _turn(2))
    for place, bits in enumerate((9, 12, 16, 255)):
        yield by_edit(reason, f"{bits}_bits_stored_of_8", put_numbers("BitsStored", bits), _turn(place + 9))
    for place, sign in enumerate((1, 2)):
        yield by_edit(reason, f"representation_{sign}", put_numbers("PixelRepresentation", sign), _turn(place + 8))


def few_frames() -> Iterator[Case]:
    for place in range(21):
        count = place % 7 + 1
        seed = Seed(name=RASTERS[place % len(RASTERS)], syntax=SYNTAXES[place % len(SYNTAXES)], num_frames=count)
        yield Case(reason=Reason.TOO_FEW_FRAMES, name=f"{count}_frames", seed=seed, make=seed.encode)
    seed = Seed(name=RASTERS[1])
    yield by_bytes(Reason.TOO_FEW_FRAMES, "signed_text", _as_plus_seven, Seed(num_frames=7))
    seven = put_text("NumberOfFrames", "7")
    yield by_edit(Reason.TOO_FEW_FRAMES, "declared_7_of_10", seven, seed, known={"num_frames": 7})


def _as_plus_seven(data: bytes) -> bytes:
    """`+7` is a valid integer string (PS3.5 table 6.2-1)."""
    return data.replace(b"(\0\x08\0IS\2\x007 ", b"(\0\x08\0IS\2\x00+7")


CASES: Final = (*no_pixels(), *strange_syntaxes(), *frame_counts(), *dimensions(), *samples(), *few_frames())
