"""SIGTERM while a store is silent: the run saves and ends within the 25 s that it has, and goes on as it would have."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import train.attempts
import train.loop
import train.recorder
import train.saver
from shards.errors import ReaderDiedError
from shards.reader import open_dataset
from tests.stores.faults import Fault, Plan
from tests.stores.fixtures import Store
from tests.train.test_stores import in_bucket, run  # noqa: F401 - a fixture
from train.config import Recipe
from train.errors import TrainingStoppedError
from train.run_folder import RunFolder

SILENT = Plan(share=1.0, faults=(Fault.STALL,))
ALLOWED_S = 25.0
"""An attempt at a silent store lasts 30 s, and there are eight; then the run would fail."""


@pytest.fixture(autouse=True)
def _quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.recorder.save_masks", lambda path, *_, **__: path.write_bytes(b""))


def stop_soon(stopped: list[float]) -> None:
    def stop() -> None:
        stopped.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Timer(0.3, stop).start()


def silence_in_a_step(store: Store, patch: pytest.MonkeyPatch, stopped: list[float]) -> None:
    real = train.attempts.try_step

    def try_step(state: Any, *arguments: Any) -> Any:
        result = real(state, *arguments)
        if state.step == 3:
            store.proxy.plan(SILENT)
            stop_soon(stopped)
        return result

    patch.setattr(train.attempts, "try_step", try_step)


def silence_in_validation(store: Store, patch: pytest.MonkeyPatch, stopped: list[float]) -> None:
    real = train.recorder.validate

    def validate(networks: Any, dataset: Any, recipe: Any, device: Any, stop: Any) -> Any:
        if silenced:
            store.proxy.plan(SILENT)
            stop_soon(stopped)
        silenced.append(True)
        return real(networks, dataset, recipe, device, stop)

    silenced: list[bool] = []  # not in that of step 0
    patch.setattr(train.recorder, "validate", validate)


@pytest.mark.parametrize("store", ["gs"], indirect=True)
@pytest.mark.parametrize(
    ("silence", "workers"), [(silence_in_a_step, 0), (silence_in_a_step, 2), (silence_in_validation, 0)]
)
def test_a_silent_store_does_not_hold_up_the_stop(  # noqa: PLR0917
    in_bucket: str,  # noqa: F811
    store: Store,
    tiny_dataset: str,
    tmp_path: Path,
    make_recipe: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
    silence: Callable[[Store, pytest.MonkeyPatch, list[float]], None],
    workers: int,
) -> None:
    recipe = make_recipe(data={"workers": workers})
    with monkeypatch.context() as patch:
        stopped: list[float] = []
        silence(store, patch, stopped)
        dataset = open_dataset(in_bucket)
        with pytest.raises(TrainingStoppedError, match=r"step [345], saved"):
            train.loop.pretrain(recipe, dataset, tmp_path / "bucket")
        assert time.monotonic() - stopped[0] < ALLOWED_S
    store.proxy.plan(Plan())
    assert run(in_bucket, tmp_path / "bucket", recipe) == run(tiny_dataset, tmp_path / "disk", recipe)


def test_what_a_stop_left_out_is_done_after_the_last_step(
    tiny_dataset: str, tmp_path: Path, make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM in the validation at the end: the steps are done, and the run is not finished."""
    real = train.recorder.validate
    with monkeypatch.context() as patch:

        def validate(networks: Any, dataset: Any, recipe: Any, device: Any, stop: Any) -> Any:
            if (tmp_path / "run/checkpoints/step-00000004").exists():
                os.kill(os.getpid(), signal.SIGTERM)
            return real(networks, dataset, recipe, device, stop)

        patch.setattr(train.recorder, "validate", validate)
        with pytest.raises(TrainingStoppedError, match="step 6, saved"):
            train.loop.pretrain(make_recipe(), open_dataset(tiny_dataset), tmp_path / "run")
    assert [row["step"] for row in RunFolder(path=tmp_path / "run").rows() if row["split"] == "val"] == [0, 3]
    assert run(tiny_dataset, tmp_path / "run", make_recipe()) == run(tiny_dataset, tmp_path / "whole", make_recipe())


def test_a_stop_right_after_a_save_saves_nothing_twice(
    tiny_dataset: str, tmp_path: Path, make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, saved = train.saver.Saver.save, []

    def save(saver: Any, best: int | None = None) -> None:
        real(saver, best)
        saved.append(saver)
        os.kill(os.getpid(), signal.SIGTERM)  # it ends the wait for the next batch

    with monkeypatch.context() as patch:
        patch.setattr(train.saver.Saver, "save", save)
        with pytest.raises(TrainingStoppedError, match="step 2, saved"):
            train.loop.pretrain(
                make_recipe(checkpoint={"every_steps": 2}), open_dataset(tiny_dataset), tmp_path / "run"
            )
    assert len(saved) == 1
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000002"]


def test_a_reader_that_is_killed_ends_the_run_with_a_sentence(
    tiny_dataset: str, tmp_path: Path, make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = train.attempts.try_step

    def try_step(state: Any, *arguments: Any) -> Any:
        if state.step == 3:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        return real(state, *arguments)

    monkeypatch.setattr(train.attempts, "try_step", try_step)
    recipe = make_recipe(data={"workers": 2}, train={"max_steps": 200})
    with pytest.raises(ReaderDiedError, match=r"a reader process died \(DataLoader worker .*lower data\.workers"):
        train.loop.pretrain(recipe, open_dataset(tiny_dataset), tmp_path / "run")
    assert RunFolder(path=tmp_path / "run").read_summary()["status"] == "failed"
