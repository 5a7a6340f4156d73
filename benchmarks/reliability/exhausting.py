"""Files that are made to exhaust a reader: small, and asking for gigabytes, for ever, or for a million of something."""

import struct
import zlib
from collections.abc import Callable
from typing import Final

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
)

from ingest.phantom.stream import PRIVATE_CREATOR, nested_sequences
from reliability.anatomy import Anatomy
from reliability.encoders import encode
from reliability.mutate_frames import values_of, with_fragments
from reliability.seeds import Seed, Volume, make_seed, rasters, reduced

GIB: Final = 2**30
BOMB_BYTES: Final = 1_000_000_001
"""Over a gigabyte when inflated; under a megabyte (10^6 bytes) as it lies there."""
BLOCK: Final = 2**24
MILLION: Final = 10**6
EDGE: Final = 65535
PRIVATE_SEQUENCE: Final = struct.pack("<HH2sHL", 0x0009, 0x1010, b"SQ", 0, 0xFFFFFFFF)
SEQUENCE_END: Final = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
EMPTY_ITEM: Final = struct.pack("<HHL", 0xFFFE, 0xE000, 0)


def phantom(syntax: UID = ExplicitVRLittleEndian, edit: Callable[[Dataset, Volume], None] | None = None) -> Seed:
    """A small good file; all of these have its path."""
    return make_seed(reduced(rasters("heidelberg_spectralis")[0], 8, 48), syntax, 1, edit=edit)


def _header_of(**values: object) -> Callable[[Dataset, Volume], None]:
    def edit(dataset: Dataset, _: Volume) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return edit


def _with_private(seed: Seed, elements: bytes) -> bytes:
    """The file with more elements where private group 0009 belongs."""
    place = next(part.start for part in Anatomy(seed).top if part.tag >= 0x000A0000)
    return seed.assemble(seed.meta, seed.body[:place] + elements + seed.body[place:])


