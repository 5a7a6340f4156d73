"""Checkpoints as they are found and read: safetensors and JSON in a folder. Nothing is ever unpickled."""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import safetensors.torch
import torch
from torch import Tensor

from train.best import read_best
from train.config import Recipe
from train.encoder import Encoder
from train.errors import CheckpointError, NoCheckpointError, RecipeError
from train.presets import encoder_config
from train.recipe import parse_recipe
from train.sharding import cut_like, load_into
from train.step import TrainState

FORMAT: Final = 1
FILES: Final = ("encoder.safetensors", "target.safetensors", "state.safetensors")
STATE_FILE: Final = "state.json"
CHECKPOINTS: Final = "checkpoints"
NAME: Final = re.compile(r"step-\d{8}")
OLD: Final = ".tmp-old-"
Which = Literal["target", "context"]
Choice = Literal["newest", "best"]
logger = logging.getLogger("fovea.train")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose every byte was checked against its `state.json`."""

    path: Path
    step: int
    skipped: int
    skipped_in_a_row: int
    recipe: Recipe
    dataset_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Newest:
    """The newest checkpoint that is whole, None if none was ever written, and the newer ones that are not."""

    checkpoint: Checkpoint | None
    passed_over: tuple[str, ...]


def checkpoint_folders(folder: Path) -> list[Path]:
    """Those of a run, whole or not, by step; what else lies there, such as a person's copy, is not ours."""
    return sorted(path for path in folder.glob("step-*") if NAME.fullmatch(path.name))


