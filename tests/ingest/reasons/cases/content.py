"""Faults of the grey levels, and marks burned into them; accepted files that deserve a warning."""

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from pydicom.dataset import Dataset

from ingest.phantom.dicom import serialise
from ingest.phantom.protocols import EXPLICIT_LE, IMPLICIT_LE, JPEG_2000
from manifests.reasons import Reason

from .build import (
    BIG_ENDIAN,
    HTJ2K_LOSSLESS,
    JPEG_BASELINE,
    JPEG_EXTENDED,
    JPEG_LS_NEAR,
    MACULA,
    NATIVE,
    RASTERS,
    SIDE,
    SPECTRALIS,
    SYNTAXES,
    Case,
    Seed,
    both,
    by_edit,
    by_volume,
    put_text,
    seeds,
)

Levels = Callable[[Any], Any]
LOSSY: Final = (JPEG_2000, JPEG_BASELINE, JPEG_EXTENDED, JPEG_LS_NEAR)
EXACT: Final = tuple(syntax for syntax in SYNTAXES if syntax not in LOSSY)


def deep(seed: Seed, levels: Levels, *, stored: int = 16) -> Callable[[], bytes]:
    """A native file of 16 bits a voxel; `levels` makes them from the 8-bit tissue."""

    def make() -> bytes:
        dataset = seed.dataset()
        order = ">" if seed.syntax == BIG_ENDIAN else "<"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, stored, stored - 1
        dataset.PixelData = np.asarray(levels(seed.volume.astype(np.uint16)), f"{order}u2").tobytes()
        dataset["PixelData"].VR = "OW"
        return serialise(dataset)

    return make


def inverted(seed: Seed, levels: Levels) -> Callable[[], bytes]:
    """MONOCHROME1: bright is low."""

    def make() -> bytes:
        dataset = seed.dataset(np.ascontiguousarray(255 - levels(seed.volume.copy()), dtype=np.uint8))
        put_text("PhotometricInterpretation", "MONOCHROME1")(dataset)
        return serialise(dataset)

    return make


def _black(volume: Any) -> Any:
    return volume * 0


def dark() -> Iterator[Case]:
    reason = Reason.ALL_ZERO
    for seed in seeds():
        yield by_volume(reason, "black", _black, seed)
    for seed in seeds(syntaxes=(EXPLICIT_LE, IMPLICIT_LE, BIG_ENDIAN)):
        yield Case(reason=reason, name="black_in_16_bits", seed=seed, make=deep(seed, _black))
    for seed in seeds(names=RASTERS[4:], syntaxes=(EXPLICIT_LE, HTJ2K_LOSSLESS, BIG_ENDIAN)):
        yield Case(reason=reason, name="black_in_monochrome1", seed=seed, make=inverted(seed, _black))
    few = Seed(name=SPECTRALIS, num_frames=8)
    yield Case(reason=reason, name="black_in_eight_frames", seed=few, make=lambda: few.encode(_black(few.volume)))


def _flat(*frames: int, level: int = 90) -> Levels:
    def edit(volume: Any) -> Any:
        volume[list(frames)] = level
        return volume

    return edit


def _copied(**to: int) -> Levels:
    """B-scans that repeat others: `_copied(f3=2)` makes the fourth a copy of the third."""

    def edit(volume: Any) -> Any:
        for name, source in to.items():
            volume[int(name[1:])] = volume[source]
        return volume

    return edit


def _halves(volume: Any) -> Any:
    volume[5:] = volume[:5]
    return volume


def _each_flat(volume: Any) -> Any:
    """Every B-scan has a grey level of its own, and nothing else."""
    return np.broadcast_to(np.arange(10, 10 + len(volume), dtype=np.uint8)[:, None, None], volume.shape)


