"""Faults of the pixel data element: where the file ends, how long the element is, how many frames it holds."""

import struct
from collections.abc import Callable, Iterator
from typing import Final

from pydicom.dataset import Dataset

from ingest.phantom.protocols import (
    DEFLATED_LE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    JPEG_2000_LOSSLESS,
    JPEG_LS_LOSSLESS,
    RLE_LOSSLESS,
)
from manifests.reasons import Reason

from .build import (
    BIG_ENDIAN,
    ENCAPSULATED,
    HTJ2K_LOSSLESS,
    ITEM,
    JPEG_BASELINE,
    JPEG_LOSSLESS_SV1,
    MACULA,
    NOT_PARSED,
    NUM_FRAMES,
    RASTERS,
    SEQUENCE_END,
    SIDE,
    SPECTRALIS,
    Case,
    Edit,
    Fragments,
    Seed,
    by_bytes,
    by_edit,
    by_fragments,
    put,
    put_text,
    seeds,
)

FRAME_BYTES: Final = SIDE * SIDE
PIXEL_BYTES: Final = NUM_FRAMES * FRAME_BYTES
PLAIN: Final = (EXPLICIT_LE, IMPLICIT_LE, BIG_ENDIAN)
"""Native syntaxes in which a byte of the pixels is a byte of the file."""
PIXEL_TAGS: Final = {EXPLICIT_LE: b"\xe0\x7f\x10\0", IMPLICIT_LE: b"\xe0\x7f\x10\0", BIG_ENDIAN: b"\x7f\xe0\0\x10"}
ENCAPSULATED_HEAD: Final = b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff"
META: Final = struct.Struct("<L")
SPACING: Final = ("spacing_d_mm", "spacing_h_mm", "spacing_w_mm", "spacing_source")
NATIVE_FRAMES: Final = (EXPLICIT_LE, IMPLICIT_LE, BIG_ENDIAN, DEFLATED_LE)


def _pixel_start(data: bytes, syntax: str) -> int:
    """Where the pixel data element starts."""
    return data.rindex(PIXEL_TAGS[syntax], 0, len(data) - PIXEL_BYTES + 100)


def _cut_in_header(share: float, syntax: str) -> Callable[[bytes], bytes]:
    """An end inside of a value of the per-frame groups, this share of the way to the pixels."""

    def edit(data: bytes) -> bytes:
        value = b"20200101000000"
        place = data.index(value, round(share * _pixel_start(data, syntax)))
        return data[: place + 5]

    return edit


def _cut_in_fragment(frame: int, share: float) -> Callable[[Seed], bytes]:
    def make(seed: Seed) -> bytes:
        data, fragment = seed.encode(), seed.fragments()[frame]
        return data[: data.rindex(fragment) + round(share * len(fragment))]

    return make


def _cut_at_item(frame: int, kept: int) -> Callable[[Seed], bytes]:
    """An end so many bytes into the head of a fragment's item."""

    def make(seed: Seed) -> bytes:
        data = seed.encode()
        return data[: data.rindex(seed.fragments()[frame]) - 8 + kept]

    return make


def _deflated_body(data: bytes) -> int:
    return 144 + META.unpack(data[140:144])[0]


def _cut_deflated(share: float) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        start = _deflated_body(data)
        return data[: start + round(share * (len(data) - start))]

    return edit


