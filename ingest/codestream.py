"""The outside of a compressed frame: its markers, walked from the first to the last without decoding anything.

JPEG: ITU-T T.81 annex B; JPEG-LS: T.87 annex C; JPEG 2000: T.800 annex A; RLE: DICOM PS3.5 annex G.
"""

import re
import struct
from collections.abc import Iterator
from typing import Final

J2K_START: Final = b"\xff\x4f\xff\x51"
JP2_START: Final = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
JPEG_START: Final = b"\xff\xd8"
END_OF_IMAGE: Final = b"\xff\xd9"
"""EOI of JPEG and JPEG-LS (T.81 B.1.1.3), EOC of JPEG 2000 (T.800 A.4.4)."""

PADDING: Final = b"\x00\xff"
"""PS3.5 A.4 pads with zero; encoders in the field also pad with fill bytes."""
PADDING_BYTES: Final = 64

START_OF_SCAN: Final = 0xDA
START_OF_TILE: Final = b"\xff\x90"
HUFFMAN_MARKER: Final = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
"""In entropy-coded JPEG, FF is followed by a stuffed 00 or a restart marker (T.81 B.1.1.5)."""
JPEG_LS_MARKER: Final = re.compile(rb"\xff+[\x80-\xcf\xd8-\xfe]")
"""In JPEG-LS a bit is stuffed instead: below 80 follows data (T.87 C.2.1)."""
JPEG_LS_FRAME: Final = 0xF7

RLE_HEADER: Final = struct.Struct("<16L")

Shape2 = tuple[int, int]


class IncompleteError(ValueError):
    """A frame without markers that unpacks to fewer pixels than it should."""


def has_end(frame: bytes) -> bool:
    """Whether a frame ends with its end-of-image marker, padding aside."""
    return frame[-PADDING_BYTES:].rstrip(PADDING).endswith(END_OF_IMAGE)


def start_of_frame(frame: bytes) -> tuple[int, Shape2 | None]:
    """Marker and (rows, columns) of a JPEG's SOF segment (T.81 B.2.2); (0, None) when there is none."""
    for marker, position in _segments(frame):
        if _is_frame(marker) and position + 9 <= len(frame):
            return marker, struct.unpack_from(">HH", frame, position + 5)
    return 0, None


def _segments(frame: bytes) -> Iterator[tuple[int, int]]:
    """(marker, offset) of a JPEG's segments, up to and with the first start of scan."""
    position = 2
    while position + 4 <= len(frame):
        lead, marker, length = struct.unpack_from(">BBH", frame, position)
        if lead != 0xFF:
            return
        if marker == 0xFF:
            position += 1
            continue
        yield marker, position
        if marker == START_OF_SCAN:
            return
        position += 2 + length


def _is_frame(marker: int) -> bool:
    return (0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}) or marker == JPEG_LS_FRAME


def jpeg_shape(frame: bytes) -> Shape2:
    """(rows, columns) of the SOF segment; what follows the scan must be the end marker, and nothing after it.

    Raises:
        ValueError: without an SOF or SOS segment, or when another marker breaks the scan off.
    """
    kind, shape = start_of_frame(frame)
    if shape is None:
        raise ValueError("no SOF segment")
    scan = next((position for marker, position in _segments(frame) if marker == START_OF_SCAN), None)
    if scan is None:
        raise ValueError("no SOS segment")
    data = scan + 2 + int.from_bytes(frame[scan + 2 : scan + 4], "big")
    found = (JPEG_LS_MARKER if kind == JPEG_LS_FRAME else HUFFMAN_MARKER).search(frame, data)
    if found is None or not found[0].endswith(END_OF_IMAGE) or frame[found.end() :].strip(PADDING):
        raise ValueError("the scan does not reach to the end marker")
    return shape


def j2k_shape(frame: bytes) -> Shape2:
    """(rows, columns) of the SIZ segment (T.800 A.5.1); tile-parts must reach from the main header to the end marker.

    Raises:
        ValueError: when a length does not lead to a marker, or leads out of the frame.
    """
    start = frame.find(J2K_START)  # a JP2 wrapper has boxes before it
    width, height, left, top = struct.unpack_from(">4L", frame, start + 8)
    position = start + 2
    while frame[position : position + 2] != START_OF_TILE:
        if frame[position : position + 1] != b"\xff" or position + 4 > len(frame):
            raise ValueError("the main header does not end")
        position += 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    while frame[position : position + 2] == START_OF_TILE:
        length = int.from_bytes(frame[position + 6 : position + 10], "big")
        if length == 0:  # the last tile-part: up to the end marker (T.800 A.4.2)
            return height - top, width - left
        if length < 14 or position + length + 2 > len(frame):
            raise ValueError("a tile-part is longer than the frame")
        position += length
    if frame[position : position + 2] != END_OF_IMAGE:
        raise ValueError("a tile-part does not end where it says")
    return height - top, width - left


def family_of(frame: bytes) -> str | None:
    """What a frame is by its first bytes, whatever the header declares."""
    for start, name in ((J2K_START, "JPEG 2000"), (JP2_START, "JP2"), (JPEG_START, "JPEG")):
        if frame.startswith(start):
            return name
    try:
        rle_segments(frame)
    except (struct.error, ValueError):
        return None
    return "RLE"


def rle_segments(frame: bytes) -> list[bytes]:
    """The byte planes of an RLE frame, still packed (PS3.5 annex G.5).

    Raises:
        ValueError: when the header is not whole or its segments are not in order.
    """
    count, *offsets = RLE_HEADER.unpack_from(frame)
    used = offsets[:count]
    if not 1 <= count <= 15 or used[0] != RLE_HEADER.size or used != sorted(used) or used[-1] >= len(frame):
        raise ValueError("RLE header")
    return [frame[start:stop] for start, stop in zip(used, [*used[1:], len(frame)], strict=True)]
