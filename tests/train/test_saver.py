"""Saves beside the loop: the same bytes, one at a time, no error lost, and a stop that ends in time."""

import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import train.attempts
import train.saver
import train.snapshot
from shards.reader import open_dataset
from train.checkpoint import newest_checkpoint
from train.config import Recipe
from train.device import Device
from train.errors import CheckpointError, NonFiniteError, TrainingStoppedError
from train.loop import pretrain
from train.objective import Batch
from train.recorder import Listener
from train.saver import Saver
from train.signals import Stop
from train.snapshot import Snapshot, publish_snapshot, save_checkpoint, take_snapshot
from train.step import TrainState, start_state, train_step


@pytest.fixture(autouse=True)
def _quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.recorder.save_masks", lambda path, *_, **__: path.write_bytes(b""))


class Gate:
    """A disk that keeps a save waiting until it is opened."""

    def __init__(self, folder: Path) -> None:
        self.opened, self.entered = threading.Event(), threading.Event()
        self._publish = partial(publish_snapshot, folder)

    def __call__(self, snapshot: Snapshot) -> Path:
        self.entered.set()
        assert self.opened.wait(30)
        return self._publish(snapshot)


@pytest.fixture
def state(recipe: Recipe, batch: Batch, cpu: Device) -> TrainState:
    state = start_state(recipe, cpu)
    train_step(state, [batch], recipe, cpu)
    return state


def saver_of(state: TrainState, recipe: Recipe, publish: Callable[[Snapshot], Path], **options: Any) -> Saver:
    return Saver(
        take=lambda spare: take_snapshot(state, recipe, dataset_sha256="d", reuse=spare), publish=publish, **options
    )


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_save_holds_the_state_as_it_was_while_the_loop_goes_on(
    state: TrainState, recipe: Recipe, batch: Batch, cpu: Device, tmp_path: Path
) -> None:
    expected = files_of(save_checkpoint(tmp_path / "here", state, recipe, dataset_sha256="d"))
    gate = Gate(tmp_path / "beside")
    saver = saver_of(state, recipe, gate)
    saver.save()
    assert gate.entered.wait(30)
    train_step(state, [batch], recipe, cpu)  # which moves weights, moments and counts in place
    assert not (tmp_path / "beside").exists()
    gate.opened.set()
    saver.finish()
    assert files_of(tmp_path / "beside/step-00000001") == expected

    saver.save()  # into the memory of the first
    saver.finish()
    expected = files_of(save_checkpoint(tmp_path / "here", state, recipe, dataset_sha256="d"))
    assert files_of(tmp_path / "beside/step-00000002") == expected


