"""A run folder between the hands of people, schedulers and full disks."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import train.run_folder
from shards.reader import open_dataset
from tests.train.test_loop import crash, stop_after, terminate
from train.config import Recipe
from train.errors import CheckpointError, RunFolderError, TrainError, TrainingStoppedError, ValidationError
from train.loop import pretrain
from train.recipe import load_recipe
from train.recorder import Listener
from train.run_folder import RECIPE_FILE, RunFolder, claimed, open_run, write_text

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""

FORK = """
import os, sys, time
from pathlib import Path
from train.recipe import load_recipe
from train.run_folder import RunFolder, claimed
with claimed(RunFolder(path=Path(sys.argv[1])), load_recipe("smoke")):
    reader = os.fork()
    if not reader:
        time.sleep(600)
    print(reader, flush=True)
    os._exit(0)
"""


def test_a_second_process_is_refused_and_a_dead_one_lets_go(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path
) -> None:
    recipe, dataset = make_recipe(), open_dataset(tiny_dataset)
    run = open_run(tmp_path / "run", recipe)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run.path / ".lock")], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        try:
            with pytest.raises(RunFolderError, match=r"another process is training into .*run: wait"):
                pretrain(recipe, dataset, run.path)
        finally:
            other.kill()
    assert not run.metrics.exists()
    assert pretrain(recipe, dataset, run.path)["status"] == "finished"


def test_readers_of_a_process_that_was_killed_do_not_hold_its_run(tmp_path: Path) -> None:
    """A lock that is inherited would be theirs for as long as they live."""
    recipe = load_recipe("smoke")
    run = open_run(tmp_path / "run", recipe)
    words = [sys.executable, "-c", FORK, str(run.path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True) as first:
        assert first.stdout is not None
        reader = int(first.stdout.readline())
        try:
            first.wait()
            with claimed(run, recipe):
                os.kill(reader, 0)
        finally:
            os.kill(reader, signal.SIGKILL)


def test_a_recipe_that_never_trained_makes_way_for_the_corrected_one(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path
) -> None:
    corrected = make_recipe(optim={"lr": 2e-4})
    run = open_run(tmp_path / "run", make_recipe())
    dataset = open_dataset(tiny_dataset)
    assert pretrain(corrected, dataset, run.path)["status"] == "finished"
    assert "lr: 0.0002" in (run.path / RECIPE_FILE).read_text()
    with pytest.raises(RunFolderError, match="another recipe"):
        pretrain(make_recipe(), dataset, run.path)
    shutil.rmtree(run.checkpoints / "step-00000006")
    with pytest.raises(RunFolderError, match="another recipe"):
        pretrain(make_recipe(), dataset, run.path)


def test_a_copy_that_a_person_made_is_left_alone(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path
) -> None:
    recipe, dataset = make_recipe(checkpoint={"every_steps": 2, "keep": 1}), open_dataset(tiny_dataset)
    pretrain(recipe, dataset, tmp_path / "run")
    checkpoints = tmp_path / "run/checkpoints"
    newest = max(checkpoints.iterdir())
    backup = Path(shutil.copytree(newest, newest.with_name(f"{newest.name}-backup")))
    (tmp_path / "run/summary.json").unlink()
    assert pretrain(recipe, dataset, tmp_path / "run")["status"] == "finished"
    assert sorted(checkpoints.iterdir()) == [newest, backup]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"step": 1}'])
def test_a_summary_that_cannot_be_read_is_made_again(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path, text: str
) -> None:
    dataset = open_dataset(tiny_dataset)
    pretrain(make_recipe(), dataset, tmp_path / "run")
    (tmp_path / "run/summary.json").write_text(text)
    assert pretrain(make_recipe(), dataset, tmp_path / "run")["status"] == "finished"
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "finished"


def test_a_blank_line_is_no_row_and_a_damaged_one_is_named(recipe: Recipe, tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", recipe)
    run.append_row({"split": "train", "step": 1})
    with run.metrics.open("a") as file:
        file.write("\n")
    run.append_row({"split": "train", "step": 2})
    assert [row["step"] for row in run.rows()] == [1, 2]
    for text in ("{half\n", "[1]\n", '{"step": 3}\n', '{"split": "val", "step": "3"}\n', '{"split": 1, "step": 3}\n'):
        run.metrics.write_text(text)
        with pytest.raises(RunFolderError, match=r"metrics.jsonl is damaged"):
            run.rows()


def test_a_recipe_of_another_version_is_named_with_its_path(recipe: Recipe, tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", recipe)
    with (run.path / RECIPE_FILE).open("a") as file:
        file.write("foo: 1\n")
    with pytest.raises(RunFolderError, match=r"run/recipe.yaml is not a recipe of this version \(recipe key `foo`"):
        open_run(tmp_path / "run", recipe)


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "best.json", "wandb.json", ".saved", ".lock"])
def test_a_folder_where_a_run_writes_a_file_is_refused_at_once(recipe: Recipe, tmp_path: Path, name: str) -> None:
    (open_run(tmp_path / "run", recipe).path / name).mkdir()
    with pytest.raises(RunFolderError, match=rf"{name} is no file: .* or choose another --out"):
        open_run(tmp_path / "run", recipe)


def test_a_text_that_cannot_be_written_leaves_the_old_one_and_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "there", "\ud800")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "folder", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "there"]
    assert (tmp_path / "there").read_text() == "old"


def test_a_recipe_that_was_edited_in_the_run_folder_is_not_that_of_its_checkpoints(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path
) -> None:
    pretrain(make_recipe(), open_dataset(tiny_dataset), tmp_path / "run")
    path = tmp_path / "run" / RECIPE_FILE
    path.write_text(path.read_text().replace("max_steps: 6", "max_steps: 9"))
    with pytest.raises(RunFolderError, match=r"step-00000006 is of another recipe .*train.max_steps: 6 -> 9"):
        pretrain(load_recipe(str(path)), open_dataset(tiny_dataset), tmp_path / "run")
    assert pretrain(make_recipe(), open_dataset(tiny_dataset), tmp_path / "run")["status"] == "finished"
    assert "max_steps: 6" in path.read_text()


def test_rows_that_somebody_removed_are_missed(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    heard: list[str] = []
    with monkeypatch.context() as patch:
        stop_after(patch, 4, terminate)
        with pytest.raises(TrainingStoppedError):
            pretrain(make_recipe(), open_dataset(tiny_dataset), run)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    for name, kept in (("whole", lines), ("cut", lines[:3]), ("gone", [])):
        shutil.copytree(run, tmp_path / name)
        (tmp_path / name / "metrics.jsonl").write_text("".join(kept))
        pretrain(make_recipe(), open_dataset(tiny_dataset), tmp_path / name, Listener(say=heard.append))
    said = [sentence for sentence in heard if "are missing" in sentence]
    assert [sentence.rpartition("metrics.jsonl ")[2] for sentence in said] == [
        "ends with step 2: rows up to step 4 are missing, if log.every_steps was no more.",
        "has no rows: rows up to step 4 are missing, if log.every_steps was no more.",
    ]


def test_a_full_disk_is_told_of_in_the_words_of_what_failed_first(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    closed: list[bool] = []

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("train.recorder.Tracker.close", lambda _, *, failed: closed.append(failed))
        patch.setattr("train.snapshot._write_files", refuse)
        patch.setattr(RunFolder, "write_summary", refuse)
        with pytest.raises(CheckpointError, match=r"step 2 could not be saved .* before it, if there is one"):
            pretrain(make_recipe(), open_dataset(tiny_dataset), tmp_path / "run", Listener(say=heard.append))
    assert heard[-1].startswith("summary.json says nothing of this end ([Errno 28]")
    assert closed == [True], "W&B is told all the same"
    assert pretrain(make_recipe(), open_dataset(tiny_dataset), tmp_path / "run")["status"] == "finished"


@pytest.mark.parametrize("gone", [".saved", "summary.json"])
def test_what_was_saved_is_known_from_one_of_two_files(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path, gone: str
) -> None:
    """A run of an earlier version has no `.saved`."""
    run, dataset = tmp_path / "run", open_dataset(tiny_dataset)
    pretrain(make_recipe(), dataset, run)
    (run / gone).unlink()
    pretrain(make_recipe(), dataset, run)
    assert (run / ".saved").read_text() == "6\n", "noted again by who resumed it"
    (run / gone).unlink(missing_ok=True)
    for path in run.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    with pytest.raises(CheckpointError, match="was saved at step 6 and has no checkpoint any more"):
        pretrain(make_recipe(), dataset, run)


def test_a_folder_that_was_emptied_says_what_it_was(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path
) -> None:
    """`rm -r run/*` leaves what begins with a dot."""
    run, dataset = tmp_path / "run", open_dataset(tiny_dataset)
    run.mkdir()
    for text, is_refused in (("6\n", True), ("\udcff", True), ("0\n", False)):
        (run / ".saved").write_bytes(text.encode(errors="surrogateescape"))
        if is_refused:
            with pytest.raises(CheckpointError, match="has no checkpoint any more"):
                pretrain(make_recipe(), dataset, run)
            for path in run.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            assert pretrain(make_recipe(), dataset, run)["status"] == "finished"


def test_a_picture_that_cannot_be_drawn_ends_the_run_as_failed(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("train.recorder.save_masks", refuse)
    with pytest.raises(OSError, match="No space left"):
        pretrain(make_recipe(), open_dataset(tiny_dataset), tmp_path / "run")
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "failed"


def test_a_step_that_is_saved_is_not_said_to_be_lost(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = train.run_folder.write_text

    def full(path: Path, text: str) -> None:
        if path.name == ".saved":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, text)

    with monkeypatch.context() as patch:
        patch.setattr("train.run_folder.write_text", full)
        with pytest.raises(CheckpointError, match=r"step 2 is saved, and .*\.saved could not be written .*make room"):
            pretrain(make_recipe(), open_dataset(tiny_dataset), tmp_path / "run")
    heard: list[str] = []
    pretrain(make_recipe(), open_dataset(tiny_dataset), tmp_path / "run", Listener(say=heard.append))
    assert heard[0].startswith("resumed at step 2")


def test_a_row_that_cannot_be_written_ends_the_run_and_is_named(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up() -> None:
        (tmp_path / "run/metrics.jsonl").unlink()
        (tmp_path / "run/metrics.jsonl").symlink_to("/dev/full")

    with monkeypatch.context() as patch:
        stop_after(patch, 4, fill_up)
        with pytest.raises(TrainError, match=r"the row of step 4 could not be written to .*No space left.*make room"):
            pretrain(make_recipe(), open_dataset(tiny_dataset), tmp_path / "run")
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "failed"


def test_a_killed_run_without_its_checkpoints_does_not_start_anew_unless_it_never_had_one(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, dataset = tmp_path / "run", open_dataset(tiny_dataset)
    for steps, every in ((1, 2), (3, 2)):
        with monkeypatch.context() as patch:
            stop_after(patch, steps, crash)
            with pytest.raises(KeyboardInterrupt):
                pretrain(make_recipe(checkpoint={"every_steps": every}), dataset, run)
        assert not (run / "summary.json").exists()
        assert (run / ".saved").exists() == (steps > every)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="was saved at step 2 and has no checkpoint any more"):
        pretrain(make_recipe(), dataset, run)


def test_weights_that_blew_up_end_with_a_sentence(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path
) -> None:
    recipe = make_recipe(optim={"lr": 1e15}, validation={"every_steps": 1})
    with pytest.raises(ValidationError, match="measures nothing"):
        pretrain(recipe, open_dataset(tiny_dataset), tmp_path / "run")
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "failed"
