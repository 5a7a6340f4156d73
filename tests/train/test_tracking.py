"""Weights & Biases: offline without a key, in the run folder, and nothing about the machine or the command."""

import getpass
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.reader import open_dataset
from tests.train.test_command import SMALL
from tests.wandb_files import recorded
from train.checkpoint import open_checkpoint
from train.config import Recipe
from train.errors import TrainError
from train.loop import pretrain
from train.run_folder import open_run
from train.tracking import Tracker, _identity

ROW = {"split": "val", "step": 3, "loss": 0.5, "alarms": []}


def test_a_recipe_without_wandb_never_imports_it(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = Tracker(open_run(tmp_path / "run", make_recipe()), make_recipe())
    tracker.row(ROW)
    tracker.picture(tmp_path / "absent-1.png", 3)
    tracker.close()
    assert not (tmp_path / "run" / "wandb").exists()


@pytest.mark.slow
def test_wandb_is_offline_in_the_run_folder_and_records_neither_host_nor_command(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.gethostname(), getpass.getuser()
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(sys, "argv", ["fovea", "pretrain", "--out", "secret-cohort-name"])
    monkeypatch.setattr(socket, "gethostname", lambda: "secret-host-name")
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, "secret-user-name")
    recipe = make_recipe(log={"wandb": True})
    run = open_run(tmp_path / "run", recipe)
    tracker = Tracker(run, recipe, {"by_reason": {"EMPTY_FILE": 417}})
    tracker.row(ROW)
    tracker.close()
    identity = json.loads((run.path / "wandb.json").read_text())["id"]
    log = recorded(run.path, identity, b"val/loss")
    secrets = {"secret-cohort-name", "secret-host-name", "secret-user-name", sys.executable, os.fspath(Path.cwd())}
    secrets |= {name for name in real if len(name) > 6}  # a short one is in a log by chance
    assert b"EMPTY_FILE" in log
    for secret in secrets:
        assert secret.encode() not in log, secret
    again = Tracker(run, recipe)
    again.close()
    assert json.loads((run.path / "wandb.json").read_text())["id"] == identity


def process_of_wandb(run: int) -> int:
    """Which serves the process `run`, and is not below it."""
    found = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if b"wandb-core" in (words := path.read_bytes().split(b"\0"))[0] and str(run).encode() in words
    ]
    assert len(found) == 1, found
    return found[0]


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_outlives_the_process_of_wandb(tiny_dataset: str, tmp_path: Path, stopped: bool) -> None:
    """A kernel whose memory is out kills it; a scheduler sends SIGTERM to both. The environment names our own W&B."""
    alone = {
        name: value for name, value in os.environ.items() if not name.startswith("WANDB_")
    }  # of this process's W&B
    values = [
        f"train.max_steps={4000 if stopped else 60}",
        "validation.every_steps=4000",
        "checkpoint.every_steps=4000",
    ]
    steps = [word for value in (*values, "log.wandb=true") for word in ("--set", value)]
    words = ["--recipe", "smoke", "--data", tiny_dataset, "--out", str(tmp_path / "run"), *SMALL, *steps]
    with subprocess.Popen(
        [sys.executable, "-m", "fovea", "pretrain", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**alone, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"},
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith("step     1/"):
                break
        os.kill(process_of_wandb(run.pid), signal.SIGTERM if stopped else signal.SIGKILL)
        if stopped:
            run.send_signal(signal.SIGTERM)
        said = run.stdout.read()
    assert run.returncode == (143 if stopped else 0), said
    assert said.count("W&B takes no more") == 1
    step = open_checkpoint(tmp_path / "run").step
    assert step == json.loads((tmp_path / "run/summary.json").read_text())["step"]
    assert "Traceback" not in said


@pytest.mark.slow
def test_each_checkpoint_is_an_artifact_if_the_recipe_says_so(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline: the record and the files wait for `wandb sync`, also when the checkpoint was pruned."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr("train.recorder.save_masks", lambda *_, **__: None)
    monkeypatch.setattr(Tracker, "picture", lambda *_: None)
    for artifacts in (True, False):
        out = tmp_path / f"run-{artifacts}"
        recipe = make_recipe(log={"wandb": True, "artifacts": artifacts}, checkpoint={"every_steps": 3, "keep": 1})
        pretrain(recipe, open_dataset(tiny_dataset), out)
        log = recorded(out, "*", b"train/loss")
        for name in (b"step-00000003", b"step-00000006"):
            assert (name in log) == artifacts
        assert (b"checkpoint-" in log) == artifacts
    waiting = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    sizes = {path.stat().st_size for path in (tmp_path / "run-True/checkpoints/step-00000006").iterdir()}
    assert sizes <= {path.stat().st_size for path in waiting}
    assert len(waiting) == 2 * 4


def test_what_wandb_refuses_is_one_sentence(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "foo")
    recipe = make_recipe(log={"wandb": True})
    with pytest.raises(TrainError, match=r"^W&B does not begin \(.*log.wandb=false\.$"):
        Tracker(open_run(tmp_path / "run", recipe), recipe)


def test_a_damaged_identity_begins_another_wandb_run(tmp_path: Path) -> None:
    path = tmp_path / "wandb.json"
    path.write_text("")
    first = _identity(path)
    assert _identity(path) == first == json.loads(path.read_text())["id"]