def folder_name(step: int) -> str:
    """The name of the checkpoint after so many steps; names sort as steps do."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(path.name.removeprefix("step-"))


def fresh_folder(path: Path) -> Path:
    """An empty folder, without what a killed process of the same number left: in a container all are number 1."""
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    return path


def publish_folder(temporary: Path, final: Path) -> Path:
    """Give a whole checkpoint beside it its name; what has the name now makes place."""
    if final.exists():  # of a run that came here before, and had to go back; or a damaged one
        old = final.parent / f"{OLD}{final.name}"
        if old.exists():
            shutil.rmtree(old)
        final.replace(old)
    temporary.replace(final)
    _sync_folder(final.parent)
    return final


def recover(folder: Path) -> None:
    """Give back its name to a checkpoint that a kill within `publish_folder` left without one."""
    for old in folder.glob(f"{OLD}*"):
        final = folder / old.name.removeprefix(OLD)
        if NAME.fullmatch(final.name) and not final.exists():
            old.replace(final)


def read_checkpoint(path: Path) -> Checkpoint:
    """Check a checkpoint folder, every byte of it.

    Raises:
        CheckpointError: saying what is missing or differs.
    """
    body = _read_body(path)
    for name in FILES:
        _check_file(path, name, body["files"])
    return Checkpoint(
        path=path,
        step=int(body["step"]),
        skipped=int(body["skipped"]),
        skipped_in_a_row=int(body.get("skipped_in_a_row", 0)),
        recipe=recipe_of(body, str(path)),
        dataset_sha256=body["dataset_sha256"],
    )


def read_named(path: Path, name: str | None = None) -> Checkpoint:
    """A checkpoint under its own name, or to be: a copy under another would be taken for newer than it is.

    Raises:
        CheckpointError: as `read_checkpoint`, or if it is of another step.
    """
    checkpoint = read_checkpoint(path)
    if folder_name(checkpoint.step) != (name or path.name):
        raise CheckpointError(f"{path}: it is of step {checkpoint.step}, under the name of another.")
    return checkpoint


def recipe_of(body: Mapping[str, Any], path: str) -> Recipe:
    """The recipe in a `state.json`.

    Raises:
        CheckpointError: if this version does not read it.
    """
    try:
        return parse_recipe(body["recipe"])
    except RecipeError as error:
        raise CheckpointError(f"{path}: its recipe is not one that this version reads: {error}") from error


def newest_checkpoint(folder: Path, *, before: int | None = None) -> Newest:
    """The newest checkpoint of a run that is whole, of those of steps before `before` if that is given.

    Raises:
        CheckpointError: if there are checkpoints and none is whole; nothing is trained from scratch instead.
    """
    passed_over: list[str] = []
    for path in reversed(checkpoint_folders(folder)):
        if before is not None and path.name >= folder_name(before):
            continue
        try:
            return Newest(checkpoint=read_named(path), passed_over=tuple(passed_over))
        except CheckpointError as error:
            passed_over.append(str(error))
    if passed_over:
        raise CheckpointError(
            f"none of the {len(passed_over)} checkpoints in {folder} can be read ({passed_over[0]}); restore one from "
            "a backup, or start a new run in another folder."
        )
    return Newest(checkpoint=None, passed_over=())


def load_state(checkpoint: Checkpoint, state: TrainState, device: torch.device) -> None:
    """Put a checkpoint's weights, moments and counters into a fresh state.

    Raises:
        CheckpointError: if its tensors are not those of the networks.
    """
    files = {name: _load_tensors(checkpoint.path, name, device) for name in FILES}
    networks = state.networks
    try:
        load_into(networks.context, files["encoder.safetensors"])
        load_into(networks.target, files["target.safetensors"])
        rest = files["state.safetensors"]
        load_into(networks.predictor, _below(rest, "predictor."))
        for name, parameter in optimized(state).items():
            state.optimizer.state[parameter] = _moments(_below(rest, f"optimizer.{name}."), parameter, state.optimizer)
        state.recent_VC = rest["recent_VC"].cpu()
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(f"{checkpoint.path} does not fit the networks of its recipe: {error}.") from error
    state.step, state.skipped = checkpoint.step, checkpoint.skipped
    state.skipped_in_a_row = checkpoint.skipped_in_a_row


def load_encoder(
    run_or_checkpoint: str | os.PathLike[str], *, which: Which = "target", choice: Choice = "newest"
) -> tuple[Encoder, Recipe]:
    """An encoder in evaluation mode and the resolved recipe that it was trained with.

    Args:
        run_or_checkpoint: a run folder, or one checkpoint folder.
        which: the EMA target, which is what is usually scored, or the context encoder.
        choice: of a run folder: the newest whole checkpoint, or the best by a probe.

    Raises:
        CheckpointError: if there is no checkpoint, or none that is whole.
    """
    checkpoint = open_checkpoint(run_or_checkpoint, choice)
    encoder = Encoder(encoder_config(checkpoint.recipe))
    name = "target.safetensors" if which == "target" else "encoder.safetensors"
    try:
        encoder.load_state_dict(_load_tensors(checkpoint.path, name, torch.device("cpu")))
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.path} does not fit the encoder of its recipe: {error}.") from error
    return encoder.eval(), checkpoint.recipe


def open_checkpoint(run_or_checkpoint: str | os.PathLike[str], choice: Choice = "newest") -> Checkpoint:
    """One checkpoint folder, or of a run folder the newest whole checkpoint or the best.

    Raises:
        NoCheckpointError: if there is none.
        CheckpointError: if none is whole, or if no best one was chosen.
    """
    path = Path(run_or_checkpoint)
    if choice == "best":
        return _best_of_run(path)
    return read_checkpoint(path) if (path / STATE_FILE).is_file() else _newest_of_run(path)


def _best_of_run(run: Path) -> Checkpoint:
    best = read_best(run)
    if best is None:
        raise CheckpointError(
            f"{run} says of no checkpoint that it is the best: give the folder of a run that was validated with the "
            "probe of checkpoint.best (label, if `fovea pretrain --labels` was given), or take the newest."
        )
    return read_named(run / CHECKPOINTS / folder_name(best.step))


def _newest_of_run(run: Path) -> Checkpoint:
    newest = newest_checkpoint(run / CHECKPOINTS)
    for reason in newest.passed_over:
        logger.warning("passed over a checkpoint: %s", reason)
    if newest.checkpoint is None:
        raise NoCheckpointError(f"{run} holds no checkpoint: give a run folder of `fovea pretrain`, or one checkpoint.")
    return newest.checkpoint


def optimized(state: TrainState) -> dict[str, torch.nn.Parameter]:
    """The weights that the optimizer moves, by name."""
    return {name: parameter for name, parameter in state.networks.named_parameters() if parameter.requires_grad}


def _moments(tensors: dict[str, Tensor], parameter: Tensor, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """AdamW counts its steps on the CPU, unless they are part of a graph; its moments lie beside the weights."""
    counts_on_cpu = not optimizer.defaults["capturable"]
    count = tensors.pop("step", None)
    moments = {key: cut_like(tensor, parameter) for key, tensor in tensors.items()}
    return moments if count is None else {"step": count.cpu() if counts_on_cpu else count, **moments}


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _read_body(path: Path) -> dict[str, Any]:
    try:
        data = (path / STATE_FILE).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {STATE_FILE} cannot be read: {error}.") from error
    return parse_body(data, str(path))


def parse_body(data: bytes, path: str) -> dict[str, Any]:
    """What a `state.json` says of the checkpoint at `path`.

    Raises:
        CheckpointError: if it is not as it was written, or of another version.
    """
    try:
        body = json.loads(data)
    except ValueError as error:
        raise CheckpointError(f"{path}: {STATE_FILE} cannot be read: {error}.") from error
    if not isinstance(body, dict) or body.pop("sha256", None) != body_sha256(body):
        raise CheckpointError(f"{path}: {STATE_FILE} is not as it was written.")
    if body["format"] != FORMAT:
        raise CheckpointError(f"{path}: format {body['format']}, this version reads {FORMAT}.")
    return body


def _check_file(path: Path, name: str, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Piece by piece: a training loop goes on meanwhile, and needs its memory."""
    try:
        with (path / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except OSError as error:
        raise CheckpointError(f"{path}: {name} cannot be read: {error}.") from error
    _compare(path, name, files[name], found, size)


def _compare(path: Path, name: str, written: Mapping[str, Any], found: str, size: int) -> None:
    if found != written["sha256"]:
        raise CheckpointError(f"{path}: {name} is not as it was written ({size} of {written['bytes']} bytes).")


def _load_tensors(path: Path, name: str, device: torch.device) -> dict[str, Tensor]:
    """Of the very bytes that are checked."""
    files = _read_body(path)["files"]
    try:
        data = (path / name).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {name} cannot be read: {error}.") from error
    _compare(path, name, files[name], hashlib.sha256(data).hexdigest(), len(data))
    return {key: tensor.to(device) for key, tensor in safetensors.torch.load(data).items()}


def body_sha256(body: Mapping[str, Any]) -> str:
    """The hash of a `state.json` that stands in it."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def forget_checkpoints(folder: Path, after: int) -> None:
    """Remove those of later steps, which a run that went back has left; the newest first."""
    for path in reversed(checkpoint_folders(folder)):
        if path.name > folder_name(after):
            shutil.rmtree(path)


def saved_steps(folder: Path) -> set[int]:
    """Steps of the checkpoints that are there, whole or not."""
    return {step_of(path) for path in checkpoint_folders(folder)}
