"""The 3-D vision transformer.

Shapes: B volumes, D H W voxels (B-scan, axial, A-scan), N tokens of the grid, K tokens of a chosen subset,
P voxels of a patch, C channels, E heads, F channels of a head, A axes.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.config import Recipe
from train.presets import dimensions, positions
from train.rotary import Rotation, grid_positions, rotate, rotation


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

    def forward(self, x_BNC: Tensor, rotation: Rotation | None, attend_BN: Tensor | None) -> Tensor:
        x_BNC = x_BNC + self.attention(self.norm1(x_BNC), rotation, attend_BN)
        hidden_BNC: Tensor = self.fc2(functional.gelu(self.fc1(self.norm2(x_BNC))))
        return x_BNC + hidden_BNC


class Encoder(nn.Module):
    """Volumes to tokens: patches, positions, blocks, a last norm."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        size = dimensions(recipe.model)
        self.dim = size.dim
        self.patch = recipe.model.patch
        self.token_grid = recipe.token_grid
        self.head_dim = recipe.model.head_dim
        self.reference_mm = recipe.model.rope_reference_mm
        self.patchify = nn.Linear(math.prod(self.patch), size.dim)
        self.mask_token = nn.Parameter(torch.zeros(size.dim))
        has_table = positions(recipe) == "table"
        self.table_NC = nn.Parameter(torch.zeros(recipe.num_tokens, size.dim)) if has_table else None
        self.blocks = nn.ModuleList(Block(size.dim, self.head_dim) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.dim)
        initialise(self)

    def forward(
        self,
        x_BDHW: Tensor,
        content_BN: Tensor | None = None,
        spacing_B3: Tensor | None = None,
        *,
        keep_BK: Tensor | None = None,
        hide_BN: Tensor | None = None,
    ) -> Tensor:
        """Encode volumes.

        Args:
            x_BDHW: normalised voxels.
            content_BN: tokens that are not padding; only they are attended to. None attends to all.
            spacing_B3: voxel spacing in mm, needed when positions are in mm.
            keep_BK: indices of the tokens that enter the blocks; the others are never seen.
            hide_BN: tokens whose voxels are replaced by the mask token; their position stays.

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
        for block in self.blocks:
            x_BNC = block(x_BNC, turn, attend_BN)
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
            reference_3 = torch.tensor(self.reference_mm, device=device)
            positions_BNA = positions_BNA * (spacing_B3 / reference_3)[:, None, :]
        if keep_BK is not None:
            positions_BNA = take_tokens(positions_BNA.expand(len(keep_BK), -1, -1), keep_BK)
        return rotation(positions_BNA, self.head_dim)


def build_encoder(recipe: Recipe, *, seed: int | None = None) -> Encoder:
    """An encoder with random weights; with a seed, always the same ones."""
    if seed is None:
        return Encoder(recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder(recipe)


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
