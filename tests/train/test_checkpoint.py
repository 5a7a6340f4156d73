"""Checkpoints: whole or absent, and never a silent start from scratch (PREDECESSOR 15)."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import train.snapshot
from shards.reader import open_dataset
from shards.schema import Sample
from train.checkpoint import load_encoder, load_state, newest_checkpoint, read_checkpoint, recover
from train.config import Recipe
from train.device import Device
from train.errors import CheckpointError, NoCheckpointError
from train.features import pooled_features, token_features
from train.objective import Batch
from train.plan import plan_run, resume
from train.run_folder import open_run
from train.snapshot import save_checkpoint
from train.step import TrainState, start_state, train_step

FILES = ("encoder.safetensors", "target.safetensors", "state.safetensors", "state.json")


@pytest.fixture
def saved(recipe: Recipe, batch: Batch, cpu: Device, tmp_path: Path) -> tuple[Path, TrainState]:
    """A folder with checkpoints of steps 1 to 3, and the state of step 3."""
    state = start_state(recipe, cpu)
    for _ in range(3):
        train_step(state, [batch], recipe, cpu)
        save_checkpoint(tmp_path / "checkpoints", state, recipe, dataset_sha256="d")
    return tmp_path / "checkpoints", state


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def test_a_checkpoint_holds_exactly_the_promised_files(saved: tuple[Path, TrainState]) -> None:
    folder, _ = saved
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000002", "step-00000003"]
    assert sorted(path.name for path in (folder / "step-00000003").iterdir()) == sorted(FILES)


def test_a_loaded_state_continues_bit_for_bit(
    saved: tuple[Path, TrainState], recipe: Recipe, batch: Batch, cpu: Device
) -> None:
    folder, state = saved
    newest = newest_checkpoint(folder).checkpoint
    assert newest is not None
    loaded = start_state(recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": 77})}), cpu)
    load_state(newest, loaded, cpu.torch_device)
    assert loaded.step == 3
    results = [train_step(one, [batch], recipe, cpu) for one in (state, loaded)]
    assert results[0] == results[1]
    for name, value in state.networks.state_dict().items():
        assert torch.equal(value, loaded.networks.state_dict()[name]), name


@pytest.mark.parametrize("how", ["missing", "cut", "empty", "flipped"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_newest_checkpoint_is_passed_over_and_named(
    saved: tuple[Path, TrainState], name: str, how: str
) -> None:
    folder, _ = saved
    damage(folder / "step-00000003" / name, how)
    newest = newest_checkpoint(folder)
    assert newest.checkpoint is not None
    assert newest.checkpoint.step == 2
    assert len(newest.passed_over) == 1
    assert "step-00000003" in newest.passed_over[0]
    assert name in newest.passed_over[0]


def test_a_copy_under_a_later_name_is_not_taken_for_newer(saved: tuple[Path, TrainState]) -> None:
    folder, _ = saved
    shutil.copytree(folder / "step-00000002", folder / "step-00000009")
    newest = newest_checkpoint(folder)
    assert newest.checkpoint is not None
    assert newest.checkpoint.step == 3
    assert newest.passed_over == (f"{folder}/step-00000009: it is of step 2, under the name of another.",)


def test_failed_checkpoint_never_restarts_silently(
    saved: tuple[Path, TrainState], recipe: Recipe, cpu: Device, tiny_dataset: str
) -> None:
    folder, _ = saved
    for step in (1, 2, 3):
        damage(folder / f"step-0000000{step}" / "target.safetensors", "cut")
    with pytest.raises(CheckpointError, match="none of the 3 checkpoints"):
        newest_checkpoint(folder)
    plan = plan_run(recipe, open_dataset(tiny_dataset))
    run = open_run(folder.parent / "run", plan.recipe)
    folder.rename(run.checkpoints)
    with pytest.raises(CheckpointError, match="step-00000003"):
        resume(run, start_state(plan.recipe, cpu), plan, cpu)


def test_half_a_save_is_no_checkpoint(
    saved: tuple[Path, TrainState], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, state = saved
    state.step = 4

    def full_disk(_path: Path, _data: bytes) -> dict[str, object]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train.snapshot, "_write", full_disk)
    with pytest.raises(CheckpointError, match=r"step 4 could not be saved .*No space left"):
        save_checkpoint(folder, state, recipe, dataset_sha256="d")
    newest = newest_checkpoint(folder)
    assert newest.checkpoint is not None
    assert (newest.checkpoint.step, newest.passed_over) == (3, ())


def test_what_is_read_back_must_be_what_was_written(
    saved: tuple[Path, TrainState], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, state = saved
    state.step = 4
    write = train.snapshot._write_tensors

    def lying_disk(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, object]:
        record = write(path, tensors)
        if path.name == "target.safetensors":
            damage(path, "flipped")
        return record

    monkeypatch.setattr(train.snapshot, "_write_tensors", lying_disk)
    with pytest.raises(CheckpointError, match="not as it was written"):
        save_checkpoint(folder, state, recipe, dataset_sha256="d")
    assert not (folder / "step-00000004").exists()


def test_only_the_newest_are_kept_and_leftovers_of_killed_saves_go(
    saved: tuple[Path, TrainState], recipe: Recipe
) -> None:
    folder, state = saved
    (folder / ".tmp-step-00000009-1").mkdir()
    state.step = 4
    save_checkpoint(folder, state, recipe, dataset_sha256="d", keep=2)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000003", "step-00000004"]


def test_an_old_checkpoint_that_cannot_be_removed_costs_no_save(
    saved: tuple[Path, TrainState],
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Somebody protects it, or reads it over NFS."""
    folder, state = saved
    state.step = 4
    real = shutil.rmtree

    def refuse(path: Path, **options: Any) -> None:
        if Path(path).name == "step-00000002":
            raise PermissionError(13, "Permission denied", str(path))
        real(path, **options)

    monkeypatch.setattr("train.snapshot.shutil.rmtree", refuse)
    assert read_checkpoint(save_checkpoint(folder, state, recipe, dataset_sha256="d", keep=1)).step == 4
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000002", "step-00000004"]
    assert "step-00000002 is old and could not be removed" in caplog.text


