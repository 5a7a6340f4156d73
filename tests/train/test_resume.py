"""From each of fifty checkpoints, also in mid-epoch, the next steps are those of the undisturbed run, bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.reader import open_dataset
from tests.train.conftest import OBJECTIVES
from train.checkpoint import load_state, read_checkpoint
from train.config import Recipe
from train.device import Device
from train.feed import Feed
from train.loop import pretrain
from train.plan import plan_run
from train.snapshot import save_checkpoint
from train.step import start_state, train_step

STEPS, AHEAD = 50, 2
CASES: dict[str, dict[str, Any]] = {
    "whole batches": {"train": {"micro_batch": 5}},
    "accumulation, the last part smaller": {"train": {"micro_batch": 2}},
    "dense": {"train": {"micro_batch": 2}, "objective": OBJECTIVES["dense"]},
    "methods, with BatchNorm": {"train": {"micro_batch": 3}, "objective": {"name": "methods"}},
}


@pytest.mark.parametrize("case", CASES)
def test_resuming_at_every_step(
    make_recipe: Callable[..., Recipe],
    tiny_dataset: str,
    cpu: Device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    monkeypatch.setattr("train.recorder.save_masks", lambda path, *_, **__: path.write_bytes(b""))
    sections = CASES[case]
    size = {"max_steps": STEPS + AHEAD, "global_batch": 5, **sections["train"]}
    recipe = make_recipe(
        **{
            **sections,
            "train": size,
            "checkpoint": {"every_steps": 1, "keep": STEPS + AHEAD},
            "augment": {"shift_voxels": (1, 4, 4), "gain": 0.1, "noise": 0.1},
            "validation": {"every_steps": 20},
            "model": {"drop_path": 0.3},
        }
    )
    plan = plan_run(recipe, open_dataset(tiny_dataset))
    pretrain(recipe, open_dataset(tiny_dataset), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if row["split"] == "train"}
    for step in range(1, STEPS + 1):
        state = start_state(plan.recipe, cpu)
        load_state(read_checkpoint(_folder(tmp_path / "run", step)), state, cpu.torch_device)
        torch.manual_seed(step)  # nothing may hang on the generator of the process
        feed = Feed(plan.train, plan.recipe, cpu, step=step)
        found = [train_step(state, feed.step_batches(), plan.recipe, cpu).summary["loss"] for _ in range(AHEAD)]
        assert found == [losses[step + 1], losses[step + 2]]
        again = save_checkpoint(tmp_path / "again", state, plan.recipe, dataset_sha256="", keep=1)
        for name in ("encoder", "target", "state"):
            file = f"{name}.safetensors"
            assert (again / file).read_bytes() == (_folder(tmp_path / "run", step + AHEAD) / file).read_bytes()


def _folder(run: Path, step: int) -> Path:
    return run / f"checkpoints/step-{step:08d}"
