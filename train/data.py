"""From samples to what the networks take: normalised and pooled on the device.

Shapes: B volumes, D H W voxels (after pooling, unless said otherwise), N tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shards.reader import Dataset
from shards.schema import Sample, SampleMeta, Volume, content_token_mask
from train.config import DataConfig, Recipe
from train.device import send
from train.errors import TrainError

MIN_STD = 1e-3  # grey levels; a volume without contrast becomes zeros instead of a division by zero


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Volumes on the device: float32 with mean 0 and deviation 1 over content, padding exactly 0."""

    x_BDHW: Tensor
    content_BN: Tensor
    spacing_B3: Tensor


def select(dataset: Dataset, config: DataConfig, split: str) -> Dataset:
    """The samples of a split that pass the recipe's filters."""
    return dataset.select(splits=[split], devices=config.devices, protocols=config.protocols, regions=config.regions)


def content_tokens(meta: SampleMeta, recipe: Recipe) -> npt.NDArray[np.bool_]:
    """Which tokens of the recipe's grid hold content, bool `[N]`."""
    return content_token_mask(meta.content_box, recipe.grid, recipe.model.patch, recipe.data.pool).reshape(-1)


def blank_padding(x_BDHW: Tensor, samples: Sequence[Sample], recipe: Recipe) -> Tensor:
    """Pooled volumes whose padding is exactly 0 again; a voxel that is padding in part counts as content."""
    content_BDHW = torch.stack([_content_voxels(sample.meta, recipe, x_BDHW.device) for sample in samples])
    return torch.where(content_BDHW, x_BDHW, 0)


def _content_voxels(meta: SampleMeta, recipe: Recipe, device: torch.device) -> Tensor:
    """Which pooled voxels hold content, bool `[D, H, W]`."""
    content_DHW = torch.ones((), dtype=torch.bool, device=device)
    for axis, (bounds, size) in enumerate(zip(meta.content_box, recipe.grid, strict=True)):
        inside = send(_inside(bounds, size, axis), device)
        content_DHW = content_DHW & (_sum_groups(inside, axis, recipe.data.pool, torch.int32) > 0)
    return content_DHW


def prepare(samples: Sequence[Sample], recipe: Recipe, device: torch.device) -> Prepared:
    """Put samples on the device in stored integers, and normalise and pool them there.

    Raises:
        TrainError: if a volume is not of the recipe's grid.
    """
    for sample in samples:
        if sample.volume.shape != recipe.grid:
            raise TrainError(
                f"{sample.key} is {sample.volume.shape} voxels, the recipe's data.grid is {recipe.grid}: "
                "train and embed with volumes of one geometry."
            )
    views = [normalise(_on_device(sample.volume, device), sample.meta, recipe.data.pool) for sample in samples]
    content = np.stack([content_tokens(sample.meta, recipe) for sample in samples])
    spacing = torch.tensor([sample.meta.spacing_mm for sample in samples], dtype=torch.float32)
    return Prepared(
        x_BDHW=torch.stack(views),
        content_BN=send(torch.from_numpy(content), device),
        spacing_B3=send(spacing, device),
    )


def normalise(stored_DHW: Tensor, meta: SampleMeta, pool: int) -> Tensor:
    """Average-pool, and normalise by the volume's mean and deviation over content; padding becomes 0.

    Sums are taken in integers: exact, and a fifth of the time that pooling through float32 takes on a CPU.
    A pooled voxel at the rim of the content counts its padding as the mean, which is 0.

    Args:
        stored_DHW: integers, before pooling.
        meta: content box and intensity statistics.
        pool: the factor of each axis.

    Returns:
        float32 `[D / pool, H / pool, W / pool]`.
    """
    is_small = stored_DHW.dtype == torch.uint8 and pool**3 * 255 < 2**15
    total_DHW, share_DHW = stored_DHW, torch.ones((), device=stored_DHW.device)
    for axis, bounds in enumerate(meta.content_box):
        inside = send(_inside(bounds, stored_DHW.shape[axis], axis), stored_DHW.device)
        total_DHW = _sum_groups(total_DHW * inside, axis, pool, torch.int16 if is_small else torch.int32)
        share_DHW = share_DHW * _sum_groups(inside, axis, pool, torch.float32) / pool
    statistics = send(torch.tensor([meta.intensity.mean, max(meta.intensity.std, MIN_STD)]), stored_DHW.device)
    mean, std = statistics.unbind()  # tensors: as constants they would be part of an XLA graph
    return (total_DHW.float() / pool**3 - mean * share_DHW) / std


def _on_device(volume: Volume, device: torch.device) -> Tensor:
    """Stored integers on the device; torch computes with uint8 and not with uint16, which becomes int32."""
    plain = volume if volume.dtype == np.uint8 else volume.astype(np.int32)
    return send(torch.from_numpy(plain), device)


def _inside(bounds: tuple[int, int], size: int, axis: int) -> Tensor:
    """Ones at the indices of an axis that lie in the content box, uint8, to be multiplied with a volume."""
    index = torch.arange(size)
    shape = [1, 1, 1]
    shape[axis] = size
    return ((index >= bounds[0]) & (index < bounds[1])).to(torch.uint8).view(shape)


def _sum_groups(x: Tensor, axis: int, size: int, dtype: torch.dtype) -> Tensor:
    """Sum groups of `size` neighbours along an axis, in `dtype`."""
    every = [(slice(None),) * axis + (slice(start, None, size),) for start in range(size)]
    total = x[every[0]].to(dtype)
    for place in every[1:]:
        total = total + x[place]
    return total
