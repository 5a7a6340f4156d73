"""Rotary positions in three axes (RoFormer, Su et al. 2021, extended per axis as in V-JEPA 2).

Shapes: B volumes, N tokens, A the three axes, E heads, F channels of a head, R rotated channel pairs.
A head's channels are split into A groups of pairs; each group is turned by angles of its own axis, so that the
product of a query and a key depends on their difference of position only. Channels left over are not turned.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BASE = 10_000.0  # RoFormer; the slowest pair turns by 1/BASE radian per step


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """Cosine and sine of the angles, float32 `[B, 1, N, R]`, ready to meet `[B, E, N, R]`."""

    cos: Tensor
    sin: Tensor


def grid_positions(token_grid: tuple[int, int, int], *, device: torch.device) -> Tensor:
    """Grid indices of every token in row-major order: float32 `[N, A]`."""
    axes = [torch.arange(size, device=device, dtype=torch.float32) for size in token_grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)


def rotation(positions_BNA: Tensor, head_dim: int) -> Rotation:
    """Angles of tokens: `head_dim // 6` pairs for each axis."""
    pairs = head_dim // 6
    frequency_R = BASE ** -(torch.arange(pairs, device=positions_BNA.device, dtype=torch.float32) / pairs)
    angle_BNR = (positions_BNA[..., None] * frequency_R).flatten(-2)
    return Rotation(cos=angle_BNR.cos()[:, None], sin=angle_BNR.sin()[:, None])


def rotate(x_BENF: Tensor, by: Rotation) -> Tensor:
    """Turn the channel pairs (i, R + i) of queries or keys; the last F - 2R channels stay."""
    R = by.cos.shape[-1]
    first, second, rest = x_BENF[..., :R], x_BENF[..., R : 2 * R], x_BENF[..., 2 * R :]
    turned = [first * by.cos - second * by.sin, first * by.sin + second * by.cos]  # float32, also under bf16
    return torch.cat([*(part.to(x_BENF.dtype) for part in turned), rest], dim=-1)


def select(by: Rotation, start: int, stop: int) -> Rotation:
    """The rotation of tokens `start:stop`."""
    return Rotation(cos=by.cos[:, :, start:stop], sin=by.sin[:, :, start:stop])
