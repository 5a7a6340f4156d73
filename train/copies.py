"""Copies of checkpoints in a bucket or another folder: whole when their `state.json` is there, and found on resume."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from shards.errors import ShardError
from shards.publish import publish
from shards.storage import READ_BYTES, Place, exists, locate, names_below, read_bytes, read_range, remove, remove_tree
from train.best import BEST_FILE, Best, parse_best, read_best
from train.checkpoint import (
    FILES,
    NAME,
    STATE_FILE,
    checkpoint_folders,
    folder_name,
    fresh_folder,
    parse_body,
    publish_folder,
    read_named,
    recipe_of,
)
from train.config import Recipe
from train.errors import CheckpointError, RunFolderError
from train.recipe import differences
from train.run_folder import WANDB_FILE, WANDB_RUN, RunFolder, write_text

ROWS_FILE: Final = "metrics.jsonl"
"""The rows up to the checkpoint, in the copy: a run's curve is to outlive its machine."""
ROWS_HASH_FILE: Final = "metrics.sha256"
"""Their hash, as `sha256sum --check` reads it: `state.json` is the checkpoint's own, and knows of no rows."""

Sizes = Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """The copies of one run, in folders with the names of the checkpoints. What else lies there is not ours."""

    place: Place

    @classmethod
    def of(cls, recipe: Recipe) -> Self | None:
        """Where the recipe wants them, if it does.

        Raises:
            AddressError: if that is no address, or of a store whose package is not installed.
        """
        url = recipe.checkpoint.copies
        return None if url is None else cls(place=locate(url))

    def found(self) -> dict[str, dict[str, int]]:
        """Folder -> file -> bytes, of what is there, whole or not; raises as `shards.storage`."""
        found: dict[str, dict[str, int]] = {}
        for path, size in names_below(self.place).items():
            folder, _, name = path.partition("/")
            if NAME.fullmatch(folder) and name:
                found.setdefault(folder, {})[name] = size
        return found

    def push(
        self, checkpoint: Path, rows: str, keep: int, best: Best | None = None, wandb_run: bytes | None = None
    ) -> None:
        """Copy a checkpoint: `state.json` last, so that a kill leaves it unseen; then what lies beside; then prune.

        Beside lie which is the best, and to which W&B run the rows go.

        Raises as `publish`.
        """
        target = self.place / checkpoint.name
        state = (checkpoint / STATE_FILE).read_bytes()
        if exists(target / STATE_FILE) and read_bytes(target / STATE_FILE) != state:
            remove(target / STATE_FILE)  # of a run that came here before, and had to go back
        for name in FILES:
            with (checkpoint / name).open("rb") as file:
                publish((target / name).url, file, replace=True)
        publish((target / ROWS_FILE).url, rows.encode(), replace=True)
        publish((target / ROWS_HASH_FILE).url, _hash_line(rows.encode()), replace=True)
        publish((target / STATE_FILE).url, state, replace=True)
        if best is not None:
            publish((self.place / BEST_FILE).url, best.to_line().encode(), replace=True)
        if wandb_run is not None:
            publish((self.place / WANDB_FILE).url, wandb_run, replace=True)
        self._prune(checkpoint.name, keep, spare=folder_name(best.step) if best else None)

    def forget_after(self, name: str) -> None:
        """Remove the copies of later steps."""
        for folder in sorted(self.found(), reverse=True):
            if folder > name:
                self._remove(folder)

    def best(self) -> Best | None:
        """Which copy the run called its best when it made the last one.

        Raises:
            CheckpointError: if what says so is damaged.
        """
        place = self.place / BEST_FILE
        return parse_best(read_bytes(place), place.url) if exists(place) else None

    def wandb_run(self) -> bytes | None:
        """To which W&B run the rows go, as the run folder says it.

        Raises:
            CheckpointError: if what says so is damaged.
        """
        place = self.place / WANDB_FILE
        if not exists(place):
            return None
        text = read_bytes(place)
        if not WANDB_RUN.fullmatch(text):
            raise CheckpointError(f"{place.url} does not name a W&B run.")
        return text

    def bring(self, name: str, files: Sizes, run: RunFolder, *, rows: bool = True) -> str:
        """Download a copy, and its rows, check it, and publish it in the run folder; returns a sentence.

        Raises:
            CheckpointError: if it is damaged.
            StoreError, OSError: if the store does not give it, or the disk does not take it.
        """
        place, temporary = self.place / name, run.checkpoints / f".tmp-{name}-{os.getpid()}"
        self._check_sizes(place, files)
        fresh_folder(temporary)
        try:
            for file in (*FILES, STATE_FILE):
                _download(place / file, temporary / file, files[file])
            read_named(temporary, name)
            said = _bring_rows(place, files, run) if rows else ""
            publish_folder(temporary, run.checkpoints / name)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(temporary), place.url)) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # it is gone where all went well
        return f"brought {place.url} to the run folder{said}."

    def body(self, name: str, files: Sizes) -> dict[str, Any]:
        """What a copy says of itself.

        Raises:
            CheckpointError: if that is damaged.
        """
        place = self.place / name
        return parse_body(read_bytes(place / STATE_FILE, files[STATE_FILE]), place.url)

    def _check_sizes(self, place: Place, files: Sizes) -> None:
        """By the listing: what is cut or missing is damage, where a store that does not answer is none."""
        for file, written in self.body(place.path.rpartition("/")[2], files)["files"].items():
            if files.get(file) != written["bytes"]:
                raise CheckpointError(f"{place.url}: {file} has {files.get(file, 0)} of {written['bytes']} bytes.")

    def _prune(self, newest: str, keep: int, spare: str | None) -> None:
        """Remove what killed copies left behind, and all but the newest `keep` up to this one and `spare`."""
        found = {name: files for name, files in self.found().items() if name <= newest}
        kept = sorted(name for name, files in found.items() if STATE_FILE in files)[-keep:]
        for name in found.keys() - {*kept, spare}:
            self._remove(name)

    def _remove(self, name: str) -> None:
        place = self.place / name
        remove(place / STATE_FILE)
        for file in names_below(place):  # one by one: threads of a pool would keep a process that is told to stop
            remove(place / file)
        if place.is_local:
            remove_tree(place)


