"""Sharded ranks: the steps, rows and checkpoints of one process, and a part of the memory each."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.reader import open_dataset
from tests.train.conftest import OBJECTIVES, tiny
from tests.train.test_ranks import rows, run, weights
from train.device import Device
from train.errors import DeviceError
from train.loop import pretrain
from train.ranks import Ranks
from train.recipe import differences
from train.sharding import check_sharding, is_sharded

SECTIONS: dict[str, Any] = {
    "objective": OBJECTIVES["dense"],
    "train": {"micro_batch": 1, "max_steps": 6, "recompute": True},
    "checkpoint": {"every_steps": 1},
    "augment": {"shift_voxels": (1, 4, 4), "noise": 0.1},
    "optim": {"lr": 1e-3, "ema_start": 0.9, "grad_clip": 0.5, "warmup_fraction": 0.5},
}
COLUMNS = ("target_context_distance", "target_moved", "context_moved")


def sharded(**sections: Any) -> dict[str, Any]:
    return {**sections, "train": {**sections["train"], "shard": True}}


def agree(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    """Every number of every row."""
    ours, theirs = rows(one), rows(other)
    assert [(row["split"], row["step"]) for row in ours] == [(row["split"], row["step"]) for row in theirs]
    for row, expected in zip(ours, theirs, strict=True):
        assert row.keys() == expected.keys()
        for name, value in expected.items():
            if isinstance(value, float):
                assert row[name] == pytest.approx(value, rel=tolerance, abs=tolerance), (name, row["step"])


def same_moments(one: Path, other: Path) -> None:
    """After the first step."""
    ours, theirs = weights(one, 1), weights(other, 1)
    assert ours.keys() == theirs.keys()
    moments = [name for name in theirs if name.endswith("exp_avg")]
    assert len(moments) > 10
    for name in moments:
        expected, largest = theirs[name], float(theirs[name].abs().max())  # 0 for a bias before BatchNorm
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=1e-5 * largest + 1e-9, msg=name)


def test_two_sharded_ranks_are_one_process_and_either_resumes_the_other(tiny_dataset: str, tmp_path: Path) -> None:
    """The moments of the first step are the gradients: AdamW hides a wrong scale. Gradients are clipped from there."""
    dataset = open_dataset(tiny_dataset)
    pretrain(tiny(**SECTIONS), dataset, tmp_path / "one")
    assert run(2, tmp_path / "two", tiny_dataset, **sharded(**SECTIONS)) == 0
    assert any(row["grad_norm"] > 2 * 0.5 for row in rows(tmp_path / "one") if row["split"] == "train")
    same_moments(tmp_path / "two", tmp_path / "one")
    agree(tmp_path / "two", tmp_path / "one")

    assert all(rows(tmp_path / "two")[3][name] > 0 for name in COLUMNS)
    whole = sum(tensor.numel() for name, tensor in weights(tmp_path / "one", 6).items() if "recent" not in name)
    for rank in range(2):
        assert int((tmp_path / f"two/held-{rank}").read_text()) == pytest.approx(whole / 2, rel=0.01)

    shutil.copytree(tmp_path / "one", tmp_path / "first")
    for name in ("one", "two"):
        for step in (4, 5, 6):
            (tmp_path / f"{name}/checkpoints/step-{step:08d}").rename(tmp_path / f"{name}-{step}")
    pretrain(tiny(**SECTIONS), dataset, tmp_path / "two")
    assert run(2, tmp_path / "one", tiny_dataset, **sharded(**SECTIONS)) == 0
    agree(tmp_path / "two", tmp_path / "one", 1e-4)
    agree(tmp_path / "one", tmp_path / "first", 1e-4)


def test_methods_is_sharded_too_and_memory_that_is_too_small_ends_the_run_in_a_sentence(
    tiny_dataset: str,
    tmp_path: Path,
) -> None:
    sections = {**SECTIONS, "objective": {"name": "methods"}, "train": {"micro_batch": 4, "max_steps": 6}}
    pretrain(tiny(**{**sections, "validation": {"every_steps": 50}}), open_dataset(tiny_dataset), tmp_path / "one")
    assert run(2, tmp_path / "two", tiny_dataset, **sharded(**sections), short_after=2) != 0
    assert "set train.micro_batch below 4" in (tmp_path / "two-said-1").read_text()
    same_moments(tmp_path / "two", tmp_path / "one")


def test_what_cannot_be_sharded_is_refused(cpu: Device) -> None:
    four, three = (device_of(world) for world in (4, 3))
    check_sharding(tiny(train={"shard": True}), four)
    check_sharding(tiny(), three)
    with pytest.raises(DeviceError, match=r"a train\.global_batch of 4 does not divide by 3 ranks"):
        check_sharding(tiny(train={"shard": True}), three)
    with pytest.raises(DeviceError, match="set one to false"):
        check_sharding(tiny(train={"shard": True, "compile": True}), four)
    with pytest.raises(DeviceError, match="XLA devices each hold all weights"):
        check_sharding(tiny(train={"shard": True}), LazyDevice(torch.device("cpu"), "fp32", native_bf16=False))
    assert not is_sharded(tiny(train={"shard": True}), cpu)
    assert not differences(tiny(), tiny(train={"shard": True}))


class LazyDevice(Device):
    """As XLA's, of which torch_xla is not needed here."""

    is_lazy = True


def device_of(world_size: int) -> Device:
    return Device(torch.device("cpu"), "fp32", native_bf16=False, ranks=Ranks(rank=0, world_size=world_size))
