"""The numbered mutations: a number and the campaign's seed give the same bytes for ever."""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from reliability.anatomy import Anatomy
from reliability.mutate import BYTES, PARTS, Random, anatomy_of
from reliability.mutate_frames import FRAMES
from reliability.seeds import Seed, all_seeds

AGAIN: Final = 0.15
"""The share of files that are damaged a second time: a transfer that fails once fails twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """A damaged file, and how it came about."""

    number: int
    kind: str
    seed: Seed
    data: bytes = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.number:06d}-{self.kind}-{self.seed.name}"


def mutation(number: int, campaign: int, *, fresh: bool = False) -> Mutation:
    """The mutation with this number; seeds and kinds of damage are taken in turn, so that each pair comes up.

    Args:
        number: from 0.
        campaign: the seed of the run.
        fresh: under a SOP Instance UID of its own.
    """
    rng = np.random.default_rng([campaign, number])
    index = number % len(all_seeds())
    anatomy = Anatomy(all_seeds()[index].fresh(number)) if fresh else anatomy_of(index)
    kinds = [*BYTES, *PARTS, *(FRAMES if anatomy.fragments else ())]
    kind = kinds[(number // len(all_seeds()) + index) % len(kinds)]
    data = _damaged(anatomy, kind, rng)
    if rng.random() < AGAIN and data:
        again = list(BYTES)[rng.integers(len(BYTES))]
        data, kind = BYTES[again](data, rng), f"{kind}+{again}"
    return Mutation(number=number, kind=kind, seed=anatomy.seed, data=data)


def _damaged(anatomy: Anatomy, kind: str, rng: Random) -> bytes:
    seed = anatomy.seed
    if kind not in BYTES:
        return seed.assemble(*(PARTS | FRAMES)[kind](anatomy, rng))
    if seed.deflated and rng.random() < 0.5:
        return seed.assemble(seed.meta, BYTES[kind](seed.body, rng))
    if rng.random() < 0.5:
        return BYTES[kind](seed.data, rng)
    header = anatomy.pixels + len(seed.meta)  # as many again into the header, which is the smaller part
    return BYTES[kind](seed.data[:header], rng) + seed.data[header:]
