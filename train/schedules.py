"""Learning rate, momentum of the target, and weight decay groups; all count optimizer steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from train.sharding import local

if TYPE_CHECKING:  # pydantic, which a step does not need
    from train.config import OptimConfig


def learning_rate(step: int, max_steps: int, config: OptimConfig) -> float:
    """Linear warm-up, then one cosine over the rest of the run.

    Args:
        step: updates made before this one, from 0.
        max_steps: updates of the whole run.
        config: the peak, the share of warm-up, and the end as a share of the peak.

    Returns:
        The rate of this update: `lr / num_warmup` at step 0, `lr` at the end of warm-up,
        `final_lr_fraction * lr` at the last step.
    """
    num_warmup = max(1, round(config.warmup_fraction * max_steps))
    if step < num_warmup:
        return config.lr * (step + 1) / num_warmup
    progress = (step + 1 - num_warmup) / max(1, max_steps - num_warmup)
    return config.lr * _cosine(1.0, config.final_lr_fraction, progress)


def ema_momentum(step: int, max_steps: int, config: OptimConfig) -> float:
    """Cosine from `ema_start` at the first update to `ema_end` at the last."""
    return _cosine(config.ema_start, config.ema_end, step / max(1, max_steps - 1))


def build_optimizer(roots: list[nn.Module], config: OptimConfig, *, is_lazy: bool = False) -> torch.optim.AdamW:
    """AdamW that decays the matrices of linear layers, and neither biases, norms, positions nor mask tokens."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for root in roots:
        decayed = {id(child.weight) for child in root.modules() if isinstance(child, nn.Linear)}
        for parameter in root.parameters():
            (matrices if id(parameter) in decayed else others).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, capturable=is_lazy)


@torch.no_grad()
def move_target(target: nn.Module, context: nn.Module, momentum: float, *, is_lazy: bool = False) -> None:
    """`target <- momentum * target + (1 - momentum) * context`, for every weight."""
    moved: list[Tensor] = [local(weight) for weight in target.parameters()]
    by: list[Tensor] = [local(weight) for weight in context.parameters()]
    if is_lazy:  # the last momentum is 1: the scalar 0 would be a constant, and another graph
        share = torch.tensor([1.0 - momentum]).to(moved[0].device)
        for one, other in zip(moved, by, strict=True):
            one.lerp_(other, share)
    else:
        torch._foreach_lerp_(moved, by, 1.0 - momentum)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
