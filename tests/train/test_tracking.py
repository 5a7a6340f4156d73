"""Weights & Biases: offline without a key, in the run folder, and nothing about the machine or the command."""

import getpass
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from train.config import Recipe
from train.run_folder import open_run
from train.tracking import Tracker

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
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(sys, "argv", ["fovea", "pretrain", "--out", "secret-cohort-name"])
    recipe = make_recipe(log={"wandb": True})
    run = open_run(tmp_path / "run", recipe)
    tracker = Tracker(run, recipe, {"by_reason": {"EMPTY_FILE": 417}})
    tracker.row(ROW)
    tracker.close()
    identity = json.loads((run.path / "wandb.json").read_text())["id"]
    logs = list((run.path / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))
    assert len(logs) == 1
    recorded = _written(logs[0], b"val/loss")
    secrets = {socket.gethostname(), "secret-cohort-name", sys.executable, os.fspath(Path.cwd())}
    secrets |= {getpass.getuser()} if len(getpass.getuser()) > 6 else set()
    assert b"EMPTY_FILE" in recorded
    for secret in secrets:
        assert secret.encode() not in recorded, secret
    again = Tracker(run, recipe)
    again.close()
    assert json.loads((run.path / "wandb.json").read_text())["id"] == identity


def _written(path: Path, word: bytes) -> bytes:
    """The file once the word is in it: wandb's own process writes it, and may do so after `finish` has returned."""
    for _ in range(300):
        recorded = path.read_bytes()
        if word in recorded:
            return recorded
        time.sleep(0.1)
    raise AssertionError(f"{word!r} was not written within 30 s")