def truncated() -> Iterator[Case]:
    reason = Reason.TRUNCATED_DATASET
    for place, share in enumerate((0.1, 0.3, 0.5, 0.7)):
        syntax = PLAIN[place % 3]
        seed = Seed(name=RASTERS[place], syntax=syntax)
        yield by_bytes(reason, f"in_header_{share}", _cut_in_header(share, syntax), seed, known=NOT_PARSED)
    for place, seed in enumerate(seeds(syntaxes=ENCAPSULATED)):
        frame, share = (0, 4, 9)[place % 3], (0.02, 0.5, 0.98)[place // 3 % 3]
        make = _cut_in_fragment(frame, share)
        yield Case(reason=reason, name=f"in_frame_{frame}_at_{share}", seed=seed, make=lambda s=seed, m=make: m(s))
    for frame, kept in ((0, 3), (4, 0), (4, 7), (9, 0), (9, 4)):
        seed = seeds(syntaxes=ENCAPSULATED)[frame]
        make = _cut_at_item(frame, kept)
        yield Case(reason=reason, name=f"item_{frame}_after_{kept}", seed=seed, make=lambda s=seed, m=make: m(s))
    yield from cut_elsewhere()


def cut_elsewhere() -> Iterator[Case]:
    """Ends in the end mark, in a deflated stream, in the pixel element's head and behind the pixels."""
    reason = Reason.TRUNCATED_DATASET
    for lost, seed in zip((1, 4, 7, 8), seeds(syntaxes=ENCAPSULATED[::3]), strict=True):
        yield by_bytes(reason, f"{lost}_bytes_of_the_end_mark", lambda data, lost=lost: data[:-lost], seed)
    for place, share in enumerate((0.02, 0.1, 0.3, 0.6, 0.9, 0.99)):
        seed = Seed(name=RASTERS[place], syntax=DEFLATED_LE)
        yield by_bytes(
            reason, f"deflated_at_{share}", _cut_deflated(share), seed, known=NOT_PARSED if share < 0.1 else {}
        )
    for syntax in PLAIN:
        for kept in (5, 7, 9, 11)[: 2 if syntax == IMPLICIT_LE else 4]:
            yield by_bytes(
                reason,
                f"pixel_element_after_{kept}",
                lambda data, syntax=syntax, kept=kept: data[: _pixel_start(data, syntax) + kept],
                Seed(name=SPECTRALIS, syntax=syntax),
                known=NOT_PARSED,
            )
    tail = struct.pack("<HH2sHL", 0xFFFC, 0xFFFC, b"OB", 0, 400) + bytes(range(1, 100))
    for syntax in (EXPLICIT_LE, JPEG_2000_LOSSLESS, RLE_LOSSLESS):
        yield by_bytes(reason, "inside_the_last_element", lambda data: data + tail, Seed(syntax=syntax))


def _length(change: Callable[[int], int], syntax: str) -> Callable[[bytes], bytes]:
    """The element's declared length, and not its value."""

    def edit(data: bytes) -> bytes:
        start = _pixel_start(data, syntax)
        place = start + (4 if syntax == IMPLICIT_LE else 8)
        order = ">" if syntax == BIG_ENDIAN else "<"
        (old,) = struct.unpack(f"{order}L", data[place : place + 4])
        return data[:place] + struct.pack(f"{order}L", change(old)) + data[place + 4 :]

    return edit


def _pixels(change: Callable[[bytes], bytes]) -> Edit:
    """Other pixel bytes in an element whose length is right."""

    def edit(dataset: Dataset) -> None:
        put(dataset, "PixelData", change(dataset.PixelData), "OB")

    return edit


def wrong_length() -> Iterator[Case]:
    reason = Reason.PIXELDATA_LENGTH_MISMATCH
    for place, cut in enumerate((1, 2, 100, FRAME_BYTES, 3 * FRAME_BYTES + 7, PIXEL_BYTES // 2, PIXEL_BYTES - 1)):
        seed = Seed(name=RASTERS[place % len(RASTERS)], syntax=PLAIN[place % 3])
        yield by_bytes(reason, f"file_cut_by_{cut}", lambda data, cut=cut: data[:-cut], seed)
    shapes: dict[str, Callable[[bytes], bytes]] = {
        "two_bytes_short": lambda pixels: pixels[:-2],
        "a_row_short": lambda pixels: pixels[:-SIDE],
        "a_frame_short": lambda pixels: pixels[:-FRAME_BYTES],
        "half": lambda pixels: pixels[: PIXEL_BYTES // 2],
        "empty": lambda _: b"",
        "two_bytes_long": lambda pixels: pixels + b"\1\1",
        "a_row_long": lambda pixels: pixels + pixels[:SIDE],
        "a_frame_long": lambda pixels: pixels + pixels[:FRAME_BYTES],
        "twice": lambda pixels: pixels * 2,
    }
    for place, (name, change) in enumerate(shapes.items()):
        for turn in (0, 2):
            syntax = NATIVE_FRAMES[(place + turn) % 4]
            yield by_edit(reason, name, _pixels(change), Seed(name=RASTERS[(place + turn) % 8], syntax=syntax))
    yield from wrong_declaration()


def wrong_declaration() -> Iterator[Case]:
    """A length that lies, bytes behind the pixels, rows and columns of another size."""
    reason = Reason.PIXELDATA_LENGTH_MISMATCH
    lies: dict[str, Callable[[int], int]] = {
        "declares_more": lambda old: old + 2,
        "declares_a_frame_more": lambda old: old + FRAME_BYTES,
        "declares_gigabytes": lambda _: 0x7FFFFFFE,
        "declares_nothing": lambda _: 0,
    }
    for place, (name, change_length) in enumerate(lies.items()):
        syntax = PLAIN[place % 3]
        yield by_bytes(reason, name, _length(change_length, syntax), Seed(name=RASTERS[place], syntax=syntax))
    for place, junk in enumerate((b"\xff" * 100, b"JANE", b"\1\2\3\4\5\6", b"\xff" * 4096)):
        seed = Seed(name=RASTERS[place], syntax=PLAIN[place % 3])
        yield by_bytes(reason, f"{len(junk)}_bytes_behind", lambda data, junk=junk: data + junk, seed)
    for keyword, value in (("Rows", 128), ("Columns", 32)):
        for syntax in (EXPLICIT_LE, BIG_ENDIAN):
            order = ">" if syntax == BIG_ENDIAN else "<"
            packed = struct.pack(f"{order}H", value)
            known = {keyword.lower(): value}
            yield by_edit(
                reason,
                f"{keyword}_{value}",
                lambda dataset, keyword=keyword, packed=packed: put(dataset, keyword, packed),
                Seed(name=SPECTRALIS, syntax=syntax),
                known=known,
            )
    for change in (lambda pixels: pixels[:-8], lambda pixels: pixels + bytes(range(8))):
        seed = Seed(name=MACULA, syntax=DEFLATED_LE)
        yield by_edit(reason, "inside_of_deflate", _pixels(change), seed)


def _groups(count: int) -> Edit:
    """Another number of per-frame groups."""

    def edit(dataset: Dataset) -> None:
        groups = dataset.PerFrameFunctionalGroupsSequence
        dataset.PerFrameFunctionalGroupsSequence = [groups[frame % len(groups)] for frame in range(count)]

    return edit


def _holding(value: bytes) -> Callable[[bytes], bytes]:
    """Encapsulated pixel data of these bytes alone."""

    def edit(data: bytes) -> bytes:
        start = data.rindex(ENCAPSULATED_HEAD)
        return data[: start + len(ENCAPSULATED_HEAD)] + value + SEQUENCE_END

    return edit


def wrong_frames() -> Iterator[Case]:
    reason = Reason.NFRAMES_MISMATCH
    changes: dict[str, Callable[[Fragments], Fragments]] = {
        "last_lost": lambda frames: frames[:-1],
        "first_lost": lambda frames: frames[1:],
        "half_lost": lambda frames: frames[:5],
        "one_left": lambda frames: frames[:1],
        "one_twice": lambda frames: [*frames, frames[0]],
        "all_twice": lambda frames: frames * 2,
        "one_empty_more": lambda frames: [*frames, frames[3], frames[4]],
    }
    for place, (name, change) in enumerate(changes.items()):
        for turn in (0, 3, 7):
            seed = Seed(name=RASTERS[(place + turn) % 8], syntax=ENCAPSULATED[(place + turn) % len(ENCAPSULATED)])
            yield by_fragments(reason, name, change, seed)
    for count, syntax in zip(
        (1, 5, 9, 11, 20, 9, 11, 100),
        (JPEG_2000_LOSSLESS, HTJ2K_LOSSLESS, JPEG_LS_LOSSLESS, RLE_LOSSLESS, *NATIVE_FRAMES),
        strict=True,
    ):
        seed = Seed(name=RASTERS[count % 8], syntax=syntax)
        known = dict.fromkeys(SPACING) if count == 1 else {}
        yield by_edit(reason, f"{count}_groups", _groups(count), seed, known=known)
    for count, syntax in ((9, JPEG_BASELINE), (11, JPEG_LOSSLESS_SV1), (8, RLE_LOSSLESS), (40, HTJ2K_LOSSLESS)):
        edit = put_text("NumberOfFrames", str(count))
        known = {"num_frames": count}
        yield by_edit(reason, f"declares_{count}", edit, Seed(name=RASTERS[count % 8], syntax=syntax), known=known)
    for value, name in ((b"", "no_items"), (ITEM + bytes(4), "offset_table_only"), ((ITEM + bytes(4)) * 4, "empty")):
        for seed in seeds(syntaxes=(JPEG_2000_LOSSLESS, RLE_LOSSLESS)):
            yield by_bytes(reason, name, _holding(value), seed)


CASES: Final = (*truncated(), *wrong_length(), *wrong_frames())
