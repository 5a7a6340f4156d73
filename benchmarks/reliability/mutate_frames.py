"""Damage to compressed frames: their items stay in order, so that it reaches the decoders."""

import struct
from collections.abc import Callable
from typing import Final

from reliability.anatomy import ITEM, Anatomy
from reliability.mutate import BYTES, Files, Random, anatomy_of
from reliability.seeds import all_seeds

HEAD_BYTES: Final = 96
"""Markers and sizes lie in here; the rest of a frame is entropy-coded."""
EXTREMES: Final = (0, 1, 0x7F, 0x80, 0xFF)


def with_fragments(seed: Anatomy, values: list[bytes]) -> Files:
    """The pixel data element with these fragments; the offset table is emptied, for it would no longer be true."""
    body, first, last = seed.seed.body, seed.fragments[0], seed.fragments[-1]
    table = next(part for part in seed.body if part.is_fragment)
    items = b"".join(_item(value) for value in (b"", *values))
    return seed.seed.meta, body[: table.start] + items + body[max(first.end, last.end) :]


def _item(value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHL", ITEM >> 16, ITEM & 0xFFFF, len(value)) + value


def values_of(seed: Anatomy) -> list[bytes]:
    """The compressed frames."""
    return [seed.seed.body[part.value : part.end] for part in seed.fragments]


def fragments_swapped(seed: Anatomy, rng: Random) -> Files:
    """Fragments in another order, one twice, one gone, one empty, or one too many."""
    values = values_of(seed)
    one, other = rng.integers(len(values), size=2)
    kind = rng.integers(5)
    if kind == 0:
        values[one], values[other] = values[other], values[one]
    elif kind == 1:
        values[one] = values[other]
    elif kind == 2:
        values[one] = b""
    elif kind == 3:
        values.insert(one, values[other])
    else:
        del values[one]
    return with_fragments(seed, values)


def fragment_of_another_file(seed: Anatomy, rng: Random) -> Files:
    """A frame of another file, and perhaps of another codec."""
    values = values_of(seed)
    other = anatomy_of(int(rng.integers(len(all_seeds()))))
    if other.fragments:
        values[rng.integers(len(values))] = values_of(other)[rng.integers(len(other.fragments))]
    return with_fragments(seed, values)


def fragment_cut(seed: Anatomy, rng: Random) -> Files:
    """A frame ends too early; half of the time it has an end marker all the same."""
    values = values_of(seed)
    place = rng.integers(len(values))
    whole = values[place]
    part = whole[: int(rng.integers(len(whole)))]
    values[place] = part + b"\xff\xd9" if rng.random() < 0.5 else part
    return with_fragments(seed, values)


def frame_damaged(seed: Anatomy, rng: Random) -> Files:
    """Any damage to the bytes of one frame, whose first and last markers stay half of the time."""
    values = values_of(seed)
    place = rng.integers(len(values))
    whole = values[place]
    damage = list(BYTES.values())[rng.integers(len(BYTES))]
    inner = whole[4:-4] if rng.random() < 0.5 else b""
    values[place] = whole[:4] + damage(inner, rng) + whole[-4:] if inner else damage(whole, rng)
    return with_fragments(seed, values)


def frame_head_damaged(seed: Anatomy, rng: Random) -> Files:
    """One to four bytes in the markers and sizes at the head of a frame: what sends a decoder astray."""
    values = values_of(seed)
    place = rng.integers(len(values))
    changed = bytearray(values[place])
    for _ in range(int(rng.integers(1, 5))):
        changed[rng.integers(2, min(HEAD_BYTES, len(changed)))] = rng.choice([*EXTREMES, int(rng.integers(256))])
    values[place] = bytes(changed)
    return with_fragments(seed, values)


def every_head_damaged(seed: Anatomy, rng: Random) -> Files:
    """The same damage to the head of every frame, as a broken exporter would do it."""
    place, value = int(rng.integers(2, HEAD_BYTES)), int(rng.integers(256))
    changed = [whole[:place] + bytes([value]) + whole[place + 1 :] for whole in values_of(seed)]
    return with_fragments(seed, changed)


FRAMES: Final[dict[str, Callable[[Anatomy, Random], Files]]] = {
    found.__name__: found
    for found in (
        fragments_swapped,
        fragment_of_another_file,
        fragment_cut,
        frame_damaged,
        frame_head_damaged,
        every_head_damaged,
    )
}
