"""Several processes train one run: the sums are those of one process, and a killed run goes on as it would have."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from shards.reader import open_dataset
from tests.train.conftest import OBJECTIVES, tiny
from train.errors import DeviceError
from train.loop import check_ranks, pretrain
from train.ranks import Ranks

ROOT = Path(__file__).parents[2]


def run(world: int, out: Path, dataset: str, **sections: Any) -> int:
    """A run of so many ranks on this machine; torchrun's exit status."""
    words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", "-m", "tests.train.run_rank"]
    done = subprocess.run(
        [sys.executable, *words, str(out), dataset, json.dumps(sections)],
        cwd=ROOT, check=False, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    print(done.stderr[-3000:])  # noqa: T201 - shown by pytest if the test fails
    return done.returncode


def rows(out: Path) -> list[dict[str, Any]]:
    left_out = ("volumes_per_s", "tflops", "data_wait", "peak_memory_bytes")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in left_out} for line in lines]


def weights(out: Path, step: int) -> Mapping[str, torch.Tensor]:
    folder = out / f"checkpoints/step-{step:08d}"
    files = ("encoder", "target", "state")
    loaded = [safetensors.torch.load_file(folder / f"{name}.safetensors") for name in files]
    return {f"{file}.{name}": value for file, one in zip(files, loaded, strict=True) for name, value in one.items()}


def bytes_of(out: Path, step: int) -> list[bytes]:
    return [path.read_bytes() for path in sorted((out / f"checkpoints/step-{step:08d}").glob("*.safetensors"))]


def test_ranks_wait_for_a_slow_copy_longer_than_for_a_sum(tiny_dataset: str, tmp_path: Path) -> None:
    """In a step, at a save and at the end: a sum is given up after 3 s there, and a copy takes 6 s."""
    sections = {"train": {"max_steps": 3}, "checkpoint": {"every_steps": 1, "copies": str(tmp_path / "copies")}}
    assert run(2, tmp_path / "two", tiny_dataset, **sections, slow_copies=(3, 6)) == 0
    assert len(list((tmp_path / "copies").glob("step-*/state.json"))) == 3


def test_memory_that_is_too_small_where_ranks_meet_in_batchnorm_is_one_sentence(
    tiny_dataset: str, tmp_path: Path
) -> None:
    sections = {"objective": {"name": "methods"}, "train": {"micro_batch": 4, "max_steps": 6}}
    assert run(2, tmp_path / "two", tiny_dataset, **sections, short_after=2) != 0
    assert "ranks that meet in a pass cannot halve it: set train.micro_batch" in (tmp_path / "two-said-1").read_text()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_ranks_make_the_steps_of_one(name: str, tiny_dataset: str, tmp_path: Path) -> None:
    """SGD would hide a wrong scale and AdamW hides it better: the moments of the first step are the gradients."""
    sections: dict[str, Any] = {
        "objective": OBJECTIVES[name],
        "train": {"micro_batch": 4, "max_steps": 3},
        "checkpoint": {"every_steps": 1},
        "augment": {"shift_voxels": (1, 4, 4), "noise": 0.1},
        "model": {"drop_path": 0.3},
        "optim": {"lr": 1e-3, "ema_start": 0.9, "grad_clip": 1e6},
    }
    dataset = open_dataset(tiny_dataset)
    labels = {row.key: "even" if int(row.participant_id) % 2 == 0 else "odd" for row in dataset.samples}
    pretrain(tiny(**sections), dataset, tmp_path / "one", labels=labels)
    assert run(2, tmp_path / "two", tiny_dataset, **sections, labels=labels) == 0
    one, two = (weights(tmp_path / which, 1) for which in ("one", "two"))
    assert one.keys() == two.keys()
    moments = [name for name in one if name.endswith("exp_avg")]
    assert len(moments) > 10
    for moment in moments:
        largest = float(one[moment].abs().max())  # 0 for a bias before BatchNorm
        torch.testing.assert_close(two[moment], one[moment], rtol=0, atol=1e-5 * largest + 1e-9)
    for alone, together in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for column in ("step", "samples", "loss", "loss_total", "cosine", "token_cosine", "masked_share", "grad_norm"):
            if column == "grad_norm" and alone["split"] == "val":
                continue
            assert together[column] == pytest.approx(alone[column], rel=1e-3, abs=1e-5), column
        probes = [name for name in alone if name.startswith("probe_")]
        assert [together[name] for name in probes] == [alone[name] for name in probes]
        assert (alone["split"] == "val") == ("probe_label" in probes)
    summary = json.loads((tmp_path / "two/summary.json").read_text())
    assert (summary["ranks"], summary["samples"]) == (2, 12)


