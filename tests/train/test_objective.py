"""What each side of an objective sees, and what the loss compares (PREDECESSOR 8, 9, 12)."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from shards.schema import Sample
from tests.train.conftest import OBJECTIVES
from train.config import Recipe
from train.device import Device
from train.encoder import patches, take_tokens
from train.errors import RecipeError
from train.feed import draw_depth, training_batch
from train.objective import Batch, Networks, build_networks, compare, evaluate, predict


def change_tokens(x_BDHW: torch.Tensor, tokens_BN: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """The volumes with noise in the voxels of some tokens."""
    d, h, w = recipe.model.patch
    where = tokens_BN.view(-1, *recipe.token_grid)
    for axis, edge in enumerate((d, h, w), start=1):
        where = where.repeat_interleave(edge, dim=axis)
    return torch.where(where, torch.randn(x_BDHW.shape, generator=torch.Generator().manual_seed(9)), x_BDHW)


def networks_of(recipe: Recipe) -> Networks:
    """Networks in evaluation mode, with weights far from their small initial values."""
    networks = build_networks(recipe).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in networks.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return networks


def test_context_encoder_never_sees_masked_tokens(recipe: Recipe, batch: Batch) -> None:
    networks = networks_of(recipe)
    changed = replace(batch, context_BDHW=change_tokens(batch.context_BDHW, batch.hidden_BN, recipe))
    assert not torch.equal(changed.context_BDHW, batch.context_BDHW)
    assert torch.equal(predict(networks, batch), predict(networks, changed))

    arguments = {"keep_BK": batch.visible_BK} if recipe.objective.name == "vjepa" else {"hide_BN": batch.hidden_BN}
    content_BN = None if recipe.objective.name == "vjepa" else batch.content_BN
    before, after = (
        networks.context(view.context_BDHW, content_BN, batch.spacing_B3, **arguments) for view in (batch, changed)
    )
    assert torch.equal(before, after)


def test_the_prediction_does_depend_on_visible_tokens(recipe: Recipe, batch: Batch) -> None:
    networks = networks_of(recipe)
    one_BN = torch.zeros_like(batch.hidden_BN).scatter(1, batch.visible_BK[:, :1], torch.ones(4, 1, dtype=torch.bool))
    changed = replace(batch, context_BDHW=change_tokens(batch.context_BDHW, one_BN, recipe))
    assert (predict(networks, batch) - predict(networks, changed)).abs().amax() > 1e-4


def test_targets_are_computed_from_the_masked_tokens(recipe: Recipe, batch: Batch) -> None:
    networks = networks_of(recipe)
    changed = replace(batch, target_BDHW=change_tokens(batch.target_BDHW, batch.hidden_BN, recipe))
    assert not torch.allclose(evaluate(networks, batch).target_BTC, evaluate(networks, changed).target_BTC)


def test_context_and_target_share_one_geometry(
    make_recipe: Callable[..., Recipe], tiny_samples: list[Sample], cpu: Device
) -> None:
    shifted = make_recipe(augment={"shift_voxels": (2, 8, 8)})
    drawn = [(3, sample) for sample in tiny_samples[:4]]
    batch, still = training_batch(drawn, shifted, cpu), training_batch(drawn, make_recipe(), cpu)
    assert torch.equal(batch.context_BDHW, batch.target_BDHW)
    assert not torch.equal(batch.target_BDHW, still.target_BDHW)

    noisy = make_recipe(augment={"shift_voxels": (2, 8, 8), "gain": 0.2, "offset": 0.2, "noise": 0.05})
    views = training_batch(drawn, noisy, cpu)
    assert torch.equal(views.target_BDHW, batch.target_BDHW)
    assert not torch.equal(views.context_BDHW, views.target_BDHW)
    for context, target in zip(views.context_BDHW, views.target_BDHW, strict=True):
        assert np.corrcoef(context.flatten(), target.flatten())[0, 1] > 0.95


def padded_batch(recipe: Recipe, samples: list[Sample], cpu: Device, fill: int) -> Batch:
    """A batch whose volumes are padding in the last quarter of H and at the end of W, with `fill` stored there."""
    padded = []
    for sample in samples:
        volume = sample.volume.copy()
        volume[:, 24:] = volume[:, :, 30:] = fill
        padded.append(replace(sample, volume=volume, meta=replace(sample.meta, content_box=((0, 8), (0, 24), (0, 30)))))
    return training_batch([(0, sample) for sample in padded], recipe, cpu)


def test_padding_is_never_context_target_or_attended(recipe: Recipe, tiny_samples: list[Sample], cpu: Device) -> None:
    zero, full = (padded_batch(recipe, tiny_samples[:4], cpu, fill) for fill in (0, 255))
    padding_BN = ~zero.content_BN
    assert padding_BN.sum() == 4 * 16
    for chosen in (zero.visible_BK, zero.targets_BT):
        assert not padding_BN.gather(1, chosen).any()
    assert not (zero.hidden_BN & padding_BN).any()

    networks = networks_of(recipe)
    first, second = evaluate(networks, zero), evaluate(networks, full)
    assert torch.equal(first.loss, second.loss)
    noise = replace(
        zero,
        context_BDHW=change_tokens(zero.context_BDHW, padding_BN, recipe),
        target_BDHW=change_tokens(zero.target_BDHW, padding_BN, recipe),
    )
    third = evaluate(networks, noise)
    for name in ("loss", "total_loss", "predicted_BTC", "target_BTC", "pooled_BC"):
        assert torch.equal(getattr(first, name), getattr(third, name)), name


def test_a_token_that_is_partly_padding_ignores_the_stored_padding(recipe: Recipe, batch: Batch) -> None:
    last_column = patches(batch.target_BDHW, recipe.model.patch).view(4, 4, 4, 4, 2, 8, 8)[:, :, :, 3]
    assert (last_column[..., 6:] == 0).all()
    assert (last_column[..., :6] != 0).any()


def test_no_gradient_reaches_the_target(recipe: Recipe, batch: Batch) -> None:
    networks = build_networks(recipe)
    torch.autograd.backward(evaluate(networks, batch).total_loss)
    assert all(parameter.grad is None for parameter in networks.target.parameters())
    without = [name for name, parameter in networks.context.named_parameters() if parameter.grad is None]
    assert without == (["mask_token"] if recipe.objective.name == "vjepa" else [])


def test_two_unrelated_vectors_score_two_over_the_width_in_methods_and_their_distance_in_vjepa() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, target = torch.randn(2, 8, 64, 256, generator=generator)
    assert float(compare("methods", predicted, target)) == pytest.approx(2 / 256, rel=0.02)
    assert float(compare("methods", 3 * target, target)) == pytest.approx(0, abs=1e-9)
    assert float(compare("vjepa", predicted, target)) == pytest.approx(2 / np.sqrt(np.pi), rel=0.02)
    assert float(compare("vjepa", target, target)) == 0


def test_the_context_too_is_asked_what_is_at_its_places(make_recipe: Callable[..., Recipe], batch: Batch) -> None:
    plain, dense = (
        evaluate(networks_of(make_recipe(objective={"name": "vjepa", "context_weight": weight})), batch)
        for weight in (0.0, 0.5)
    )
    assert torch.equal(plain.total_loss, plain.loss)
    torch.testing.assert_close(dense.loss, plain.loss)
    assert dense.predicted_BTC.shape == plain.predicted_BTC.shape == (4, 12, 32)
    networks = networks_of(make_recipe())
    with torch.no_grad():
        goal_BNC = functional.layer_norm(networks.target(batch.target_BDHW, batch.content_BN, batch.spacing_B3), (32,))
        tokens_BKC = networks.context(batch.context_BDHW, None, batch.spacing_B3, keep_BK=batch.visible_BK)
        places_BM = torch.cat([batch.visible_BK, batch.targets_BT], 1)
        turn = networks.context.rotation(batch.spacing_B3, places_BM, device=places_BM.device)
        seen_BKC = networks.predictor(tokens_BKC, turn, everywhere=True)[:, :16]
    expected = (seen_BKC - take_tokens(goal_BNC, batch.visible_BK)).abs().mean()
    torch.testing.assert_close(dense.total_loss - dense.loss, 0.5 * expected)


def test_all_blocks_are_predicted_as_the_mean_of_their_layer_normed_tokens(
    make_recipe: Callable[..., Recipe], batch: Batch
) -> None:
    networks = networks_of(make_recipe(objective={"name": "vjepa", "target_blocks": "all"}))
    found: list[torch.Tensor] = []
    hooks = [one.register_forward_hook(lambda *call: found.append(call[2])) for one in networks.target.blocks]
    outcome = evaluate(networks, batch)
    for hook in hooks:
        hook.remove()
    assert len(found) == 2
    expected_BNC = sum(functional.layer_norm(one, (32,)) for one in found) / 2
    torch.testing.assert_close(outcome.target_BTC, take_tokens(expected_BNC, batch.targets_BT))
    last = evaluate(networks_of(make_recipe()), batch)
    assert torch.equal(outcome.pooled_BC, last.pooled_BC)
    assert not torch.allclose(outcome.target_BTC, last.target_BTC, atol=0.1)


def test_a_pass_that_fails_leaves_nothing_to_look_at_blocks(
    make_recipe: Callable[..., Recipe], batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = networks_of(make_recipe(objective={"name": "vjepa", "target_blocks": "all"}))

    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(networks.target.blocks[1], "forward", refuse)
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(networks, batch)
    assert networks.target.blocks.look is None


@pytest.mark.parametrize("key", [{"context_weight": 0.5}, {"target_blocks": "all"}])
def test_the_documented_baseline_has_neither(make_recipe: Callable[..., Recipe], key: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="are of vjepa: leave them out for methods"):
        make_recipe(objective={"name": "methods", **key})


def test_vjepa_targets_are_layer_normed(make_recipe: Callable[..., Recipe], batch: Batch) -> None:
    networks = networks_of(make_recipe())
    target_BTC = evaluate(networks, batch).target_BTC
    torch.testing.assert_close(target_BTC.mean(-1), torch.zeros(4, 12), atol=1e-5, rtol=0)
    torch.testing.assert_close(target_BTC.std(-1, correction=0), torch.ones(4, 12), atol=1e-3, rtol=0)


def test_a_volume_that_skips_every_block_is_its_patches_and_the_others_do_not_notice(
    make_recipe: Callable[..., Recipe], tiny_samples: list[Sample], cpu: Device
) -> None:
    recipe = make_recipe()
    encoder, batch = build_networks(recipe).context, training_batch([(0, one) for one in tiny_samples[:3]], recipe, cpu)
    scale_BL2 = torch.ones(3, len(encoder.blocks), 2)
    whole = encoder(batch.context_BDHW, batch.content_BN, batch.spacing_B3)
    same = encoder(batch.context_BDHW, batch.content_BN, batch.spacing_B3, scale_BL2=scale_BL2)
    torch.testing.assert_close(same, whole)
    scale_BL2[1] = 0
    skipped = encoder(batch.context_BDHW, batch.content_BN, batch.spacing_B3, scale_BL2=scale_BL2)
    bare = encoder.norm(encoder.patchify(patches(batch.context_BDHW, encoder.patch)))
    torch.testing.assert_close(skipped[1], bare[1])
    torch.testing.assert_close(skipped[[0, 2]], whole[[0, 2]])


def test_depth_is_drawn_more_often_at_the_end_and_keeps_the_mean(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(model={"drop_path": 0.4, "depth": 5})
    drawn = draw_depth(recipe, [str(number) for number in range(4000)], [0] * 4000)
    assert drawn is not None
    assert drawn.shape == (4000, 5, 2)
    skipped_L = (drawn == 0).float().mean((0, 2))
    torch.testing.assert_close(skipped_L, torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4]), atol=0.02, rtol=0)
    torch.testing.assert_close(drawn.mean((0, 2)), torch.ones(5), atol=0.03, rtol=0)
    assert draw_depth(make_recipe(), ["a"], [0]) is None


@pytest.mark.parametrize("name", OBJECTIVES)
def test_recomputing_gives_the_same_gradients_and_keeps_less(
    make_recipe: Callable[..., Recipe], tiny_samples: list[Sample], cpu: Device, name: str
) -> None:
    gradients, kept = [], []
    for recompute in (False, True):
        recipe = make_recipe(
            objective=OBJECTIVES[name], model={"depth": 6, "drop_path": 0.2}, train={"recompute": recompute}
        )
        networks, numbers = build_networks(recipe), 0

        def count(x: torch.Tensor) -> torch.Tensor:
            nonlocal numbers
            numbers += x.numel()
            return x

        batch = training_batch([(0, one) for one in tiny_samples[:4]], recipe, cpu)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            loss = evaluate(networks, batch).total_loss
        kept.append(numbers)
        torch.autograd.backward(loss)
        gradients.append([one.grad for one in networks.learned_parameters()])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    assert kept[1] < kept[0] / 3, kept
