"""Probes of a run: a planted label is found, a shuffled one is not, and what cannot be asked is no number."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf

from shards.reader import Dataset, open_dataset
from shards.schema import Sample
from tests.train.test_loop import crash, rows_of, stop_after
from train.best import Best, read_best
from train.config import Recipe
from train.discriminant import Discriminant, balanced_accuracy, shrunk_covariance
from train.errors import RecipeError
from train.loop import pretrain
from train.plan import Plan, plan_run
from train.probe import Probes, plan_probes
from train.recorder import Listener


@pytest.fixture(autouse=True)
def _quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.recorder.save_masks", lambda path, *_, **__: path.write_bytes(b""))


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cohort(plan: Plan, count: int, split: str, classes: int) -> tuple[Dataset, dict[str, str]]:
    """Rows of so many volumes, two a participant, and a label for each participant."""
    row = plan.train.samples[0]
    samples = [
        replace(row, key=f"{split}-{n:04d}", participant_id=f"{split}{n // 2}", laterality="RL"[n % 2], split=split)
        for n in range(count)
    ]
    labels = {one.key: f"grade {n // 2 % classes}" for n, one in enumerate(samples)}
    return replace(plan.train, samples=tuple(samples)), labels


def features(dataset: Dataset, labels: dict[str, str], seed: int, strength: float) -> torch.Tensor:
    """Noise, and one direction of 40 in which the grades follow one another."""
    x_VC = normal(seed, len(dataset.samples), 40)
    x_VC[:, 7] += strength * torch.tensor([float(labels[row.key][-1]) for row in dataset.samples])
    return x_VC


@pytest.mark.parametrize("classes", [2, 4])
def test_a_planted_label_is_found_and_a_shuffled_one_is_not(plan: Plan, classes: int) -> None:
    (train, known), (val, asked) = cohort(plan, 120, "train", classes), cohort(plan, 160, "val", classes)
    fitted, scored = features(train, known, 1, 4.0), features(val, asked, 2, 4.0)
    probes = plan_probes(train, val, known | asked, 256)
    (task,) = [one for one in probes.tasks if one.name == "label"]
    assert task.groups is not None
    assert (task.chance, int(task.groups.max()) + 1) == (1 / classes, 80)
    found = probes.scores(fitted, scored)
    assert found["probe_label"] is not None
    assert found["probe_label"] > 0.9, "also the grades in the middle"
    assert found["probe_label_chance"] == 1 / classes

    people = [row.participant_id for row in train.samples[::2]]
    order = np.random.default_rng(0).permutation(len(people))
    grades = {person: known[train.samples[2 * place].key] for person, place in zip(people, order, strict=True)}
    shuffled = {row.key: grades[row.participant_id] for row in train.samples}
    luck = plan_probes(train, val, shuffled | asked, 256).scores(fitted, scored)["probe_label"]
    assert luck is not None
    assert abs(luck - 1 / classes) < 0.2


def test_what_makes_devices_differ_hides_no_label(plan: Plan) -> None:
    """Each device moves the direction of the label by more than the label does; one of them is not among the fitted."""
    (train, known), (val, asked) = cohort(plan, 120, "train", 2), cohort(plan, 160, "val", 2)
    devices = ("heidelberg_spectralis", "topcon_triton", "zeiss_cirrus")
    moved = []
    for dataset, labels, seed in ((train, known, 1), (val, asked, 2)):
        x_VC = features(dataset, labels, seed, 4.0)
        x_VC[:, 7] += 30.0 * (torch.arange(len(x_VC)) % 3)
        rows = [replace(row, device=devices[number % 3]) for number, row in enumerate(dataset.samples)]
        moved.append((replace(dataset, samples=tuple(rows)), x_VC))
    (train, fitted), (val, scored) = moved
    found = plan_probes(train, val, known | asked, 256).scores(fitted, scored)
    assert found["probe_label"] is not None
    assert found["probe_label"] > 0.9
    assert found["probe_device"] == 1.0

    two = replace(train, samples=tuple(row for row in train.samples if row.device != devices[1]))
    probes = plan_probes(two, val, known | asked, 256)
    left = probes.scores(fitted[[row.device != devices[1] for row in train.samples]], scored)
    assert probes.tasks[0].classes == (devices[0], devices[2])
    assert left["probe_label"] is not None
    assert left["probe_label"] > 0.6


def test_the_covariance_is_shrunk_as_ledoit_and_wolf_say() -> None:
    for V, C in ((12, 30), (200, 5)):
        x_VC = normal(3, V, C) @ normal(4, C, C)
        expected, _ = ledoit_wolf(x_VC.numpy(), assume_centered=True)
        np.testing.assert_allclose(shrunk_covariance(x_VC).numpy(), expected, rtol=1e-9)


def test_features_that_say_nothing_score_chance() -> None:
    labels = torch.arange(12) % 3
    constant = Discriminant.fit(torch.ones(12, 5, dtype=torch.float64), labels, 3)
    assert balanced_accuracy(constant.probabilities(torch.ones(12, 5, dtype=torch.float64)), labels) == 1 / 3


def test_a_participant_has_one_answer_and_each_class_counts_the_same() -> None:
    sure, unsure = [0.99, 0.01], [0.4, 0.6]
    probabilities = torch.tensor([sure, unsure, unsure, unsure, unsure], dtype=torch.float64)
    labels, people = torch.tensor([0, 0, 1, 1, 0]), torch.tensor([0, 0, 1, 2, 3])
    assert balanced_accuracy(probabilities, labels) == pytest.approx((1 / 3 + 1) / 2)
    assert balanced_accuracy(probabilities, labels, people) == pytest.approx((1 / 2 + 1) / 2)


def test_what_cannot_be_asked_is_named_and_no_number(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path
) -> None:
    dataset = open_dataset(tiny_dataset)
    heard: list[str] = []
    labels = {row.key: "healthy" for row in dataset.samples}
    summary = pretrain(make_recipe(), dataset, tmp_path / "run", Listener(say=heard.append), labels=labels)
    assert any(line.startswith("NO PROBE of label: ") and "there are healthy 12 to fit" in line for line in heard)
    for row in rows_of(tmp_path / "run", "val"):
        assert (row["probe_label"], row["probe_label_chance"], row["probe_label_start"]) == (None, None, None)
        assert 0 <= row["probe_laterality"] <= 1
        assert row["probe_laterality_chance"] == 0.5
    assert summary["best"] is None


def test_a_class_of_too_few_is_left_out(plan: Plan) -> None:
    (train, known), (val, asked) = cohort(plan, 40, "train", 3), cohort(plan, 12, "val", 3)
    for row in [row for row in train.samples if known[row.key] == "grade 2"][2:]:
        del known[row.key]
    (task,) = [one for one in plan_probes(train, val, known | asked, 256).tasks if one.name == "label"]
    assert task.classes == ("grade 0", "grade 1")
    assert {known[train.samples[place].key] for place in task.fitted} == {"grade 0", "grade 1"}
    assert len(task.scored) == 8


def test_the_subset_depends_on_keys_alone_and_prefers_those_with_a_label(plan: Plan) -> None:
    (train, known), (val, _) = cohort(plan, 100, "train", 2), cohort(plan, 10, "val", 2)

    def keys(dataset: Dataset, labels: dict[str, str] | None, limit: int) -> set[str]:
        return {row.key for row in plan_probes(dataset, val, labels, limit).fitted.samples}

    thirty = keys(train, None, 30)
    assert len(thirty) == 30
    assert thirty == keys(replace(train, samples=train.samples[::-1]), known, 30) < keys(train, None, 31)
    few = {key: label for key, label in known.items() if key.endswith("7")}
    assert keys(train, few, 30) > set(few)
    assert plan_probes(train, val, known, 0).tasks == ()


def plant(sample: Sample, number: int) -> Sample:
    """A bright slab, above or below by the participant, as one device sees it."""
    volume = sample.volume.copy()
    rows = slice(0, 12) if number // 2 % 2 else slice(20, 32)
    volume[:, rows] = np.where(volume[:, rows], 220, 0)
    return replace(sample, volume=volume, meta=replace(sample.meta, device="zeiss_cirrus"))


def test_a_run_finds_a_mark_on_the_voxels_and_can_be_asked_nothing(
    make_recipe: Callable[..., Recipe], tiny_samples: list[Sample], make_dataset: Callable[..., str], tmp_path: Path
) -> None:
    marked = [plant(sample, number) for number, sample in enumerate(tiny_samples)]
    dataset = open_dataset(make_dataset(tmp_path / "d", marked))
    labels = {sample.key: "above" if number // 2 % 2 else "below" for number, sample in enumerate(marked)}
    pretrain(make_recipe(), dataset, tmp_path / "run", labels=labels)
    rows = rows_of(tmp_path / "run", "val")
    assert [row["step"] for row in rows] == [0, 3, 6]
    assert {row["probe_label"] for row in rows} == {1.0}
    assert {row["probe_label_start"] for row in rows} == {1.0}
    assert {row["probe_device"] for row in rows} == {None}

    pretrain(make_recipe(validation={"probe_volumes": 0}), dataset, tmp_path / "off", labels=labels)
    off = rows_of(tmp_path / "off", "val")
    assert not any(name.startswith("probe_") for row in off for name in row)
    kept = [{name: value for name, value in row.items() if not name.startswith("probe_")} for row in rows]
    assert kept == off, "a probe leaves no trace in the run"


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"checkpoint": {"best": "label"}}, "--labels is missing"),
        ({"checkpoint": {"best": "device"}, "validation": {"probe_volumes": 0}}, "checkpoint.best is device"),
    ],
)
def test_a_best_that_nothing_can_choose_is_refused(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, sections: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(RecipeError, match=sentence):
        plan_run(make_recipe(**sections), open_dataset(tiny_dataset))


def test_features_that_are_not_finite_have_no_score(plan: Plan) -> None:
    probes: Probes = plan.probes
    fitted = normal(5, len(probes.fitted.samples), 8)
    scored = normal(6, len(plan.val.samples), 8)
    assert all(value is not None for value in probes.scores(fitted, scored).values())
    scored[1, 2] = torch.nan
    assert {name: value for name, value in probes.scores(fitted, scored).items() if value is not None} == {
        f"probe_{task.name}_chance": task.chance for task in probes.tasks
    }


def test_scores_on_other_labels_are_not_compared(
    make_recipe: Callable[..., Recipe],
    tiny_samples: list[Sample],
    make_dataset: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A participant was given another class between two processes of a run."""
    marked = [plant(sample, number) for number, sample in enumerate(tiny_samples)]
    dataset, run = open_dataset(make_dataset(tmp_path / "d", marked)), tmp_path / "run"
    labels = {sample.key: "above" if number // 2 % 2 else "below" for number, sample in enumerate(marked)}
    changed = labels | dict.fromkeys(list(labels)[:4], "below")
    recipe = make_recipe(checkpoint={"every_steps": 1})
    with monkeypatch.context() as patch:
        stop_after(patch, 5, crash)
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe, dataset, run, labels=labels)
    assert read_best(run) == Best(step=3, measure="probe_label", value=1.0)
    heard: list[str] = []
    summary = pretrain(recipe, dataset, run, Listener(say=heard.append), labels=changed)
    assert [line for line in heard if "labels are not those" in line] == [
        "the labels are not those of earlier validations: scores on them are not compared with ours."
    ]
    rows = rows_of(run, "val")
    assert [row["probe_label_sha256"] == rows[0]["probe_label_sha256"] for row in rows] == [True, True, False]
    assert [row["probe_label_start"] for row in rows] == [1.0, 1.0, None]
    assert rows[-1]["probe_laterality_start"] == rows[0]["probe_laterality"]
    assert summary["best"]["step"] == 6
