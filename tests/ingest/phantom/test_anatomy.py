import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.phantom.anatomy import INL, LAYERS, disc_weight, effect_of, layer_thickness, make_eye
from ingest.phantom.effect import measure_effect

eyes = st.builds(
    make_eye,
    seed=st.integers(0, 99),
    participant=st.integers(0, 999),
    laterality=st.sampled_from(("R", "L")),
    effect=st.builds(effect_of, label=st.integers(0, 3), signal=st.floats(0, 3)),
)
spots = st.lists(st.tuples(st.floats(-6, 6), st.floats(-6, 6)), min_size=1, max_size=20)


@settings(max_examples=30, deadline=None)
@given(eye=eyes, spots=spots)
def test_every_layer_has_a_thickness_outside_the_disc(eye, spots):
    x, y = np.array(spots, dtype=np.float32).T
    outside = disc_weight(eye, x, y) < 0.01
    thickness = layer_thickness(eye, x, y)[:, outside]
    assert thickness.shape[0] == len(LAYERS)
    assert np.all(thickness >= 0)
    assert np.all(thickness.sum(axis=0) < 0.8)


def at(eye, x, y=0.0):
    return layer_thickness(eye, np.array([x], np.float32), np.array([y], np.float32))[:, 0]


@pytest.mark.parametrize("laterality", ["R", "L"])
def test_fovea_is_a_pit_and_the_disc_lies_nasally(laterality):
    eye = make_eye(1, 2, laterality, effect_of(0, 1.0))
    assert at(eye, 0.0).sum() < 0.8 * at(eye, eye.side * 1.0).sum()
    assert np.sign(eye.disc_x_mm) == (1 if laterality == "R" else -1)
    assert at(eye, eye.disc_x_mm, eye.disc_y_mm)[1:].sum() < 0.01


def test_label_thickens_the_inner_nuclear_layer_and_nothing_else():
    healthy = make_eye(1, 2, "R", effect_of(0, 1.0))
    sick = make_eye(1, 2, "R", effect_of(3, 1.0))
    change = at(sick, 2.0) - at(healthy, 2.0)
    assert 0.06 < change[INL] < 0.13
    assert np.all(np.delete(change, INL) == 0)
    assert len(healthy.fovea_pockets.x) == 0
    assert len(sick.fovea_pockets.x) == len(sick.disc_pockets.x) > 10


def test_effect_size_is_what_the_docs_promise():
    effect = measure_effect(people_per_label=25)
    assert 4 < effect.layer_d_per_step < 7
    assert 2.5 < effect.inner_retina_d_per_step < 4.5
    assert np.diff(effect.inner_retina_means_um) == pytest.approx(30, abs=6)


def test_strength_zero_leaves_no_effect():
    assert effect_of(3, 0.0) == effect_of(0, 0.0) == effect_of(0, 1.0)
    effect = measure_effect(signal=0.0, people_per_label=25)
    assert abs(effect.layer_d_per_step) < 0.4


def test_strength_scales_the_thickening():
    assert effect_of(2, 0.5).thickness_um == pytest.approx(effect_of(1, 1.0).thickness_um)
