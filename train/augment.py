"""Augmentation. Geometry moves a volume once, before anything looks at it; intensity is for one view.

Draws depend on (seed, epoch, key) alone. Shapes: B volumes, D H W voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from shards.schema import Box, Sample, Volume
from train.device import Device
from train.seeding import fold, generator

if TYPE_CHECKING:  # pydantic, which a step does not need
    from train.config import AugmentConfig


def shift_sample(sample: Sample, config: AugmentConfig, seed: int, epoch: int) -> Sample:
    """Move a volume by whole voxels on each axis; what leaves the grid is lost, what enters is padding.

    A shift is a change of where the scan was centred, the one motion that every eye and device allows.
    """
    if not any(config.shift_voxels):
        return sample
    rng = generator(seed, "shift", epoch, sample.key)
    shift = tuple(int(rng.integers(-limit, limit + 1)) for limit in config.shift_voxels)
    box = shift_box(sample.meta.content_box, shift, sample.volume.shape)
    return replace(sample, volume=shift_volume(sample.volume, shift), meta=replace(sample.meta, content_box=box))


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


def jitter(
    x_BDHW: Tensor, config: AugmentConfig, keys: Sequence[str], seed: int, epochs: Sequence[int], device: Device
) -> Tensor:
    """Contrast, brightness and noise of each volume."""
    if not (config.gain or config.offset or config.noise):
        return x_BDHW
    rngs = [generator(seed, "intensity", epoch, key) for epoch, key in zip(epochs, keys, strict=True)]
    draws = np.array([rng.uniform(-1, 1, size=2) for rng in rngs], dtype=np.float32)
    gain_B, offset_B = torch.from_numpy(draws).to(x_BDHW.device).unbind(1)
    scaled = x_BDHW * (1 + config.gain * gain_B)[:, None, None, None] + config.offset * offset_B[:, None, None, None]
    if not config.noise:
        return scaled
    shape = x_BDHW.shape[1:]
    seeds = [fold(seed, "noise", epoch, key) for epoch, key in zip(epochs, keys, strict=True)]
    return scaled + config.noise * torch.stack([device.normal(shape, one) for one in seeds])
