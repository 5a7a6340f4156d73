"""The count of a step's arithmetic, against torch's own counter and the headers of recipes."""

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from shards.schema import Sample
from tests.train.conftest import OBJECTIVES
from train.config import Recipe
from train.device import Device
from train.feed import training_batch
from train.flops import volume_flops
from train.objective import build_networks, evaluate
from train.recipe import load_recipe


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_count_is_that_of_torch(
    make_recipe: Callable[..., Recipe], tiny_samples: list[Sample], cpu: Device, name: str
) -> None:
    """With attention written out: torch does not count its fused kernel on a CPU."""
    recipe = make_recipe(objective=OBJECTIVES[name])
    batch = training_batch([(0, one) for one in tiny_samples[:2]], recipe, cpu)
    networks = build_networks(recipe)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        torch.autograd.backward(evaluate(networks, batch).total_loss)
    assert counter.get_total_flops() / 2 == pytest.approx(volume_flops(recipe), rel=1e-6)


@pytest.mark.parametrize(("name", "tera"), [("vjepa-base", 9), ("vjepa-large", 24), ("methods-multi-domain", 19)])
def test_the_headers_of_recipes_say_what_a_volume_costs(name: str, tera: float) -> None:
    assert volume_flops(load_recipe(name)) / 1e12 == pytest.approx(tera, abs=0.5)
