"""Copies of checkpoints: a run outlives its machine, whatever the bucket does meanwhile."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import train.attempts
import train.copies
import train.saver
from shards.publish import publish
from shards.reader import open_dataset
from shards.schema import Sample
from shards.storage import locate, names_below
from tests.stores.faults import Fault, Plan
from tests.stores.fixtures import Store
from tests.train.conftest import tiny
from tests.train.test_ranks import run as run_ranks
from tests.wandb_files import recorded
from train.checkpoint import newest_checkpoint, read_checkpoint
from train.config import Recipe
from train.copies import Copier, Copies, bring_newest
from train.errors import CheckpointError, RunFolderError, TrainingStoppedError
from train.loop import pretrain
from train.plan import plan_run
from train.recorder import Listener
from train.run_folder import RunFolder, open_run

TIMED = ("volumes_per_s", "tflops", "data_wait", "peak_memory_bytes")
NAMES = {
    "encoder.safetensors",
    "target.safetensors",
    "state.safetensors",
    "state.json",
    "metrics.jsonl",
    "metrics.sha256",
}
AWAY = Plan(share=1.0, faults=(Fault.UNAVAILABLE,))


@pytest.fixture(autouse=True)
def _quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.recorder.save_masks", lambda path, *_, **__: path.write_bytes(b""))


def recipe_to(url: str | Path, **checkpoint: Any) -> Recipe:
    return tiny(checkpoint={"keep": 2, "copies": str(url), **checkpoint}, validation={"every_steps": 6})


def at_steps(monkeypatch: pytest.MonkeyPatch, acts: dict[int, Callable[[], None]]) -> None:
    """Act in the middle of steps of the loop."""
    real = train.attempts.try_step

    def step_then_act(state: Any, *arguments: Any) -> Any:
        result = real(state, *arguments)
        acts.get(state.step, lambda: None)()
        return result

    monkeypatch.setattr(train.attempts, "try_step", step_then_act)


def crash() -> None:
    raise KeyboardInterrupt


def last_weights(run: Path) -> dict[str, bytes]:
    folder = run / "checkpoints/step-00000006"
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [{name: row[name] for name in row if name not in TIMED} for row in RunFolder(path=run).rows()]


def copies_at(url: str | Path) -> dict[str, set[str]]:
    """Steps that lie there, each with its files."""
    found: dict[str, set[str]] = {}
    for path in names_below(locate(str(url))):
        folder, _, name = path.partition("/")
        found.setdefault(folder, set()).add(name)
    return found


@pytest.fixture(scope="session")
def whole(tiny_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run, whose three checkpoints were copied to a folder beside it."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.recorder.save_masks", lambda path, *_, **__: path.write_bytes(b""))
        pretrain(recipe_to(folder / "copies", keep=3), open_dataset(tiny_dataset), folder / "run")
    return folder


def test_a_run_goes_on_in_an_empty_folder_from_the_bucket_bit_for_bit(
    store: Store, whole: Path, tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though one request in five fails."""
    store.proxy.plan(Plan(share=0.2, seed=4))
    url, dataset = f"{store.url}/runs/a", open_dataset(tiny_dataset)
    with monkeypatch.context() as patch:
        at_steps(patch, {5: crash})
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe_to(url), dataset, tmp_path / "lost")
    shutil.rmtree(tmp_path / "lost")
    heard: list[str] = []
    summary = pretrain(recipe_to(url), dataset, tmp_path / "new", Listener(say=heard.append))
    assert heard[0] == f"brought {url}/step-00000004 to the run folder, with the rows up to it."
    assert heard[1].startswith("resumed at step 4 ")
    assert last_weights(tmp_path / "new") == last_weights(whole / "run")
    assert rows_of(tmp_path / "new") == rows_of(whole / "run")
    assert (summary["status"], summary["copies_failed"]) == ("finished", 0)
    assert copies_at(url) == {"step-00000004": NAMES, "step-00000006": NAMES}
    assert store.proxy.faults.total() > 5