@dataclass(slots=True, kw_only=True)
class _Copy:
    name: str
    error: str | None = "it was not finished"


@dataclass(slots=True, kw_only=True)
class Copier:
    """Copies the checkpoints of a run as they come. A store that fails is said, counted, and asked again."""

    copies: Copies
    run: RunFolder
    keep: int
    say: Callable[[str], None]
    _tried: list[_Copy] = field(default_factory=list)

    def __call__(self, checkpoint: Path) -> None:
        copy = _Copy(name=checkpoint.name)
        self._tried.append(copy)
        try:
            rows = self.run.text_until(int(checkpoint.name.rpartition("-")[2]))
            wandb_run = self.run.wandb.read_bytes() if self.run.wandb.exists() else None
            self.copies.push(checkpoint, rows, self.keep, read_best(self.run.path), wandb_run)
        except (ShardError, OSError) as error:
            copy.error = _said(error)
            self.say(
                f"{copy.name} was not copied to {self.copies.place.url} ({copy.error}): the run goes on, and "
                "copies the next checkpoint."
            )
        else:
            copy.error = None

    @property
    def failed(self) -> int:
        """Copies that were not made."""
        return sum(copy.error is not None for copy in self._tried)

    def check(self) -> None:
        """Whether the last checkpoint was copied.

        Raises:
            CheckpointError: if not.
        """
        if self._tried and self._tried[-1].error is not None:
            last = self._tried[-1]
            raise CheckpointError(
                f"{last.name} is in the run folder alone: its copy to {self.copies.place.url} failed ({last.error}); "
                "the same command copies it."
            )

    def forget_after(self, step: int) -> None:
        """Remove the copies of later steps; where that fails, it is said."""
        try:
            self.copies.forget_after(folder_name(step))
        except (ShardError, OSError) as error:
            self.say(
                f"copies of steps after {step} stay in {self.copies.place.url} ({_said(error)}): remove them by hand."
            )


def lacks_copy(recipe: Recipe, step: int) -> bool:
    """Whether the recipe wants copies, and the checkpoint of a step has none.

    Raises:
        CheckpointError: if the store cannot be read.
    """
    copies = Copies.of(recipe)
    if copies is None:
        return False
    with _readable(copies.place):
        return not exists(copies.place / folder_name(step) / STATE_FILE)


def bring_newest(run: RunFolder, recipe: Recipe, dataset_sha256: str) -> list[str]:
    """Bring the newest whole copy to the run folder, unless what is there is as new and whole; and the best one.

    Returns:
        sentences for people: what was brought, and what was passed over and why.

    Raises:
        CheckpointError: if the store cannot be read, or there are checkpoints or copies and none is whole.
        RunFolderError: if the copies are of another recipe or other samples.
    """
    copies = Copies.of(recipe)
    if copies is None:
        return []
    if copies.place.is_local and Path(copies.place.path).is_file():
        raise RunFolderError(f"checkpoint.copies={copies.place.url} is no folder: choose another.")
    if copies.place.is_local:
        theirs, ours = Path(copies.place.path).resolve(), run.path.resolve()
        if theirs.is_relative_to(ours):
            raise RunFolderError(
                f"checkpoint.copies={copies.place.url} lies in the run folder {run.path}: copies are for the day when "
                "that is lost; choose another."
            )
    with _readable(copies.place):
        found = copies.found()
        whole = {name: files for name, files in found.items() if STATE_FILE in files}
        _check_same_run(copies, whole, recipe, dataset_sha256)
        if found and not whole:
            return [f"{copies.place.url} holds no whole copy of a checkpoint."]
        said = [*_bring_first_whole(copies, whole, run), *_bring_best(copies, whole, run)]
        return [*said, *(_bring_wandb_run(copies, run) if whole else [])]


