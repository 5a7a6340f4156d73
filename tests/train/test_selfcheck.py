"""The faults of the predecessor, made on purpose: each raises its alarm, and a healthy run raises none."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train.feed
import train.recorder
import train.step
from shards.reader import open_dataset
from shards.schema import Sample
from tests.train.conftest import OBJECTIVES
from train.config import Recipe
from train.device import Device
from train.encoder import Encoder
from train.feed import training_batch
from train.loop import pretrain
from train.masks import TokenMasks, plan_masks
from train.objective import Batch, build_networks
from train.recorder import Listener
from train.selfcheck import Motion, leak, view_correlation
from train.step import start_state, train_step

QUICK: dict[str, Any] = {"train": {"max_steps": 6}, "validation": {"every_steps": 3}, "log": {"every_steps": 1}}


@pytest.fixture
def raised(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """`raised(section=keys)` -> the alarms of a short run."""
    monkeypatch.setattr("train.recorder.save_masks", lambda path, *_, **__: path.write_bytes(b""))

    def run(**sections: dict[str, Any]) -> list[str]:
        merged = {name: {**QUICK.get(name, {}), **sections.get(name, {})} for name in QUICK.keys() | sections.keys()}
        alarms: list[str] = pretrain(make_recipe(**merged), open_dataset(tiny_dataset), tmp_path / "run")["alarms"]
        assert all("alarms" in json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines())
        return alarms

    return run


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_healthy_run_raises_no_alarm(raised: Callable[..., list[str]], name: str) -> None:
    learning = {"objective": OBJECTIVES[name], "optim": {"lr": 5e-3, "ema_start": 0.99}}
    size = {"max_steps": 120, "micro_batch": 4}
    augment = {"shift_voxels": (1, 4, 4), "gain": 0.1, "offset": 0.1, "noise": 0.2}
    assert raised(**learning, train=size, augment=augment, validation={"every_steps": 40}) == []


def test_a_target_that_never_moves(raised: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.step, "move_target", lambda *_, **__: None)
    assert "frozen target" in raised()


def test_ema_off(raised: Callable[..., list[str]]) -> None:
    assert "frozen target" in raised(optim={"ema_start": 1.0, "ema_end": 1.0})


def test_masks_that_hide_nothing(raised: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The context sees what is predicted from it."""

    def open_masks(recipe: Recipe, content_N: np.ndarray, rng: np.random.Generator) -> TokenMasks:
        masks = plan_masks(recipe, content_N, rng)
        seen = np.sort(np.concatenate([masks.targets, masks.visible[len(masks.targets) :]]))
        return replace(masks, visible=seen, hidden=np.zeros_like(masks.hidden))

    monkeypatch.setattr(train.feed, "plan_masks", open_masks)
    assert "leak" in raised()


def test_a_run_without_held_out_volumes_looks_at_itself_too(
    make_dataset: Callable[..., str],
    tiny_samples: list[Sample],
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("train.recorder.save_masks", lambda path, *_, **__: path.write_bytes(b""))
    dataset = open_dataset(make_dataset(tmp_path / "d", [one for one in tiny_samples if one.meta.split == "train"]))
    heard: list[str] = []
    pretrain(make_recipe(**QUICK), dataset, tmp_path / "run", Listener(say=heard.append))
    assert any("NO VALIDATION" in line and "no alarm says that the loss is flat" in line for line in heard)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row.get("leak") == 0.0 and row["view_correlation"] > 0.9] == [1, 4]

    real = train.recorder.check_itself
    monkeypatch.setattr(train.recorder, "check_itself", lambda *all_of: {**real(*all_of), "leak": 1.0})
    assert pretrain(make_recipe(**QUICK), dataset, tmp_path / "open")["alarms"] == ["leak"]


def test_mask_tokens_that_are_not_put_in(raised: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """`methods`: hidden tokens enter the context encoder as they are."""
    real = Encoder.forward

    def forward(self: Encoder, *arguments: Any, hide_BN: Any = None, **options: Any) -> torch.Tensor:
        return real(self, *arguments, **options)

    monkeypatch.setattr(Encoder, "forward", forward)
    assert "leak" in raised(objective={"name": "methods"})


def test_views_of_different_places(raised: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(x_BDHW: torch.Tensor, *_: Any) -> torch.Tensor:
        return x_BDHW.roll((3, 11, 7), dims=(1, 2, 3))

    monkeypatch.setattr(train.feed, "jitter", elsewhere)
    assert "independent views" in raised()


def test_a_loss_that_a_constant_reaches(raised: Callable[..., list[str]]) -> None:
    assert "flat loss" in raised(optim={"lr": 1e-6})


def test_predictions_do_not_know_their_targets_to_the_last_bit(
    recipe: Recipe, batch: Batch, tiny_samples: list[Sample], cpu: Device
) -> None:
    state = start_state(recipe, cpu)
    for _ in range(3):
        train_step(state, [batch], recipe, cpu)
    assert leak(state.networks, batch) == 0.0
    assert state.networks.training
    other = training_batch([(1, sample) for sample in tiny_samples[4:6]], recipe, cpu)
    assert leak(state.networks, other) == 0.0


def test_noise_leaves_views_alike(make_recipe: Callable[..., Recipe], tiny_samples: list[Sample], cpu: Device) -> None:
    drawn = [(0, sample) for sample in tiny_samples[:3]]
    same = training_batch(drawn, make_recipe(), cpu)
    assert view_correlation(same) == pytest.approx(1, abs=1e-4)
    noisy = training_batch(drawn, make_recipe(augment={"noise": 1.0, "gain": 0.5, "offset": 1.0}), cpu)
    assert 0.5 < view_correlation(noisy) < 0.9


def test_motion_is_since_the_last_look(recipe: Recipe) -> None:
    networks = build_networks(recipe)
    motion = Motion.of(networks)
    assert motion.look(networks) == {"target_moved": 0.0, "context_moved": 0.0}
    with torch.no_grad():
        for weight in networks.context.parameters():
            weight.mul_(1.5)
    assert motion.look(networks) == {"target_moved": 0.0, "context_moved": pytest.approx(0.5)}
    assert motion.look(networks)["context_moved"] == 0.0
