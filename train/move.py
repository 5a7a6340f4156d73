"""Geometric augmentation: a volume is moved once, before anything looks at it, in whole voxels of the stored grid.

What an eye and an operator may do is done: the scan is centred elsewhere (shift), the beam meets the retina at an
angle (tilt), a longer eye magnifies less (scale), and a right eye is mirrored to a left one. Nothing is interpolated,
so integers stay what they were, and content stays a box. An en face rotation is not done: across B-scans that lie five
times as far apart as A-scans it would need to invent voxels. Draws depend on (seed, epoch, key) alone.

Shapes: D H W voxels of the stored grid.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shards.schema import Box, Sample, Volume
from train.seeding import generator

if TYPE_CHECKING:  # pydantic, which a step does not need
    from train.config import AugmentConfig

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One draw: `scale` magnifies D and W, `tilt` displaces their last voxels axially, `shift` comes last."""

    mirror: bool = False
    scale: tuple[float, float] = (1.0, 1.0)
    tilt: tuple[float, float] = (0.0, 0.0)
    shift: tuple[int, ...] = (0, 0, 0)


def draw_move(config: AugmentConfig, seed: int, epoch: int, key: str) -> Move:
    """The move of a sample in an epoch; each kind has a stream of its own, so that one does not change another."""
    mirror, scale, tilt, shift = (generator(seed, kind, epoch, key) for kind in ("mirror", "scale", "tilt", "shift"))
    along_d, along_w = scale.uniform(-config.scale, config.scale, size=2)
    edge_d, edge_w = (float(tilt.uniform(-limit, limit)) for limit in config.tilt_voxels)
    return Move(
        mirror=bool(mirror.random() < config.mirror),
        scale=(float(1 + along_d), float(1 + along_w)),
        tilt=(edge_d, edge_w),
        shift=tuple(int(shift.integers(-limit, limit + 1)) for limit in config.shift_voxels),
    )


def move_sample(sample: Sample, move: Move) -> Sample:
    """The sample after a move: what leaves the grid is lost, what enters is padding, and the content box follows."""
    volume, box = sample.volume, sample.meta.content_box
    if move.mirror or move.scale != (1.0, 1.0):
        volume, box = _resample(volume, box, move)
    if any(move.tilt):
        volume, box = tilt_volume(volume, box, move.tilt)
    if any(move.shift):
        volume, box = shift_volume(volume, move.shift), shift_box(box, move.shift, volume.shape)
    return replace(sample, volume=volume, meta=replace(sample.meta, content_box=box))


def source_indices(size: int, scale: float, *, mirror: bool = False) -> Indices:
    """From where each voxel of an axis comes, nearest, about the middle; what lies outside is under 0 or over."""
    middle = (size - 1) / 2
    offset = (np.arange(size) - middle) / scale
    source: Indices = np.rint(middle + (-offset if mirror else offset)).astype(np.int64)
    return source


def _resample(volume: Volume, box: Box, move: Move) -> tuple[Volume, Box]:
    """Magnify D and W, and mirror W; content is what came from content."""
    d = source_indices(volume.shape[0], move.scale[0])
    w = source_indices(volume.shape[2], move.scale[1], mirror=move.mirror)
    moved = volume[d.clip(0, len(d) - 1)][:, :, w.clip(0, len(w) - 1)]
    return _only((_inside(d, box[0]), box[1], _inside(w, box[2])), moved)


def tilt_volume(volume: Volume, box: Box, tilt: tuple[float, float]) -> tuple[Volume, Box]:
    """Move A-scans axially, in proportion to their place along D and W; content is where every A-scan has some."""
    by_d, by_w = (_displacements(size, edge) for size, edge in zip(volume.shape[::2], tilt, strict=True))
    moved = np.zeros_like(volume)
    for first, last in _runs(by_w):
        _slide(volume[:, :, first:last], moved[:, :, first:last], int(by_w[first]))
    for b_scan, displacement in zip(moved, by_d, strict=True):
        _slide(b_scan[None].copy(), b_scan[None], int(displacement))
    most = int(np.abs(by_d).max() + np.abs(by_w).max())
    return _only((box[0], (box[1][0] + most, box[1][1] - most), box[2]), moved)


def _displacements(size: int, edge: float) -> Indices:
    found: Indices = np.rint(np.linspace(-edge, edge, size)).astype(np.int64)
    return found


def _runs(values: Indices) -> list[tuple[int, int]]:
    """First and last (exclusive) index of each run of equal values."""
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return list(itertools.pairwise(edges))


def _slide(source: Volume, target: Volume, by: int) -> None:
    """Write what is `by` voxels higher up along H, and zero where nothing is."""
    target[...] = shift_volume(source, (0, by, 0))


def _inside(source: Indices, bounds: tuple[int, int]) -> tuple[int, int]:
    """The voxels whose source lies in the bounds; sources are monotone, so these are neighbours."""
    found = np.flatnonzero((source >= bounds[0]) & (source < bounds[1]))
    return (int(found[0]), int(found[-1]) + 1) if len(found) else (0, 0)


def _only(box: tuple[tuple[int, int], ...], volume: Volume) -> tuple[Volume, Box]:
    """The volume with zeros outside of a box; a box without content is empty."""
    d, h, w = box if all(start < stop for start, stop in box) else ((0, 0), (0, 0), (0, 0))
    kept = np.zeros_like(volume)
    place = tuple(slice(*bounds) for bounds in (d, h, w))
    kept[place] = volume[place]
    return kept, (d, h, w)


def shift_volume(volume: Volume, shift: tuple[int, ...]) -> Volume:
    """The volume moved by `shift` voxels per axis, zero where nothing came from."""
    moved = np.zeros_like(volume)
    target = tuple(slice(max(0, s), max(0, min(n, n + s))) for s, n in zip(shift, volume.shape, strict=True))
    source = tuple(slice(max(0, -s), max(0, min(n, n - s))) for s, n in zip(shift, volume.shape, strict=True))
    moved[target] = volume[source]
    return moved


def shift_box(box: Box, shift: tuple[int, ...], shape: tuple[int, ...]) -> Box:
    """The content box after the same shift, clipped to the grid."""
    d, h, w = (
        (min(max(start + s, 0), n), min(max(stop + s, 0), n))
        for (start, stop), s, n in zip(box, shift, shape, strict=True)
    )
    return d, h, w
