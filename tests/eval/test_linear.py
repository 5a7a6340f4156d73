"""The linear probe on synthetic features."""

import dataclasses
import functools
from collections import Counter

import numpy as np
import pytest

from eval.errors import ProbeError
from eval.linear import (
    Cohort,
    _best,
    _choose,
    centred,
    cross_validate,
    fit,
    majority,
    predict,
    probe,
    volume_weights,
)
from eval.metrics import score
from eval.stats import bootstrap, permutation_null

NAMES = ("a", "b", "c", "d")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bootstrap and the permutations have their own tests."""
    monkeypatch.setattr("eval.linear.bootstrap", functools.partial(bootstrap, resamples=50))
    monkeypatch.setattr("eval.linear.permutation_null", functools.partial(permutation_null, times=200))


def cohort(
    sizes: tuple[int, ...] = (8, 8, 8, 8), *, signal: float = 3.0, volumes: int = 2, seed: int = 0, dim: int = 8
) -> Cohort:
    """Participants of each class; a class shifts its own feature. A participant's volumes are alike."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    person = generator.normal(size=(len(labels), dim))
    person[np.arange(len(labels)), labels] += signal
    rows = np.repeat(np.arange(len(labels)), volumes)
    places = np.concatenate([np.arange(size) for size in sizes])
    splits = np.where(places % 8 < 5, "train", np.where(places % 8 < 6, "val", "test"))
    return Cohort(
        features=person[rows] + 0.3 * generator.normal(size=(len(rows), dim)),
        labels=labels[rows],
        participants=tuple(f"{1000 + row}" for row in rows),
        splits=tuple(str(splits[row]) for row in rows),
        classes=NAMES[: len(sizes)],
    )


def everyone(one: Cohort) -> np.ndarray:
    return np.ones(len(one.labels), bool)


def test_a_signal_is_found_and_noise_is_not() -> None:
    found, noise = probe(cohort(signal=4.0)), probe(cohort(signal=0.0))
    assert found.cv is not None
    assert found.test is not None
    assert noise.cv is not None
    assert found.cv.scores.balanced_accuracy.value == pytest.approx(1.0, abs=0.15)
    assert found.cv.null is not None
    assert found.cv.null.p_value < 0.01
    assert found.test.scores.balanced_accuracy.value is not None
    assert found.test.scores.balanced_accuracy.value > 0.6
    assert noise.cv.intervals["balanced_accuracy"].low < 0.25
    assert noise.cv.null is not None
    assert noise.cv.null.p_value > 0.05


def test_class_weights_are_really_balanced_so_that_imbalance_does_not_give_a_single_class() -> None:
    one = cohort((116, 16, 16, 16), signal=0.8, volumes=1)
    rows, labels = everyone(one), one.people()[1]

    def scores_of(weighting: str) -> tuple[str | None, list[float | None]]:
        scored = predict(one, rows, rows, 1e-4, weighting)  # type: ignore[arg-type]
        result = score(labels, np.array([scored[name] for name in one.people()[0]]), one.classes)
        return result.single_class, [recall.value for recall in result.recall]

    uniform, recalls = scores_of("uniform")
    assert uniform == "a"
    assert recalls == [1.0, 0.0, 0.0, 0.0]
    balanced, recalls = scores_of("balanced")
    assert balanced is None
    assert min(value or 0.0 for value in recalls) > 0.2


def test_every_class_and_every_participant_of_a_class_has_the_same_weight() -> None:
    one = cohort((10, 3), volumes=2)
    keep = np.array([name != "1000" or place % 2 == 0 for place, name in enumerate(one.participants)])
    weights = volume_weights(one, keep, "balanced")
    labels, names = one.labels[keep], np.array(one.participants)[keep]
    assert weights[labels == 0].sum() == pytest.approx(weights[labels == 1].sum())
    assert weights[names == "1000"].sum() == pytest.approx(weights[names == "1001"].sum())
    assert weights.mean() == pytest.approx(1.0)
    uniform = volume_weights(one, keep, "uniform")
    assert uniform[names == "1000"].sum() == pytest.approx(uniform[names == "1012"].sum())


def test_statistics_for_standardising_come_from_the_fitted_volumes_only() -> None:
    one = cohort()
    rows = one.in_split("train")
    shifted = dataclasses.replace(one, features=np.where(rows[:, None], one.features, one.features + 100))
    assert np.array_equal(fit(one, rows, 1.0)[0].mean_, fit(shifted, rows, 1.0)[0].mean_)
    assert np.array_equal(fit(one, rows, 1.0)[0].mean_, one.features[rows].mean(axis=0))


def test_every_participant_is_scored_out_of_fold_exactly_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one = cohort((6, 6), volumes=4)
    scored: Counter[str] = Counter()

    def spy(cohort: Cohort, fitted_on: np.ndarray, rows: np.ndarray, strength: float) -> dict[str, tuple[float, ...]]:
        names = np.array(cohort.participants)
        assert not set(names[fitted_on]) & set(names[rows]), "a participant is on both sides"
        if (fitted_on | rows).all():
            scored.update(set(names[rows].tolist()))
        return predict(cohort, fitted_on, rows, strength)

    monkeypatch.setattr("eval.linear.predict", spy)
    result = cross_validate(one, seed=0)
    assert result is not None
    assert scored == Counter(dict.fromkeys(one.people()[0], 1))
    assert set(result.probabilities) == set(one.people()[0])


