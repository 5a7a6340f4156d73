"""The benchmark of learning counts as it says: balanced over classes, over seeds, and the same people for both."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

from eval.linear import Cohort
from manifests.cohort import STUDY_GROUPS

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import learning

LABELS = np.array([0] * 30 + [1] * 10)


def held(name: str, *right: np.ndarray) -> learning.Held:
    stacked = np.stack(right)
    return learning.Held(name=name, right=stacked, numbers=np.where(stacked, LABELS, 1 - LABELS), labels=LABELS)


def test_accuracy_is_balanced_over_classes_and_a_mean_over_seeds() -> None:
    only_first, all_of_them = LABELS == 0, LABELS >= 0
    assert held("x", only_first).accuracy() == pytest.approx(0.5)
    assert held("x", only_first, all_of_them).accuracy() == pytest.approx(0.75)


def test_resampling_draws_the_same_people_for_every_set_of_features() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(40) < 0.6
    better = right | (np.arange(40) % 4 == 0)
    accuracy = learning.Held.accuracy
    difference = held("x", better).resampled(accuracy) - held("y", right).resampled(accuracy)
    assert (difference >= 0).all()
    spread = held("x", right).resampled(accuracy)
    assert np.percentile(spread, 97.5) - np.percentile(spread, 2.5) > 0.1


def test_the_table_compares_with_the_random_encoder() -> None:
    text = learning.score_table([held("ours", LABELS >= 0), held(learning.RANDOM, LABELS == 0)])
    same = "1.000 (1.000 to 1.000)"
    assert f"| ours | 1 | {same} | +0.500 (0.500 to 0.500) | {same} | +1.333 (1.333 to 1.333) |" in text
    assert "| random encoder | 1 | 0.500 (0.500 to 0.500) |  | -0.333 (-0.333 to -0.333) |  |" in text


def test_the_regression_explains_held_out_people_by_what_it_saw_of_others() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 20)
    names = tuple(f"person {number}" for number in range(80))
    splits = ("train", "test") * 40

    def explained(features: np.ndarray) -> float:
        cohort = Cohort(
            features=features, labels=labels, participants=names, splits=splits, classes=tuple(STUDY_GROUPS)
        )
        seen = learning.regress(cohort)
        assert list(seen) == list(names[1::2])
        numbers = np.array([list(seen.values())])
        right = np.ones_like(numbers, dtype=bool)
        return learning.Held(name="x", right=right, numbers=numbers, labels=labels[1::2]).explained()

    noise = rng.normal(size=(80, 5))
    assert explained(noise) < 0.2
    assert explained(noise + 3 * labels[:, None] * np.eye(5)[2]) > 0.8


def test_half_of_each_study_group_is_held_out(tmp_path: Path) -> None:
    path = tmp_path / "participants.tsv"
    groups = [group for group in STUDY_GROUPS for _ in range(4)]
    lines = [f"{1000 + number}\t{group}\ttrain\n" for number, group in enumerate(groups)]
    path.write_text("person_id\tstudy_group\trecommended_split\n" + "".join(lines))
    learning.hold_out_half(path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    held_out = [row["study_group"] for row in rows if row["recommended_split"] == "val"]
    assert {group: held_out.count(group) for group in STUDY_GROUPS} == dict.fromkeys(STUDY_GROUPS, 2)
