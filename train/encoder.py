"""The 3-D vision transformer. This file needs torch and nothing of ours: `fovea export` gives it away with the weights.

Shapes: B volumes, D H W voxels (B-scan, axial, A-scan), N tokens of the grid, K tokens of a chosen subset, P voxels of
a patch, C channels, A axes, E heads, F channels of a head, R rotated pairs of them, L blocks.

Positions are rotary in three axes (RoFormer, Su et al. 2021, extended per axis as in V-JEPA 2): a head's channels are
split into A groups of pairs, and each group is turned by angles of its own axis, so that the product of a query and a
key depends on their difference of position only. Channels left over are not turned.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

BASE = 10_000.0  # RoFormer; the slowest pair turns by 1/BASE radian per step


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """What the weights alone do not say. `token_grid` and `patch` are `[D, H, W]`, in tokens and in voxels.

    `table`: positions are learned instead of rotary. `reference_mm`: the spacing that counts as one step of the grid
    for rotary positions in mm; None: positions are indices of the grid.
    """

    dim: int
    depth: int
    head_dim: int
    patch: tuple[int, int, int]
    token_grid: tuple[int, int, int]
    table: bool = False
    reference_mm: tuple[float, float, float] | None = None


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
    first, second, rest = torch.split(x_BENF, [R, R, x_BENF.shape[-1] - 2 * R], dim=-1)  # one backward pass, not three
    turned = [first * by.cos - second * by.sin, first * by.sin + second * by.cos]  # float32, also under bf16
    return torch.cat([*(part.to(x_BENF.dtype) for part in turned), rest], dim=-1)


class Attention(nn.Module):
    """Self-attention; with a rotation, queries and keys are turned by their positions."""

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BNC: Tensor, rotation: Rotation | None, attend_BN: Tensor | None) -> Tensor:
        """Attend to every token, or only to those of `attend_BN`."""
        B, N, C = x_BNC.shape
        q_BENF, k_BENF, v_BENF = (
            self.qkv(x_BNC).view(B, N, 3, C // self.head_dim, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        )
        if rotation is not None:
            q_BENF, k_BENF = rotate(q_BENF, rotation), rotate(k_BENF, rotation)
        mask = None if attend_BN is None else attend_BN[:, None, None, :]
        y_BENF = functional.scaled_dot_product_attention(q_BENF, k_BENF, v_BENF, attn_mask=mask)
        projected: Tensor = self.proj(y_BENF.transpose(1, 2).reshape(B, N, C))
        return projected


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, head_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(
        self, x_BNC: Tensor, rotation: Rotation | None, attend_BN: Tensor | None, scale_B2: Tensor | None = None
    ) -> Tensor:
        """Add what attention and then what the two layers find, each scaled by volume if `scale_B2` is given."""
        found_BNC = self.attention(self.norm1(x_BNC), rotation, attend_BN)
        x_BNC = x_BNC + (found_BNC if scale_B2 is None else found_BNC * scale_B2[:, :1, None].to(found_BNC.dtype))
        hidden_BNC: Tensor = self.fc2(functional.gelu(self.fc1(self.norm2(x_BNC))))
        return x_BNC + (hidden_BNC if scale_B2 is None else hidden_BNC * scale_B2[:, 1:, None].to(hidden_BNC.dtype))


class Blocks(nn.ModuleList):
    """Blocks, one after another.

    `recompute`: the inside of a block is not kept for the backward pass, but done again. `look` is called with the
    tokens after each block.
    """

    def __init__(self, depth: int, dim: int, head_dim: int) -> None:
        super().__init__(Block(dim, head_dim) for _ in range(depth))
        self.recompute = False
        self.look: Callable[[Tensor], None] | None = None

    def forward(
        self,
        x_BNC: Tensor,
        rotation: Rotation | None,
        attend_BN: Tensor | None = None,
        scale_BL2: Tensor | None = None,
    ) -> Tensor:
        """Tokens after all blocks."""
        for place, block in enumerate(self):
            scale_B2 = None if scale_BL2 is None else scale_BL2[:, place]
            inputs = (x_BNC, rotation, attend_BN, scale_B2)
            if self.recompute and torch.is_grad_enabled():
                x_BNC = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BNC = block(*inputs)
            if self.look is not None:
                self.look(x_BNC)
        return x_BNC


class Encoder(nn.Module):
    """Volumes to tokens: patches, positions, blocks, a last norm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.dim, self.head_dim = config.dim, config.head_dim
        self.patch, self.token_grid = config.patch, config.token_grid
        self.reference_mm = config.reference_mm
        self.patchify = nn.Linear(math.prod(self.patch), self.dim)
        self.mask_token = nn.Parameter(torch.zeros(self.dim))
        self.table_NC = nn.Parameter(torch.zeros(math.prod(self.token_grid), self.dim)) if config.table else None
        self.blocks = Blocks(config.depth, self.dim, self.head_dim)
        self.norm = nn.LayerNorm(self.dim)
        initialise(self)

    def forward(
        self,
        x_BDHW: Tensor,
        content_BN: Tensor | None = None,
        spacing_B3: Tensor | None = None,
        *,
        keep_BK: Tensor | None = None,
        hide_BN: Tensor | None = None,
        scale_BL2: Tensor | None = None,
    ) -> Tensor:
        """Encode volumes.

        Args:
            x_BDHW: normalised voxels.
            content_BN: tokens that are not padding; only they are attended to. None attends to all.
            spacing_B3: voxel spacing in mm, needed when positions are in mm.
            keep_BK: indices of the tokens that enter the blocks; the others are never seen.
            hide_BN: tokens whose voxels are replaced by the mask token; their position stays.
            scale_BL2: factors of both parts of each block, by volume (stochastic depth); None is 1.

        Returns:
            tokens `[B, N, C]`, or `[B, K, C]` with `keep_BK`. Tokens of padding hold nothing of use.
        """
        x_BNP, table_BNC, attend_BN = patches(x_BDHW, self.patch), self._table(), content_BN
        if keep_BK is not None:
            x_BNP = take_tokens(x_BNP, keep_BK)
            attend_BN = None if content_BN is None else content_BN.gather(1, keep_BK)
            table_BNC = None if table_BNC is None else take_tokens(table_BNC.expand(len(keep_BK), -1, -1), keep_BK)
        x_BNC = self.patchify(x_BNP)
        if hide_BN is not None:
            x_BNC = torch.where(hide_BN[:, :, None], self.mask_token.to(x_BNC.dtype), x_BNC)
        if table_BNC is not None:
            x_BNC = x_BNC + table_BNC
        turn = self.rotation(spacing_B3, keep_BK, device=x_BDHW.device) if table_BNC is None else None
        x_BNC = self.blocks(x_BNC, turn, attend_BN, scale_BL2)
        normed: Tensor = self.norm(x_BNC)
        return normed

    def _table(self) -> Tensor | None:
        return None if self.table_NC is None else self.table_NC[None]

    def rotation(self, spacing_B3: Tensor | None, keep_BK: Tensor | None, *, device: torch.device) -> Rotation:
        """Rotary angles of the kept tokens, from grid indices or from mm (see `model.rope_reference_mm`)."""
        positions_BNA = grid_positions(self.token_grid, device=device)[None]
        if self.reference_mm is not None:
            if spacing_B3 is None:
                raise ValueError("this encoder places tokens in mm: give it spacing_B3.")
            steps_B3 = torch.stack([spacing_B3[:, axis] / mm for axis, mm in enumerate(self.reference_mm)], dim=1)
            positions_BNA = positions_BNA * steps_B3[:, None, :]  # a tensor of `reference_mm` would be copied each time
        if keep_BK is not None:
            positions_BNA = take_tokens(positions_BNA.expand(len(keep_BK), -1, -1), keep_BK)
        return rotation(positions_BNA, self.head_dim)