def bring(copies: Path, out: Path, dataset: str, recipe: Recipe | None = None) -> tuple[list[str], RunFolder]:
    """What is said when a run begins in a folder, and the folder."""
    plan = plan_run(recipe or recipe_to(copies), open_dataset(dataset))
    run = open_run(out, plan.recipe)
    return bring_newest(run, plan.recipe, plan.dataset_sha256), run


@pytest.fixture
def copies(whole: Path, tmp_path: Path) -> Path:
    """Copies of steps 2, 4 and 6."""
    return Path(shutil.copytree(whole / "copies", tmp_path / "copies"))


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(data if how == "flipped" else data[: len(data) // 2])


@pytest.mark.parametrize("how", ["missing", "cut", "flipped"])
@pytest.mark.parametrize("name", ["encoder.safetensors", "state.safetensors", "state.json"])
def test_a_damaged_copy_is_passed_over_and_named(
    copies: Path, tiny_dataset: str, tmp_path: Path, name: str, how: str
) -> None:
    damage(copies / "step-00000006" / name, how)
    said, run = bring(copies, tmp_path / "run", tiny_dataset)
    newest = newest_checkpoint(run.checkpoints)
    assert newest.checkpoint is not None
    assert (newest.checkpoint.step, newest.passed_over) == (4, ())
    if (name, how) == ("state.json", "missing"):  # it is the mark of a whole one
        assert len(said) == 1
    else:
        assert said[0].startswith(f"passed over a copy: {copies}/step-00000006: {name} ")
        assert ".tmp" not in said[0]
    assert said[-1].startswith(f"brought {copies}/step-00000004")
    assert not list(run.checkpoints.glob(".tmp-*"))


def test_no_run_starts_from_scratch_because_nothing_is_whole(copies: Path, tiny_dataset: str, tmp_path: Path) -> None:
    for step in (2, 4, 6):
        damage(copies / f"step-0000000{step}/target.safetensors", "cut")
    with pytest.raises(CheckpointError, match=r"none of the 0 checkpoints in .* and 3 copies .*step-00000006: target"):
        bring(copies, tmp_path / "run", tiny_dataset)
    for path in copies.glob("*/state.json"):
        path.unlink()
    assert bring(copies, tmp_path / "run", tiny_dataset)[0] == [f"{copies} holds no whole copy of a checkpoint."]


def test_the_run_folder_is_used_where_it_is_as_new_and_mended_where_it_is_damaged(
    whole: Path, copies: Path, tiny_dataset: str, tmp_path: Path
) -> None:
    shutil.copytree(whole / "run", tmp_path / "run")
    assert bring(copies, tmp_path / "run", tiny_dataset)[0] == []
    damage(tmp_path / "run/checkpoints/step-00000006/state.safetensors", "cut")
    said, run = bring(copies, tmp_path / "run", tiny_dataset)
    assert said[0].startswith("passed over a checkpoint: ")
    assert "step-00000006: state.safetensors is not as it was written" in said[0]
    assert said[1].startswith(f"brought {copies}/step-00000006")
    assert read_checkpoint(run.checkpoints / "step-00000006").step == 6
    shutil.rmtree(copies / "step-00000006")
    damage(tmp_path / "run/checkpoints/step-00000006/state.safetensors", "cut")
    assert bring(copies, tmp_path / "run", tiny_dataset)[0] == [], "step 4 is there: resuming says what it passed over"


def test_a_copy_or_a_checkpoint_under_a_later_name_hides_no_whole_one(
    whole: Path, copies: Path, tiny_dataset: str, tmp_path: Path
) -> None:
    shutil.rmtree(copies / "step-00000006")
    shutil.copytree(copies / "step-00000002", copies / "step-00000009")
    said, run = bring(copies, tmp_path / "new", tiny_dataset)
    assert said[0] == f"passed over a copy: {copies}/step-00000009: it is of step 2, under the name of another."
    assert said[1] == f"brought {copies}/step-00000004 to the run folder, with the rows up to it."
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000004"]

    shutil.rmtree(copies / "step-00000009")
    (run.checkpoints / "step-00000004").rename(run.checkpoints / "step-00000009")
    said, _ = bring(copies, tmp_path / "new", tiny_dataset)
    assert said[0].startswith(f"brought {copies}/step-00000004"), "resuming says what it passed over"


def test_rows_that_are_lost_or_damaged_are_said_and_do_not_stop_a_run(
    copies: Path, tiny_dataset: str, tmp_path: Path
) -> None:
    rows = copies / "step-00000006/metrics.jsonl"
    whole = rows.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for number, damaged in enumerate((whole[:-9], whole[: -len(last)], whole.replace(b"1", b"3", 1), b"\xff\n", b"")):
        rows.write_bytes(damaged)
        said, run = bring(copies, tmp_path / f"damaged-{number}", tiny_dataset)
        assert f"without the rows before it: {rows} is not what was copied" in said[0]
        assert run.rows() == []
    rows.unlink()
    said, run = bring(copies, tmp_path / "lost", tiny_dataset)
    assert said == [f"brought {rows.parent} to the run folder, without the rows before it: there is no {rows}."]
    assert run.rows() == []


def test_copies_of_another_run_are_refused_and_stay(
    copies: Path,
    tiny_dataset: str,
    tiny_samples: list[Sample],
    make_dataset: Callable[..., str],
    tmp_path: Path,
) -> None:
    before = copies_at(copies)
    other = recipe_to(copies).model_copy(update={"train": recipe_to(copies).train.model_copy(update={"seed": 8})})
    with pytest.raises(RunFolderError, match=r"another recipe \(train\.seed: 3 -> 8\): choose another checkpoint"):
        pretrain(other, open_dataset(tiny_dataset), tmp_path / "other")
    fewer = make_dataset(tmp_path / "fewer", tiny_samples[2:])
    with pytest.raises(RunFolderError, match="copies of a run of other samples"):
        pretrain(recipe_to(copies), open_dataset(fewer), tmp_path / "run")
    assert copies_at(copies) == before


def test_a_copy_that_is_cut_short_anywhere_is_not_seen(
    whole: Path, copies: Path, tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy of step 6 is killed before each of its files, over what is there and over nothing."""
    real = train.copies.publish
    place = Copies(place=locate(copies))
    shutil.rmtree(copies / "step-00000002")
    for is_there in (True, False):
        for number in range(5):
            uploads: list[str] = []

            def killed(url: str, *data: Any, last: int = number, done: list[str] = uploads, **options: Any) -> None:
                if len(done) == last:
                    raise KeyboardInterrupt
                done.append(url)
                real(url, *data, **options)

            if is_there:  # of another past of the run
                state = copies / "step-00000006/state.json"
                state.write_bytes(state.read_bytes() + b" ")
            else:
                shutil.rmtree(copies / "step-00000006")
            with monkeypatch.context() as patch:
                patch.setattr(train.copies, "publish", killed)
                with pytest.raises(KeyboardInterrupt):
                    place.push(whole / "run/checkpoints/step-00000006", "", keep=3)
            said, run = bring(copies, tmp_path / f"{is_there}-{number}", tiny_dataset)
            assert said == [f"brought {copies}/step-00000004 to the run folder, with the rows up to it."]
            assert newest_checkpoint(run.checkpoints).passed_over == ()
            place.push(whole / "run/checkpoints/step-00000006", "", keep=3)
    assert bring(copies, tmp_path / "whole", tiny_dataset)[1].checkpoints.joinpath("step-00000006").exists()


def test_pruning_and_forgetting_touch_nothing_else(whole: Path, copies: Path) -> None:
    (copies / "step-00000002/state.json").unlink()  # of a killed copy
    for name in ("notes.txt", "step-1/state.json", "best/step-00000001/state.json"):
        (copies / name).parent.mkdir(parents=True, exist_ok=True)
        (copies / name).write_text("mine")
    others = {"notes.txt": {""}, "step-1": {"state.json"}, "best": {"step-00000001/state.json"}}
    place = Copies(place=locate(copies))
    place.push(whole / "run/checkpoints/step-00000004", "", keep=1)
    assert copies_at(copies) == {**others, "step-00000004": NAMES, "step-00000006": NAMES}
    copier = Copier(copies=place, run=RunFolder(path=whole / "run"), keep=1, say=print)
    copier.forget_after(5)
    assert copies_at(copies) == {**others, "step-00000004": NAMES}
    copier(whole / "run/checkpoints/step-00000006")
    assert copies_at(copies) == {**others, "step-00000006": NAMES}


def test_a_run_goes_on_without_its_bucket_and_copies_the_next_checkpoint(
    s3_server: Store, tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, proxy = f"{s3_server.url}/run", s3_server.proxy

    def wait_and_plan(plan: Plan) -> None:
        for thread in threading.enumerate():
            if thread.name == "save":
                thread.join(60)
        proxy.plan(plan)

    heard: list[str] = []
    recipe = recipe_to(url, every_steps=2)
    at_steps(monkeypatch, {3: lambda: wait_and_plan(AWAY), 6: lambda: wait_and_plan(Plan())})
    summary = pretrain(recipe, open_dataset(tiny_dataset), tmp_path / "run", Listener(say=heard.append))
    said = [line for line in heard if "was not copied" in line]
    assert len(said) == 1
    assert said[0].startswith(f"step-00000004 was not copied to {url} (")
    assert "8 attempts failed" in said[0]
    assert (summary["status"], summary["copies_failed"]) == ("finished", 1)
    assert copies_at(url) == {"step-00000002": NAMES, "step-00000006": NAMES}


def test_a_last_copy_that_fails_is_an_error_and_the_same_command_makes_it(
    s3_server: Store, tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, dataset = f"{s3_server.url}/run", open_dataset(tiny_dataset)
    with monkeypatch.context() as patch:
        at_steps(patch, {6: lambda: s3_server.proxy.plan(AWAY)})
        with pytest.raises(
            CheckpointError, match=r"step-00000006 is in the run folder alone: .* failed \(.*8 att"
        ) as e:
            pretrain(recipe_to(url), dataset, tmp_path / "run")
    assert e.value.exit_code == 1
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["status"], summary["step"], summary["copies_failed"] > 0) == ("failed", 6, True)
    weights = last_weights(tmp_path / "run")

    with pytest.raises(CheckpointError, match=r"could not be brought here .* set checkpoint\.copies=null"):
        pretrain(recipe_to(url), dataset, tmp_path / "run")
    s3_server.proxy.plan(Plan())
    assert pretrain(recipe_to(url), dataset, tmp_path / "run")["status"] == "finished"
    assert "step-00000006" in copies_at(url)
    assert last_weights(tmp_path / "run") == weights


def test_sigterm_does_not_wait_for_a_bucket_that_is_silent(
    s3_server: Store, tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.saver, "STOP_COPY_S", 0.5)

    def stop() -> None:
        s3_server.proxy.plan(Plan(share=1.0, faults=(Fault.STALL,)))
        os.kill(os.getpid(), signal.SIGTERM)

    at_steps(monkeypatch, {3: stop})
    heard: list[str] = []
    with pytest.raises(TrainingStoppedError, match="stopped by SIGTERM at step 3, saved"):
        pretrain(
            recipe_to(f"{s3_server.url}/run", every_steps=5),
            open_dataset(tiny_dataset),
            tmp_path / "run",
            Listener(say=heard.append),
        )
    assert heard[-1].startswith("step 3 is saved in the run folder; its copy took longer than")
    assert read_checkpoint(tmp_path / "run/checkpoints/step-00000003").step == 3
    assert json.loads((tmp_path / "run/summary.json").read_text())["copies_failed"] == 1
    s3_server.proxy.plan(Plan())
    s3_server.proxy.stopped.set()
    for thread in threading.enumerate():
        if thread.name == "save":
            thread.join(60)


def test_the_first_of_two_ranks_brings_the_checkpoint_for_both(copies: Path, tiny_dataset: str, tmp_path: Path) -> None:
    shutil.rmtree(copies / "step-00000006")
    sections = {"checkpoint": {"keep": 2, "copies": str(copies)}, "validation": {"every_steps": 6}}
    assert run_ranks(2, tmp_path / "run", tiny_dataset, **sections) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["ranks"], summary["step"]) == (2, 6)
    steps = [row["step"] for row in rows_of(tmp_path / "run") if row["split"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert copies_at(copies) == {"step-00000004": NAMES, "step-00000006": NAMES}


def test_an_empty_place_is_a_new_run(tiny_dataset: str, tmp_path: Path) -> None:
    publish(f"{tmp_path}/copies/readme.txt", b"for the run to come")
    assert bring(tmp_path / "copies", tmp_path / "run", tiny_dataset)[0] == []
    assert bring(tmp_path / "absent", tmp_path / "run", tiny_dataset, recipe_to(tmp_path / "absent"))[0] == []


@pytest.mark.slow
def test_the_rows_of_a_new_machine_go_to_the_same_wandb_run(
    tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr("train.tracking.Tracker.picture", lambda *_: None)  # there are no real ones
    tracked = recipe_to(tmp_path / "copies")
    tracked = tracked.model_copy(update={"log": tracked.log.model_copy(update={"wandb": True})})
    dataset = open_dataset(tiny_dataset)
    with monkeypatch.context() as patch:
        at_steps(patch, {5: lambda: os.kill(os.getpid(), signal.SIGTERM)})
        with pytest.raises(TrainingStoppedError):
            pretrain(tracked, dataset, tmp_path / "lost")
    identity = json.loads((tmp_path / "lost/wandb.json").read_text())["id"]
    shutil.rmtree(tmp_path / "lost")
    pretrain(tracked, dataset, tmp_path / "new")
    assert recorded(tmp_path / "new", identity, b"train/loss")
    assert len(list(tmp_path.glob("new/wandb/offline-run-*"))) == 1


def test_a_finished_run_that_is_given_copies_makes_the_last_one(tiny_dataset: str, tmp_path: Path) -> None:
    dataset = open_dataset(tiny_dataset)
    pretrain(recipe_to(tmp_path / "first"), dataset, tmp_path / "run")
    for _ in range(2):
        assert pretrain(recipe_to(tmp_path / "second"), dataset, tmp_path / "run")["status"] == "finished"
        assert copies_at(tmp_path / "second") == {"step-00000006": NAMES}
    assert copies_at(tmp_path / "first") == {"step-00000004": NAMES, "step-00000006": NAMES}


@pytest.mark.parametrize("place", ["run", "run/checkpoints"])
def test_copies_in_the_run_folder_are_none(tiny_dataset: str, tmp_path: Path, place: str) -> None:
    with pytest.raises(RunFolderError, match=r"checkpoint.copies=.* lies in the run folder .*run: copies"):
        pretrain(recipe_to(tmp_path / place), open_dataset(tiny_dataset), tmp_path / "run")


def test_copies_that_can_never_be_made_are_refused_before_the_first_step(tiny_dataset: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("years")
    with pytest.raises(RunFolderError, match=r"checkpoint.copies=.*file is no folder"):
        pretrain(recipe_to(tmp_path / "file"), open_dataset(tiny_dataset), tmp_path / "run")
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize("text", ["", "{}", '{"id": "../x"}\n', '{"id": "a"}\n{"id": "b"}\n'])
def test_a_damaged_name_of_the_wandb_run_is_said_and_stops_nothing(
    whole: Path, tiny_dataset: str, tmp_path: Path, text: str
) -> None:
    shutil.copytree(whole / "copies", tmp_path / "copies")
    (tmp_path / "copies/wandb.json").write_text(text)
    plan = plan_run(recipe_to(tmp_path / "copies", keep=3), open_dataset(tiny_dataset))
    run = open_run(tmp_path / "run", plan.recipe)
    said = bring_newest(run, plan.recipe, plan.dataset_sha256)
    why = f"{tmp_path}/copies/wandb.json does not name a W&B run."
    assert said[1:] == [f"passed over the W&B run of the copies, a new one begins: {why}"]
    assert not run.wandb.exists()
    (tmp_path / "copies/wandb.json").write_text('{"id": "0a1b"}\n')
    assert bring_newest(run, plan.recipe, plan.dataset_sha256) == []
    assert json.loads(run.wandb.read_text()) == {"id": "0a1b"}