def test_a_participant_is_scored_by_the_mean_over_eyes_and_devices() -> None:
    one = cohort((6, 6), volumes=4)
    rows = everyone(one)
    by_volume = fit(one, rows, 0.1).predict_proba(one.features)
    scored = predict(one, rows, rows, 0.1)
    assert scored["1003"] == pytest.approx(tuple(by_volume[np.array(one.participants) == "1003"].mean(axis=0)))


def chosen(one: Cohort) -> tuple[float, str]:
    return _choose(one, one.in_split("train"), one.in_split("val"), seed=0)


def test_the_test_split_is_not_looked_at_when_choosing() -> None:
    one = cohort((16, 16), signal=1.0)
    rows = one.in_split("test")
    scrambled = dataclasses.replace(one, features=np.where(rows[:, None], 50.0, one.features))
    assert chosen(one) == chosen(scrambled)


def test_c_is_chosen_on_validation_when_it_can_tell_and_within_train_otherwise() -> None:
    assert chosen(cohort((32, 32)))[1] == "balanced accuracy on the validation split"
    assert "cross-validation within train" in chosen(cohort((8, 8)))[1]
    assert "too few participants" in chosen(cohort((8, 1)))[1]


def test_selection_is_by_balanced_accuracy_and_not_by_accuracy() -> None:
    one = cohort((9, 3), volumes=1)
    names, labels = one.people()
    accurate = dict.fromkeys(names, (0.9, 0.1))
    balanced = {
        name: (0.1, 0.9) if label == 1 or place < 4 else (0.9, 0.1)
        for place, (name, label) in enumerate(zip(names, labels, strict=True))
    }
    assert np.mean([label == 0 for label in labels]) > 8 / 12
    assert _best(one, {0.1: accurate, 1.0: balanced}) == 1.0


def test_a_tie_goes_to_the_strongest_regularisation() -> None:
    one = cohort((4, 4), volumes=1)
    same = dict.fromkeys(one.people()[0], (0.9, 0.1))
    assert _best(one, {1.0: same, 0.01: same, 0.1: same}) == 0.01


def test_the_majority_baseline_is_at_chance() -> None:
    result = majority(cohort((16, 8, 8, 8)))
    assert result.cv is not None
    assert result.cv.scores.balanced_accuracy.value == 0.25
    assert result.cv.scores.macro_auroc.value == 0.5
    assert result.cv.scores.single_class == "a"


def test_a_class_of_one_participant_gives_no_cross_validation_and_no_crash() -> None:
    result = probe(cohort((8, 8, 1)))
    assert result.cv is None
    assert result.test is not None
    assert result.test.scores.balanced_accuracy.undefined == "no participant is c"


def test_the_same_seed_gives_the_same_scores() -> None:
    assert probe(cohort((4, 4), signal=1.0), seed=3) == probe(cohort((4, 4), signal=1.0), seed=3)


def test_what_cannot_be_probed_is_one_sentence() -> None:
    with pytest.raises(ProbeError, match="needs two study groups, there is a"):
        cohort((8,))
    one = cohort((4, 4))
    with pytest.raises(ProbeError, match="a participant has two labels"):
        dataclasses.replace(one, labels=np.arange(len(one.labels)) % 2)
    with pytest.raises(ProbeError, match="training split has fewer than two"):
        probe(dataclasses.replace(one, splits=("test",) * len(one.labels)))


def test_a_device_is_no_property_of_the_person() -> None:
    """Devices shift features far more than the label does; means of the training volumes take the shift out."""
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(4), 24)
    people = tuple(f"{1000 + place // 4}" for place in range(96))
    devices = tuple(f"device{place % 4}" for place in range(96))
    shift = np.array([[30.0, -10.0], [-30.0, 5.0], [0.0, 20.0], [9.0, -20.0]])
    features = shift[np.arange(96) % 4] + np.stack([labels, 1.5 - labels], axis=1) + rng.normal(0, 0.3, (96, 2))
    cohort = Cohort(
        features=features, labels=labels, participants=people, splits=("train",) * 96, classes=("a", "b", "c", "d")
    )
    blind, aware = (cross_validate(one, seed=0) for one in (cohort, dataclasses.replace(cohort, devices=devices)))
    assert blind is not None
    assert aware is not None
    assert (aware.scores.balanced_accuracy.value or 0) > (blind.scores.balanced_accuracy.value or 1) + 0.1


def test_device_means_come_from_the_volumes_that_are_fitted_on() -> None:
    features = np.array([[1.0], [3.0], [100.0], [50.0]])
    cohort = Cohort(
        features=features,
        labels=np.array([0, 1, 0, 1]),
        participants=("1", "2", "3", "4"),
        splits=("train",) * 4,
        classes=("a", "b"),
        devices=("x", "x", "x", "y"),
    )
    found = centred(cohort, np.array([True, True, False, False]))
    assert found.ravel().tolist() == [-1.0, 1.0, 98.0, 48.0]
