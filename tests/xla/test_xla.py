"""Training on XLA: `make test-xla`, in an environment of its own, with torch_xla's CPU in place of a TPU.

The tiny recipe is run on XLA and by eager torch, on the same shards; what XLA compiles is counted at each step.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_xla.debug.metrics

from fovea.leave import leave_after
from shards.reader import open_dataset
from tests.conftest import build_sample, commit_dataset
from tests.train.conftest import OBJECTIVES, SHAPE, tiny
from train.checkpoint import load_state, newest_checkpoint
from train.config import Recipe
from train.device import Device, open_device
from train.errors import DeviceError
from train.feed import Feed
from train.loop import check_parts, pretrain
from train.plan import Plan, plan_run
from train.snapshot import save_checkpoint
from train.step import TrainState, start_state, train_step

STEPS = 12
ROOT = Path(__file__).parents[2]


def recipe_of(objective: str, **train: Any) -> Recipe:
    return tiny(
        objective=OBJECTIVES[objective],
        model={"drop_path": 0.2},
        augment={"shift_voxels": (1, 2, 2), "gain": 0.1, "offset": 0.1, "noise": 0.1},
        train={"max_steps": STEPS, "global_batch": 8, "micro_batch": 4, **train},
    )


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return commit_dataset(tmp_path_factory.mktemp("tiny") / "dataset", [build_sample(n, SHAPE) for n in range(20)])


@pytest.fixture(scope="session")
def xla() -> Device:
    """Opened before anything learns: autograd looks for devices once."""
    return open_device("xla", "fp32")


def compiled() -> int:
    """Graphs compiled so far."""
    return int(torch_xla.debug.metrics.counter_value("UncachedCompile") or 0)


def rows(run: Path, split: str) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def steps(plan: Plan, device: Device, count: int) -> tuple[TrainState, list[int]]:
    """So many steps, and the graphs that each compiled."""
    state = start_state(plan.recipe, device)
    feed, counts = Feed(plan.train, plan.recipe, device, step=0), []
    for _ in range(count):
        before = compiled()
        train_step(state, feed.step_batches(), plan.recipe, device)
        counts.append(compiled() - before)
    return state, counts


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_whole_run_has_the_losses_of_eager_torch(xla: Device, dataset: str, tmp_path: Path, objective: str) -> None:
    del xla
    for device in ("xla", "cpu"):
        pretrain(recipe_of(objective, device=device), open_dataset(dataset), tmp_path / device)
    for split, count in (("train", STEPS), ("val", STEPS // 3 + 1)):
        pairs = list(zip(rows(tmp_path / "xla", split), rows(tmp_path / "cpu", split), strict=True))
        assert len(pairs) == count
        for ours, theirs in pairs:
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4), (split, ours["step"])
            assert ours["cosine"] == pytest.approx(theirs["cosine"], abs=1e-3), (split, ours["step"])
            assert ours["alarms"] == theirs["alarms"]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("micro_batch", [8, 3])
def test_nothing_is_compiled_after_the_second_step(xla: Device, dataset: str, objective: str, micro_batch: int) -> None:
    """Also where the last micro-batch is smaller, and at the last step, whose momentum is exactly 1."""
    plan = plan_run(recipe_of(objective, micro_batch=micro_batch), open_dataset(dataset))
    _, counts = steps(plan, xla, STEPS)
    assert counts[2:] == [0] * (STEPS - 2)


def test_a_long_run_compiles_nothing_when_bias_corrections_reach_1(xla: Device, dataset: str) -> None:
    plan = plan_run(recipe_of("vjepa"), open_dataset(dataset))
    state, _ = steps(plan, xla, 3)
    for moments in state.optimizer.state.values():
        moments["step"] += 5000
    feed = Feed(plan.train, plan.recipe, xla, step=3)
    before = compiled()
    train_step(state, feed.step_batches(), plan.recipe, xla)
    assert compiled() - before <= 1  # the graph of `+= 5000`


def go_on(folder: Path, plan: Plan, device: Device) -> list[float]:
    """Losses of three more steps than were saved in a folder, and save them too."""
    state = start_state(plan.recipe, device)
    if checkpoint := newest_checkpoint(folder).checkpoint:
        load_state(checkpoint, state, device.torch_device)
    feed = Feed(plan.train, plan.recipe, device, step=state.step)
    losses = [train_step(state, feed.step_batches(), plan.recipe, device).summary["loss"] for _ in range(3)]
    save_checkpoint(folder, state, plan.recipe, dataset_sha256=plan.dataset_sha256)
    return losses


@pytest.mark.parametrize("first", ["xla", "cpu"])
def test_a_checkpoint_goes_on_on_the_other_device(xla: Device, dataset: str, tmp_path: Path, first: str) -> None:
    plan = plan_run(recipe_of("vjepa"), open_dataset(dataset))
    cpu = open_device("cpu", "fp32")
    devices = (xla, cpu) if first == "xla" else (cpu, xla)
    mixed = [loss for device in devices for loss in go_on(tmp_path / "mixed", plan, device)]
    whole = [loss for _ in range(2) for loss in go_on(tmp_path / "whole", plan, cpu)]
    assert mixed == pytest.approx(whole, abs=1e-4)


def test_several_devices_share_each_batch_and_have_the_losses_of_one(dataset: str, tmp_path: Path) -> None:
    pretrain(recipe_of("vjepa", device="cpu"), open_dataset(dataset), tmp_path / "cpu")
    words = [sys.executable, __file__, dataset, str(tmp_path / "spmd")]
    four = {"CPU_NUM_DEVICES": "4", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    subprocess.run(words, env={**os.environ, **four, "PYTHONPATH": str(ROOT)}, check=True, timeout=300)
    pairs = list(zip(rows(tmp_path / "spmd", "train"), rows(tmp_path / "cpu", "train"), strict=True))
    assert len(pairs) == STEPS
    for ours, theirs in pairs:
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


def test_batches_that_the_devices_cannot_share_are_refused(xla: Device) -> None:
    device = type(xla)(FakeXla(), "fp32", FakeSpmd(), parts=4)
    check_parts(recipe_of("vjepa"), device)
    with pytest.raises(DeviceError, match="4 XLA devices cannot share micro-batches of 3 volumes of 8"):
        check_parts(recipe_of("vjepa", micro_batch=3), device)


class FakeXla:
    def device(self) -> torch.device:
        return torch.device("cpu")


class FakeSpmd:
    def Mesh(self, *_: Any) -> object:  # noqa: N802 - torch_xla's name
        return object()


def run_on_four(dataset: str, out: str) -> None:
    """In a process of its own, whose XLA has four devices: SPMD is switched on once a process."""
    device = open_device("xla", "fp32")
    assert device.parts == 4
    x = torch.zeros(8, 2).to(device.torch_device)
    import torch_xla

    spec = torch_xla._XLAC._get_xla_sharding_spec(device.spread(x))
    assert spec.startswith("{devices=[4,1]"), spec
    pretrain(recipe_of("vjepa", device="xla"), open_dataset(dataset), Path(out))


if __name__ == "__main__":
    leave_after(lambda: run_on_four(*sys.argv[1:]))
