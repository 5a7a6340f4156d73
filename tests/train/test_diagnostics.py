"""Numbers that tell learning from collapse (PREDECESSOR 11 and 12)."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shards.schema import Sample
from train.config import Recipe
from train.device import Device
from train.diagnostics import (
    alarms,
    cosine,
    feature_std,
    measure,
    rankme,
    summarise,
    token_cosine,
    trivial_cosine,
    weight_distance,
)
from train.errors import ValidationError
from train.feed import training_batch
from train.objective import Batch, Networks, evaluate
from train.plan import Plan
from train.probe import encode
from train.recorder import Recorder
from train.run_folder import open_run
from train.step import TrainState, start_state, train_step
from train.validation import check_varies, validate


def make_constant(networks: Networks) -> None:
    """A collapsed target: the same features whatever comes in."""
    with torch.no_grad():
        networks.target.norm.weight.zero_()
        networks.target.norm.bias.copy_(torch.linspace(-1, 1, networks.target.dim))


def test_collapse_is_visible(recipe: Recipe, batch: Batch, cpu: Device) -> None:
    healthy, collapsed = start_state(recipe, cpu), start_state(recipe, cpu)
    make_constant(collapsed.networks)
    good = train_step(healthy, [batch], recipe, cpu).summary
    bad = train_step(collapsed, [batch], recipe, cpu).summary
    assert bad["feature_std"] == pytest.approx(0, abs=1e-5)
    assert bad["token_cosine"] == pytest.approx(1, abs=1e-5)
    assert float(rankme(collapsed.recent_VC)) == pytest.approx(1, abs=1e-5)
    if recipe.objective.target_blocks == "last":  # else what is predicted are the blocks, which have not collapsed
        assert bad["cosine_trivial"] == pytest.approx(1, abs=1e-5)
    assert good["feature_std"] > 0.1
    assert float(rankme(healthy.recent_VC)) > 1.2
    assert (alarms(good, recipe), alarms(bad, recipe)) == ([], ["collapse"])
    assert bad["feature_std_min"] == pytest.approx(0, abs=1e-5)
    assert 0 < good["feature_std_min"] < good["feature_std"]


def test_a_context_that_is_constant_is_a_collapse_too(recipe: Recipe, batch: Batch, cpu: Device) -> None:
    state = start_state(recipe, cpu)
    with torch.no_grad():
        state.networks.context.norm.weight.zero_()
        state.networks.context.norm.bias.copy_(torch.linspace(-1, 1, state.networks.context.dim))
    row = train_step(state, [batch], recipe, cpu).summary
    assert row["context_std"] == pytest.approx(0, abs=1e-5)
    assert row["feature_std"] > 0.1
    assert alarms(row, recipe) == ["collapse"]


def test_the_context_is_measured_as_the_target_is(recipe: Recipe, batch: Batch, cpu: Device) -> None:
    """At the start both encoders are one: they see the visible tokens of one view, the target among others."""
    outcome = evaluate(start_state(recipe, cpu).networks, batch)
    summary = summarise([measure(outcome, batch)], cpu.ranks)
    assert outcome.context_BKC.shape == (4, recipe.objective.num_visible, 32)
    assert not outcome.context_BKC.requires_grad
    assert summary["context_std"] == pytest.approx(summary["feature_std"], rel=0.2)
    assert summary["content_share"] == pytest.approx(summary["content_tokens"] / recipe.num_tokens)


def test_rankme_counts_the_directions_in_which_volumes_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 64, generator=generator)).Q
    weights = torch.randn(500, 5, generator=generator)
    assert float(rankme(weights @ basis[:5] + 3)) == pytest.approx(5, abs=0.1)
    assert float(rankme(torch.ones(10, 64))) == 1.0
    assert float(rankme(torch.ones(10, 64) + 1e-6 * torch.randn(10, 64, generator=generator))) == 1.0
    assert float(rankme(torch.ones(1, 64))) == 1.0


def test_measures_have_their_known_values() -> None:
    same = torch.ones(2, 5, 8)
    assert float(token_cosine(same)) == pytest.approx(1)
    assert float(feature_std(same)) == 0
    assert float(trivial_cosine(same)) == pytest.approx(1)
    opposite = torch.stack([torch.ones(1, 8), -torch.ones(1, 8)], dim=1)
    assert float(token_cosine(opposite)) == pytest.approx(-1)
    assert float(trivial_cosine(opposite)) == pytest.approx(0)
    assert float(cosine(opposite, -opposite)) == pytest.approx(-1)


def test_the_distance_of_the_target_is_relative() -> None:
    context, target = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    target.load_state_dict({name: 1.5 * value for name, value in context.state_dict().items()})
    assert float(weight_distance(target, context)) == pytest.approx(0.5)


@pytest.mark.parametrize("loss", [0.0, math.nan, math.inf])
def test_a_validation_loss_that_measures_nothing_is_an_error(loss: float) -> None:
    with pytest.raises(ValidationError, match="measures nothing"):
        check_varies(loss, 5, previous=None)


def test_validation_loss_varies_and_constant_is_an_error(
    recipe: Recipe, plan: Plan, tiny_samples: list[Sample], cpu: Device, tmp_path: Path
) -> None:
    plan = replace(plan, recipe=plan.recipe.model_copy(update={"objective": recipe.objective}))
    state = start_state(plan.recipe, cpu)
    recorder = Recorder(plan, open_run(tmp_path / "run", plan.recipe), state, cpu)
    recorder.validate()
    first = recorder.rows[-1]["loss"]
    assert first > 0
    state.step = 1
    with pytest.raises(ValidationError, match=r"step 1 is exactly what it was before"):
        recorder.validate()
    drawn = [(0, sample) for sample in tiny_samples[:4]]
    train_step(state, [training_batch(drawn, plan.recipe, cpu)], plan.recipe, cpu)
    recorder.validate()
    assert recorder.rows[-1]["loss"] != first


def test_a_validation_after_updates_that_move_no_weight_may_be_what_it_was(
    plan: Plan, cpu: Device, tmp_path: Path
) -> None:
    """The last few of a long cosine that ends at 0: a run of 100,002 steps could never finish."""
    optim = plan.recipe.optim.model_copy(update={"lr": 1e-3, "final_lr_fraction": 0.0, "warmup_fraction": 0.0})
    train = plan.recipe.train.model_copy(update={"max_steps": 100_002})
    plan = replace(plan, recipe=plan.recipe.model_copy(update={"optim": optim, "train": train}))
    state = start_state(plan.recipe, cpu)
    state.step = 100_000
    recorder = Recorder(plan, open_run(tmp_path / "run", plan.recipe), state, cpu)
    recorder.validate()
    state.step = 100_002
    recorder.validate()
    state.step = 50_000
    recorder = Recorder(plan, open_run(tmp_path / "middle", plan.recipe), state, cpu)
    recorder.validate()
    state.step = 50_001
    with pytest.raises(ValidationError, match="exactly what it was"):
        recorder.validate()


@pytest.mark.parametrize("how", ["a rate of 0", "all left out"])
def test_a_validation_after_no_update_may_be_what_it_was(plan: Plan, cpu: Device, tmp_path: Path, how: str) -> None:
    """The last update of a rate that ends at 0 moves nothing."""
    optim = plan.recipe.optim.model_copy(update={"final_lr_fraction": 0.0})
    plan = replace(plan, recipe=plan.recipe.model_copy(update={"optim": optim}))
    state = start_state(plan.recipe, cpu)
    recorder = Recorder(plan, open_run(tmp_path / "run", plan.recipe), state, cpu)
    state.step = plan.recipe.train.max_steps - 2
    recorder.validate()
    state.step += 2
    state.skipped += 1 if how == "a rate of 0" else 2
    if how == "a rate of 0":
        with pytest.raises(ValidationError, match="exactly what it was"):
            recorder.validate()
        recorder = Recorder(plan, open_run(tmp_path / "again", plan.recipe), state, cpu)
        state.step -= 1
        recorder.validate()
        state.step += 1
    recorder.validate()
    assert [row["split"] for row in recorder.rows] == ["val", "val"]


def test_validation_covers_every_held_out_volume_with_fixed_masks(plan: Plan, cpu: Device) -> None:
    state: TrainState = start_state(plan.recipe, cpu)
    (first, pooled_VC), (again, _) = (validate(state.networks, plan.val, plan.recipe, cpu) for _ in range(2))
    other_seed = plan.recipe.model_copy(update={"train": plan.recipe.train.model_copy(update={"seed": 99})})
    assert first == again == validate(state.networks, plan.val, other_seed, cpu)[0]
    assert torch.equal(encode(state.networks, plan.val, plan.recipe, cpu), pooled_VC.double())
    assert first["num_volumes"] == len(plan.val.samples) == 4
    assert state.networks.training
