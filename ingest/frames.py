"""Finding the frames in the pixel data element, and checking that each is whole (DICOM PS3.5 sections 8 and A.4)."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ingest.errors import IngestError
from ingest.faults import Faults
from ingest.fields import integer, raw
from ingest.header import UNDEFINED_LENGTH, Header, check_tail
from ingest.spacing import check_groups
from ingest.syntaxes import NATIVE_SYNTAXES, Codec, codec_of
from ingest.watch import UNWATCHED, Watch
from manifests.reasons import Reason

ITEM: Final = 0xFFFEE000
SEQUENCE_END: Final = 0xFFFEE0DD
PIXEL_DATA: Final = 0x7FE00010
LONG_VRS: Final = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN")


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelFormat:
    """How pixels are laid out: `[frames, rows, columns]` of `bits_allocated`."""

    num_frames: int
    rows: int
    columns: int
    samples_per_pixel: int
    bits_allocated: int
    bits_stored: int
    signed: bool

    @property
    def frame_bytes(self) -> int:
        return self.rows * self.columns * self.samples_per_pixel * self.bits_allocated // 8


def pixel_format(header: Header) -> PixelFormat:
    """Read the image pixel module; NumberOfFrames absent is one frame (PS3.3 C.7.6.6).

    Raises:
        IngestError: DIMENSIONS_INVALID when a needed value is absent or zero.
    """
    values = {name: integer(header.dataset, name) for name in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")}
    missing = [name for name, value in values.items() if not value or value < 0]
    if missing:
        raise IngestError(Reason.DIMENSIONS_INVALID, f"{', '.join(missing)}: absent, zero or negative.")
    rows, columns, samples, bits = (value or 0 for value in values.values())
    return PixelFormat(
        num_frames=integer(header.dataset, "NumberOfFrames") or 1,
        rows=rows,
        columns=columns,
        samples_per_pixel=samples,
        bits_allocated=bits,
        bits_stored=integer(header.dataset, "BitsStored") or bits,
        signed=integer(header.dataset, "PixelRepresentation") == 1,
    )


def find_frames(header: Header, layout: PixelFormat, watch: Watch = UNWATCHED) -> list[bytes]:
    """The bytes of every frame, each checked to be whole and of the declared transfer syntax.

    Raises:
        IngestError: PIXELDATA_MISSING, TRUNCATED_DATASET, PIXELDATA_LENGTH_MISMATCH, NFRAMES_MISMATCH, TS_MISMATCH,
            CODESTREAM_OBFUSCATED, FRAME_INCOMPLETE or FRAME_UNDECODABLE.
    """
    if header.pixel_offset is None or header.body is None:
        raise IngestError(Reason.PIXELDATA_MISSING, "there is no pixel data element.")
    syntax = header.transfer_syntax_uid
    if header.encoding != (syntax if syntax in NATIVE_SYNTAXES else ExplicitVRLittleEndian):
        detail = f"the data set is in {header.encoding.keyword}, its transfer syntax says {syntax.keyword}."
        raise IngestError(Reason.TS_MISMATCH, detail)
    start, length = _element(header.body, header.pixel_offset, syntax)
    encapsulated = length == UNDEFINED_LENGTH
    if encapsulated == (syntax in NATIVE_SYNTAXES):
        kind = "encapsulated" if encapsulated else "native"
        raise IngestError(Reason.TS_MISMATCH, f"{kind} pixel data under transfer syntax {syntax}.")
    if not encapsulated:
        swapped = syntax == ExplicitVRBigEndian and bytes(header.body[start - 8 : start - 6]) == b"OW"
        frames = _native_frames(header.body[start:], length, layout, swapped=swapped and layout.bits_allocated == 8)
        check_tail(header.body[start + length :], syntax, Reason.PIXELDATA_LENGTH_MISMATCH)
        check_groups(header.dataset, layout.num_frames)
        return frames
    value = _fragments(header.body, start)
    check_tail(header.body[value.stop :], syntax, Reason.TRUNCATED_DATASET)
    check_groups(header.dataset, layout.num_frames)
    frames = _group(value.fragments, _offsets(value.table, header.dataset), layout.num_frames, codec_of(syntax))
    _check_lengths(frames, header.dataset)
    _check_frames(frames, layout, codec_of(syntax), watch)
    return frames


def _check_frames(frames: Sequence[bytes], layout: PixelFormat, codec: Codec, watch: Watch) -> None:
    """Every frame, whether it is needed or not; of several faults the earliest code is the file's reason."""
    faults = Faults()
    shape = (layout.rows, layout.columns)
    for number, frame in enumerate(frames):
        watch.frame(layout.rows * layout.columns)  # some codecs must decode to know
        faults.of(partial(codec.check, frame, shape, layout.bits_allocated, number))
    faults.raise_first()


