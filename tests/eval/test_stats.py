"""Confidence intervals and the null distribution."""

import numpy as np
import pytest

from eval.metrics import score
from eval.stats import bootstrap, permutation_null

NAMES = ("a", "b", "c", "d")


def guesses(labels: np.ndarray, right: float, seed: int = 0) -> np.ndarray:
    """Probabilities that name the true class with the given frequency, else any other."""
    generator = np.random.default_rng(seed)
    named = np.where(
        generator.random(len(labels)) < right, labels, (labels + generator.integers(1, 4, len(labels))) % 4
    )
    return 0.1 + 0.6 * np.eye(4)[named]


def test_intervals_hold_the_score_and_shrink_with_more_participants() -> None:
    widths = []
    for times in (6, 60):
        labels = np.tile(np.arange(4), times)
        probabilities = guesses(labels, 0.6)
        interval = bootstrap(labels, probabilities, NAMES, seed=0, resamples=300)["balanced_accuracy"]
        value = score(labels, probabilities, NAMES).balanced_accuracy.value
        assert value is not None
        assert interval.low <= value <= interval.high
        widths.append(interval.high - interval.low)
    assert widths[1] < widths[0] / 2


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    labels = np.tile(np.arange(4), 25)
    hits = 0
    for seed in range(40):
        interval = bootstrap(labels, guesses(labels, 0.6, seed), NAMES, seed=seed, resamples=60)["balanced_accuracy"]
        hits += interval.low <= 0.6 <= interval.high
    assert hits >= 34


def test_a_small_class_never_drops_out_of_a_resample() -> None:
    labels = np.array([0] * 50 + [1] * 50 + [2] * 50 + [3] * 4)
    assert set(bootstrap(labels, guesses(labels, 0.5), NAMES, seed=0, resamples=200)) >= {
        "balanced_accuracy",
        "macro_auroc",
        "macro_f1",
    }


def test_there_is_no_interval_where_a_class_is_too_small_to_show_spread() -> None:
    assert bootstrap(np.array([0, 1, 2, 3]), np.eye(4), NAMES, seed=0, resamples=10) == {}
    assert bootstrap(np.array([0] * 9), np.eye(4)[[0] * 9], NAMES, seed=0, resamples=10) == {}


def test_the_null_is_centred_on_chance_and_its_p_value_tells_signal_from_luck() -> None:
    labels = np.tile(np.arange(4), 25)
    found = permutation_null(labels, guesses(labels, 0.6), NAMES, seed=0, times=200)
    luck = permutation_null(labels, guesses(labels, 0.25), NAMES, seed=0, times=200)
    assert found is not None
    assert luck is not None
    assert found.mean == pytest.approx(0.25, abs=0.01)
    assert 0.25 < found.high < 0.4
    assert found.p_value == pytest.approx(1 / 201)
    assert luck.p_value > 0.05


def test_p_values_of_luck_are_uniform_enough() -> None:
    labels = np.tile(np.arange(4), 10)
    generator = np.random.default_rng(0)
    nulls = [
        permutation_null(labels, generator.dirichlet(np.ones(4), 40), NAMES, seed=seed, times=100)
        for seed in range(100)
    ]
    assert np.mean([null.p_value <= 0.1 for null in nulls if null]) <= 0.2


def test_there_is_no_null_without_every_class() -> None:
    assert permutation_null(np.zeros(5, np.int64), np.eye(4)[[0] * 5], NAMES, seed=0, times=10) is None
