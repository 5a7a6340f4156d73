"""Checkpoints: safetensors and JSON in a folder that appears whole or not at all. Nothing is ever unpickled."""

import hashlib
import json
import logging
import os
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
from train.errors import CheckpointError, RecipeError
from train.presets import encoder_config
from train.recipe import parse_recipe
from train.step import TrainState

FORMAT: Final = 1
FILES: Final = ("encoder.safetensors", "target.safetensors", "state.safetensors")
STATE_FILE: Final = "state.json"
CHECKPOINTS: Final = "checkpoints"
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


def save_checkpoint(
    folder: Path,
    state: TrainState,
    recipe: Recipe,
    *,
    dataset_sha256: str,
    keep: int | None = None,
    spare: int | None = None,
) -> Path:
    """Write `folder/step-{:08d}/` under a temporary name, read it back, then publish it by renaming.

    Args:
        folder: the run's `checkpoints`.
        state: what to save.
        recipe: resolved; goes into `state.json`, so that a checkpoint describes itself.
        dataset_sha256: of the training samples, so that a run is resumed on the same ones.
        keep: how many of the newest checkpoints stay; None keeps all.
        spare: the step of one that stays, too.

    Raises:
        CheckpointError: if it could not be written, or what was read back is not what was written.
    """
    final = folder / f"step-{state.step:08d}"
    temporary = folder / f".tmp-{final.name}-{os.getpid()}"
    try:
        _write_files(temporary, state, recipe, dataset_sha256)
        read_checkpoint(temporary)
        if final.exists():  # of a run that came here before, and had to go back
            final.replace(folder / f".tmp-old-{final.name}-{os.getpid()}")
        temporary.replace(final)
        _sync_folder(folder)
        _prune(folder, keep, spare)
    except OSError as error:
        raise CheckpointError(
            f"step {state.step} could not be saved ({error}): make room, and resume from the checkpoint before it."
        ) from error
    return final


def read_checkpoint(path: Path) -> Checkpoint:
    """Check a checkpoint folder, every byte of it.

    Raises:
        CheckpointError: saying what is missing or differs.
    """
    body = _read_body(path)
    for name in FILES:
        _read_file(path, name, body["files"])
    try:
        recipe = parse_recipe(body["recipe"])
    except RecipeError as error:
        raise CheckpointError(f"{path}: its recipe is not one that this version reads: {error}") from error
    return Checkpoint(
        path=path,
        step=int(body["step"]),
        skipped=int(body["skipped"]),
        skipped_in_a_row=int(body.get("skipped_in_a_row", 0)),
        recipe=recipe,
        dataset_sha256=body["dataset_sha256"],
    )


def newest_checkpoint(folder: Path, *, before: int | None = None) -> Newest:
    """The newest checkpoint of a run that is whole, of those of steps before `before` if that is given.

    Raises:
        CheckpointError: if there are checkpoints and none is whole; nothing is trained from scratch instead.
    """
    passed_over: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        if before is not None and path.name >= f"step-{before:08d}":
            continue
        try:
            return Newest(checkpoint=read_checkpoint(path), passed_over=tuple(passed_over))
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
        networks.context.load_state_dict(files["encoder.safetensors"])
        networks.target.load_state_dict(files["target.safetensors"])
        rest = files["state.safetensors"]
        networks.predictor.load_state_dict(_below(rest, "predictor."))
        for name, parameter in _optimized(state).items():
            state.optimizer.state[parameter] = _moments(_below(rest, f"optimizer.{name}."), state.optimizer)
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
        CheckpointError: if there is no checkpoint, or none that is whole; or if no best one was chosen.
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
    return read_checkpoint(run / CHECKPOINTS / f"step-{best.step:08d}")


def _newest_of_run(run: Path) -> Checkpoint:
    newest = newest_checkpoint(run / CHECKPOINTS)
    for reason in newest.passed_over:
        logger.warning("passed over a checkpoint: %s", reason)
    if newest.checkpoint is None:
        raise CheckpointError(f"{run} holds no checkpoint: give a run folder of `fovea pretrain`, or a checkpoint.")
    return newest.checkpoint


