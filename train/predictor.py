"""Predictors: from what the context encoder knows to the target's features.

Shapes as in encoder.py, and: K visible tokens, T target tokens, M = K + T.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed, nn

from train.encoder import Blocks, Rotation, initialise
from train.presets import dimensions
from train.ranks import sum_over_ranks

if TYPE_CHECKING:  # pydantic, which a step does not need
    from train.config import Recipe


class TransformerPredictor(nn.Module):
    """V-JEPA's: a narrow transformer over visible tokens and mask tokens, told apart by their positions."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        size = dimensions(recipe.model)
        self.embed = nn.Linear(size.dim, size.predictor_dim)
        self.mask_token = nn.Parameter(torch.zeros(size.predictor_dim))
        self.blocks = Blocks(size.predictor_depth, size.predictor_dim, recipe.model.head_dim)
        self.blocks.recompute = recipe.train.recompute
        self.norm = nn.LayerNorm(size.predictor_dim)
        self.proj = nn.Linear(size.predictor_dim, size.dim)
        initialise(self)

    def forward(self, context_BKC: Tensor, rotation_BM: Rotation, *, everywhere: bool = False) -> Tensor:
        """Predict the features of targets from visible tokens.

        Args:
            context_BKC: the context encoder's tokens.
            rotation_BM: angles of the K visible tokens, then of the T targets.
            everywhere: predict those of the visible tokens, too.

        Returns:
            `[B, T, C]`, or `[B, M, C]` of all of them, as in `rotation_BM`.
        """
        B, K, _ = context_BKC.shape
        visible_BKC = self.embed(context_BKC)
        T = rotation_BM.cos.shape[2] - K
        hidden_BTC = self.mask_token.to(visible_BKC.dtype).expand(B, T, -1)
        x_BMC = torch.cat([visible_BKC, hidden_BTC], dim=1)
        x_BMC = self.blocks(x_BMC, rotation_BM)
        predicted: Tensor = self.proj(self.norm(x_BMC if everywhere else x_BMC[:, K:]))
        return predicted


class SharedBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the rows of every rank, as one process with all of them would have it.

    torch's SyncBatchNorm wants CUDA; this sums over ranks by any backend. A micro-batch is still a batch of its own.
    """

    def forward(self, x_VC: Tensor) -> Tensor:
        """Of as many rows on every rank."""
        if not self.training or not distributed.is_initialized():
            return super().forward(x_VC)
        rows_VC = x_VC.float()  # bfloat16 would lose the variance of rows that have much in common
        count = len(rows_VC) * distributed.get_world_size()
        mean_C = sum_over_ranks(rows_VC.sum(0)) / count
        var_C = sum_over_ranks((rows_VC - mean_C).square().sum(0)) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]  # all three are there: statistics are tracked
            self.running_mean.lerp_(mean_C, self.momentum)  # type: ignore[union-attr,arg-type]
            self.running_var.lerp_(var_C * count / (count - 1), self.momentum)  # type: ignore[union-attr,arg-type]
        scaled: Tensor = (rows_VC - mean_C) * torch.rsqrt(var_C + self.eps) * self.weight + self.bias
        return scaled.to(x_VC.dtype)


class MlpPredictor(nn.Module):
    """The methods text's: dim-dim-dim with BatchNorm1d and GELU, on each masked token alone."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        dim = dimensions(recipe.model).dim
        self.fc1 = nn.Linear(dim, dim)
        self.norm = SharedBatchNorm(dim)
        self.fc2 = nn.Linear(dim, dim)
        initialise(self)

    def forward(self, masked_BTC: Tensor) -> Tensor:
        B, T, C = masked_BTC.shape
        hidden = nn.functional.gelu(self.norm(self.fc1(masked_BTC.reshape(B * T, C))))
        predicted: Tensor = self.fc2(hidden)
        return predicted.view(B, T, C)