def test_what_a_killed_process_of_the_same_number_left_stops_no_save(
    saved: tuple[Path, TrainState], recipe: Recipe
) -> None:
    """In a container every process is number 1."""
    folder, state = saved
    for name in (f".tmp-step-00000004-{os.getpid()}", ".tmp-old-step-00000003"):
        (folder / name).mkdir()
        (folder / name / "encoder.safetensors").write_bytes(b"half")
    for step in (4, 3):
        state.step = step
        assert read_checkpoint(save_checkpoint(folder, state, recipe, dataset_sha256="other")).step == step
    assert sorted(path.name for path in folder.iterdir()) == [f"step-0000000{step}" for step in (1, 2, 3, 4)]


def test_a_save_that_failed_takes_no_room(
    saved: tuple[Path, TrainState], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, state = saved
    monkeypatch.setattr(train.snapshot, "publish_folder", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    state.step = 4
    with pytest.raises(CheckpointError, match="make room"):
        save_checkpoint(folder, state, recipe, dataset_sha256="d")
    assert not list(folder.glob(".tmp-*"))


def test_a_checkpoint_that_is_there_keeps_its_name_when_it_is_saved_again(
    saved: tuple[Path, TrainState], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it is damaged."""
    folder, state = saved
    published: list[Path] = []
    real = train.snapshot.publish_folder
    monkeypatch.setattr(train.snapshot, "publish_folder", lambda *paths: published.append(real(*paths)))
    assert save_checkpoint(folder, state, recipe, dataset_sha256="d") == folder / "step-00000003"
    assert (published, list(folder.glob(".tmp-*"))) == ([], [])
    damage(folder / "step-00000003/target.safetensors", "flipped")
    save_checkpoint(folder, state, recipe, dataset_sha256="d")
    assert published == [folder / "step-00000003"]
    assert read_checkpoint(folder / "step-00000003").step == 3


def test_a_kill_between_two_names_loses_no_checkpoint(
    saved: tuple[Path, TrainState], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, state = saved
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed_at(2))
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(folder, state, recipe, dataset_sha256="other")
    newest = newest_checkpoint(folder).checkpoint
    assert newest is not None
    assert newest.step == 2
    recover(folder)
    newest = newest_checkpoint(folder).checkpoint
    assert newest is not None
    assert (newest.step, newest.dataset_sha256) == (3, "d")


def killed_at(call: int) -> Callable[[Path, Path], Path]:
    """`Path.replace`, until the process is killed in place of that call."""
    real, calls = Path.replace, iter(range(1, 10))

    def replace(self: Path, target: Path) -> Path:
        if next(calls) == call:
            raise KeyboardInterrupt
        return real(self, target)

    return replace


def test_nothing_on_the_load_path_unpickles(saved: tuple[Path, TrainState], monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_arguments: object, **_options: object) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr("pickle.Unpickler", forbidden)
    monkeypatch.setattr("pickle.loads", forbidden)
    monkeypatch.setattr("torch.load", forbidden)
    encoder, _ = load_encoder(saved[0] / "step-00000003")
    assert encoder.dim == 32


def test_an_encoder_is_loaded_from_a_run_or_from_a_checkpoint(saved: tuple[Path, TrainState], recipe: Recipe) -> None:
    folder, state = saved
    for which, expected in (("target", state.networks.target), ("context", state.networks.context)):
        for place in (folder.parent, folder / "step-00000003", str(folder / "step-00000003")):
            encoder, loaded = load_encoder(place, which=which)
            assert loaded == recipe
            assert not encoder.training
            for name, value in expected.state_dict().items():
                assert torch.equal(value, encoder.state_dict()[name])


def test_a_folder_without_checkpoints_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoCheckpointError, match=f"{tmp_path} holds no checkpoint"):
        load_encoder(tmp_path)


def test_a_checkpoint_of_another_shape_does_not_fit(
    saved: tuple[Path, TrainState], recipe: Recipe, cpu: Device
) -> None:
    wider = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dim": 48})})
    with pytest.raises(CheckpointError, match="does not fit the networks"):
        load_state(read_checkpoint(saved[0] / "step-00000003"), start_state(wider, cpu), cpu.torch_device)


def test_a_stranger_can_read_the_encoder_with_safetensors_alone(saved: tuple[Path, TrainState]) -> None:
    path = saved[0] / "step-00000003"
    tensors = safetensors.torch.load_file(path / "target.safetensors")
    assert tensors["patchify.weight"].shape == (32, 2 * 8 * 8)
    body = json.loads((path / "state.json").read_text())
    assert (body["step"], body["recipe"]["name"]) == (3, "tiny")


def test_features_ignore_padding_and_the_cut_into_batches(
    tiny_samples: list[Sample], saved: tuple[Path, TrainState]
) -> None:
    encoder, loaded = load_encoder(saved[0].parent)
    device = torch.device("cpu")
    tokens_BNC, content_BN = token_features(encoder, loaded, tiny_samples[:3], device)
    assert (tokens_BNC.shape, content_BN.shape) == ((3, 64, 32), (3, 64))
    pooled_BC = pooled_features(encoder, loaded, tiny_samples[:3], device)
    expected = torch.stack([tokens[content].mean(0) for tokens, content in zip(tokens_BNC, content_BN, strict=True)])
    torch.testing.assert_close(pooled_BC, expected)
    alone_BC = torch.cat([pooled_features(encoder, loaded, [sample], device) for sample in tiny_samples[:3]])
    torch.testing.assert_close(pooled_BC, alone_BC, rtol=1e-4, atol=1e-5)
    assert not pooled_BC.requires_grad
