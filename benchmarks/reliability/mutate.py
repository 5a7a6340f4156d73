"""Damage to good files, by a seeded generator: what disks, networks, exports and people do to DICOMs."""

import struct
from collections.abc import Callable
from functools import cache
from typing import Final

import numpy as np

from reliability.anatomy import ITEM, PIXEL_DATA, UNDEFINED, Anatomy, Encoding, Part
from reliability.seeds import PREAMBLE_BYTES, SYNTAXES, all_seeds

Random = np.random.Generator
Files = tuple[bytes, bytes]
"""File meta information with its preamble, and the data set."""

LENGTHS: Final = (
    0,
    1,
    2,
    7,
    0x7F,
    0x80,
    0xFFFE,
    0xFFFF,
    0x10000,
    0x7FFFFFFE,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFE,
    UNDEFINED,
)
VRS: Final = (
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)
TAGS: Final = (0, 0x00020000, 0x00020010, 0x00080005, 0x00280008, 0x00280010, 0x00280100, 0x52009229, 0x52009230)
MARK_TAGS: Final = (ITEM, 0xFFFEE00D, 0xFFFEE0DD, PIXEL_DATA, 0x7FE00008, 0x7FE00009, 0xFFFCFFFC, 0xFFFFFFFF)
OTHER_SYNTAXES: Final = (
    "1.2.840.10008.1.2.4.52",
    "1.2.840.10008.1.2.4.102",
    "1.2.840.10008.1.2.4.205",
    "1.2.840.10008.1.2.1.98",
    "1.2.840.113619.5.2",
    "1.2.3",
    "",
    "..",
)
VALUES: Final = (
    b"", b"0", b"-1", b"NaN", b"inf", b"1e999", b"-0.01", b"0.0001", b"1\\2", b"\\\\\\", b"9" * 20,
    b"1.5", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x01\x80", b"=cmd()", b"\xe9\xfc\x80", b"ISO 2022 IR 149", b"A" * 4000,
    b"\x1b$B",    b"9" * 400, b"DERIVED\\SECONDARY", b"MONOCHROME1", b"YES", b"R", b"\r\n\t ",
)  # fmt: skip
"""Texts and numbers that a value may turn into."""


@cache
def anatomy_of(index: int) -> Anatomy:
    """The parts of a seed, walked once a process."""
    return Anatomy(all_seeds()[index])


def _pick(rng: Random, parts: tuple[Part, ...]) -> Part:
    return parts[rng.integers(len(parts))]


def _noise(rng: Random, size: int) -> bytes:
    return rng.integers(0, 256, size, dtype=np.uint8).tobytes()


def _splice(data: bytes, start: int, stop: int, new: bytes) -> bytes:
    return data[:start] + new + data[stop:]


def _span(rng: Random, size: int) -> tuple[int, int]:
    """A range of 1 to about 4000 bytes, short ones as likely as long ones."""
    length = int(2 ** rng.uniform(0, 12))
    start = int(rng.integers(max(1, size)))
    return start, min(size, start + length)


# Damage to bytes: of the file as it is stored.


def flips(data: bytes, rng: Random) -> bytes:
    """One to 32 bits, anywhere."""
    changed = np.frombuffer(data, np.uint8).copy()
    count = int(2 ** rng.uniform(0, 5))
    places = rng.integers(0, len(changed), count)
    changed[places] ^= (1 << rng.integers(0, 8, count)).astype(np.uint8)
    return changed.tobytes()


def burst(data: bytes, rng: Random) -> bytes:
    """A range of noise."""
    start, stop = _span(rng, len(data))
    return _splice(data, start, stop, _noise(rng, stop - start))


def blanked(data: bytes, rng: Random) -> bytes:
    """A range of zeros, or of ones: a block that was never written."""
    start, stop = _span(rng, len(data))
    return _splice(data, start, stop, bytes([rng.choice([0, 255])]) * (stop - start))


def deleted(data: bytes, rng: Random) -> bytes:
    """A range is gone."""
    return _splice(data, *_span(rng, len(data)), b"")


def inserted(data: bytes, rng: Random) -> bytes:
    """A range of noise, or of another part of the file, comes in between."""
    start, stop = _span(rng, len(data))
    place = int(rng.integers(len(data)))
    return _splice(data, place, place, data[start:stop] if rng.random() < 0.5 else _noise(rng, stop - start))


def moved(data: bytes, rng: Random) -> bytes:
    """A block lies over another one."""
    start, stop = _span(rng, len(data))
    place = int(rng.integers(max(1, len(data) - (stop - start))))
    return _splice(data, place, place + stop - start, data[start:stop])


def cut(data: bytes, rng: Random) -> bytes:
    """The file ends anywhere, or near its beginning or end."""
    place = (rng.integers(len(data)), rng.integers(512), len(data) - 1 - rng.integers(512))[rng.integers(3)]
    return data[: max(0, int(place))]


BYTES: Final[dict[str, Callable[[bytes, Random], bytes]]] = {
    found.__name__: found for found in (flips, burst, blanked, deleted, inserted, moved, cut)
}

# Damage to parts: aimed at an element, an item or a fragment.


