"""Faults of the file as a whole: empty, no DICOM, no file meta information, over the limits, past the parser."""

import base64
import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID

from ingest.phantom.protocols import DEFLATED_LE, EXPLICIT_LE, IMPLICIT_LE, JPEG_2000_LOSSLESS
from ingest.phantom.stream import (
    PREAMBLE,
    deflated_with_zeros,
    meta_bytes,
    nested_sequences,
    split_at_private,
)
from ingest.record import Limits
from manifests.reasons import Reason

from .build import (
    BIG_ENDIAN,
    CANARY,
    CIRRUS,
    HTJ2K_LOSSLESS,
    JPEG_BASELINE,
    MACULA,
    NAME,
    NOT_PARSED,
    RASTERS,
    RLE_LOSSLESS,
    SPECTRALIS,
    SYNTAXES,
    TRITON,
    Case,
    Seed,
    both,
    by_bytes,
    by_edit,
    put_numbers,
    put_text,
    seeds,
)

META_START: Final = 132
GROUP_LENGTH: Final = slice(140, 144)
"""The value of (0002,0000), which is the first element."""
UNREAD: Final[dict[str, dict[str, object]]] = {
    "ManufacturerModelName": {"manufacturer_model": None},
    "SOPInstanceUID": {"sop_instance_uid": None},
}


def empty_files() -> Iterator[Case]:
    for seed in seeds(syntaxes=SYNTAXES[:8]):
        yield Case(reason=Reason.EMPTY_FILE, name="listed", seed=seed, make=bytes)
    odd = {
        "no_extension": "IM0001",
        "upper_case": "SCANS/4123.DCM",
        "dicom_suffix": f"4123/{Seed().file_name.removesuffix('.dcm')}.dicom",
        "zip_member": "archive.zip!IM0001",
        "accents": "données/größe.dcm",
        "spaces": "a folder/a file.dcm",
        "formula": "=cmd()/+1.dcm",
        "markup": "<b>x</b>.dcm",
        "deep": "/".join("abcdefgh") + "/x.dcm",
        "one_letter": "x",
        "long_name": "n" * 200 + ".dcm",
        "no_participant": "retinal_oct/structural_oct/x.dcm",
    }
    for name, path in odd.items():
        participant = "4123" if "dicom" in name else None
        yield Case(
            reason=Reason.EMPTY_FILE,
            name=name,
            seed=Seed(),
            make=bytes,
            path=path,
            known={
                "participant_id": participant,
                "device": "topcon_maestro2" if participant else None,
                "protocol": MACULA if participant else None,
                "laterality": "L" if participant else None,
                "anatomic_region": None,
            },
        )