def _element(body: memoryview, offset: int, syntax: UID) -> tuple[int, int]:
    """Offset of the value and declared length of the pixel data element."""
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    try:
        group, element = struct.unpack_from(f"{order}HH", body, offset)
        if group << 16 | element != PIXEL_DATA:
            raise IngestError(Reason.PIXELDATA_MISSING, "floating-point pixel data instead of (7FE0,0010).")
        if syntax == ImplicitVRLittleEndian:
            return offset + 8, struct.unpack_from(f"{order}L", body, offset + 4)[0]
        if bytes(body[offset + 4 : offset + 6]) not in LONG_VRS:
            raise IngestError(Reason.TS_MISMATCH, "the pixel data element is not in explicit VR.")
        return offset + 12, struct.unpack_from(f"{order}L", body, offset + 8)[0]
    except struct.error as error:
        raise IngestError(Reason.TRUNCATED_DATASET, "the file ends inside the pixel data element's head.") from error


def _native_frames(value: memoryview, length: int, layout: PixelFormat, *, swapped: bool) -> list[bytes]:
    """Cut native pixels into frames; the length may be one longer, to be even (PS3.5 section 8.1.1).

    Bytes in big endian words (`swapped`) come in pairs, the second first (PS3.5 section 8.1.2).
    """
    expected = layout.frame_bytes * layout.num_frames
    if length > len(value):
        raise IngestError(
            Reason.PIXELDATA_LENGTH_MISMATCH, f"{len(value)} bytes of pixel data, the element declares {length}."
        )
    if length not in {expected, expected + expected % 2}:
        raise IngestError(Reason.PIXELDATA_LENGTH_MISMATCH, f"{length} bytes of pixel data, expected {expected}.")
    if swapped:
        value = memoryview(np.frombuffer(value[: length - length % 2], ">u2").astype("<u2").tobytes())
    size = layout.frame_bytes
    return [bytes(value[size * number : size * (number + 1)]) for number in range(layout.num_frames)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Encapsulated:
    """Pixel data in fragments: the basic offset table, (offset, bytes) of each, and where the element ends."""

    table: bytes
    fragments: list[tuple[int, bytes]]
    stop: int


def _fragments(body: memoryview, start: int) -> _Encapsulated:
    """Read items strictly up to the sequence delimiter."""
    position = start
    found: list[tuple[int, bytes]] = []
    while True:
        if position + 8 > len(body):
            raise IngestError(Reason.TRUNCATED_DATASET, f"no end mark after {len(found)} fragments.")
        group, element, length = struct.unpack_from("<HHL", body, position)
        tag = group << 16 | element
        if tag == SEQUENCE_END:
            break
        if tag != ITEM:
            raise IngestError(Reason.TS_MISMATCH, f"fragment {len(found)} does not start with an item tag.")
        if position + 8 + length > len(body):
            raise IngestError(Reason.TRUNCATED_DATASET, f"the file ends inside fragment {len(found)}.")
        found.append((position, bytes(body[position + 8 : position + 8 + length])))
        position += 8 + length
    if not found:
        raise IngestError(Reason.NFRAMES_MISMATCH, "encapsulated pixel data without basic offset table and fragments.")
    table = found.pop(0)[1]
    first = found[0][0] if found else 0
    fragments = [(offset - first, data) for offset, data in found]
    return _Encapsulated(table=table, fragments=fragments, stop=position + 8)


def _offsets(table: bytes, dataset: Dataset) -> tuple[int, ...] | None:
    """Where frames start, by the basic offset table, or the extended one when that is empty (PS3.3 C.7.6.3.1.8).

    A table of zeros is a placeholder, of writers who did not know the lengths yet: it says nothing.
    """
    offsets = _unpacked(table, "L") or _unpacked(raw(dataset, "ExtendedOffsetTable"), "Q")
    return offsets if offsets and (any(offsets) or len(offsets) == 1) else None


def _unpacked(table: object, form: str) -> tuple[int, ...] | None:
    if not table:
        return None
    size = struct.calcsize(f"<{form}")
    if not isinstance(table, bytes) or len(table) % size:
        raise IngestError(Reason.NFRAMES_MISMATCH, "an offset table is no list of numbers.")
    return struct.unpack(f"<{len(table) // size}{form}", table)


def _check_lengths(frames: Sequence[bytes], dataset: Dataset) -> None:
    """The extended offset table's lengths are those of the frames, with or without what made them even."""
    lengths = _unpacked(raw(dataset, "ExtendedOffsetTableLengths"), "Q")
    if lengths and [length + length % 2 for length in lengths] != [len(frame) + len(frame) % 2 for frame in frames]:
        raise IngestError(Reason.NFRAMES_MISMATCH, "frames are not as long as the extended offset table says.")


def _group(
    fragments: Sequence[tuple[int, bytes]], offsets: tuple[int, ...] | None, num_frames: int, codec: Codec
) -> list[bytes]:
    """Join fragments to frames: by an offset table, which must be true of them; else one each, or by start markers."""
    data = [one for _, one in fragments]
    if offsets is not None:
        places = {offset: place for place, (offset, _) in enumerate(fragments)}
        starts = [places.get(offset, -1) for offset in offsets]
    elif num_frames in {1, len(data)}:
        starts = list(range(num_frames))
    else:
        starts = codec.starts(data)
    if len(starts) != num_frames or starts[0] != 0 or starts != sorted(set(starts)):
        by = "an offset table that is not true of them" if offsets else "their start markers"
        detail = f"{len(data)} fragments for {num_frames} frames, by {by}."
        raise IngestError(Reason.NFRAMES_MISMATCH, detail)
    return [b"".join(data[start:stop]) for start, stop in pairwise([*starts, len(data)])]