def _zeros(count: int) -> bytes:
    """A deflate stream of so many zeros: one compressed block again and again, for a full flush forgets the past."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = packer.compress(bytes(BLOCK)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * -(-count // BLOCK)


def _deflated(data: bytes, flush: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush(flush)


def _bomb(before: bytes, after: bytes, meta: bytes) -> bytes:
    """A data set of zeros between two parts."""
    stream = _deflated(before, zlib.Z_FULL_FLUSH) + _zeros(BOMB_BYTES) + _deflated(after, zlib.Z_FINISH)
    return meta + stream + b"\0" * (len(stream) % 2)


def _long_element(tag: tuple[int, int]) -> bytes:
    return struct.pack("<HH2sHL", *tag, b"OB", 0, -(-BOMB_BYTES // BLOCK) * BLOCK)


def bomb_in_the_header() -> bytes:
    """A private element of a gigabyte before the attributes of interest."""
    seed = phantom(DeflatedExplicitVRLittleEndian)
    place = next(part.start for part in Anatomy(seed).top if part.tag >= 0x000A0000)
    before = seed.body[:place] + PRIVATE_CREATOR + _long_element((0x0009, 0x1010))
    return _bomb(before, seed.body[place:], seed.meta)


def bomb_in_the_pixels() -> bytes:
    """A header that declares 40 kB of pixels, and a gigabyte of them."""
    seed = phantom(DeflatedExplicitVRLittleEndian)
    before = seed.body[: Anatomy(seed).pixels] + _long_element((0x7FE0, 0x0010))
    return _bomb(before, b"", seed.meta)


def bomb_that_is_declared() -> bytes:
    """The same under a header that declares as many pixels as a scan may have."""
    seed = phantom(DeflatedExplicitVRLittleEndian, _header_of(Rows=8000, Columns=8000))
    before = seed.body[: Anatomy(seed).pixels] + _long_element((0x7FE0, 0x0010))
    return _bomb(before, b"", seed.meta)


def bomb_behind_the_pixels() -> bytes:
    """A good file, and a gigabyte of zeros behind its pixels."""
    seed = phantom(DeflatedExplicitVRLittleEndian)
    return _bomb(seed.body, b"", seed.meta)


def nested(depth: int) -> bytes:
    """Sequences in sequences."""
    return _with_private(phantom(), nested_sequences(depth))


def declared_frames(count: int) -> bytes:
    """A header that declares more frames than there are."""
    return phantom(edit=_header_of(NumberOfFrames=count)).data


def declared_edges() -> bytes:
    """A header that declares 65535 x 65535 pixels."""
    return phantom(edit=_header_of(Rows=EDGE, Columns=EDGE)).data


def declared_edges_j2k() -> bytes:
    """Header and codestreams that agree on 65535 x 65535 pixels."""
    seed = phantom(JPEG2000Lossless, _header_of(Rows=EDGE, Columns=EDGE))
    return _with_codestream_edges(seed, EDGE)


def codestream_edges() -> bytes:
    """Codestreams of 65535 x 65535 pixels under a header of 64 x 64."""
    return _with_codestream_edges(phantom(JPEG2000Lossless), EDGE)


def largest_codestreams() -> bytes:
    """Header and codestreams that agree on the most pixels that a scan may have, of which none is there."""
    seed = phantom(JPEG2000Lossless, _header_of(Rows=8000, Columns=8000))
    return _with_codestream_edges(seed, 8000)


def _with_codestream_edges(seed: Seed, edge: int) -> bytes:
    """Image and tile size in the SIZ segment of every frame (T.800 A.5.1)."""
    size = struct.pack(">LL", edge, edge)
    changed = [value[:8] + size + value[16:24] + size + value[32:] for value in values_of(Anatomy(seed))]
    return seed.assemble(*with_fragments(Anatomy(seed), changed))


def empty_jpeg_ls() -> bytes:
    """JPEG-LS frames of one grey level: a few bytes for 8000 x 8000 pixels each, eight times."""
    frame = encode(np.full((1, 8000, 8000), 9, np.uint8), JPEGLSLossless)[0]
    seed = make_seed(
        reduced(rasters("heidelberg_spectralis")[0], 8), JPEGLSLossless, 1, edit=_header_of(Rows=8000, Columns=8000)
    )
    return seed.assemble(*with_fragments(Anatomy(seed), [frame] * 8))


def length_of_2_gib() -> bytes:
    """A private element that claims 2 GiB."""
    return _with_private(phantom(), PRIVATE_CREATOR + struct.pack("<HH2sHL", 0x0009, 0x1010, b"OB", 0, 2 * GIB - 2))


def pixels_of_2_gib() -> bytes:
    """A pixel data element that claims 2 GiB."""
    seed = phantom()
    part = next(part for part in Anatomy(seed).top if part.start == Anatomy(seed).pixels)
    body = seed.body[: part.length_at] + struct.pack("<L", 2 * GIB - 2) + seed.body[part.value :]
    return seed.assemble(seed.meta, body)


def long_spacing() -> bytes:
    """A PixelSpacing of 20 MB, which only implicit VR can hold; it lies in the shared functional groups' place."""
    seed = phantom(ImplicitVRLittleEndian)
    value = b"0.01\\" * (4 * MILLION) + b"0.01"
    place = next(part.start for part in Anatomy(seed).top if part.tag > 0x00280030)
    element = struct.pack("<HHL", 0x0028, 0x0030, len(value)) + value
    groups = [part for part in Anatomy(seed).top if part.tag in {0x52009229, 0x52009230}]
    body = seed.body[:place] + element + seed.body[place : groups[0].start] + seed.body[groups[-1].end :]
    return seed.assemble(seed.meta, body)


def many_elements() -> bytes:
    """10^6 empty private elements."""
    tags = np.zeros((MILLION, 8), np.uint8)
    order = np.arange(MILLION)
    tags[:, 0:2] = (0x0011 + 2 * (order // 0x8000)).astype("<u2").view(np.uint8).reshape(-1, 2)
    tags[:, 2:4] = (0x1000 + order % 0x8000).astype("<u2").view(np.uint8).reshape(-1, 2)
    tags[:, 4:6] = np.frombuffer(b"LO", np.uint8)
    return _with_private(phantom(), tags.tobytes())


def many_items() -> bytes:
    """A sequence of 10^6 empty items."""
    return _with_private(phantom(), PRIVATE_CREATOR + PRIVATE_SEQUENCE + EMPTY_ITEM * MILLION + SEQUENCE_END)


def many_groups() -> bytes:
    """10^6 empty items in place of the per-frame functional groups."""
    seed = phantom(edit=_header_of(NumberOfFrames=4096))
    part = next(part for part in Anatomy(seed).top if part.tag == 0x52009230)
    head = seed.body[part.start : part.length_at] + struct.pack("<L", 8 * MILLION)
    body = seed.body[: part.start] + head + EMPTY_ITEM * MILLION + seed.body[part.end :]
    return seed.assemble(seed.meta, body)


def many_fragments() -> bytes:
    """10^6 empty fragments."""
    seed = phantom(JPEG2000Lossless)
    return seed.assemble(*with_fragments(Anatomy(seed), [b""] * MILLION))
