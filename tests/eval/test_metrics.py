"""Metrics against scikit-learn and hand-computed values, and what happens where they are undefined."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    roc_auc_score,
)

from eval.metrics import Labels, Metric, Probabilities, Scores, calibration_error, score
from manifests.cohort import STUDY_GROUPS

NAMES = ("healthy", "pre", "oral", "insulin")


def predictions(seed: int, num_participants: int, num_classes: int) -> tuple[Labels, Probabilities]:
    """Random labels, and probabilities with ties."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, num_participants)
    shares = generator.integers(1, 6, (num_participants, num_classes)).astype(np.float64)
    return labels, shares / shares.sum(axis=1, keepdims=True)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(2, 4))
def test_metrics_equal_scikit_learns_where_every_class_occurs(
    seed: int, num_participants: int, num_classes: int
) -> None:
    labels, probabilities = predictions(seed, num_participants, num_classes)
    assume(len(set(labels)) == num_classes)
    scores = score(labels, probabilities, NAMES[:num_classes])
    predicted = probabilities.argmax(axis=1)
    assert scores.balanced_accuracy.value == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert scores.macro_f1.value == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert scores.quadratic_kappa.value == pytest.approx(cohen_kappa_score(labels, predicted, weights="quadratic"))
    aurocs = [roc_auc_score(labels == place, probabilities[:, place]) for place in range(num_classes)]
    assert scores.macro_auroc.value == pytest.approx(np.mean(aurocs))
    assert np.array_equal(scores.confusion, confusion_matrix(labels, predicted))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.integers(2, 4))
def test_metrics_never_crash_and_are_never_a_zero_in_disguise(
    seed: int, num_participants: int, num_classes: int
) -> None:
    labels, probabilities = predictions(seed, num_participants, num_classes)
    scores = score(labels, probabilities, NAMES[:num_classes])
    named = {name: getattr(scores, name) for name in ("balanced_accuracy", "macro_auroc", "macro_f1", "brier")}
    for metric in (*named.values(), *scores.recall, *scores.f1, *scores.auroc, scores.quadratic_kappa):
        assert (metric.value is None) == (metric.undefined is not None)
    missing = set(range(num_classes)) - set(labels.tolist())
    assert (scores.balanced_accuracy.value is None) == bool(missing)
    for place in missing:
        assert scores.recall[place].value is None
        assert scores.auroc[place].value is None


def test_a_set_of_one_class_gives_undefined_metrics_with_a_reason_and_not_zeros() -> None:
    labels = np.zeros(5, np.int64)
    scores = score(labels, np.tile([0.7, 0.3], (5, 1)), ("healthy", "insulin"))
    assert scores.balanced_accuracy == Metric(value=None, undefined="no participant is insulin")
    assert scores.macro_auroc.undefined == "every participant is healthy (and 1 more)"
    assert scores.quadratic_kappa.undefined == "truth and prediction are one and the same class"
    assert scores.recall[0].value == 1.0
    assert str(scores.macro_f1) == "undefined (no participant is insulin or is called so)"


def test_metrics_of_nobody_are_undefined() -> None:
    scores = score(np.zeros(0, np.int64), np.zeros((0, 2)), ("a", "b"))
    assert scores.brier.undefined == "no participant"
    assert scores.calibration_error.undefined == "no participant"
    assert scores.single_class is None


def hand_made() -> Scores:
    """Three healthy, of whom one is called insulin; one insulin, called so."""
    labels = np.array([0, 0, 0, 1])
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]])
    return score(labels, probabilities, ("healthy", "insulin"))


def test_metrics_of_a_hand_made_example() -> None:
    scores = hand_made()
    assert scores.confusion == ((2, 1), (0, 1))
    assert [metric.value for metric in scores.recall] == [pytest.approx(2 / 3), 1.0]
    assert scores.balanced_accuracy.value == pytest.approx(5 / 6)
    assert [metric.value for metric in scores.f1] == [pytest.approx(0.8), pytest.approx(2 / 3)]
    assert scores.brier.value == pytest.approx(2 * (0.01 + 0.04 + 0.36 + 0.09) / 4)
    assert scores.quadratic_kappa.value == pytest.approx(0.5)
    assert scores.macro_auroc.value == pytest.approx(1.0)


def test_a_study_group_that_nobody_is_in_still_lies_between_its_neighbours() -> None:
    """Of healthy people and of those on oral medication one each is called the other: two grades apart, not one."""
    groups = (STUDY_GROUPS[0], STUDY_GROUPS[2], STUDY_GROUPS[3])
    labels = np.array([0, 0, 1, 1, 2, 2])
    called = np.array([0, 1, 0, 1, 2, 2])
    kappa = score(labels, np.eye(3)[called], groups).quadratic_kappa.value
    places = np.array([0, 2, 3])
    expected = cohen_kappa_score(places[labels], places[called], labels=[0, 1, 2, 3], weights="quadratic")
    assert kappa == pytest.approx(expected)
    assert score(labels, np.eye(3)[called], ("a", "b", "c")).quadratic_kappa.value != pytest.approx(expected)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    probabilities = np.array([[0.95, 0.05]] * 4)
    metric = calibration_error(np.array([0, 0, 0, 1]), probabilities)
    assert metric.value == pytest.approx(0.95 - 0.75)
    assert calibration_error(np.array([0]), np.array([[1.0, 0.0]])).value == 0.0


def test_a_predictor_of_a_single_class_is_named() -> None:
    labels = np.array([0, 1, 2, 3])
    always = np.tile([0.1, 0.1, 0.1, 0.7], (4, 1))
    assert score(labels, always, NAMES).single_class == "insulin"
    assert score(labels, always, NAMES).balanced_accuracy.value == 0.25
    assert hand_made().single_class is None