def cut_at_part(seed: Anatomy, rng: Random) -> Files:
    """The file ends at an element or item, inside its head, or inside its value."""
    meta, body = seed.seed.meta, seed.seed.body
    in_meta = rng.random() < 0.15
    part = _pick(rng, seed.meta if in_meta else seed.body)
    end = min(part.end, len(body))
    place = (part.start, rng.integers(part.start, part.value + 1), rng.integers(part.value, max(end, part.value) + 1))
    where = int(place[rng.integers(3)])
    return (meta[:where], b"") if in_meta else (meta, body[:where])


def _edit_head(seed: Anatomy, rng: Random, edit: Callable[[bytes, Part, Encoding], bytes]) -> Files:
    """Change the head of an element, item or fragment of the data set, or now and then of the file meta information."""
    if rng.random() < 0.1:
        part = _pick(rng, seed.meta)
        return edit(seed.seed.meta, part, Encoding()), seed.seed.body
    part = _pick(rng, seed.body if rng.random() < 0.5 else seed.top)
    encoding = Encoding() if part.is_fragment else seed.encoding
    return seed.seed.meta, edit(seed.seed.body, part, encoding)


def tag_edit(seed: Anatomy, rng: Random) -> Files:
    """An element under another tag: a known one, one of another element here, a mark, or any."""
    kinds = (rng.choice(TAGS), rng.choice(MARK_TAGS), _pick(rng, seed.body).tag, rng.integers(2**32))
    tag = int(kinds[rng.integers(4)])
    return _edit_head(
        seed, rng, lambda data, part, encoding: _splice(data, part.start, part.start + 4, encoding.tag(tag))
    )


def vr_edit(seed: Anatomy, rng: Random) -> Files:
    """Another value representation, or two bytes that are none; in implicit VR, two bytes of the length."""
    vr = VRS[rng.integers(len(VRS))] if rng.random() < 0.8 else _noise(rng, 2)
    return _edit_head(seed, rng, lambda data, part, _: _splice(data, part.start + 4, part.start + 6, vr))


def length_lie(seed: Anatomy, rng: Random) -> Files:
    """A length that is a little off, or far off."""
    off, far = int(rng.integers(-9, 10)) or 2, LENGTHS[rng.integers(len(LENGTHS))]
    little = rng.random() < 0.4

    def edit(data: bytes, part: Part, encoding: Encoding) -> bytes:
        length = min(part.end, len(data)) - part.value + off if little else far
        return _splice(data, part.length_at, part.value, encoding.length(length, part))

    return _edit_head(seed, rng, edit)


def value_edit(seed: Anatomy, rng: Random) -> Files:
    """Another value under a length that fits it."""
    value = VALUES[rng.integers(len(VALUES))] if rng.random() < 0.8 else _noise(rng, int(rng.integers(1, 64)))
    value += b" " * (len(value) % 2)

    def edit(data: bytes, part: Part, encoding: Encoding) -> bytes:
        end = min(part.end, len(data)) if part.end != UNDEFINED else part.value
        changed = _splice(data, part.value, end, value)
        return _splice(changed, part.length_at, part.value, encoding.length(len(value), part))

    return _edit_head(seed, rng, edit)


def value_overwritten(seed: Anatomy, rng: Random) -> Files:
    """Another value of the same length."""
    value = VALUES[rng.integers(len(VALUES))] or b" "

    def edit(data: bytes, part: Part, _: Encoding) -> bytes:
        end = min(part.end, len(data), part.value + 4096)
        return _splice(data, part.value, end, (value * 4096)[: end - part.value]) if end > part.value else data

    return _edit_head(seed, rng, edit)


def element_copied(seed: Anatomy, rng: Random) -> Files:
    """An element twice, next to itself or somewhere else at the top."""
    part, body = _pick(rng, seed.top), seed.seed.body
    place = part.end if rng.random() < 0.5 else _pick(rng, seed.top).start
    return seed.seed.meta, _splice(body, place, place, body[part.start : part.end])


def element_lost(seed: Anatomy, rng: Random) -> Files:
    """An element or item is gone; the sequence around it keeps its length, half of the time."""
    part = _pick(rng, seed.top if rng.random() < 0.5 else seed.elements)
    end = min(part.end, len(seed.seed.body)) if part.end != UNDEFINED else part.value
    return seed.seed.meta, _splice(seed.seed.body, part.start, end, b"")


def syntax_swapped(seed: Anatomy, rng: Random) -> Files:
    """Another transfer syntax is declared than the one that the bytes are in; its length fits."""
    known = [*SYNTAXES, *OTHER_SYNTAXES]
    name = known[rng.integers(len(known))].encode()
    name += b"\0" * (len(name) % 2)
    part = next(part for part in seed.meta if part.tag == 0x00020010)
    meta = _splice(seed.seed.meta, part.length_at, part.end, struct.pack("<H", len(name)) + name)
    length = len(meta) - PREAMBLE_BYTES - 12
    return _splice(meta, PREAMBLE_BYTES + 8, PREAMBLE_BYTES + 12, struct.pack("<L", length)), seed.seed.body


PARTS: Final[dict[str, Callable[[Anatomy, Random], Files]]] = {
    found.__name__: found
    for found in (
        cut_at_part,
        tag_edit,
        vr_edit,
        length_lie,
        value_edit,
        value_overwritten,
        element_copied,
        element_lost,
        syntax_swapped,
    )
}
