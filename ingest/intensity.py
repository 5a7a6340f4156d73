"""What the grey levels say: is there a signal, where is the retina, and the statistics that loaders normalise with."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ingest.errors import IngestError
from ingest.record import Caution
from manifests.reasons import Reason
from shards.schema import Box, IntensityStats, Volume

CONSTANT_SHARE: Final = 0.1
SATURATED_SHARE: Final = 0.1
SMOOTHING_MM: Final = 0.1
"""A third of the retina: wider than speckle, narrower than what it looks for."""


def check_content(frames: Volume, bits_stored: int) -> tuple[Caution, ...]:
    """Refuse volumes without signal; return warnings of accepted ones.

    Args:
        frames: decoded B-scans `[D, H, W]`.
        bits_stored: full scale is `2**bits_stored - 1`.

    Raises:
        IngestError: ALL_ZERO, or CONSTANT_FRAMES when over a tenth of the B-scans are constant or copies.
    """
    if not frames.any():
        raise IngestError(Reason.ALL_ZERO, f"all of {frames.size} voxels are zero.")
    num_constant = sum(int(frame.min()) == int(frame.max()) for frame in frames)
    num_copies = len(frames) - num_constant - len({frame.tobytes() for frame in frames if frame.min() != frame.max()})
    if num_constant + num_copies > CONSTANT_SHARE * len(frames):
        detail = f"{num_constant} constant and {num_copies} repeated of {len(frames)} B-scans."
        raise IngestError(Reason.CONSTANT_FRAMES, detail)
    saturated = np.count_nonzero(frames == 2**bits_stored - 1) / frames.size
    if saturated <= SATURATED_SHARE:
        return ()
    return (Caution(reason=Reason.SATURATED, detail=f"{saturated:.0%} of the voxels are at the maximum."),)


def check_repeats(frames: Sequence[bytes]) -> None:
    """Stored frames that are byte for byte the same, of all frames, whether the grid needs them or not.

    A copy that was broken off and filled up with zeros has many.

    Raises:
        IngestError: CONSTANT_FRAMES when over a tenth of the frames repeat another.
    """
    repeated = len(frames) - len(set(frames))
    if repeated > CONSTANT_SHARE * len(frames):
        raise IngestError(Reason.CONSTANT_FRAMES, f"{repeated} of {len(frames)} stored frames repeat another.")


def retina_center_mm(frames: Volume, axial_mm: float) -> float:
    """Axial position of the retina from the top of the scan, mm, rounded to a micrometre.

    The intensity centroid of each B-scan's smoothed axial profile above its median, then the median over B-scans.
    """
    profiles = frames.sum(axis=2, dtype=np.int64).astype(np.float64)
    width = max(1, round(SMOOTHING_MM / axial_mm))
    kernel = np.ones(width) / width
    smooth = np.stack([np.convolve(profile, kernel, mode="same") for profile in profiles])
    weights = np.clip(smooth - np.median(smooth, axis=1, keepdims=True), 0, None)
    rows = (np.arange(frames.shape[1]) + 0.5) * axial_mm
    totals = weights.sum(axis=1)
    lit = totals > 0
    if not lit.any():
        return round(float(frames.shape[1]) * axial_mm / 2, 3)
    return round(float(np.median((weights[lit] @ rows) / totals[lit])), 3)


def content_statistics(volume: Volume, box: Box) -> IntensityStats:
    """Statistics over the content box from an exact histogram, so that they never depend on the order of sums."""
    content = volume[tuple(slice(start, stop) for start, stop in box)]
    counts = np.bincount(content.ravel(), minlength=np.iinfo(volume.dtype).max + 1)
    levels = np.arange(len(counts))
    total = int(counts.sum())
    mean = int(counts @ levels) / total
    second = int(counts @ levels**2) / total
    present = np.flatnonzero(counts)
    return IntensityStats(
        mean=mean,
        std=max(0.0, second - mean**2) ** 0.5,
        min=float(present[0]),
        max=float(present[-1]),
        p01=_percentile(counts, 0.01),
        p99=_percentile(counts, 0.99),
    )


def _percentile(counts: npt.NDArray[np.int64], share: float) -> float:
    """The smallest level that at least this share of voxels does not exceed."""
    return float(np.searchsorted(np.cumsum(counts), share * counts.sum()))
