"""The best checkpoint by a probe: it outlives the newest ones, and is forgotten with the step that earned it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.reader import open_dataset
from tests.train.test_loop import crash, stop_after
from train.best import Best, find_best, read_best
from train.checkpoint import load_encoder, open_checkpoint
from train.config import Recipe
from train.errors import CheckpointError
from train.export import export
from train.loop import pretrain
from train.probe import Probes
from train.recorder import Listener
from train.saver import Saver

Say = Callable[[str], None]
SCORES = [0.99, 0.5, 0.8, 0.6, 0.8, 0.7, 0.6]  # of steps 0 to 6: the first is that of a random encoder


@pytest.fixture(autouse=True)
def _quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.recorder.save_masks", lambda path, *_, **__: path.write_bytes(b""))


@pytest.fixture
def run(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Run the tiny recipe in `run`, validating at each step, with these scores of the probe of laterality."""

    def act(scores: list[float], *, first: int = 0, say: Say = print, **checkpoint: Any) -> dict[str, Any]:
        given = iter(scores[first:])
        monkeypatch.setattr(Probes, "scores", lambda *_: {"probe_laterality": next(given)})
        keys = {"every_steps": 2, "keep": 1, "best": "laterality", **checkpoint}
        recipe = make_recipe(validation={"every_steps": 1}, checkpoint=keys)
        return pretrain(recipe, open_dataset(tiny_dataset), tmp_path / "run", Listener(say=say))

    return act


def crash_after_five(run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 5, crash)
        with pytest.raises(KeyboardInterrupt):
            run(SCORES)


def steps(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir())