def _write_files(folder: Path, state: TrainState, recipe: Recipe, dataset_sha256: str) -> None:
    folder.mkdir(parents=True)
    written = {name: _write(folder / name, safetensors.torch.save(_tensors(name, state))) for name in FILES}
    body = {
        "format": FORMAT,
        "step": state.step,
        "skipped": state.skipped,
        "skipped_in_a_row": state.skipped_in_a_row,
        "recipe": recipe.model_dump(mode="json"),
        "dataset_sha256": dataset_sha256,
        "files": written,
    }
    _write(folder / STATE_FILE, json.dumps({**body, "sha256": _body_sha256(body)}, indent=1).encode())


def _tensors(name: str, state: TrainState) -> dict[str, Tensor]:
    """What goes into a file, contiguous and on the CPU."""
    if name == "encoder.safetensors":
        tensors: Mapping[str, Tensor] = state.networks.context.state_dict()
    elif name == "target.safetensors":
        tensors = state.networks.target.state_dict()
    else:
        tensors = _rest(state)
    return {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}


def _rest(state: TrainState) -> dict[str, Tensor]:
    tensors = {f"predictor.{key}": tensor for key, tensor in state.networks.predictor.state_dict().items()}
    tensors["recent_VC"] = state.recent_VC
    for name, parameter in _optimized(state).items():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def _optimized(state: TrainState) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in state.networks.named_parameters() if parameter.requires_grad}


def _moments(tensors: dict[str, Tensor], optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """AdamW counts its steps on the CPU, unless they are part of a graph; its moments lie beside the weights."""
    counts_on_cpu = not optimizer.defaults["capturable"]
    return {key: tensor.cpu() if key == "step" and counts_on_cpu else tensor for key, tensor in tensors.items()}


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _write(path: Path, data: bytes) -> dict[str, Any]:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _read_body(path: Path) -> dict[str, Any]:
    try:
        body = json.loads((path / STATE_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {STATE_FILE} cannot be read: {error}.") from error
    if not isinstance(body, dict) or body.pop("sha256", None) != _body_sha256(body):
        raise CheckpointError(f"{path}: {STATE_FILE} is not as it was written.")
    if body["format"] != FORMAT:
        raise CheckpointError(f"{path}: format {body['format']}, this version reads {FORMAT}.")
    return body


def _read_file(path: Path, name: str, files: Mapping[str, Mapping[str, Any]]) -> bytes:
    try:
        data = (path / name).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {name} cannot be read: {error}.") from error
    if hashlib.sha256(data).hexdigest() != files[name]["sha256"]:
        raise CheckpointError(f"{path}: {name} is not as it was written ({len(data)} of {files[name]['bytes']} bytes).")
    return data


def _load_tensors(path: Path, name: str, device: torch.device) -> dict[str, Tensor]:
    tensors = safetensors.torch.load(_read_file(path, name, _read_body(path)["files"]))
    return {key: tensor.to(device) for key, tensor in tensors.items()}


def _body_sha256(body: Mapping[str, Any]) -> str:
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
    for path in sorted(folder.glob("step-*"), reverse=True):
        if path.name > f"step-{after:08d}":
            shutil.rmtree(path)


def saved_steps(folder: Path) -> set[int]:
    """Steps of the checkpoints that are there, whole or not."""
    return {int(path.name.removeprefix("step-")) for path in folder.glob("step-*")}


def _prune(folder: Path, keep: int | None, spare: int | None) -> None:
    """Remove what killed saves left behind, and all but the newest `keep` checkpoints and that of step `spare`."""
    for path in folder.glob(".tmp-*"):
        shutil.rmtree(path)
    if keep is not None:
        for path in sorted(folder.glob("step-*"))[:-keep]:
            if spare is None or path.name != f"step-{spare:08d}":
                shutil.rmtree(path)