def patches(x_BDHW: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Cut volumes into tokens in row-major order of the grid: `[B, N, P]`."""
    B, D, H, W = x_BDHW.shape
    d, h, w = patch
    x = x_BDHW.view(B, D // d, d, H // h, h, W // w, w).permute(0, 1, 3, 5, 2, 4, 6)
    return x.reshape(B, (D // d) * (H // h) * (W // w), d * h * w)


def take_tokens(x_BNC: Tensor, index_BK: Tensor) -> Tensor:
    """Gather tokens: `[B, K, C]`."""
    return x_BNC.gather(1, index_BK[:, :, None].expand(-1, -1, x_BNC.shape[-1]))


def initialise(module: nn.Module) -> None:
    """Xavier weights as in MAE, so that narrow encoders attend from the start; residual projections shrink with depth.

    Tokens and positions are truncated normal of 0.02.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.xavier_uniform_(child.weight)
            nn.init.zeros_(child.bias)
    for parameter in module.parameters(recurse=False):
        nn.init.trunc_normal_(parameter, std=0.02)
    blocks = [child for child in module.modules() if isinstance(child, Block)]
    for depth, block in enumerate(blocks, start=1):
        for linear in (block.attention.proj, block.fc2):
            linear.weight.data.div_(math.sqrt(2 * depth))


def num_parameters(module: nn.Module) -> int:
    """Trainable numbers of a module, each counted once."""
    return sum(parameter.numel() for parameter in module.parameters())
