"""Intensity augmentation, for one view; geometry is in move.py.

Draws depend on (seed, epoch, key) alone. Shapes: B volumes, D H W voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from train.device import Device
from train.seeding import fold, generator

if TYPE_CHECKING:  # pydantic, which a step does not need
    from train.config import AugmentConfig


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
