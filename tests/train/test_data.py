"""From stored integers to normalised voxels, and from an order to batches."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from shards.reader import open_dataset
from shards.schema import Sample
from train.augment import jitter
from train.budget import count_content, fit_budget
from train.config import AugmentConfig, Recipe
from train.data import normalise, prepare
from train.device import Device
from train.errors import BudgetError, TrainError
from train.feed import Feed, training_batch
from train.plan import plan_run

CPU = torch.device("cpu")
AUGMENT = {"shift_voxels": (1, 4, 4), "gain": 0.1, "offset": 0.1, "noise": 0.1}


def reference(sample: Sample, pool: int) -> np.ndarray:
    """Normalise in float64, then average: the oracle of `normalise`."""
    inside = np.zeros(sample.volume.shape)
    inside[tuple(slice(*bounds) for bounds in sample.meta.content_box)] = 1
    grey = (sample.volume.astype(np.float64) - sample.meta.intensity.mean) / sample.meta.intensity.std * inside
    d, h, w = (size // pool for size in grey.shape)
    return grey.reshape(d, pool, h, pool, w, pool).mean((1, 3, 5))


@pytest.mark.parametrize("pool", [1, 2, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_normalising_and_pooling_agree_with_float64(tiny_samples: list[Sample], pool: int, dtype: type) -> None:
    sample = tiny_samples[3]
    scale = 1 if dtype is np.uint8 else 250
    volume = (sample.volume.astype(np.int64) * scale).astype(dtype)
    stats = replace(
        sample.meta.intensity, mean=sample.meta.intensity.mean * scale, std=sample.meta.intensity.std * scale
    )
    meta = replace(sample.meta, intensity=stats, content_box=((1, 8), (3, 32), (0, 29)))
    stored = replace(sample, meta=meta, volume=volume)
    plain = volume if dtype is np.uint8 else volume.astype(np.int32)
    found = normalise(torch.from_numpy(plain), meta, pool)
    np.testing.assert_allclose(found.numpy(), reference(stored, pool), atol=2e-5)


def test_content_has_mean_zero_and_deviation_one(
    tiny_samples: list[Sample], make_recipe: Callable[..., Recipe]
) -> None:
    prepared = prepare(tiny_samples[:2], make_recipe(), CPU)
    content = prepared.x_BDHW[:, :, :, :30]
    torch.testing.assert_close(content.mean((1, 2, 3)), torch.zeros(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(content.std((1, 2, 3)), torch.ones(2), atol=1e-3, rtol=0)
    assert (prepared.x_BDHW[..., 30:] == 0).all()


def test_a_volume_of_another_grid_is_named(
    make_sample: Callable[..., Sample], make_recipe: Callable[..., Recipe]
) -> None:
    sample = make_sample(1, (8, 32, 48))
    with pytest.raises(TrainError, match=rf"{sample.key} is \(8, 32, 48\) voxels.*data\.grid is \(8, 32, 32\)"):
        prepare([sample], make_recipe(), CPU)


def test_a_run_takes_each_sample_once_an_epoch(
    tiny_dataset: str, make_recipe: Callable[..., Recipe], cpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reader processes, and the size of its micro-batches, change nothing of it."""
    monkeypatch.setattr("train.feed.move_and_mask", lambda drawn, _: (drawn, []))
    monkeypatch.setattr("train.feed._batch", lambda drawn, *_: drawn)
    sequences = []
    for workers, micro_batch in ((0, 4), (2, 3)):
        recipe = make_recipe(data={"workers": workers}, train={"micro_batch": micro_batch})
        plan = plan_run(recipe, open_dataset(tiny_dataset))
        feed = Feed(plan.train, plan.recipe, cpu, step=0)
        drawn = [one for _ in range(6) for batch in feed.step_batches() for one in batch]
        feed.close()
        sequences.append([(epoch, sample.key) for epoch, sample in drawn])
    assert sequences[0] == sequences[1]
    first, second = ([key for epoch, key in sequences[0] if epoch == number] for number in (0, 1))
    assert sorted(first) == sorted(second) == sorted(row.key for row in plan.train.samples)
    assert first != second


def test_a_batch_of_a_step_is_the_same_whenever_it_is_made(
    tiny_dataset: str, make_recipe: Callable[..., Recipe], cpu: Device
) -> None:
    deep = {"drop_path": 0.5}
    recipe = make_recipe(augment=AUGMENT, model=deep)
    plan = plan_run(recipe, open_dataset(tiny_dataset))
    straight = Feed(plan.train, plan.recipe, cpu, step=0)
    steps = [list(straight.step_batches()) for _ in range(4)]
    torch.rand(7)
    for micro_batch in (1, 2, 3, 4):
        resized = make_recipe(augment=AUGMENT, model=deep, train={"micro_batch": micro_batch})
        jumped = list(Feed(plan.train, resized, cpu, step=3).step_batches())
        for name in ("context_BDHW", "target_BDHW", "visible_BK", "targets_BT", "scale_BL2"):
            before, after = (torch.cat([getattr(batch, name) for batch in step]) for step in (steps[3], jumped))
            assert torch.equal(before, after), name


