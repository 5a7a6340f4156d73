"""A moved volume is the same eye elsewhere: voxels, content box and both views move together."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shards.schema import Box, Sample
from train.config import AugmentConfig, Recipe
from train.device import Device
from train.feed import training_batch
from train.move import Move, draw_move, move_sample, shift_box, shift_volume, source_indices

EVERYTHING = AugmentConfig(shift_voxels=(1, 3, 3), mirror=0.5, scale=0.1, tilt_voxels=(2, 3))


def inside(box: Box, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*bounds) for bounds in box)] = True
    return mask


@given(
    hnp.arrays(np.uint8, (4, 5, 6), elements=st.integers(1, 255)),
    st.tuples(st.integers(-5, 5), st.integers(-6, 6), st.integers(-7, 7)),
)
@settings(deadline=None)
def test_a_shift_moves_voxels_and_their_content_box_together(volume: np.ndarray, shift: tuple[int, int, int]) -> None:
    moved = shift_volume(volume, shift)
    box = shift_box(((0, 4), (0, 5), (0, 6)), shift, volume.shape)
    inside = np.zeros(volume.shape, dtype=bool)
    inside[tuple(slice(*bounds) for bounds in box)] = True
    assert np.array_equal(moved > 0, inside)
    came_from = tuple(
        slice(start - s, stop - s) if start < stop else slice(0, 0) for (start, stop), s in zip(box, shift, strict=True)
    )
    if inside.any():
        assert np.array_equal(moved[tuple(slice(*bounds) for bounds in box)], volume[came_from])


@pytest.fixture
def filled(tiny_samples: list[Sample]) -> Sample:
    """A sample whose every content voxel is greater than 0, so that padding can be told from it."""
    box = ((1, 7), (4, 28), (3, 29))
    volume = np.random.default_rng(0).integers(1, 255, tiny_samples[0].volume.shape, dtype=np.uint8)
    meta = replace(tiny_samples[0].meta, content_box=box)
    return replace(tiny_samples[0], volume=volume * inside(box, volume.shape), meta=meta)


@pytest.mark.parametrize("number", range(40))
def test_content_is_where_the_box_says_and_nowhere_else(filled: Sample, number: int) -> None:
    moved = move_sample(filled, draw_move(EVERYTHING, number, 0, "key"))
    assert np.array_equal(moved.volume > 0, inside(moved.meta.content_box, filled.volume.shape))
    assert set(np.unique(moved.volume)) <= set(np.unique(filled.volume))  # nothing is interpolated


def test_a_mirrored_eye_is_its_mirror_image_and_twice_mirrored_itself(filled: Sample) -> None:
    mirrored = move_sample(filled, Move(mirror=True))
    assert np.array_equal(mirrored.volume, filled.volume[:, :, ::-1])
    assert mirrored.meta.content_box == ((1, 7), (4, 28), (3, 29))
    again = move_sample(mirrored, Move(mirror=True))
    assert np.array_equal(again.volume, filled.volume)


def test_scaling_keeps_the_middle_and_moves_the_rest_outward(filled: Sample) -> None:
    larger = move_sample(filled, Move(scale=(1.0, 1.25)))
    assert np.array_equal(larger.volume[:, :, 15:17], filled.volume[:, :, 15:17])
    assert larger.meta.content_box[2] == (0, 32)  # 26 voxels at 1.25 are 32.5
    smaller = source_indices(33, 0.5)
    assert (smaller[0], smaller[16], smaller[32]) == (-16, 16, 48)


def test_tilting_moves_each_a_scan_by_its_place(filled: Sample) -> None:
    tilted = move_sample(filled, Move(tilt=(0.0, 4.0)))
    assert tilted.meta.content_box == ((1, 7), (8, 24), (3, 29))
    rows = slice(8, 24)
    for w, by in ((3, -3), (28, 3)):  # linspace(-4, 4, 32) at these, rounded
        assert np.array_equal(tilted.volume[1:7, rows, w], filled.volume[1:7, 8 - by : 24 - by, w])
    along_d = move_sample(filled, Move(tilt=(3.0, 0.0)))
    assert np.array_equal(along_d.volume[1, 7:25, 3:29], filled.volume[1, 9:27, 3:29])  # linspace(-3, 3, 8)[1]


def test_a_move_depends_on_seed_epoch_and_key_and_no_kind_on_another() -> None:
    first = draw_move(EVERYTHING, 1, 0, "a")
    assert first == draw_move(EVERYTHING, 1, 0, "a")
    assert len({draw_move(EVERYTHING, *words) for words in ((1, 0, "a"), (2, 0, "a"), (1, 1, "a"), (1, 0, "b"))}) == 4
    shifted = draw_move(AugmentConfig(shift_voxels=(1, 3, 3)), 1, 0, "a")
    assert (shifted.shift, shifted.scale, shifted.tilt) == (first.shift, (1.0, 1.0), (0.0, 0.0))
    assert 0.4 < np.mean([draw_move(EVERYTHING, 1, 0, str(key)).mirror for key in range(1000)]) < 0.6


def test_both_views_are_of_the_moved_volume(
    tiny_samples: list[Sample], make_recipe: Callable[..., Recipe], cpu: Device
) -> None:
    augment = {"mirror": 1.0, "scale": 0.1, "tilt_voxels": (2, 2)}
    batch = training_batch([(0, tiny_samples[0])], make_recipe(augment=augment), cpu)
    still = training_batch([(0, tiny_samples[0])], make_recipe(), cpu)
    assert (batch.context_BDHW == batch.target_BDHW).all()
    assert not (batch.target_BDHW == still.target_BDHW).all()


def test_a_move_that_leaves_no_content_is_not_made(
    tiny_samples: list[Sample], make_recipe: Callable[..., Recipe], cpu: Device
) -> None:
    recipe = make_recipe(augment={"tilt_voxels": (40, 40)})
    batch = training_batch([(epoch, tiny_samples[0]) for epoch in range(4)], recipe, cpu)
    still = training_batch([(0, tiny_samples[0])], make_recipe(), cpu)
    assert (batch.target_BDHW[0] == still.target_BDHW).all()
