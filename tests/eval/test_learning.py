"""The benchmark of learning counts as it says: balanced over classes, over seeds, and the same people for both."""

import csv
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ingest.convert import convert_file
from ingest.geometry import load_geometry
from ingest.phantom.dicom import encode_dicom
from ingest.phantom.plan import CohortSpec, plan_cohort, realise
from ingest.record import VolumeRecord
from manifests.cohort import STUDY_GROUPS
from shards.schema import Sample

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import learning

LABELS = np.array([0] * 30 + [1] * 10)


def held(name: str, *right: np.ndarray) -> learning.Held:
    stacked = np.stack(right)
    numbers = np.where(stacked, LABELS, 1 - LABELS)
    return learning.Held(name=name, right=stacked, numbers=numbers, labels=LABELS, rank=7.0, known=0.5)


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
    assert len({line.count("|") for line in text.strip().splitlines()}) == 1
    assert f"| ours | 1 | {same} | +0.500 (0.500 to 0.500) | {same} | +1.333 (1.333 to 1.333) | 0.50 | 7.0 |" in text
    assert "| random encoder | 1 | 0.500 (0.500 to 0.500) |  | -0.333 (-0.333 to -0.333) |  | 0.50 | 7.0 |" in text


def test_people_of_several_cohorts_count_together_and_by_themselves() -> None:
    """Of each label: all in the one cohort, and in the other those of the first label."""
    cohorts = [
        learning.Cohort(eyes=eyes, held=[held("ours", right), held(learning.RANDOM, LABELS == 1)], runs=[])
        for eyes, right in ((2, LABELS >= 0), (3, LABELS == 0))
    ]
    ours, random = learning.joined(cohorts)
    assert (ours.right.shape, ours.labels.shape, ours.name) == ((1, 80), (80,), "ours")
    assert (ours.accuracy(), random.accuracy()) == (pytest.approx(0.75), pytest.approx(0.5))
    text = learning.cohort_table(cohorts)
    all_of_them, half = (
        "1.000 (1.000 to 1.000) | +0.500 (0.500 to 0.500)",
        "0.500 (0.500 to 0.500) | +0.000 (0.000 to 0.000)",
    )
    assert f"| ours | {all_of_them} | {half} |" in text
    assert "| eyes of seed 2, 40 held out | more | eyes of seed 3, 40 held out | more |" in text
    assert "balanced accuracy of 80 held out" in learning.score_table([ours, random])


def test_probes_tell_held_out_people_by_what_they_saw_of_others() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 20)
    seen, held_back = slice(0, None, 2), slice(1, None, 2)

    def scores(features: np.ndarray) -> tuple[float, float]:
        parts = features[seen], labels[seen], features[held_back]
        right, numbers = learning.classify(*parts) == labels[held_back], learning.regress(*parts)
        found = learning.Held(
            name="x", right=right[None], numbers=numbers[None], labels=labels[held_back], rank=1.0, known=0.0
        )
        return found.accuracy(), found.explained()

    noise = rng.normal(size=(80, 5))
    assert max(np.subtract(scores(noise), (0.4, 0.2))) < 0
    assert min(np.subtract(scores(noise + 3 * labels[:, None] * np.eye(5)[2]), (0.8, 0.8))) > 0


def test_what_is_known_of_volumes_explains_features_by_their_variance() -> None:
    rng = np.random.default_rng(0)
    known, unknown = rng.normal(size=(2000, 4)), rng.normal(size=(2000, 2))
    features = np.column_stack([3 * known[:, 0] + known[:, 3], unknown])
    assert learning.known_share(features, known) == pytest.approx(10 / 12, abs=0.03)


def test_what_repeats_is_told_from_noise_however_many_directions_noise_has() -> None:
    rng = np.random.default_rng(0)
    anatomy = rng.normal(size=(400, 3)) @ (10 * np.linalg.qr(rng.normal(size=(30, 3)))[0].T)
    one, other = (anatomy + rng.normal(size=(400, 30)) for _ in range(2))
    assert learning.repeating(one, other) == (pytest.approx(300 / 330, abs=0.01), 3, pytest.approx(3, abs=0.02))
    noise = [rng.normal(size=(400, 30)) for _ in range(2)]
    assert learning.repeating(*noise) == (pytest.approx(0, abs=0.02), 0, 0)


def test_retakes_are_of_the_eyes_that_were_held_out(tmp_path: Path, make_sample: Callable[..., Sample]) -> None:
    """Speckle changes every voxel and hardly a mean; another scan finds the retina elsewhere."""
    geometry = tmp_path / "scan.yaml"
    geometry.write_text(learning.GEOMETRY)
    spec = CohortSpec(participants=3, volumes_per_participant=1, devices=("topcon_maestro2",), small=True, seed=4)
    samples = []
    for plan in plan_cohort(spec)[1:]:
        data = encode_dicom(*realise(plan))
        record = convert_file(data, plan.path, None, load_geometry(str(geometry)))
        assert isinstance(record, VolumeRecord)
        sample = make_sample(0, participant_id=plan.participant.person_id)
        samples.append(replace(sample, volume=record.volume))
    first = np.stack([sample.volume for sample in samples])
    speckle, scan = (
        np.stack([sample.volume for sample in taken]) for taken in learning.retakes(tmp_path, spec, samples).values()
    )
    ours, theirs, moved = (x.astype(float).mean((1, 3)) for x in (first, speckle, scan))
    assert (first != speckle).mean() > 0.8
    assert abs(ours - theirs).max() < 4
    assert abs(ours - moved).max(1).min() > 10
    with pytest.raises(SystemExit, match="other eyes"):
        learning.retakes(tmp_path, replace(spec, seed=5), samples)


def test_the_table_of_retakes_has_a_row_for_each_encoder() -> None:
    again = tuple(learning.Repeating(share, 3.0, 2.5) for share in (0.9, 0.25))
    text = learning.retake_table([replace(held("ours", LABELS >= 0), again=again), held("pixels", LABELS >= 0)])
    assert "| ours | 1 | 7.0 | 0.900 | 3.0 | 2.5 | 0.250 | 3.0 | 2.5 |" in text
    assert "pixels" not in text
    assert "| share in other speckle | directions in other speckle | RankMe in other speckle | share in another" in text


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