def _bring_first_whole(copies: Copies, whole: Mapping[str, Sizes], run: RunFolder) -> list[str]:
    """The newest first, and of equal steps that of the run folder."""
    local = {path.name for path in checkpoint_folders(run.checkpoints)}
    said: list[str] = []
    damaged = None
    for name in sorted(local | whole.keys(), reverse=True):
        damaged = _damage(run.checkpoints / name) if name in local else None
        if name in local and damaged is None:
            return said
        if name in whole:
            try:
                brought = copies.bring(name, whole[name], run)
            except CheckpointError as error:
                said.append(f"passed over a copy: {error}")
            else:
                return [*said, *([f"passed over a checkpoint: {damaged}"] if damaged else []), brought]
    if said:
        raise CheckpointError(
            f"none of the {len(local)} checkpoints in {run.checkpoints} and {len(whole)} copies in {copies.place.url} "
            f"can be read ({said[0].rstrip('.')}); restore one, or start a new run with another --out and other "
            "checkpoint.copies."
        )
    return []


def _bring_best(copies: Copies, whole: Mapping[str, Sizes], run: RunFolder) -> list[str]:
    """Where the run folder knows of none: a run that lost its machine has its best. Damage to it stops nothing."""
    if run.best.exists():
        return []
    try:
        best = copies.best()
        if best is None or (name := folder_name(best.step)) not in whole:
            return []
        said = [] if (run.checkpoints / name).exists() else [copies.bring(name, whole[name], run, rows=False)]
    except CheckpointError as error:
        return [f"passed over the best copy: {error}"]
    run.write_best(best)
    return said


def _bring_wandb_run(copies: Copies, run: RunFolder) -> list[str]:
    """Where the run folder names none: rows of a new machine go on in the same W&B run. Damage stops nothing."""
    if run.wandb.exists():
        return []
    try:
        found = copies.wandb_run()
    except CheckpointError as error:
        return [f"passed over the W&B run of the copies, a new one begins: {error}"]
    if found is not None:
        write_text(run.wandb, found.decode())
    return []


def _damage(path: Path) -> str | None:
    try:
        read_named(path)
    except CheckpointError as error:
        return str(error)
    return None


def _check_same_run(copies: Copies, whole: Mapping[str, Sizes], recipe: Recipe, dataset_sha256: str) -> None:
    """By the newest copy that says what it is: a run must neither go on from another's copies nor prune them."""
    for name in sorted(whole, reverse=True):
        url = (copies.place / name).url
        try:
            body = copies.body(name, whole[name])
            changed = differences(recipe_of(body, url), recipe)
        except CheckpointError:
            continue  # it is passed over, with the reason, when one is looked for
        if changed or body["dataset_sha256"] != dataset_sha256:
            what = f"another recipe ({'; '.join(changed)})" if changed else "other samples"
            raise RunFolderError(
                f"{copies.place.url} holds copies of a run of {what}: choose another checkpoint.copies for this one."
            )
        return


def _said(error: Exception) -> str:
    """For brackets."""
    return str(error).rstrip(".")


@contextmanager
def _readable(place: Place) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"the copies in {place.url} could not be brought here ({_said(error)}): resume when they can, or set "
            "checkpoint.copies=null to go on from the run folder alone."
        ) from error


def _download(place: Place, path: Path, size: int) -> None:
    with path.open("xb") as file:
        for start in range(0, size, READ_BYTES):
            file.write(read_range(place, start, min(READ_BYTES, size - start)))
        file.flush()
        os.fsync(file.fileno())


def _bring_rows(place: Place, files: Sizes, run: RunFolder) -> str:
    """Put the rows of a copy into the run folder, if they are those that were copied; what to say of it."""
    for name in (ROWS_FILE, ROWS_HASH_FILE):
        if name not in files:
            return f", without the rows before it: there is no {(place / name).url}"
    rows = read_bytes(place / ROWS_FILE, files[ROWS_FILE])
    if read_bytes(place / ROWS_HASH_FILE, files[ROWS_HASH_FILE]) != _hash_line(rows):
        return f", without the rows before it: {(place / ROWS_FILE).url} is not what was copied"
    write_text(run.metrics, rows.decode())
    return ", with the rows up to it"


def _hash_line(rows: bytes) -> bytes:
    return f"{hashlib.sha256(rows).hexdigest()}  {ROWS_FILE}\n".encode()
