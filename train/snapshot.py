"""Saving: a state is copied to host memory, and the copy becomes a checkpoint, whole or not at all."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from train.checkpoint import (
    FILES,
    FORMAT,
    STATE_FILE,
    body_sha256,
    checkpoint_folders,
    folder_name,
    fresh_folder,
    optimized,
    publish_folder,
    read_checkpoint,
)
from train.config import Recipe
from train.errors import CheckpointError
from train.sharding import whole
from train.step import TrainState

logger = logging.getLogger("fovea.train")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A state as it was after one step, in memory of its own: all that goes into a checkpoint.

    `recipe` is the resolved one, so that a checkpoint describes itself; `dataset_sha256` is of the training samples, so
    that a run is resumed on the same ones. `spare` is the step of a checkpoint that stays whatever its age.
    """

    step: int
    skipped: int
    skipped_in_a_row: int
    recipe: Recipe
    dataset_sha256: str
    files: Mapping[str, Mapping[str, Tensor]]
    spare: int | None = None


def take_snapshot(state: TrainState, recipe: Recipe, *, dataset_sha256: str, reuse: Snapshot | None = None) -> Snapshot:
    """Copy a state to the host, into the memory of one that is done with: 3 times as fast as new memory.

    Of a sharded state each tensor is gathered; the other ranks `help_snapshot` meanwhile.
    """
    before = reuse.files if reuse else {}
    files = {
        name: {key: _copy(tensor, before.get(name, {}).get(key)) for key, tensor in _tensors(name, state).items()}
        for name in FILES
    }
    return Snapshot(
        step=state.step,
        skipped=state.skipped,
        skipped_in_a_row=state.skipped_in_a_row,
        recipe=recipe,
        dataset_sha256=dataset_sha256,
        files=files,
    )


def help_snapshot(state: TrainState) -> None:
    """What a rank does while another takes a snapshot: its part in the gathering of what is cut over ranks."""
    for name in FILES:
        for tensor in _tensors(name, state).values():
            whole(tensor.detach())


def save_checkpoint(
    folder: Path,
    state: TrainState,
    recipe: Recipe,
    *,
    dataset_sha256: str,
    keep: int | None = None,
    spare: int | None = None,
) -> Path:
    """Save a state here and now; see `publish_snapshot`."""
    snapshot = replace(take_snapshot(state, recipe, dataset_sha256=dataset_sha256), spare=spare)
    return publish_snapshot(folder, snapshot, keep=keep)


def publish_snapshot(folder: Path, snapshot: Snapshot, *, keep: int | None = None) -> Path:
    """Write `folder/step-{:08d}/` under a temporary name, read it back, then publish it by renaming.

    Args:
        folder: the run's `checkpoints`.
        snapshot: what to save.
        keep: how many of the newest checkpoints up to this one stay; None keeps all.

    Raises:
        CheckpointError: if it could not be written, or what was read back is not what was written.
    """
    temporary = folder / f".tmp-{folder_name(snapshot.step)}-{os.getpid()}"
    try:
        _write_files(temporary, snapshot)
        read_checkpoint(temporary)
        final = folder / folder_name(snapshot.step)
        if not _is_there(temporary, final):  # a stop right after a save: what is whole keeps its name throughout
            publish_folder(temporary, final)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"step {snapshot.step} could not be saved ({error}): make room, and resume from the checkpoint before "
            "it, if there is one."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # it is gone where all went well
    _prune(folder, keep, snapshot.step, snapshot.spare)
    return final


def _is_there(written: Path, final: Path) -> bool:
    """Whether a whole checkpoint of the same bytes has the name."""
    one, other = written / STATE_FILE, final / STATE_FILE
    if not other.exists() or one.read_bytes() != other.read_bytes():
        return False
    try:
        read_checkpoint(final)
    except CheckpointError:
        return False
    return True


def _tensors(name: str, state: TrainState) -> Mapping[str, Tensor]:
    """What goes into a file."""
    if name == "encoder.safetensors":
        return state.networks.context.state_dict()
    if name == "target.safetensors":
        return state.networks.target.state_dict()
    return _rest(state)


def _rest(state: TrainState) -> dict[str, Tensor]:
    tensors = {f"predictor.{key}": tensor for key, tensor in state.networks.predictor.state_dict().items()}
    tensors["recent_VC"] = state.recent_VC
    for name, parameter in optimized(state).items():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def _copy(tensor: Tensor, place: Tensor | None) -> Tensor:
    """A contiguous copy on the CPU, in `place` if that fits."""
    if place is None or place.shape != tensor.shape or place.dtype != tensor.dtype:
        place = torch.empty(tensor.shape, dtype=tensor.dtype)
    return place.copy_(whole(tensor.detach()))


def _write_files(folder: Path, snapshot: Snapshot) -> None:
    fresh_folder(folder)
    written = {name: _write_tensors(folder / name, snapshot.files[name]) for name in FILES}
    body = {
        "format": FORMAT,
        "step": snapshot.step,
        "skipped": snapshot.skipped,
        "skipped_in_a_row": snapshot.skipped_in_a_row,
        "recipe": snapshot.recipe.record(),
        "dataset_sha256": snapshot.dataset_sha256,
        "files": written,
    }
    _write(folder / STATE_FILE, json.dumps({**body, "sha256": body_sha256(body)}, indent=1).encode())


def _write(path: Path, data: bytes) -> dict[str, Any]:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Not by `safetensors.torch.save`: it keeps all other threads waiting, the training loop among them.

    `save_file` renames a file of its own, which only its owner may read, over the one that is there.
    """
    path.touch()
    mode = path.stat().st_mode
    safetensors.torch.save_file(dict(tensors), path)
    path.chmod(mode)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        header = file.read(int.from_bytes(file.read(8), "little"))
    return {"bytes": path.stat().st_size, "sha256": _sha256_of(header, tensors)}


def _sha256_of(header: bytes, tensors: Mapping[str, Tensor]) -> str:
    """Of a file of these tensors as it should be, by what is in memory: the disk is compared with it."""
    digest = hashlib.sha256(len(header).to_bytes(8, "little") + header)
    entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
    for name in sorted(entries, key=lambda name: entries[name]["data_offsets"]):
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _prune(folder: Path, keep: int | None, step: int, spare: int | None) -> None:
    """Remove what killed saves left behind, and all but the newest `keep` checkpoints up to this step and `spare`.

    Those of later steps were passed over: they neither count nor are lost.
    """
    for path in folder.glob(".tmp-*"):
        _remove(path)
    if keep is not None:
        for path in [path for path in checkpoint_folders(folder) if path.name <= folder_name(step)][:-keep]:
            if spare is None or path.name != folder_name(spare):
                _remove(path)


def _remove(path: Path) -> None:
    """A checkpoint that somebody protects, or reads over a network, takes room and harms nothing else."""
    try:
        shutil.rmtree(path)
    except OSError as error:
        logger.warning("%s is old and could not be removed (%s): remove it by hand.", path, error)