def test_a_second_save_waits_for_the_first(state: TrainState, recipe: Recipe, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    saver = saver_of(state, recipe, gate)
    saver.save()
    opener = threading.Timer(0.3, gate.opened.set)
    opener.start()
    saver.save()
    opener.join()
    assert (tmp_path / "step-00000001").exists()
    assert saver.held_s >= 0.25
    saver.finish()


def test_an_error_is_raised_by_the_next_save_or_at_the_end(state: TrainState, recipe: Recipe, tmp_path: Path) -> None:
    def full_disk(_snapshot: Snapshot) -> Path:
        raise CheckpointError("step 1 could not be saved (no space): make room.")

    def defect(_path: Path) -> None:
        raise ZeroDivisionError("of a library")

    saver = saver_of(state, recipe, full_disk)
    saver.save()
    with pytest.raises(CheckpointError, match="no space"):
        saver.save()
    saver.finish()
    with pytest.raises(CheckpointError, match="no space"), saver.running(Stop()):
        saver.save()
    saver = saver_of(state, recipe, partial(publish_snapshot, tmp_path), after=[defect])
    saver.save()
    with pytest.raises(CheckpointError, match="step 1 could not be saved \\(ZeroDivisionError: of a library\\)"):
        saver.finish()


def test_what_ended_the_loop_is_raised_and_a_save_that_failed_is_said(state: TrainState, recipe: Recipe) -> None:
    def full_disk(_snapshot: Snapshot) -> Path:
        raise CheckpointError("step 1 could not be saved (no space): make room.")

    heard: list[str] = []
    saver = saver_of(state, recipe, full_disk, say=heard.append)
    saver.save()
    with pytest.raises(KeyboardInterrupt), saver.running(Stop()):
        raise KeyboardInterrupt
    assert heard == ["step 1 could not be saved (no space): make room."]


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may be larger than 20 kB, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_takes_no_more_is_named(state: TrainState, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"step 1 could not be saved .*File too large.*make room"):
        save_checkpoint(tmp_path, state, recipe, dataset_sha256="d")
    assert newest_checkpoint(tmp_path).checkpoint is None


def test_files_may_be_read_by_whom_the_umask_lets(state: TrainState, recipe: Recipe, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = save_checkpoint(tmp_path, state, recipe, dataset_sha256="d")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o640}


def test_a_damaged_later_checkpoint_does_not_cost_the_new_one(
    state: TrainState, recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "step-00000009").mkdir(parents=True)
    save_checkpoint(tmp_path, state, recipe, dataset_sha256="d", keep=1)
    newest = newest_checkpoint(tmp_path)
    assert newest.checkpoint is not None
    assert (newest.checkpoint.step, len(newest.passed_over)) == (1, 1)


def test_a_run_has_the_same_checkpoints_with_saves_beside_it_and_in_it(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path
) -> None:
    summaries = {}
    for background in (True, False):
        recipe = make_recipe(checkpoint={"every_steps": 1, "background": background})
        summaries[background] = pretrain(recipe, open_dataset(tiny_dataset), tmp_path / str(background))
    for step in range(1, 7):
        one, two = (tmp_path / f"{background}/checkpoints/step-{step:08d}" for background in (True, False))
        assert files_of(one) == files_of(two)
    assert all(summary["save_wait_s"] > 0 and summary["copies_failed"] == 0 for summary in summaries.values())


def full_disk_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real = train.snapshot._write_tensors

    def write(path: Path, tensors: Any) -> dict[str, Any]:
        if name in str(path):
            raise OSError(28, "No space left on device")
        return real(path, tensors)

    monkeypatch.setattr(train.snapshot, "_write_tensors", write)


def test_a_disk_that_fails_ends_the_run(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk_at(monkeypatch, "step-00000004")
    with pytest.raises(CheckpointError, match=r"step 4 could not be saved .*No space left"):
        pretrain(make_recipe(), open_dataset(tiny_dataset), tmp_path / "run")
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "failed"
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").glob("step-*")) == ["step-00000002"]


def test_a_stop_whose_save_fails_is_a_failure(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not 143, which says that all is saved."""
    full_disk_at(monkeypatch, "step-00000003")
    at_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(CheckpointError, match=r"step 3 could not be saved .*No space left"):
        pretrain(make_recipe(), open_dataset(tiny_dataset), tmp_path / "run")


def slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """So slow that the loop is ahead of its saves."""
    real = train.snapshot._write

    def write(path: Path, data: bytes) -> dict[str, Any]:
        time.sleep(0.5)
        return real(path, data)

    monkeypatch.setattr(train.snapshot, "_write", write)


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    real = train.attempts.try_step

    def step_then_act(state: Any, *arguments: Any) -> Any:
        result = real(state, *arguments)
        if state.step == number:
            act()
        return result

    monkeypatch.setattr(train.attempts, "try_step", step_then_act)


def test_sigterm_with_a_save_in_flight_leaves_both_whole(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_disk(monkeypatch)

    def terminate() -> None:
        assert not (tmp_path / "run/checkpoints/step-00000002").exists()
        os.kill(os.getpid(), signal.SIGTERM)

    at_step(monkeypatch, 3, terminate)
    with pytest.raises(TrainingStoppedError, match="step 3, saved"):
        pretrain(make_recipe(), open_dataset(tiny_dataset), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["step-00000002", "step-00000003"]
    newest = newest_checkpoint(tmp_path / "run/checkpoints")
    assert newest.checkpoint is not None
    assert (newest.checkpoint.step, newest.passed_over) == (3, ())


def test_a_run_that_fails_or_goes_back_waits_for_its_save(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 3 and 4 are not finite while the save of step 2 is in flight: going back finds it, and once is enough."""
    slow_disk(monkeypatch)
    real = train.attempts.try_step

    def not_finite(state: TrainState, *arguments: Any) -> Any:
        if state.step < 2:
            return real(state, *arguments)
        raise NonFiniteError("2 updates in a row were not finite.")

    monkeypatch.setattr(train.attempts, "try_step", not_finite)
    heard: list[str] = []
    with pytest.raises(NonFiniteError):
        pretrain(make_recipe(), open_dataset(tiny_dataset), tmp_path / "run", Listener(say=heard.append))
    assert any("Going back to step 2, once." in line for line in heard)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000002"]


def test_a_stop_leaves_what_a_bucket_keeps_waiting(
    state: TrainState, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.saver, "STOP_COPY_S", 0.3)
    stuck, stop, heard = threading.Event(), Stop(), []
    saver = saver_of(
        state,
        recipe,
        partial(publish_snapshot, tmp_path),
        after=[lambda _path: assert_waited(stuck)],
        say=heard.append,
    )
    with saver.running(stop):
        saver.save()
        state.step = 2
        threading.Timer(0.1, stop.set).start()  # as SIGTERM does, while the loop waits for the first save
        began = time.monotonic()
        saver.save()
        assert time.monotonic() - began < 5
    stuck.set()
    assert (tmp_path / "step-00000002/state.json").exists()
    assert [line[:36] for line in heard] == [
        "step 1 is saved in the run folder; i",
        "step 2 is saved in the run folder; i",
    ]


def assert_waited(event: threading.Event) -> None:
    assert event.wait(30)