BLANK: Final[dict[str, Levels]] = {
    "two_flat": _flat(3, 4),
    "first_and_last_flat": _flat(0, 9),
    "two_black": _flat(2, 7, level=0),
    "two_white": _flat(5, 6, level=255),
    "half_black": _flat(0, 1, 2, 3, 4, level=0),
    "all_but_one_black": _flat(*range(9), level=0),
    "all_of_one_level": _flat(*range(10), level=128),
    "all_white": _flat(*range(10), level=255),
    "all_nearly_black": _flat(*range(10), level=1),
    "each_flat": _each_flat,
}
COPIES: Final[dict[str, Levels]] = {
    "two_copies": _copied(f3=2, f4=2),
    "two_pairs": _copied(f1=0, f9=8),
    "all_the_same": lambda volume: np.repeat(volume[:1], len(volume), axis=0),
    "second_half_repeats": _halves,
    "stored_twice": lambda volume: np.repeat(volume[:5], 2, axis=0),
    "a_copy_and_a_flat": lambda volume: _flat(8)(_copied(f3=2)(volume)),
}


def constant() -> Iterator[Case]:
    reason = Reason.CONSTANT_FRAMES
    faults = BLANK | COPIES
    for place, (name, levels) in enumerate(faults.items()):
        for turn in (0, 4):
            seed = Seed(name=RASTERS[(place + turn) % 8], syntax=EXACT[(place + turn) % len(EXACT)])
            yield by_volume(reason, name, levels, seed)
    for place, syntax in enumerate(LOSSY):
        yield by_volume(
            reason, "copies_through_a_lossy_codec", COPIES["two_pairs"], Seed(name=RASTERS[place], syntax=syntax)
        )
    for seed in seeds(syntaxes=(EXPLICIT_LE, BIG_ENDIAN)):
        yield Case(
            reason=reason, name="flat_in_16_bits", seed=seed, make=deep(seed, lambda v: _flat(1, 2, level=900)(v * 100))
        )


def _white_rows(share: float) -> Levels:
    def edit(volume: Any) -> Any:
        volume[:, : round(share * SIDE)] = 255
        return volume

    return edit


def _overexposed(volume: Any) -> Any:
    return np.clip(volume.astype(int) * 3, 1, 255)


def saturated() -> Iterator[Case]:
    reason = Reason.SATURATED
    for place, syntax in enumerate(EXACT):
        seed = Seed(name=RASTERS[place % 8], syntax=syntax)
        share = (0.15, 0.5, 0.9)[place % 3]
        yield by_volume(reason, f"white_{share}", _white_rows(share), seed)
        yield by_volume(reason, "overexposed", _overexposed, Seed(name=RASTERS[(place + 3) % 8], syntax=syntax))
    for seed in seeds(syntaxes=NATIVE[:3]):
        levels = _white_levels(65535)
        yield Case(reason=reason, name="white_in_16_bits", seed=seed, make=deep(seed, levels))
        levels = _white_levels(4095)
        yield Case(reason=reason, name="white_in_12_bits", seed=seed, make=deep(seed, levels, stored=12))
    for seed in seeds(names=RASTERS[2:], syntaxes=(EXPLICIT_LE, HTJ2K_LOSSLESS)):
        yield Case(reason=reason, name="white_in_monochrome1", seed=seed, make=inverted(seed, _white_rows(0.3)))


def _white_levels(top: int) -> Levels:
    def edit(volume: Any) -> Any:
        volume[:, :20] = top
        return volume

    return edit


def _ignored(dataset: Dataset) -> None:
    """Text of every kind that names nobody."""
    dataset.ImageComments = "CANARY"


def burned_in() -> Iterator[Case]:
    reason = Reason.BURNED_IN_SUSPECT
    for seed in seeds():
        yield by_edit(reason, "yes", put_text("BurnedInAnnotation", "YES"), seed)
    for place, word in enumerate(("yes", "Yes", " YES", "YES   ", "YES\0", "yEs")):
        seed = Seed(name=RASTERS[place], syntax=SYNTAXES[place * 2])
        yield by_edit(reason, f"spelt_{word!r}", put_text("BurnedInAnnotation", word), seed)
    for place, vr in enumerate(("LO", "SH", "UN")):
        edit = both(_ignored, put_text("BurnedInAnnotation", "YES", vr))
        yield by_edit(reason, f"as_{vr}", edit, Seed(name=(MACULA, SPECTRALIS)[place % 2]))


CASES: Final = (*dark(), *constant(), *saturated(), *burned_in())
