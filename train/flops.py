"""How much arithmetic a step is, from shapes alone: what model FLOPs utilisation is measured against.

A multiplication and an addition are two operations. Products of matrices are counted, forward once and backward twice
where gradients are needed (Kaplan et al. 2020; PaLM, Chowdhery et al. 2022, appendix B); what `train.recompute`
computes a second time is not, nor norms and activations. Attention is counted in full: none of it is causal.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from train.presets import dimensions

if TYPE_CHECKING:  # pydantic, which a step does not need
    from train.config import Recipe


def blocks_flops(tokens: int, dim: int, depth: int) -> float:
    """A forward pass of one volume's tokens through transformer blocks."""
    return depth * (24.0 * tokens * dim**2 + 4.0 * tokens**2 * dim)


def volume_flops(recipe: Recipe) -> float:
    """One volume's part of an update: the target forward, context encoder and predictor forward and backward."""
    size, budget = dimensions(recipe.model), recipe.objective
    everything = recipe.num_tokens
    seen = budget.num_visible if budget.name == "vjepa" else everything
    target = _patches(recipe, everything) + blocks_flops(everything, size.dim, size.depth)
    context = 3 * blocks_flops(seen, size.dim, size.depth) + 2 * _patches(recipe, seen)  # voxels need no gradient
    if budget.name == "vjepa":
        tokens = seen + budget.num_targets
        predicted = tokens if budget.context_weight else budget.num_targets
        ends = 2.0 * size.dim * size.predictor_dim * (seen + predicted)
        predictor = ends + blocks_flops(tokens, size.predictor_dim, size.predictor_depth)
    else:
        predictor = 4.0 * size.dim**2 * budget.num_targets
    return target + context + 3 * predictor


def _patches(recipe: Recipe, tokens: int) -> float:
    return 2.0 * math.prod(recipe.model.patch) * dimensions(recipe.model).dim * tokens
