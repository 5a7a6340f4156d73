"""Faults of compressed B-scans: another transfer syntax, scrambled, cut, damaged between the right markers."""

import struct
from collections.abc import Callable, Iterator
from functools import cache
from typing import Final

import imagecodecs
import numpy as np

from ingest.phantom.protocols import (
    EXPLICIT_LE,
    IMPLICIT_LE,
    JPEG_2000_LOSSLESS,
    JPEG_LS_LOSSLESS,
    RLE_LOSSLESS,
)
from ingest.phantom.stream import PREAMBLE, meta_bytes
from manifests.reasons import Reason

from .build import (
    ENCAPSULATED,
    HTJ2K_LOSSLESS,
    JPEG_2000S,
    JPEG_BASELINE,
    JPEG_EXTENDED,
    JPEG_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    JPEG_LS_NEAR,
    JPEGS,
    NUM_FRAMES,
    RASTERS,
    SHORT,
    SIDE,
    Case,
    Fragments,
    Seed,
    by_fragments,
)

Change = Callable[[bytes], bytes]

FAMILIES: Final = (
    *({syntax} for syntax in (EXPLICIT_LE, IMPLICIT_LE, RLE_LOSSLESS)),
    set(JPEG_2000S),
    {JPEG_BASELINE, JPEG_EXTENDED},
    {JPEG_LOSSLESS, JPEG_LOSSLESS_SV1},
    {JPEG_LS_LOSSLESS, JPEG_LS_NEAR},
)
PLACES: Final = {"first": 0, "middle": 4, "last": NUM_FRAMES - 1}


@cache
def body(seed: Seed) -> bytes:
    """A good file without its file meta information."""
    data = seed.encode()
    return data[144 + struct.unpack("<L", data[140:144])[0] :]


def swapped(name: str, written: str, declared: str) -> Case:
    """The bytes of one transfer syntax under the UID of another."""
    seed = Seed(name=name, syntax=declared)

    def make() -> bytes:
        return PREAMBLE + meta_bytes(seed.dataset().file_meta) + body(Seed(name=name, syntax=written))

    return Case(reason=Reason.TS_MISMATCH, name=f"written_in_{SHORT[written]}", seed=seed, make=make)


def _one(frame: int, change: Change) -> Callable[[Fragments], Fragments]:
    """The same change in one B-scan only."""

    def edit(fragments: Fragments) -> Fragments:
        return [change(data) if place == frame else data for place, data in enumerate(fragments)]

    return edit


def _every(change: Change) -> Callable[[Fragments], Fragments]:
    return lambda fragments: [change(data) for data in fragments]


def _family(syntax: str) -> set[str]:
    return next(family for family in FAMILIES if syntax in family)


def mismatched() -> Iterator[Case]:
    reason = Reason.TS_MISMATCH
    readable = (EXPLICIT_LE, IMPLICIT_LE, *ENCAPSULATED)
    place = 0
    for written in readable:
        for declared in (EXPLICIT_LE, *ENCAPSULATED):
            if declared in _family(written) or (written == RLE_LOSSLESS and declared in JPEG_2000S):
                continue
            place += 1
            yield swapped(RASTERS[place % len(RASTERS)], written, declared)
    for where, frame in PLACES.items():
        for declared, written in (
            (JPEG_2000_LOSSLESS, JPEG_LS_LOSSLESS),
            (JPEG_LS_LOSSLESS, HTJ2K_LOSSLESS),
            (JPEG_BASELINE, JPEG_LOSSLESS_SV1),
            (RLE_LOSSLESS, JPEG_BASELINE),
        ):
            other = Seed(syntax=written).fragments()[frame]
            edit = _one(frame, lambda _, other=other: other)
            yield by_fragments(reason, f"{where}_in_{SHORT[written]}", edit, Seed(syntax=declared))
    raw = np.full((SIDE, SIDE), 7, np.uint8).tobytes()
    for declared in JPEGS:
        yield by_fragments(reason, "plain_pixels_in_items", _every(lambda _: raw), Seed(syntax=declared))


