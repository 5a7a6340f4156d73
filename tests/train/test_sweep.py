"""The sweep that ships, run by W&B's own agent: only what it asks of W&B's server is answered here."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml

from tests.train.test_command import SMALL
from tests.wandb_files import recorded
from train.recipe import RECIPES, load_recipe
from train.run_folder import RunFolder

SWEEP = RECIPES / "sweeps" / "cpu-small.yaml"
TRIAL, VALUES = "aaaa1111", {"optim.lr": 4e-05, "optim.ema_start": 0.99}


def test_every_value_of_the_sweep_is_one_that_its_recipe_takes() -> None:
    sweep = yaml.safe_load(SWEEP.read_text())
    assert "--recipe=cpu-small" in sweep["command"]
    assert sweep["metric"] == {"name": "val/probe_label", "goal": "maximize"}, "a collapsed encoder has the least loss"
    before = load_recipe("cpu-small").hash()
    for key, choice in sweep["parameters"].items():
        values = choice.get("values") or (choice["min"], choice["max"])
        assert {load_recipe("cpu-small", [f"{key}={value}"]).hash() for value in values} != {before}


@pytest.fixture
def _in_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The agent writes where it is started, sets variables, and ends the process of W&B that it finds in them."""
    wandb.teardown()  # of an earlier test, to which a later one would still turn
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    os.environ.pop("WANDB_API_KEY", None)
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SWEEP_ID": "sweep123", "OMP_NUM_THREADS": "1"}
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), before["PATH"]))
    yield
    os.environ.clear()
    os.environ.update(before)


def commands(dataset: str) -> list[str]:
    """The sweep's own command, of the smallest recipe and without labels, which tiny datasets have not."""
    changed = {"--recipe=cpu-small": "--recipe=smoke", "--data=demo/dataset": f"--data={dataset}"}
    words = [changed.get(word, word) for word in yaml.safe_load(SWEEP.read_text())["command"]]
    words = [word for word in words if not word.startswith(("--labels=", "--set=train.max_steps"))]
    extra = [*SMALL, "--set", "log.wandb=true", "--set", "train.max_steps=2", "--set", "log.images_every_steps=1000"]
    return [*words[:3], *extra, *words[3:]]


@pytest.mark.slow
@pytest.mark.usefixtures("_in_a_folder")
def test_the_agent_starts_a_trial_with_its_values_in_a_folder_and_a_run_of_its_own(
    tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wandb import wandb_agent
    from wandb.apis.public import sweeps

    args = {key: {"value": value} for key, value in VALUES.items()}
    waiting = [{"type": "run", "run_id": TRIAL, "program": "fovea", "args": args}]
    config = {"command": commands(tiny_dataset)}

    def heartbeat(*_: object) -> list[Any]:
        return [waiting.pop()] if waiting else []

    monkeypatch.setattr(sweeps, "_sweep_with_runs", lambda *_: {"config": yaml.safe_dump(config)})
    monkeypatch.setattr(sweeps, "_register_agent", lambda *_, **__: {"id": "agent"})
    monkeypatch.setattr(sweeps, "_agent_heartbeat", heartbeat)
    monkeypatch.setattr(wandb, "Api", lambda: None)
    monkeypatch.setattr(wandb_agent.Agent, "POLL_INTERVAL", 0.1)
    wandb_agent.Agent(None, wandb_agent.multiprocessing.Queue(), sweep_id="sweep123", count=1).run()

    out = tmp_path / "demo/sweep"
    assert [path.name for path in out.iterdir()] == [TRIAL]
    recipe = load_recipe(str(out / TRIAL / "recipe.yaml"))
    assert {"optim.lr": recipe.optim.lr, "optim.ema_start": recipe.optim.ema_start} == VALUES
    summary = RunFolder(path=out / TRIAL).read_summary()
    assert summary is not None
    assert (summary["status"], summary["step"]) == ("finished", 2)
    assert recorded(out / TRIAL, TRIAL, b"train/loss")
    assert json.loads((out / TRIAL / "wandb.json").read_text())["id"] == TRIAL
