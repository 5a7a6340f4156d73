"""Masks: exact budgets, content only, no overlap, the same every time."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.config import Recipe
from train.errors import BudgetError
from train.masks import TokenMasks, cover_blocks, draw_block, least_content, plan_masks, stack_masks
from train.recipe import parse_recipe
from train.seeding import generator

GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(1, 8)).filter(lambda grid: np.prod(grid) >= 4)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Recipe, np.ndarray, int]:
    """A recipe, the content of a volume that can fill its budgets, and a seed."""
    grid = draw(GRIDS)
    tokens = int(np.prod(grid))
    seed = draw(st.integers(0, 2**32))
    content = np.random.default_rng(seed).random(tokens) < draw(st.floats(0.3, 1.0))
    content[:4] = True
    name = draw(st.sampled_from(["vjepa", "methods"]))
    visible = draw(st.integers(2, int(content.sum()) - 2))
    targets = draw(st.integers(2, int(content.sum()) - visible))
    recipe = parse_recipe(
        {
            "name": "masks",
            "data": {"grid": grid},
            "model": {"patch": (1, 1, 1), "dim": 64},
            "objective": {"name": name, "num_visible": visible, "num_targets": targets},
            "masks": {"tube_share": draw(st.floats(0, 1)), "ratio": draw(st.floats(0.05, 0.95))},
        }
    )
    return recipe, content, seed


@given(cases())
@settings(max_examples=200, deadline=None)
def test_budgets_are_exact_disjoint_and_of_content_only(case: tuple[Recipe, np.ndarray, int]) -> None:
    recipe, content, seed = case
    if content.sum() < least_content(recipe):
        with pytest.raises(BudgetError):
            plan_masks(recipe, content, generator(seed))
        return
    masks = plan_masks(recipe, content, generator(seed))
    assert len(masks.visible) == len(set(masks.visible)) == recipe.objective.num_visible
    assert len(masks.targets) == len(set(masks.targets)) == recipe.objective.num_targets
    assert content[masks.visible].all()
    assert content[masks.targets].all()
    assert not (masks.hidden & ~content).any()
    assert masks.hidden[masks.targets].all()
    assert not masks.hidden[masks.visible].any()
    if recipe.objective.name == "vjepa":
        assert masks.hidden.sum() == content.sum() - recipe.objective.num_visible
    else:
        assert masks.hidden.sum() == round(recipe.masks.ratio * content.sum())


@given(cases())
@settings(max_examples=50, deadline=None)
def test_the_same_seed_draws_the_same_masks(case: tuple[Recipe, np.ndarray, int]) -> None:
    recipe, content, seed = case
    if content.sum() < least_content(recipe):
        return
    first, second = (plan_masks(recipe, content, generator(seed)) for _ in range(2))
    for name in ("visible", "targets", "hidden"):
        assert np.array_equal(getattr(first, name), getattr(second, name))


@given(st.integers(2, 400), st.integers(2, 400), st.floats(0.02, 0.98))
def test_least_content_is_the_least_that_fills_both_budgets(visible: int, targets: int, ratio: float) -> None:
    recipe = parse_recipe(
        {
            "name": "methods",
            "objective": {"name": "methods", "num_visible": visible, "num_targets": targets},
            "masks": {"ratio": ratio},
        }
    )
    least = least_content(recipe)
    fills = [round(ratio * n) >= targets and n - round(ratio * n) >= visible for n in (least - 1, least)]
    assert fills == [False, True]


def test_a_tube_runs_along_all_bscans_and_a_block_does_not(make_recipe: Callable[..., Recipe]) -> None:
    config = make_recipe(masks={"tube_share": 1.0}).masks
    tube = draw_block(config, (8, 12, 12), generator(0))
    assert (tube == tube[:1]).all()
    limited = draw_block(make_recipe(masks={"tube_share": 0.0}).masks, (8, 12, 12), generator(0))
    assert 0 < limited.any(axis=(1, 2)).sum() < 8


def test_blocks_hide_neighbourhoods_and_fill_the_budget_nearly_by_themselves(
    make_recipe: Callable[..., Recipe],
) -> None:
    config, grid = make_recipe().masks, (8, 12, 12)
    content = np.ones(8 * 12 * 12, dtype=bool)
    left = [int((~cover_blocks(config, content, grid, 448, generator(seed))).sum()) for seed in range(50)]
    assert min(left) >= 448
    assert np.mean(left) < 1.1 * 448


def test_no_side_of_the_volume_is_favoured(make_recipe: Callable[..., Recipe]) -> None:
    recipe = parse_recipe(
        {
            "name": "sides",
            "data": {"grid": (8, 12, 12)},
            "model": {"patch": (1, 1, 1), "dim": 64},
            "objective": {"num_visible": 448, "num_targets": 256},
        }
    )
    content = np.ones(recipe.num_tokens, dtype=bool)
    drawn = [plan_masks(recipe, content, generator(seed)).visible for seed in range(400)]
    share = np.bincount(np.concatenate(drawn), minlength=recipe.num_tokens).reshape(recipe.token_grid) / len(drawn)
    for axis in range(3):
        halves = np.split(share, 2, axis=axis)
        assert abs(halves[0].mean() - halves[1].mean()) < 0.03


def test_a_batch_stacks_masks_of_one_shape(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe()
    content = np.ones(recipe.num_tokens, dtype=bool)
    masks: TokenMasks = stack_masks([plan_masks(recipe, content, generator(seed)) for seed in range(3)])
    assert (masks.visible.shape, masks.targets.shape, masks.hidden.shape) == ((3, 16), (3, 12), (3, 64))
