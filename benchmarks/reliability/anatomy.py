"""Where the elements, items and fragments of a good data set lie, so that damage can be aimed at them."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from pydicom.uid import UID, ExplicitVRBigEndian, ImplicitVRLittleEndian

from reliability.seeds import PREAMBLE_BYTES, Seed

LONG_VRS: Final = frozenset({b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN", b"SQ", b"UT", b"UC", b"UR"})
UNDEFINED: Final = 0xFFFFFFFF
ITEM: Final = 0xFFFEE000
MARKS: Final = frozenset({0xFFFEE00D, 0xFFFEE0DD})
PIXEL_DATA: Final = 0x7FE00010


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An element, an item, a fragment or an end mark: head from `start`, value from `value` to `end`."""

    tag: int
    start: int
    value: int
    end: int
    vr: bytes | None
    long_length: bool

    @property
    def is_fragment(self) -> bool:
        return self.vr == b"--"

    @property
    def length_at(self) -> int:
        return self.value - (4 if self.long_length else 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How heads are written (PS3.5 section 7.1)."""

    implicit: bool = False
    big: bool = False

    @property
    def order(self) -> str:
        return ">" if self.big else "<"

    def tag(self, value: int) -> bytes:
        return struct.pack(f"{self.order}HH", value >> 16, value & 0xFFFF)

    def length(self, value: int, part: Part) -> bytes:
        mask, code = (UNDEFINED, "L") if part.long_length else (0xFFFF, "H")
        return struct.pack(f"{self.order}{code}", value & mask)


def encoding_of(syntax: UID) -> Encoding:
    """The encoding of the data set; the file meta information is always explicit and little endian."""
    return Encoding(implicit=syntax == ImplicitVRLittleEndian, big=syntax == ExplicitVRBigEndian)


def walk(data: bytes, encoding: Encoding, start: int, end: int) -> Iterator[Part]:
    """Every element and item between two offsets, from the outside in."""
    position = start
    while position + 8 <= end:
        part = _head(data, position, encoding)
        yield part
        if part.tag == PIXEL_DATA and part.end == UNDEFINED:
            yield from _fragments(data, part.value)
            return
        if part.end != UNDEFINED and not _holds_items(data, part, encoding):
            position = part.end
        elif part.end == UNDEFINED:
            position = part.value  # its content follows, and an end mark ends it
        else:
            yield from walk(data, encoding, part.value, part.end)
            position = part.end


def _holds_items(data: bytes, part: Part, encoding: Encoding) -> bool:
    return part.tag == ITEM or data[part.value : part.value + 4] == encoding.tag(ITEM)


def _head(data: bytes, position: int, encoding: Encoding) -> Part:
    group, element = struct.unpack_from(f"{encoding.order}HH", data, position)
    tag, vr, value, long_length = group << 16 | element, None, position + 8, True
    if not encoding.implicit and group != 0xFFFE:
        vr = data[position + 4 : position + 6]
        long_length = vr in LONG_VRS
        value = position + (12 if long_length else 8)
    code, back = ("L", 4) if long_length else ("H", 2)
    (length,) = struct.unpack_from(f"{encoding.order}{code}", data, value - back)
    end = UNDEFINED if length == UNDEFINED and long_length else value + length
    return Part(tag=tag, start=position, value=value, end=end, vr=vr, long_length=long_length)


def _fragments(data: bytes, position: int) -> Iterator[Part]:
    while position + 8 <= len(data):
        part = _head(data, position, Encoding())
        yield Part(tag=part.tag, start=position, value=part.value, end=part.end, vr=b"--", long_length=True)
        if part.tag in MARKS:
            return
        position = part.end


class Anatomy:
    """The parts of a seed's two halves."""

    def __init__(self, seed: Seed) -> None:
        self.seed = seed
        self.encoding = encoding_of(seed.syntax)

    @cached_property
    def meta(self) -> tuple[Part, ...]:
        return tuple(walk(self.seed.meta, Encoding(), PREAMBLE_BYTES, len(self.seed.meta)))

    @cached_property
    def body(self) -> tuple[Part, ...]:
        return tuple(walk(self.seed.body, self.encoding, 0, len(self.seed.body)))

    @cached_property
    def elements(self) -> tuple[Part, ...]:
        """Elements and items of the header, at every depth."""
        return tuple(part for part in self.body if not part.is_fragment)

    @cached_property
    def top(self) -> tuple[Part, ...]:
        """Elements that no sequence holds."""
        found: list[Part] = []
        covered = 0
        for part in self.elements:
            if part.start >= covered and part.tag >> 16 != 0xFFFE and part.end != UNDEFINED:
                found.append(part)
                covered = part.end
        return tuple(found)

    @cached_property
    def fragments(self) -> tuple[Part, ...]:
        """Compressed frames, without the basic offset table and the end mark; none in a native file."""
        return tuple(part for part in self.body if part.is_fragment and part.tag == ITEM)[1:]

    @cached_property
    def pixels(self) -> int:
        """Where the pixel data element starts in the data set."""
        return next(part.start for part in self.body if part.tag == PIXEL_DATA)
