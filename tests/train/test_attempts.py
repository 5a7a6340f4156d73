"""Steps that fail: done again where that helps, left out and counted where not, and no trace in the weights."""

import gc
import json
import math
import time
import weakref
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import train.attempts
import train.feed
import train.step
from shards.reader import open_dataset
from train.config import Recipe
from train.device import Device, open_device
from train.errors import NonFiniteError, TrainError
from train.feed import Feed
from train.loop import pretrain
from train.objective import Batch, Networks, Outcome
from train.plan import plan_run
from train.recorder import Listener


@pytest.fixture(autouse=True)
def _quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.recorder.save_masks", lambda path, *_, **__: path.write_bytes(b""))


def last_bytes(run: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((run / "checkpoints/step-00000006").glob("*.safetensors"))]


def cut(recipe: Recipe, micro_batch: int) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"micro_batch": micro_batch})})


def too_large(limit: int) -> Callable[[Networks, Batch], Outcome]:
    """A device on which `limit` volumes fit."""
    real = train.step.evaluate

    def evaluate(networks: Networks, batch: Batch) -> Outcome:
        outcome = real(networks, batch)  # BatchNorm has moved by now
        if networks.training and len(batch.content_BN) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return outcome

    return evaluate


@pytest.mark.parametrize("limit", [3, 1])
def test_a_micro_batch_that_does_not_fit_is_halved_and_the_weights_are_those_of_the_smaller_one(
    recipe: Recipe, tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    then = {3: 2, 1: 1}[limit]
    pretrain(cut(recipe, then), open_dataset(tiny_dataset), tmp_path / "a")
    monkeypatch.setattr(train.step, "evaluate", too_large(limit))
    heard: list[str] = []
    pretrain(cut(recipe, 4), open_dataset(tiny_dataset), tmp_path / "b", Listener(say=heard.append))
    assert last_bytes(tmp_path / "a") == last_bytes(tmp_path / "b")
    halved = [line for line in heard if "out of memory" in line]
    assert halved[-1].startswith("step 1: CUDA out of memory. Tried to allocate 20.00 GiB.; from here on train.micro_b")
    assert f"micro_batch is {then}, and the global batch of 4 stays" in halved[-1]
    rows = [json.loads(line) for line in (tmp_path / "b/metrics.jsonl").read_text().splitlines()]
    assert {row["micro_batch"] for row in rows if row["split"] == "train"} == {then}


def test_what_did_not_fit_is_gone_before_memory_is_given_back(
    recipe: Recipe, tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback that is kept holds the batch; without the collector, as it may not come by."""
    real, seen, alive = too_large(2), [], []

    def evaluate(networks: Networks, batch: Batch) -> Outcome:
        seen.append(weakref.ref(batch.context_BDHW))
        return real(networks, batch)

    monkeypatch.setattr(train.step, "evaluate", evaluate)
    monkeypatch.setattr(Device, "free_memory", lambda _: alive.append(sum(one() is not None for one in seen)))
    gc.disable()
    try:
        pretrain(cut(recipe, 4), open_dataset(tiny_dataset), tmp_path / "run")
    finally:
        gc.enable()
    assert alive == [0]


def test_an_update_that_does_not_fit_ends_in_a_sentence(
    recipe: Recipe, tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(torch.optim.AdamW, "step", refuse)
    with pytest.raises(TrainError, match=r"the optimizer's moments do not \(CUDA out of memory.*model\.preset"):
        pretrain(recipe, open_dataset(tiny_dataset), tmp_path / "run")


def test_only_the_host_s_part_of_a_batch_is_waiting_for_data(
    recipe: Recipe, tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy to a device that is busy takes as long as what keeps it busy."""
    real = train.feed.prepare

    def busy(*words: Any) -> Any:
        time.sleep(0.2)
        return real(*words)

    monkeypatch.setattr(train.feed, "prepare", busy)
    dataset = open_dataset(tiny_dataset)
    plan = plan_run(cut(recipe, 2), dataset)
    with closing(Feed(plan.train, plan.recipe, open_device("cpu"), step=0)) as feed:
        began = time.perf_counter()
        assert len([*feed.step_batches()]) == 2
        assert feed.waited_s < time.perf_counter() - began - 0.4


def test_when_one_volume_does_not_fit_it_is_said_what_would(
    recipe: Recipe, tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.step, "evaluate", too_large(0))
    with pytest.raises(TrainError, match=r"micro-batch of one volume does not fit .*raise data\.pool"):
        pretrain(recipe, open_dataset(tiny_dataset), tmp_path / "run")


def spoil(monkeypatch: pytest.MonkeyPatch, spoiled: Callable[[int, int], bool]) -> list[int]:
    """Make updates not finite: `spoiled(number of the attempt, step)`; returns the steps of all attempts."""
    real, steps = train.attempts.try_step, []

    def try_step(state: Any, batches: Any, *rest: Any) -> Any:
        steps.append(state.step)
        if spoiled(len(steps) - 1, state.step):
            batches = (replace(one, context_BDHW=one.context_BDHW * math.nan) for one in batches)
        return real(state, batches, *rest)

    monkeypatch.setattr(train.attempts, "try_step", try_step)
    return steps


def test_what_passes_leaves_no_trace(
    recipe: Recipe, tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(recipe, open_dataset(tiny_dataset), tmp_path / "a")
    steps = spoil(monkeypatch, lambda attempt, _step: attempt in {0, 3, 7})
    heard: list[str] = []
    summary = pretrain(recipe, open_dataset(tiny_dataset), tmp_path / "b", Listener(say=heard.append))
    assert steps == [0, 0, 1, 2, 2, 3, 4, 5, 5]
    assert last_bytes(tmp_path / "a") == last_bytes(tmp_path / "b")
    assert (summary["skipped"], sum("once more" in line for line in heard)) == (0, 3)


def test_what_does_not_pass_is_left_out_and_counted(
    recipe: Recipe, tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, lambda _attempt, step: step == 2)
    heard: list[str] = []
    summary = pretrain(recipe, open_dataset(tiny_dataset), tmp_path / "run", Listener(say=heard.append))
    assert (summary["step"], summary["skipped"]) == (6, 1)
    assert "step 3 is left out: its update is not finite." in heard


def test_too_many_in_a_row_go_back_to_the_last_good_checkpoint_once(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 4 and 5 fail, and pass after the run has gone back to the checkpoint of step 2."""
    recipe = make_recipe(train={"max_nonfinite": 2})
    pretrain(recipe, open_dataset(tiny_dataset), tmp_path / "a")
    with monkeypatch.context() as patch:
        steps = spoil(patch, lambda attempt, _step: 3 <= attempt < 7)
        heard: list[str] = []
        summary = pretrain(recipe, open_dataset(tiny_dataset), tmp_path / "b", Listener(say=heard.append))
    assert steps == [0, 1, 2, 3, 3, 4, 4, 2, 3, 4, 5]
    assert any(line.endswith("Going back to step 2, once.") for line in heard)
    assert last_bytes(tmp_path / "a") == last_bytes(tmp_path / "b")
    rows = [json.loads(line) for line in (tmp_path / "b/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["split"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert summary["skipped"] == 0
    assert all(row["volumes_per_s"] > 0 and row["context_moved"] > 0 for row in rows if row["split"] == "train")
    assert all(0 <= row["data_wait"] <= 1 for row in rows if row["split"] == "train")

    spoil(monkeypatch, lambda _attempt, step: step >= 3)
    with pytest.raises(
        NonFiniteError, match=r"2 updates in a row up to step 5 .*\. Start a new run in another folder, with a lower"
    ):
        pretrain(recipe, open_dataset(tiny_dataset), tmp_path / "c")
