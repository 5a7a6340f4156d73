"""A run folder: created once, resumed by the same command, never mixed up with another run."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.schema import SampleRow
from train.best import BEST_FILE, Best
from train.checkpoint import CHECKPOINTS, checkpoint_folders, newest_checkpoint, recover, step_of
from train.config import Recipe
from train.errors import CheckpointError, RecipeError, RunFolderError, TrainError
from train.recipe import differences, load_recipe, recipe_text

RECIPE_FILE = "recipe.yaml"
WANDB_FILE = "wandb.json"
"""Which W&B run the rows go to."""
WANDB_RUN = re.compile(rb'\{"id": "[\w-]{1,128}"\}\n')
LOCK_FILE = ".lock"
SAVED_FILE = ".saved"
"""The step of the newest checkpoint that was published: there was one, even if it is gone."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
NAMED = 80
SPLITS = ("train", "val")
_HELD = "another process is training into {}: wait for its end, or choose another --out."
logger = logging.getLogger("fovea.train")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """Where a run keeps what it makes; see DESIGN section 6."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def media(self) -> Path:
        return self.path / "media"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def best(self) -> Path:
        return self.path / BEST_FILE

    @property
    def saved(self) -> Path:
        return self.path / SAVED_FILE

    @property
    def wandb(self) -> Path:
        return self.path / WANDB_FILE

    def append_row(self, row: Mapping[str, Any]) -> None:
        """Add one line to `metrics.jsonl`.

        Raises:
            TrainError: if it cannot be written.
        """
        try:
            with self.metrics.open("a") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise TrainError(
                f"the row of step {row['step']} could not be written to {self.metrics} ({error}): make room, and the "
                "same command goes on from the last checkpoint, if there is one."
            ) from error

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`; a last line that a kill cut short is left out.

        Raises:
            RunFolderError: if a line is no row.
        """
        try:
            return list(_whole_rows(self.metrics.read_text())) if self.metrics.exists() else []
        except ValueError as error:
            raise RunFolderError(
                f"{self.metrics} is damaged ({error}): remove the line, or the file, and the run goes on without it."
            ) from error

    def forget_after(self, step: int) -> None:
        """Drop the rows of steps that a resumed run will do again, so that each step has one."""
        write_text(self.metrics, self.text_until(step))

    def text_until(self, step: int) -> str:
        """The rows up to a step, as `metrics.jsonl` has them."""
        return "".join(json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_text(self.summary, json.dumps(summary, indent=2, sort_keys=True) + "\n")

    def write_best(self, best: Best | None) -> None:
        """Say which checkpoint is the best, or that none is."""
        if best is None:
            self.best.unlink(missing_ok=True)
        else:
            write_text(self.best, best.to_line())

    def note_saved(self, checkpoint: Path) -> None:
        """Remember that a checkpoint was published.

        Raises:
            CheckpointError: if that cannot be written.
        """
        try:
            write_text(self.saved, f"{step_of(checkpoint)}\n")
        except OSError as error:
            raise CheckpointError(
                f"step {step_of(checkpoint)} is saved, and {self.saved} could not be written ({error}): make room, and "
                "the same command goes on from there."
            ) from error

    def saved_step(self) -> str:
        """The step that was last saved, as it was written; empty if none was, or that of a start."""
        said = self.saved.read_text(errors="replace").strip() if self.saved.exists() else ""
        return said.lstrip("0")

    def read_summary(self) -> dict[str, Any] | None:
        """What the last process wrote; None if there is nothing that can be read: a run does without."""
        try:
            found = json.loads(self.summary.read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and "status" in found else None


def open_run(out: Path, recipe: Recipe) -> RunFolder:
    """Create a run folder, or open the one that this recipe made.

    Raises:
        RunFolderError: if the folder holds another recipe's run (says which keys differ), or other files, or what is
            no file where a run writes one.
    """
    run = RunFolder(path=out)
    for path in (run.metrics, run.summary, run.best, run.wandb, run.saved, out / LOCK_FILE):
        if path.exists() and not path.is_file():
            raise RunFolderError(f"{path} is no file: a run writes one there; move it away, or choose another --out.")
    existing, changed = out / RECIPE_FILE, []
    if existing.exists():
        changed = differences(_recipe_of(existing), recipe)
        if changed and _is_trained(run) and not _is_of_checkpoints(run, recipe):
            raise RunFolderError(
                f"{out} is a run of another recipe ({'; '.join(changed)}): resume it with its own recipe, or choose "
                "another --out."
            )
    elif out.exists() and (not out.is_dir() or any(not _is_begun(path) for path in out.iterdir())):
        raise RunFolderError(f"{out} exists and is not a run folder: choose another --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not changed:
            write_text(existing, recipe_text(recipe))  # first: it is what tells that the folder is a run's
        run.media.mkdir(exist_ok=True)
        run.checkpoints.mkdir(exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{out} cannot be written ({error}): choose another --out.") from error
    return run


@contextmanager
def claimed(run: RunFolder, recipe: Recipe) -> Iterator[None]:
    """Hold a run folder: two processes that train into one would spoil it. A process that dies lets go of it.

    Where nothing was trained by another recipe, it is this one's.

    Raises:
        RunFolderError: if another process holds it.
    """
    lock = run.path / LOCK_FILE
    with lock.open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: readers that are forked would hold it, too
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise RunFolderError(_HELD.format(run.path)) from error
            logger.warning("%s lies where nothing can be locked: let no second process train into it.", run.path)
        if not lock.exists() or not lock.samefile(f"/dev/fd/{file.fileno()}"):  # its holder has just ended
            raise RunFolderError(_HELD.format(run.path))
        write_text(run.path / RECIPE_FILE, recipe_text(recipe))
        recover(run.checkpoints)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)  # while it is held


def _recipe_of(path: Path) -> Recipe:
    """The recipe that a run folder was made with."""
    try:
        return load_recipe(str(path))
    except (RecipeError, OSError) as error:
        raise RunFolderError(
            f"{path} is not a recipe of this version ({str(error).rstrip('.')}): choose another --out."
        ) from error


def _is_trained(run: RunFolder) -> bool:
    return bool(checkpoint_folders(run.checkpoints) or run.rows() or run.saved_step())


def _is_of_checkpoints(run: RunFolder, recipe: Recipe) -> bool:
    """Whether the newest whole checkpoint is of this recipe, so that somebody has edited the one in the folder."""
    try:
        newest = newest_checkpoint(run.checkpoints).checkpoint
    except CheckpointError:
        return False
    return newest is not None and not differences(newest.recipe, recipe)


def _is_begun(path: Path) -> bool:
    """Whether it is what a kill left of the first file of a run, or `rm` of all others."""
    return path.name.startswith(f".{RECIPE_FILE}.") or path.name == SAVED_FILE


def samples_sha256(samples: Sequence[SampleRow]) -> str:
    """Which samples: a hash over keys and contents, in key order."""
    return lines_sha256(f"{row.key} {row.sha256}\n" for row in sorted(samples, key=lambda row: row.key))


def placed_sha256(samples: Sequence[SampleRow]) -> str:
    """Which samples, and in which shards: the order of an epoch follows from both (docs/adr/0013)."""
    return lines_sha256(f"{row.key} {row.sha256} {row.shard}\n" for row in sorted(samples, key=lambda row: row.key))


def lines_sha256(lines: Iterable[str]) -> str:
    """A hash over lines of text, in their order."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Replace a file at once: a reader sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # it is gone where all went well


def _whole_rows(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines(keepends=True):
        if line.endswith("\n") and not line.isspace():
            row = json.loads(line)
            if not (isinstance(row, dict) and row.get("split") in SPLITS and type(row.get("step")) is int):
                raise ValueError(f"{line[:NAMED].strip()!r} is no row")
            yield row