def test_a_killed_run_of_two_ranks_goes_on_bit_for_bit_and_one_rank_may_take_over(
    tiny_dataset: str, tmp_path: Path
) -> None:
    """Twelve samples in batches of five: the kill and the end lie in the middle of an epoch."""
    sections: dict[str, Any] = {"train": {"global_batch": 5, "micro_batch": 2, "max_steps": 6}}
    assert run(2, tmp_path / "whole", tiny_dataset, **sections) == 0
    assert run(2, tmp_path / "parts", tiny_dataset, **sections, stop_after=5) != 0
    assert not (tmp_path / "parts/checkpoints/step-00000006").exists()
    assert run(2, tmp_path / "parts", tiny_dataset, **sections) == 0
    assert bytes_of(tmp_path / "parts", 6) == bytes_of(tmp_path / "whole", 6)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")

    for step in (6, 4):
        folder = tmp_path / f"parts/checkpoints/step-{step:08d}"
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    pretrain(tiny(**sections), open_dataset(tiny_dataset), tmp_path / "parts")
    alone, whole = weights(tmp_path / "parts", 6), weights(tmp_path / "whole", 6)
    assert all(torch.allclose(alone[name], whole[name], rtol=1e-2, atol=1e-4) for name in whole if "encoder" in name)


@pytest.mark.parametrize("odd", [{"optim": {"lr": 0.5}}, {"data": {"devices": ["zeiss_cirrus"]}}])
def test_ranks_that_were_given_other_recipes_or_samples_are_refused(
    tiny_dataset: str, tmp_path: Path, odd: Mapping[str, Any]
) -> None:
    assert run(2, tmp_path / "two", tiny_dataset, odd=odd) != 0
    said = [(tmp_path / f"two-said-{rank}").read_text() for rank in range(2)]
    assert {one.partition(" of")[0] for one in said} == {
        "RecipeError: ranks were given different recipes or datasets: start all"
    }
    assert not (tmp_path / "two").exists()


def test_a_rank_whose_fellow_was_killed_says_so(tiny_dataset: str, tmp_path: Path) -> None:
    assert run(2, tmp_path / "two", tiny_dataset, train={"max_steps": 6}, gone_after=2) != 0
    said = (tmp_path / "two-said-0").read_text()
    assert said.startswith("RankError: another rank of this run has ended or fallen silent")
    assert json.loads((tmp_path / "two/summary.json").read_text())["status"] == "failed"


def test_ranks_that_cannot_share_a_batch_are_refused() -> None:
    with pytest.raises(DeviceError, match=r"5 ranks cannot share a train\.global_batch of 4"):
        check_ranks(tiny(), Ranks(rank=0, world_size=5))
    with pytest.raises(DeviceError, match="4 do not divide by 3 ranks"):
        check_ranks(tiny(objective={"name": "methods"}), Ranks(rank=0, world_size=3))
    check_ranks(tiny(), Ranks(rank=0, world_size=3))


@pytest.mark.parametrize("count", [0, 1, 7, 10])
def test_shares_are_even_and_leave_nothing_out(count: int) -> None:
    shares = [Ranks(rank=rank, world_size=4).share(count) for rank in range(4)]
    assert [number for share in shares for number in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_rank_that_waits_for_data_and_is_told_to_stop_has_all_of_them_stop(tiny_dataset: str, tmp_path: Path) -> None:
    assert run(2, tmp_path / "run", tiny_dataset, silent_after=3) != 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "stopped"
    assert (tmp_path / "run/checkpoints/step-00000003").exists()
