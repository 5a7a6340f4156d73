"""Seeded randomness without state: a draw depends on what it is for, never on how many came before it.

So order, masks and augmentation of any sample are the same after a resume, on any number of workers.
"""

import hashlib

import numpy as np


def fold(seed: int, *words: str | int) -> int:
    """A 63-bit seed from a seed and what it is for, e.g. `fold(seed, "masks", epoch, key)`."""
    text = "\x1f".join(str(word) for word in (seed, *words))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *words: str | int) -> np.random.Generator:
    """A numpy generator for one purpose."""
    return np.random.default_rng(fold(seed, *words))