def test_intensity_depends_on_seed_epoch_and_key_alone(cpu: Device) -> None:
    config = AugmentConfig(gain=0.2, noise=0.3)
    x_BDHW = torch.ones(2, 1, 1, 1)
    together = jitter(x_BDHW, config, ["a", "b"], 1, [0, 0], cpu)
    assert torch.equal(together[1:], jitter(x_BDHW[1:], config, ["b"], 1, [0], cpu))
    assert together[0] != together[1]


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_intensity_leaves_padding_exactly_as_it_is(
    make_sample: Callable[..., Sample], make_recipe: Callable[..., Recipe], cpu: Device, pool: int, noise: float
) -> None:
    """A brightness that padding has, too, could be read from it."""
    box = ((0, 7), (5, 32), (0, 32))
    augment = {"gain": 0.1, "offset": 0.5, "noise": noise}
    recipe = make_recipe(data={"pool": pool}, augment=augment, objective={"num_visible": 4, "num_targets": 4})
    batch = training_batch([(0, make_sample(0, (8, 32, 32), content_box=box))], recipe, cpu)
    inside = torch.zeros(8, 32, 32, dtype=torch.bool)
    inside[tuple(slice(*bounds) for bounds in box)] = True
    inside = torch.nn.functional.max_pool3d(inside[None].float(), pool)[0] > 0
    changed = batch.context_BDHW[0] != batch.target_BDHW[0]
    assert not changed[~inside].any()
    assert changed[inside].float().mean() > 0.99


def test_a_shift_that_leaves_too_little_content_is_not_made(
    tiny_samples: list[Sample], make_recipe: Callable[..., Recipe], cpu: Device
) -> None:
    recipe = make_recipe(augment={"shift_voxels": (8, 32, 32)}, objective={"num_visible": 40, "num_targets": 24})
    batch = training_batch([(epoch, tiny_samples[0]) for epoch in range(4)], recipe, cpu)
    still = training_batch([(0, tiny_samples[0])], make_recipe(), cpu)
    assert (batch.target_BDHW == still.target_BDHW).all()


def test_budgets_name_the_samples_that_are_too_small(
    tmp_path_factory: pytest.TempPathFactory,
    make_sample: Callable[..., Sample],
    make_dataset: Callable[..., str],
    make_recipe: Callable[..., Recipe],
) -> None:
    half = make_sample(0, (8, 32, 32), content_box=((0, 8), (0, 32), (0, 16)))
    samples = [half, *(make_sample(number, (8, 32, 32)) for number in range(1, 10))]
    dataset = open_dataset(make_dataset(tmp_path_factory.mktemp("budget") / "d", samples))
    fits = make_recipe(objective={"num_visible": 20, "num_targets": 12})
    kept, dropped = fit_budget(dataset, fits)
    assert (len(kept.samples), dropped) == (10, ())
    assert count_content(dataset, fits)[half.key] == 32
    with pytest.raises(BudgetError, match=rf"1 of 10 samples have fewer than the 33 .*{half.key} \(32\)\. Lower"):
        fit_budget(dataset, make_recipe(objective={"num_visible": 21, "num_targets": 12}))


def test_up_to_one_percent_of_samples_may_be_too_small(
    tmp_path_factory: pytest.TempPathFactory,
    make_sample: Callable[..., Sample],
    make_dataset: Callable[..., str],
    make_recipe: Callable[..., Recipe],
) -> None:
    tiny_shape = (2, 8, 8)
    half = make_sample(0, tiny_shape, content_box=((0, 2), (0, 8), (0, 3)))
    samples = [half, *(make_sample(number, tiny_shape) for number in range(1, 100))]
    dataset = open_dataset(make_dataset(tmp_path_factory.mktemp("budget") / "d", samples))
    recipe = make_recipe(
        data={"grid": tiny_shape}, model={"patch": (2, 4, 2)}, objective={"num_visible": 4, "num_targets": 4}
    )
    kept, dropped = fit_budget(dataset, recipe)
    assert dropped == (half.key,)
    assert len(kept.samples) == 99


@pytest.mark.slow
def test_the_full_grid_is_counted_from_samples_csv(small_dataset: str, make_recipe: Callable[..., Recipe]) -> None:
    dataset = open_dataset(small_dataset)
    full = make_recipe(data={"grid": (64, 384, 384)}, model={"patch": (4, 16, 16)})
    pooled = make_recipe(data={"grid": (64, 384, 384), "pool": 2}, model={"patch": (4, 16, 16)})
    assert set(count_content(dataset, full).values()) == {row.content_tokens for row in dataset.samples}
    assert set(count_content(dataset, pooled).values()) == {8 * 12 * 12 - 8 * 12}
