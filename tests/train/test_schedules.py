"""Learning rate, momentum and weight decay, counted in optimizer steps (PREDECESSOR 13 and 14)."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.config import OptimConfig, Recipe
from train.objective import build_networks
from train.schedules import build_optimizer, ema_momentum, learning_rate, move_target

CONFIG = OptimConfig(lr=1e-3, warmup_fraction=0.03, final_lr_fraction=0.1, ema_start=0.996, ema_end=1.0)


def test_one_cosine_over_the_whole_run() -> None:
    rates = [learning_rate(step, 1000, CONFIG) for step in range(1000)]
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(1e-3)
    assert all(later < earlier for earlier, later in zip(rates[peak:], rates[peak + 1 :], strict=False))
    assert rates[-1] == pytest.approx(1e-4)


def test_warm_up_is_three_percent_and_does_not_start_at_zero() -> None:
    rates = [learning_rate(step, 1000, CONFIG) for step in range(31)]
    assert rates[0] == pytest.approx(1e-3 / 30)
    assert rates[29] == pytest.approx(1e-3)
    assert rates[30] < rates[29]


@given(st.integers(1, 5000), st.floats(0, 1))
def test_a_rate_is_never_zero_nor_above_the_peak(max_steps: int, fraction: float) -> None:
    step = min(int(fraction * max_steps), max_steps - 1)
    assert 0 < learning_rate(step, max_steps, CONFIG) <= 1e-3
    assert 0.996 <= ema_momentum(step, max_steps, CONFIG) <= 1.0


def test_momentum_starts_and_ends_where_the_recipe_says() -> None:
    momenta = [ema_momentum(step, 200, CONFIG) for step in range(200)]
    assert (momenta[0], momenta[-1]) == (0.996, 1.0)
    assert momenta == sorted(momenta)
    assert ema_momentum(0, 1, CONFIG) == 0.996


def test_the_target_follows_by_the_momentum() -> None:
    target, context = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    expected = 0.9 * target.weight.detach() + 0.1 * context.weight.detach()
    move_target(target, context, 0.9)
    torch.testing.assert_close(target.weight.detach(), expected)


def test_only_matrices_decay(recipe: Recipe) -> None:
    networks = build_networks(recipe)
    optimizer = build_optimizer([networks.context, networks.predictor], recipe.optim)
    decayed, kept = optimizer.param_groups
    matrices = {id(module.weight) for module in networks.modules() if isinstance(module, torch.nn.Linear)}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (recipe.optim.weight_decay, 0.0)
    assert {id(parameter) for parameter in decayed["params"]} < matrices
    assert not {id(parameter) for parameter in kept["params"]} & matrices
    tables = {id(networks.context.mask_token), id(networks.context.table_NC)} & {
        id(parameter) for parameter in networks.parameters()
    }
    assert tables <= {id(parameter) for parameter in kept["params"]}


def test_every_learned_weight_is_optimized_once_and_the_target_never(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe()
    networks = build_networks(recipe)
    optimizer = build_optimizer([networks.context, networks.predictor], recipe.optim)
    optimized = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(optimized) == sorted(id(parameter) for parameter in networks.learned_parameters())
    assert not set(optimized) & {id(parameter) for parameter in networks.target.parameters()}
