"""Weights & Biases: online with a key, else in files in the run folder; neither host nor command line is recorded."""

import json
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from train.config import Recipe
from train.errors import TrainError
from train.run_folder import WANDB_RUN, RunFolder, write_text


class Tracker:
    """Sends rows and pictures to W&B, or nowhere when the recipe has `log.wandb: false`.

    W&B is a process of its own, which a kernel or a scheduler may kill: the run goes on without it, and says so.
    """

    def __init__(
        self,
        run: RunFolder,
        recipe: Recipe,
        dataset: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = lambda _sentence: None,
    ) -> None:
        """Begin, or go on; `dataset` is what the summary says of the dataset, and stands beside the recipe's keys."""
        self._say, self._is_lost = say, False
        self._wandb_run = _start(run, recipe, dataset or {}) if recipe.log.wandb else None

    def row(self, row: Mapping[str, Any]) -> None:
        """Log the numbers of a row; validation under `val/`."""
        prefix = f"{row['split']}/"
        numbers = {prefix + name: value for name, value in row.items() if isinstance(value, int | float)}
        raised = {f"{prefix}alarm/{name}": 1 for name in row["alarms"]}
        self._send(lambda wandb_run: wandb_run.log(numbers | raised, step=row["step"]))

    def picture(self, path: Path, step: int) -> None:
        """Log a PNG of the media folder."""

        def send(wandb_run: Any) -> None:
            import wandb  # noqa: PLC0415 - takes a second, and only some runs want it

            wandb_run.log({f"media/{path.stem.rpartition('-')[0]}": wandb.Image(str(path))}, step=step)

        self._send(send)

    def checkpoint(self, path: Path) -> None:
        """Log a checkpoint as an artifact, a version of the run's model.

        W&B copies the files to a place of its own (WANDB_DATA_DIR) before it returns: checkpoints are pruned.
        """

        def send(wandb_run: Any) -> None:
            import wandb  # noqa: PLC0415 - takes a second, and only some runs want it

            artifact = wandb.Artifact(f"checkpoint-{wandb_run.id}", type="model", metadata={"folder": path.name})
            artifact.add_dir(str(path))
            wandb_run.log_artifact(artifact, aliases=["latest", path.name])

        self._send(send)

    def close(self, *, failed: bool = False) -> None:
        self._send(lambda wandb_run: wandb_run.finish(exit_code=int(failed)))
        if self._is_lost:
            import wandb  # noqa: PLC0415 - takes a second, and only some runs want it

            with suppress(Exception, SystemExit):  # what failed fails again; else it would at exit, with a traceback
                wandb.teardown()

    def _send(self, send: Callable[[Any], None]) -> None:
        if self._wandb_run is None:
            return
        try:
            send(self._wandb_run)
        except Exception as error:  # noqa: BLE001 - of its process, its connection or itself: all kinds
            self._wandb_run, self._is_lost = None, True
            self._say(f"W&B takes no more ({type(error).__name__}: {error}): the run goes on without it.")


def _start(run: RunFolder, recipe: Recipe, dataset: Mapping[str, Any]) -> Any:
    import wandb  # noqa: PLC0415 - takes a second, and only some runs want it

    settings = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        host="",
        program="",
        silent=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    try:
        return wandb.init(
            project="fovea",
            id=_identity(run.wandb),
            name=recipe.name,
            config={**recipe.record(), "dataset": dict(dataset)},
            dir=str(run.path),
            mode=_mode(),
            resume="allow",
            settings=settings,
        )
    except (wandb.Error, ValueError) as error:  # ValueError: what pydantic says of its settings
        why = " ".join(str(error).split())[:200]
        raise TrainError(
            f"W&B does not begin ({why}): correct its WANDB_ variables, or set log.wandb=false."
        ) from error


def trial() -> str | None:
    """The id of the run that W&B's agent has made for this process; None outside of a sweep."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def _mode() -> Any:
    """Online with a key, or in a sweep, whose agent has signed in; unless W&B's own variable says otherwise."""
    signed_in = os.environ.get("WANDB_API_KEY") or trial()
    return os.environ.get("WANDB_MODE") or ("online" if signed_in else "offline")


def _identity(path: Path) -> str:
    """The same W&B run after a resume, also on another machine (`train.copies`); another if the file is damaged."""
    if not path.exists() or not WANDB_RUN.fullmatch(path.read_bytes()):
        write_text(path, json.dumps({"id": trial() or secrets.token_hex(8)}) + "\n")
    identity: str = json.loads(path.read_text())["id"]
    return identity