def _zip(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.dcm", data)
    return buffer.getvalue()


def _swapped_words(data: bytes) -> bytes:
    return np.frombuffer(data[: len(data) // 2 * 2], np.uint8).reshape(-1, 2)[:, ::-1].tobytes()


def _noise(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8).tobytes()


def not_dicom() -> Iterator[Case]:
    contents = {
        "login_page": b"<!DOCTYPE html>\n<html><body>Sign in, CANARY</body></html>\n",
        "store_error": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Key>CANARY</Key></Error>',
        "json": b'{"error": {"code": 403, "message": "CANARY"}}',
        "lfs_pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:CANARY\nsize 12345\n",
        "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(200),
        "tiff": b"II*\0\x08\0\0\0" + bytes(200),
        "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + b"CANARY" * 40,
        "jpeg": Seed(syntax=JPEG_BASELINE).fragments()[0],
        "nifti": struct.pack("<i", 348) + bytes(344) + b"n+1\0" + bytes(64),
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(400),
        "one_byte": b"\0",
        "preamble_only": bytes(128),
        "zeros": bytes(4096),
        "ones": b"\xff" * 4096,
        "spaces": b" " * 4096,
        "noise": _noise(1, 4096),
        "more_noise": _noise(2, 333),
        "text": b"CANARY^JANE 1970-01-01\n" * 30,
        "utf_16": "﻿CANARY".encode("utf-16") * 20,
    }
    for place, (name, content) in enumerate(contents.items()):
        seed = Seed(name=RASTERS[place % len(RASTERS)])
        yield Case(reason=Reason.NOT_DICOM, name=name, seed=seed, make=lambda content=content: content)
    wrappings: dict[str, Callable[[bytes], bytes]] = {
        "in_zip": _zip,
        "in_gzip": lambda data: gzip.compress(data, mtime=0),
        "in_base64": base64.b64encode,
        "swapped_words": _swapped_words,
        "inverted": lambda data: bytes(np.frombuffer(data, np.uint8) ^ 0xFF),
        "cut_in_marker": lambda data: data[: META_START - 1],
        "shifted_by_one": lambda data: b"\0" + data,
        "first_byte_lost": lambda data: data[1:],
        "first_block_zeroed": lambda data: bytes(4096) + data[4096:],
        "lower_case_marker": lambda data: data.replace(b"DICM", b"dicm", 1),
        "marker_at_the_start": lambda data: data[META_START - 4 :],
    }
    for place, (name, wrap) in enumerate(wrappings.items()):
        seed = Seed(name=RASTERS[place % len(RASTERS)], syntax=SYNTAXES[place % len(SYNTAXES)])
        yield by_bytes(Reason.NOT_DICOM, name, wrap, seed)


def _meta_end(data: bytes) -> int:
    return META_START + 12 + struct.unpack("<L", data[GROUP_LENGTH])[0]


def _bare(data: bytes) -> bytes:
    """The data set alone."""
    return data[_meta_end(data) :]


def _meta_text(keyword: str, value: str) -> Callable[[Dataset], object]:
    """Another value in group 0002, written without pydicom's checks."""

    def edit(dataset: Dataset) -> None:
        put_text(keyword, value)(dataset.file_meta)

    return edit


def _by_meta(name: str, edit: Callable[[Dataset], object], seed: Seed) -> Case:
    """Damage in the file meta information, over an explicit data set."""

    def make() -> bytes:
        dataset = seed.dataset()
        edit(dataset)
        body = _bare(Seed(name=seed.name, syntax=seed.syntax).encode())
        return PREAMBLE + meta_bytes(dataset.file_meta) + body

    return Case(reason=Reason.META_HEADER_INVALID, name=name, seed=seed, make=make)


def _cut_meta(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: META_START + round(share * (_meta_end(data) - META_START))]


def _without_syntax(dataset: Dataset) -> None:
    del dataset.file_meta.TransferSyntaxUID


def bad_meta() -> Iterator[Case]:
    for seed in seeds(syntaxes=(EXPLICIT_LE, IMPLICIT_LE, BIG_ENDIAN, DEFLATED_LE, JPEG_2000_LOSSLESS)):
        yield _by_meta("no_transfer_syntax", _without_syntax, seed)
    texts = {
        "empty": "",
        "words": f"{CANARY} LITTLE ENDIAN",
        "double_dot": "1.2..840.10008.1.2.1",
        "leading_zero": "1.2.0840.10008.1.2.1",
        "too_long": "1.2." + "9" * 80,
        "letters": "1.2.840.10008.1.2.x",
        "two_values": "1.2.840.10008.1.2\\1.2.840.10008.1.2.1",
        "ends_in_dot": "1.2.840.10008.1.2.",
    }
    for place, (name, value) in enumerate(texts.items()):
        seed = Seed(name=RASTERS[place % len(RASTERS)])
        yield _by_meta(f"transfer_syntax_{name}", _meta_text("TransferSyntaxUID", value), seed)
    for seed in seeds(syntaxes=(EXPLICIT_LE, JPEG_2000_LOSSLESS)):
        yield by_bytes(
            Reason.META_HEADER_INVALID, "marker_and_at_once_the_data_set", lambda data: PREAMBLE + _bare(data), seed
        )
    for seed in seeds(syntaxes=(EXPLICIT_LE, IMPLICIT_LE, RLE_LOSSLESS)):
        yield by_bytes(Reason.META_HEADER_INVALID, "bare_data_set", _bare, seed)
    for place, share in enumerate((0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)):
        seed = Seed(name=RASTERS[place], syntax=SYNTAXES[place])
        yield by_bytes(Reason.META_HEADER_INVALID, f"cut_at_{share}", _cut_meta(share), seed)
    yield by_bytes(Reason.META_HEADER_INVALID, "cut_behind_the_marker", lambda data: data[:META_START])
    for edit, name in ((put_text("SOPInstanceUID", ""), "empty"), (put_text("SOPInstanceUID", "JANE"), "words")):
        for seed in seeds(syntaxes=(EXPLICIT_LE, HTJ2K_LOSSLESS)):
            yield by_edit(
                Reason.META_HEADER_INVALID,
                f"sop_instance_uid_{name}",
                edit,
                seed,
                known={"sop_instance_uid": None},
                parsed=True,
            )


def _nested(depth: int) -> Callable[[Seed], bytes]:
    def make(seed: Seed) -> bytes:
        dataset = seed.dataset()
        before, after = split_at_private(dataset)
        return PREAMBLE + meta_bytes(dataset.file_meta) + before + nested_sequences(depth) + after

    return make


def _bomb(inflated: int) -> Callable[[Seed], bytes]:
    def make(seed: Seed) -> bytes:
        dataset = seed.dataset()
        before, after = split_at_private(dataset)
        dataset.file_meta.TransferSyntaxUID = UID(DEFLATED_LE)
        return PREAMBLE + meta_bytes(dataset.file_meta) + deflated_with_zeros(before, after, inflated)

    return make


def _long_header(tag: tuple[int, int], size: int) -> Callable[[Dataset], object]:
    return lambda dataset: dataset.add_new(tag, "OB", bytes(size)) if tag[0] % 2 == 0 else _private(dataset, size)


def _private(dataset: Dataset, size: int) -> None:
    block = dataset.private_block(0x0009, "FOVEA TESTS", create=True)
    block.add_new(0x01, "OB", bytes(size))


def _trailing_zeros(size: int) -> Callable[[bytes], bytes]:
    """A deflated file that goes on inflating behind its pixels."""

    def edit(data: bytes) -> bytes:
        end = _meta_end(data)
        body = zlib.decompress(data[end:], -zlib.MAX_WBITS) + bytes(size)
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        packed = packer.compress(body) + packer.flush()
        return data[:end] + packed + b"\0" * (len(packed) % 2)

    return edit


def over_limits() -> Iterator[Case]:
    reason = Reason.PARSE_LIMIT_EXCEEDED
    for count, seed in zip(
        ("4097", "5000", "65536", "1000000", "2147483647", "99999999999"), seeds(syntaxes=SYNTAXES[:6]), strict=True
    ):
        known = {"num_frames": int(count) if int(count) < 2**31 else None}
        yield by_edit(reason, f"{count}_frames", put_text("NumberOfFrames", count), seed, known=known)
    shapes = (
        (65535, 65535, 10),
        (8192, 8192, 10),
        (8000, 8192, 9),
        (4000, 4000, 4000),
        (8192, 33, 4096),
        (724, 1024, 725),
    )
    for (rows, columns, frames), seed in zip(shapes, seeds(syntaxes=SYNTAXES[1:7]), strict=True):
        edits = (put_numbers("Rows", rows), put_numbers("Columns", columns), put_text("NumberOfFrames", str(frames)))
        known = {"rows": rows, "columns": columns, "num_frames": frames}
        yield by_edit(reason, f"{rows}x{columns}x{frames}", both(*edits), seed, known=known)
    for depth, name in ((300, TRITON), (500, SPECTRALIS), (1000, MACULA), (3000, CIRRUS)):
        seed, make = Seed(name=name), _nested(depth)
        yield Case(reason=reason, name=f"{depth}_nested", seed=seed, make=lambda s=seed, m=make: m(s), known=NOT_PARSED)
    for inflated, limit in ((3 * 2**24, 2**20), (5 * 2**24, 2**24), (2**24, 2**16)):
        seed = Seed(name=TRITON, syntax=EXPLICIT_LE)
        yield Case(
            reason=reason,
            name=f"inflates_to_{inflated}",
            seed=seed,
            make=lambda s=seed, n=inflated: _bomb(n)(s),
            limits=Limits(max_header_bytes=limit),
            known=NOT_PARSED,
        )
    for tag, size, seed in (
        ((0x0009, 0x1001), 70_000, Seed()),
        ((0x0009, 0x1001), 200_000, Seed(syntax=IMPLICIT_LE)),
        ((0x0028, 0x1201), 70_000, Seed(syntax=BIG_ENDIAN)),
        ((0x0042, 0x0011), 300_000, Seed(syntax=JPEG_2000_LOSSLESS)),
        ((0x0042, 0x0011), 90_000, Seed(syntax=DEFLATED_LE)),
    ):
        limits = Limits(max_header_bytes=2**16)
        yield by_edit(reason, f"header_of_{size}", _long_header(tag, size), seed, limits=limits, known=NOT_PARSED)
    for size in (2**21, 2**26):
        yield by_bytes(
            reason,
            f"inflates_on_by_{size}",
            _trailing_zeros(size),
            Seed(name=SPECTRALIS, syntax=DEFLATED_LE),
        )


def _retyped(keyword: str, vr: bytes) -> Callable[[bytes], bytes]:
    """Another value representation over the same bytes, as a flipped bit makes it."""
    tag = Tag(keyword)
    old = dictionary_VR(tag).encode()

    def edit(data: bytes) -> bytes:
        forms = [struct.pack(f"{order}HH", tag.group, tag.element) for order in "<>"]
        place = next(found for form in forms if (found := data.find(form + old, META_START)) > 0)
        return data[: place + 4] + vr + data[place + 6 :]

    return edit


def past_the_parser() -> Iterator[Case]:
    """Values and structures that the parser raises on when they are read, in syntaxes that spell out the VR."""
    reason = Reason.PARSER_CRASH
    explicit = (EXPLICIT_LE, BIG_ENDIAN, JPEG_2000_LOSSLESS, JPEG_BASELINE, RLE_LOSSLESS)
    words = ("SOPClassUID", "ImageType", "Modality", "PatientID", "Manufacturer", "ManufacturerModelName")
    words += ("SOPInstanceUID", "ImageLaterality", "PhotometricInterpretation", "BurnedInAnnotation")
    for place, keyword in enumerate(words):
        seed = Seed(name=RASTERS[place % len(RASTERS)], syntax=explicit[place % len(explicit)])
        known = UNREAD.get(keyword, {})
        yield by_bytes(reason, f"{keyword}_of_unknown_type", _retyped(keyword, b"ZZ"), seed, known=known)
    for place, (keyword, vr) in enumerate(
        (("Modality", b"FD"), ("PatientID", b"FD"), ("ImageLaterality", b"FL"), ("BurnedInAnnotation", b"FD"))
    ):
        seed = Seed(name=RASTERS[place], syntax=explicit[place])
        yield by_bytes(reason, f"{keyword}_as_half_a_number", _retyped(keyword, vr), seed)
    for place, vr in enumerate(("UL", "OB", "LO", "DS", "PN")):
        for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
            seed = Seed(name=RASTERS[place], syntax=(*explicit, DEFLATED_LE)[place + 1])
            edit = put_text(keyword, NAME if vr != "UL" else "JANE", vr)
            yield by_edit(reason, f"{keyword}_as_{vr}", edit, seed)


CASES: Final = (*empty_files(), *not_dicom(), *bad_meta(), *over_limits(), *past_the_parser())