def _xor(key: bytes) -> Change:
    def change(data: bytes) -> bytes:
        pad = np.frombuffer((key * (len(data) // len(key) + 1))[: len(data)], np.uint8)
        return (np.frombuffer(data, np.uint8) ^ pad).tobytes()

    return change


def _swapped_words(data: bytes) -> bytes:
    even = data + b"\0" * (len(data) % 2)
    return np.frombuffer(even, np.uint8).reshape(-1, 2)[:, ::-1].tobytes()


def _nibbles(data: bytes) -> bytes:
    values = np.frombuffer(data, np.uint8)
    return ((values << 4) | (values >> 4)).astype(np.uint8).tobytes()


SCRAMBLES: Final[dict[str, Change]] = {
    "xor_5a": _xor(b"\x5a"),
    "xor_ff": _xor(b"\xff"),
    "xor_01": _xor(b"\x01"),
    "xor_of_a_word": _xor(b"FOVEAKEY"),
    "backwards": lambda data: data[::-1],
    "swapped_words": _swapped_words,
    "swapped_nibbles": _nibbles,
    "first_bytes_zeroed": lambda data: bytes(16) + data[16:],
    "first_byte_lost": lambda data: data[1:],
    "a_byte_in_front": lambda data: b"\x99" + data,
    "own_magic_in_front": lambda data: b"ZEISSJ2K" + data,
    "start_marker_replaced": lambda data: b"\x12\x34" + data[2:],
    "second_marker_replaced": lambda data: data[:2] + b"\xff\x99" + data[4:],
    "start_xor_only": lambda data: _xor(b"\x33")(data[:64]) + data[64:],
    "rotated": lambda data: data[100:] + data[:100],
    "noise": lambda data: np.random.default_rng(len(data)).integers(1, 250, len(data), dtype=np.uint8).tobytes(),
    "raw_pixels": lambda _: bytes(range(1, 65)) * SIDE,
}


def obfuscated() -> Iterator[Case]:
    reason = Reason.CODESTREAM_OBFUSCATED
    for place, (name, change) in enumerate(SCRAMBLES.items()):
        seed = Seed(name=RASTERS[place % len(RASTERS)], syntax=JPEG_2000S[place % 3])
        yield by_fragments(reason, name, _every(change), seed)
    for where, frame in PLACES.items():
        for syntax in JPEG_2000S:
            edit = _one(frame, _xor(b"\x5a"))
            yield by_fragments(reason, f"{where}_only", edit, Seed(name=RASTERS[frame % 8], syntax=syntax))


def _cut(share: float) -> Change:
    def change(data: bytes) -> bytes:
        return data[: max(1, round(share * len(data)))].rstrip(b"\xff\xd9\0")

    return change


def incomplete() -> Iterator[Case]:
    reason = Reason.FRAME_INCOMPLETE
    for place, syntax in enumerate(ENCAPSULATED):
        for turn, (where, frame) in enumerate(PLACES.items()):
            share = (0.5, 0.9, 0.99)[(place + turn) % 3]
            seed = Seed(name=RASTERS[(place + turn) % 8], syntax=syntax)
            yield by_fragments(reason, f"{where}_cut_to_{share}", _one(frame, _cut(share)), seed)
        yield by_fragments(reason, "every_cut_to_half", _every(_cut(0.5)), Seed(syntax=syntax))
    for syntax in (*JPEG_2000S, JPEG_BASELINE, JPEG_LOSSLESS_SV1, JPEG_LS_LOSSLESS):
        yield by_fragments(reason, "without_end_marker", _one(2, _cut(1.0)), Seed(syntax=syntax))
        zeroed = _one(7, lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
        yield by_fragments(reason, "second_half_zeroed", zeroed, Seed(syntax=syntax))


def _patched(offset: int, patch: bytes) -> Change:
    return lambda data: data[:offset] + patch + data[offset + len(patch) :]


def _after(marker: bytes, skip: int, patch: bytes) -> Change:
    """Other bytes at a distance behind a marker."""

    def change(data: bytes) -> bytes:
        return _patched(data.index(marker) + skip, patch)(data)

    return change


def _recoded(encoder: str, pixels: object) -> Change:
    return lambda _: bytes(getattr(imagecodecs, encoder)(pixels))


SMALL: Final = np.arange(32 * 32, dtype=np.uint8).reshape(32, 32)
WIDE: Final = np.arange(64 * 128, dtype=np.uint8).reshape(64, 128)
DEEP: Final = (np.arange(SIDE * SIDE, dtype=np.uint16) * 15).reshape(SIDE, SIDE)
COLOUR: Final = np.arange(SIDE * SIDE * 3, dtype=np.uint8).reshape(SIDE, SIDE, 3)
RLE_HEAD: Final = struct.Struct("<16L")


def _rle(count: int, *offsets: int) -> Change:
    head = RLE_HEAD.pack(count, *offsets, *([0] * (15 - len(offsets))))
    return lambda data: head + data[64:]


def _undecodable_j2k() -> Iterator[tuple[str, str, Change]]:
    for syntax in JPEG_2000S:
        yield syntax, "no_size", _patched(6, bytes(36))
        yield syntax, "narrow", _patched(8, struct.pack(">2L", 32, 64))
        yield syntax, "header_runs_on", _after(b"\xff\x52", 2, b"\xff\xff")
    yield JPEG_2000_LOSSLESS, "tile_length_too_long", _after(b"\xff\x90", 6, b"\0\xff\xff\xff")
    yield JPEG_2000_LOSSLESS, "tile_length_too_short", _after(b"\xff\x90", 6, b"\0\0\0\x20")
    yield JPEG_2000_LOSSLESS, "no_tile", lambda data: data[: data.index(b"\xff\x90")] + b"\xff\xd9"
    yield JPEG_2000_LOSSLESS, "another_size", _recoded("jpeg2k_encode", SMALL)
    yield HTJ2K_LOSSLESS, "another_size", _recoded("htj2k_encode", SMALL)


def _undecodable_jpeg() -> Iterator[tuple[str, str, Change]]:
    for syntax, marker in (
        (JPEG_BASELINE, b"\xff\xc0"),
        (JPEG_LOSSLESS_SV1, b"\xff\xc3"),
        (JPEG_LS_LOSSLESS, b"\xff\xf7"),
        (JPEG_LS_NEAR, b"\xff\xf7"),
    ):
        yield syntax, "no_size", _after(marker, 5, bytes(4))
        yield syntax, "taller", _after(marker, 5, struct.pack(">2H", 65, 64))
        yield syntax, "no_scan", lambda data: data[: data.index(b"\xff\xda")] + b"\xff\xd9"
    yield JPEG_BASELINE, "another_size", _recoded("jpeg8_encode", WIDE)
    yield JPEG_BASELINE, "colour", _recoded("jpeg8_encode", COLOUR)
    yield JPEG_LS_LOSSLESS, "another_size", _recoded("jpegls_encode", WIDE)
    yield JPEG_LS_LOSSLESS, "colour", _recoded("jpegls_encode", COLOUR)
    yield JPEG_LS_LOSSLESS, "16_bits", _recoded("jpegls_encode", DEEP)
    yield JPEG_LOSSLESS, "another_size", _recoded("ljpeg_encode", SMALL)


def _undecodable_rle() -> Iterator[tuple[str, str, Change]]:
    yield RLE_LOSSLESS, "no_segment", _rle(0)
    yield RLE_LOSSLESS, "sixteen_segments", _rle(16, 64)
    yield RLE_LOSSLESS, "offset_in_the_header", _rle(1, 32)
    yield RLE_LOSSLESS, "offset_behind_the_end", _rle(2, 64, 10**6)
    yield RLE_LOSSLESS, "offsets_backwards", _rle(2, 64, 60)
    yield RLE_LOSSLESS, "twice_the_pixels", lambda data: data + data[64:]
    yield RLE_LOSSLESS, "header_only_half", lambda data: data[:32]


def undecodable() -> Iterator[Case]:
    faults = [*_undecodable_j2k(), *_undecodable_jpeg(), *_undecodable_rle()]
    for place, (syntax, name, change) in enumerate(faults):
        where, frame = list(PLACES.items())[place % 3]
        seed = Seed(name=RASTERS[place % len(RASTERS)], syntax=syntax)
        yield by_fragments(Reason.FRAME_UNDECODABLE, f"{where}_{name}", _one(frame, change), seed)


CASES: Final = (*mismatched(), *obfuscated(), *incomplete(), *undecodable())
