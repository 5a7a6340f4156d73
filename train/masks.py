"""Which tokens are context and which are predicted. Host-side, seeded, with exact budgets.

Only content tokens are ever drawn; what falls short or over is settled by uniform draws, so no side of a
volume is favoured. Shapes: N tokens of the grid `[D, H, W]` in row-major order, B volumes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shards.schema import Shape
from train.errors import BudgetError

if TYPE_CHECKING:  # pydantic, which a step does not need
    from train.config import MaskConfig, Recipe

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

MAX_DRAWS = 64  # blocks tried per volume; a few suffice, the bound only ends a search that cannot improve


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMasks:
    """The split of content tokens of one volume, or of a batch with a leading B.

    visible: sorted indices of the context's tokens, `[num_visible]`. For `methods`, whose context encoder
        also runs over hidden tokens, they only say what surely stays.
    targets: sorted indices of the predicted tokens, `[num_targets]`.
    hidden: bool `[N]`, every content token that the context may not know; the targets are among them.
    """

    visible: IntArray
    targets: IntArray
    hidden: BoolArray


def least_content(recipe: Recipe) -> int:
    """The fewest content tokens from which both budgets can be filled."""
    visible, targets = recipe.objective.num_visible, recipe.objective.num_targets
    if recipe.objective.name == "vjepa":
        return visible + targets
    ratio = recipe.masks.ratio
    start = math.floor(max((visible - 0.5) / (1 - ratio), (targets - 0.5) / ratio)) - 1  # halves round to even
    return next(n for n in itertools.count(max(start, 1)) if _fits(n, visible, targets, ratio))


def plan_masks(recipe: Recipe, content_N: BoolArray, rng: np.random.Generator) -> TokenMasks:
    """Split the content of one volume into context, targets and the rest.

    Raises:
        BudgetError: if the volume has fewer content tokens than the budgets need.
    """
    available = int(content_N.sum())
    if available < least_content(recipe):
        raise BudgetError(f"{available} content tokens do not fill the budgets, which need {least_content(recipe)}.")
    if recipe.objective.name == "methods":
        return _random(recipe, content_N, rng)
    covered_N = cover_blocks(recipe.masks, content_N, recipe.token_grid, recipe.objective.num_visible, rng)
    return _from_cover(recipe, content_N, covered_N, rng)


def stack_masks(masks: Sequence[TokenMasks]) -> TokenMasks:
    """One batch of static shape."""
    return TokenMasks(
        visible=np.stack([mask.visible for mask in masks]),
        targets=np.stack([mask.targets for mask in masks]),
        hidden=np.stack([mask.hidden for mask in masks]),
    )


def cover_blocks(
    config: MaskConfig, content_N: BoolArray, token_grid: Shape, num_visible: int, rng: np.random.Generator
) -> BoolArray:
    """A union of random blocks that leaves at least `num_visible` content tokens, and few more.

    A block that would leave fewer is not taken, and smaller ones may still fit, until `MAX_DRAWS`.
    """
    covered_N = np.zeros_like(content_N)
    left = int(content_N.sum())
    for _ in range(MAX_DRAWS):
        proposed_N = covered_N | draw_block(config, token_grid, rng).reshape(-1)
        remaining = int((content_N & ~proposed_N).sum())
        if remaining >= num_visible:
            covered_N, left = proposed_N, remaining
        if left == num_visible:
            break
    return covered_N


def draw_block(config: MaskConfig, token_grid: Shape, rng: np.random.Generator) -> BoolArray:
    """One block `[D, H, W]`: a tube along the whole of D, or a block limited in D.

    Its centre is uniform over the grid and it is clipped at the border: edges and corners are covered as
    often as the middle of a block is placed there.
    """
    d, h, w = token_grid
    is_tube = rng.random() < config.tube_share
    area = rng.uniform(*(config.tube_area if is_tube else config.block_area)) * h * w
    aspect = math.exp(rng.uniform(math.log(config.aspect[0]), math.log(config.aspect[1])))
    extent = d if is_tube else max(1, round(rng.uniform(*config.block_extent) * d))
    sizes = (extent, max(1, round(math.sqrt(area * aspect))), max(1, round(math.sqrt(area / aspect))))
    block = np.zeros(token_grid, dtype=bool)
    block[tuple(_interval(size, axis, rng) for size, axis in zip(sizes, (d, h, w), strict=True))] = True
    return block


def _interval(size: int, axis: int, rng: np.random.Generator) -> slice:
    """An interval of up to `size` of an axis; every start at which it touches the axis is as likely."""
    if size >= axis:
        return slice(0, axis)
    start = int(rng.integers(-(size // 2), axis - size + size // 2 + 1))
    return slice(max(0, start), min(axis, start + size))


def _from_cover(recipe: Recipe, content_N: BoolArray, covered_N: BoolArray, rng: np.random.Generator) -> TokenMasks:
    """Visible tokens outside the blocks, targets inside them, and from the rest if blocks hold too few."""
    visible = _choose(np.flatnonzero(content_N & ~covered_N), recipe.objective.num_visible, rng)
    hidden_N = content_N.copy()
    hidden_N[visible] = False
    inside, outside = np.flatnonzero(hidden_N & covered_N), np.flatnonzero(hidden_N & ~covered_N)
    num_inside = min(len(inside), recipe.objective.num_targets)
    targets = [_choose(inside, num_inside, rng), _choose(outside, recipe.objective.num_targets - num_inside, rng)]
    return TokenMasks(visible=visible, targets=np.sort(np.concatenate(targets)), hidden=hidden_N)


def _random(recipe: Recipe, content_N: BoolArray, rng: np.random.Generator) -> TokenMasks:
    """Hide `masks.ratio` of the content, token by token; predict a sample of them."""
    content = np.flatnonzero(content_N)
    hidden = _choose(content, round(recipe.masks.ratio * len(content)), rng)
    hidden_N = np.zeros_like(content_N)
    hidden_N[hidden] = True
    return TokenMasks(
        visible=_choose(np.flatnonzero(content_N & ~hidden_N), recipe.objective.num_visible, rng),
        targets=_choose(hidden, recipe.objective.num_targets, rng),
        hidden=hidden_N,
    )


def _choose(tokens: IntArray, count: int, rng: np.random.Generator) -> IntArray:
    return np.sort(rng.choice(tokens, size=count, replace=False)) if count else tokens[:0]


def _fits(content: int, visible: int, targets: int, ratio: float) -> bool:
    masked = round(ratio * content)
    return masked >= targets and content - masked >= visible