def test_the_best_stays_beside_the_newest_and_is_what_best_loads(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    summary = run(SCORES)
    folder = tmp_path / "run"
    assert steps(folder) == [2, 6]
    expected = {"step": 2, "measure": "probe_laterality", "value": 0.8}
    assert json.loads((folder / "best.json").read_text()) == summary["best"] == expected
    assert open_checkpoint(folder, "best").step == 2
    assert open_checkpoint(folder).step == 6
    best, _ = load_encoder(folder, choice="best")
    itself, _ = load_encoder(folder / "checkpoints/step-00000002")
    newest, _ = load_encoder(folder)
    assert all(torch.equal(value, itself.state_dict()[name]) for name, value in best.state_dict().items())
    assert not all(torch.equal(value, newest.state_dict()[name]) for name, value in best.state_dict().items())
    assert export(folder, tmp_path / "given", choice="best", version="0")["step"] == 2
    shutil.rmtree(folder / "checkpoints/step-00000002")
    (folder / "checkpoints/step-00000006").rename(folder / "checkpoints/step-00000002")
    with pytest.raises(CheckpointError, match="it is of step 6, under the name of another"):
        open_checkpoint(folder, "best")


def test_the_best_is_kept_when_its_row_is_lost(
    run: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_after_five(run, monkeypatch)
    assert steps(tmp_path / "run") == [2, 4]
    (tmp_path / "run/metrics.jsonl").unlink()
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    assert run([0.6, 0.7, 0.7], every_steps=1)["best"]["step"] == 2
    assert steps(tmp_path / "run") == [2, 6]

    shutil.rmtree(tmp_path / "run")
    (tmp_path / "other").rename(tmp_path / "run")
    known = json.loads((tmp_path / "run/best.json").read_text())
    (tmp_path / "run/best.json").write_text(json.dumps({**known, "measure": "probe_device"}))
    assert run([0.6, 0.7, 0.7], every_steps=1)["best"]["step"] == 5, "of another probe it was no score"


def test_a_step_that_is_not_due_is_saved_for_its_score(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    run([0.5, 0.1, 0.2, 0.2, 0.2, 0.9, 0.3], every_steps=6)
    assert steps(tmp_path / "run") == [5, 6]
    assert open_checkpoint(tmp_path / "run", "best").step == 5


def test_a_step_without_a_validation_waits_for_no_save(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited, finish = [], Saver.finish

    def look(saver: Saver) -> None:
        waited.append(json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])["step"])
        finish(saver)

    monkeypatch.setattr(Saver, "finish", look)
    keys = {"every_steps": 2, "best": "laterality"}
    recipe = make_recipe(validation={"every_steps": 6}, checkpoint=keys)
    pretrain(recipe, open_dataset(tiny_dataset), tmp_path / "run")
    assert sorted(set(waited)) == [2, 4, 6]


def test_it_is_the_same_after_a_crash(
    run: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_after_five(run, monkeypatch)
    assert steps(tmp_path / "run") == [2, 4]
    summary = run(SCORES, first=5)
    assert (steps(tmp_path / "run"), summary["best"]["step"]) == ([2, 6], 2)


def test_a_crash_between_the_checkpoint_and_best_json_is_made_good(
    run: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("train.run_folder.RunFolder.write_best", lambda *_: crash())
        with pytest.raises(KeyboardInterrupt):
            run(SCORES)
    assert (steps(tmp_path / "run"), read_best(tmp_path / "run")) == ([1], None)
    monkeypatch.setattr("train.attempts.try_step", lambda *_: crash())
    with pytest.raises(KeyboardInterrupt):
        run(SCORES, first=2)
    assert read_best(tmp_path / "run") == Best(step=1, measure="probe_laterality", value=0.5)


def test_a_run_from_before_its_best_step_earns_it_again(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    run(SCORES, keep=9)
    folder = tmp_path / "run"
    assert steps(folder) == [1, 2, 4, 6]
    for step in (2, 4, 6):
        (folder / f"checkpoints/step-{step:08d}/state.json").write_text("{}")
    (folder / "summary.json").unlink()
    summary = run([0.1, 0.5, 0.4, 0.45, 0.6, 0.3, 0.3], first=2, keep=9)
    assert summary["best"]["step"] == 4
    assert open_checkpoint(folder, "best").step == 4, "whole again: written over the one that was damaged"


def test_a_best_whose_checkpoint_is_gone_is_forgotten(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    run(SCORES, keep=9)
    for name in ("step-00000002", "step-00000006"):
        shutil.rmtree(tmp_path / "run/checkpoints" / name)
    summary = run([0.1] * 7, first=5, keep=9)
    assert summary["best"] == {"step": 4, "measure": "probe_laterality", "value": 0.8}


def test_without_its_probe_a_run_keeps_the_best_that_it_has(
    run: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash_after_five(run, monkeypatch)
    assert run([1.0, 1.0], best="none")["best"]["step"] == 2
    assert steps(tmp_path / "run") == [2, 6]


def test_a_run_that_chose_none_says_what_to_do(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    run(SCORES, best="none")
    assert not (tmp_path / "run/best.json").exists()
    with pytest.raises(CheckpointError, match=r"--labels.*or take the newest"):
        open_checkpoint(tmp_path / "run", "best")
    (tmp_path / "run/best.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not as a run writes it"):
        read_best(tmp_path / "run")


def test_of_equal_ones_the_first_and_never_a_random_encoder() -> None:
    rows = [{"split": "val", "step": step, "m": value} for step, value in enumerate([9.0, 1.0, 2.0, 2.0, None])]
    others = [{"split": "val", "step": 5}, {"split": "train", "step": 3, "loss": 9.0}]
    assert find_best([*rows, *others], "m", range(9)) == Best(step=2, measure="m", value=2.0)
    assert find_best(rows, "m", {0, 4}) is None


def lose_machine(tmp_path: Path) -> Path:
    shutil.rmtree(tmp_path / "run")
    return tmp_path / "copies"


def test_a_run_that_lost_its_machine_has_its_best_again(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    summary = run(SCORES, copies=str(tmp_path / "copies"))
    lose_machine(tmp_path)
    assert run([], copies=str(tmp_path / "copies"))["best"] == summary["best"]
    assert steps(tmp_path / "run") == [2, 6]
    assert open_checkpoint(tmp_path / "run", "best").step == 2


@pytest.mark.parametrize("damaged", ["best.json", "step-00000002/target.safetensors"])
def test_a_damaged_best_copy_is_named_and_stops_nothing(
    run: Callable[..., dict[str, Any]], tmp_path: Path, damaged: str
) -> None:
    run(SCORES, copies=str(tmp_path / "copies"))
    (lose_machine(tmp_path) / damaged).write_text("{}")
    said: list[str] = []
    run([], say=said.append, copies=str(tmp_path / "copies"))
    assert said[1].startswith(f"passed over the best copy: {tmp_path}/copies/{damaged.partition('/')[0]}")
    assert steps(tmp_path / "run") == [6]
