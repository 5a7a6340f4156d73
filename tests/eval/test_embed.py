"""A frozen encoder over a real dataset, to a store that says where it came from."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from eval.embed import EmbedJob, check_geometry, embed
from eval.errors import EmbeddingsError, PlaceError
from eval.store import read_embeddings
from fovea.embed import command
from shards.reader import open_dataset, read_sample
from train.checkpoint import load_encoder, open_checkpoint
from train.device import open_device
from train.errors import CheckpointError, NoCheckpointError
from train.features import pooled_features
from train.plan import plan_run
from train.recipe import load_recipe
from train.snapshot import save_checkpoint
from train.step import start_state


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one checkpoint of untrained weights; target and context differ."""
    folder = tmp_path_factory.mktemp("run")
    save(folder, step=0)
    return folder


def save(run: Path, step: int) -> None:
    """The same weights as after so many steps."""
    recipe = load_recipe("smoke")
    state = start_state(recipe, open_device("cpu"))
    state.step = step
    with torch.no_grad():
        state.networks.context.norm.bias.add_(1.0)
    save_checkpoint(run / "checkpoints", state, recipe, dataset_sha256="0" * 64)


@pytest.fixture(scope="module")
def store(run_folder: Path, small_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("store") / "embeddings.zarr"
    embed(EmbedJob(run=run_folder, dataset=small_dataset, out=out, code_version="1.2.3"))
    return out


def test_every_volume_has_the_vector_of_its_own_voxels(store: Path, run_folder: Path, small_dataset: str) -> None:
    embeddings, dataset = read_embeddings(store), open_dataset(small_dataset)
    assert embeddings.columns["key"] == tuple(row.key for row in dataset.samples)
    encoder, recipe = load_encoder(run_folder)
    for place in (0, 3, 9):
        sample = read_sample(dataset, dataset.samples[place])
        alone = pooled_features(encoder, recipe, [sample], torch.device("cpu"))[0].numpy()
        np.testing.assert_allclose(embeddings.features[place], alone, atol=1e-5)
        assert embeddings.intensity[place][0] == np.float32(sample.meta.intensity.mean)
        assert embeddings.volumes()[place].study_group == sample.meta.study_group
    assert len(np.unique(embeddings.features, axis=0)) == 10


def test_the_store_says_which_weights_met_which_volumes(store: Path, run_folder: Path, small_dataset: str) -> None:
    attributes = read_embeddings(store).attributes
    dataset = open_dataset(small_dataset)
    assert attributes["checkpoint"] == str(run_folder / "checkpoints" / "step-00000000")
    assert attributes["dataset_config_sha256"] == dataset.info["config_sha256"]
    assert attributes["code_version"] == "1.2.3"
    state = json.loads((open_checkpoint(run_folder).path / "state.json").read_text())
    assert attributes["encoder_sha256"] == state["files"]["target.safetensors"]["sha256"]


def test_the_context_encoder_is_another_one(
    store: Path, run_folder: Path, small_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "e.zarr"
    context = embed(EmbedJob(run=run_folder, dataset=small_dataset, out=out, which="context"))
    np.testing.assert_allclose(context.features, read_embeddings(store).features + 1.0, atol=1e-4)
    monkeypatch.setattr("eval.embed.pooled_features", None)  # refused before any work, not after it
    with pytest.raises(EmbeddingsError, match="encoder, encoder_sha256 differ"):
        embed(EmbedJob(run=run_folder, dataset=small_dataset, out=out))
    assert read_embeddings(out).attributes["encoder"] == "context"


@pytest.mark.parametrize("out", ["file/e.zarr", "file/sub/e.zarr", "/proc/e.zarr", "circle", "n" * 300])
def test_an_out_that_cannot_be_written_is_refused_before_any_work(
    run_folder: Path, small_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "circle").symlink_to("circle")
    monkeypatch.setattr("eval.embed.pooled_features", None)
    with pytest.raises(PlaceError) as caught:
        embed(EmbedJob(run=run_folder, dataset=small_dataset, out=tmp_path / out))
    assert str(caught.value).startswith(f"{tmp_path / out} cannot be written (")
    assert caught.value.exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "file"]


def test_the_best_checkpoint_is_taken_if_it_is_asked_for(run_folder: Path, small_dataset: str, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    save(tmp_path / "run", step=7)
    with pytest.raises(CheckpointError, match="no checkpoint that it is the best"):
        open_checkpoint(tmp_path / "run", "best")
    (tmp_path / "run/best.json").write_text(json.dumps({"step": 0, "measure": "probe_label", "value": 0.5}))
    assert open_checkpoint(tmp_path / "run", "best").path.name == "step-00000000"
    assert open_checkpoint(tmp_path / "run").path.name == "step-00000007"
    arguments = ["--run", str(tmp_path / "run"), "--data", small_dataset, "--out", str(tmp_path / "e.zarr"), "--json"]
    result = run(*arguments, "--checkpoint", "best")
    assert json.loads(result.stdout)["checkpoint"].endswith("step-00000000")


def test_a_run_without_a_whole_checkpoint_is_refused(run_folder: Path, small_dataset: str, tmp_path: Path) -> None:
    with pytest.raises(NoCheckpointError, match="holds no checkpoint"):
        embed(EmbedJob(run=tmp_path / "nowhere", dataset=small_dataset, out=tmp_path / "e.zarr"))
    shutil.copytree(run_folder, tmp_path / "run")
    weights = tmp_path / "run" / "checkpoints" / "step-00000000" / "target.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError):
        embed(EmbedJob(run=tmp_path / "run", dataset=small_dataset, out=tmp_path / "e.zarr"))
    assert not (tmp_path / "e.zarr").exists()


def test_a_newest_checkpoint_that_is_damaged_is_passed_over_and_named(
    run_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Path(shutil.copytree(run_folder, tmp_path / "run")) / "checkpoints"
    save(tmp_path / "run", step=7)
    weights = checkpoints / "step-00000007/target.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert open_checkpoint(tmp_path / "run").step == 0
    assert f"passed over a checkpoint: {weights.parent}" in caplog.text


def test_volumes_of_another_geometry_are_refused(run_folder: Path, small_dataset: str, tmp_path: Path) -> None:
    """Their grid is the same."""
    checkpoint, dataset = open_checkpoint(run_folder), open_dataset(small_dataset)
    learned = plan_run(load_recipe("smoke"), dataset).recipe.data.geometry
    assert learned == "block6"
    ours = replace(checkpoint, recipe=plan_run(load_recipe("smoke"), dataset).recipe)
    check_geometry(ours, dataset)
    other = replace(dataset, info={**dataset.info, "geometry": {**dataset.info["geometry"], "name": "fit"}})
    with pytest.raises(EmbeddingsError, match="is of geometry fit, the encoder learned from block6"):
        check_geometry(ours, other)


def test_a_dataset_without_samples_is_refused(
    run_folder: Path, make_dataset: Callable[..., str], tmp_path: Path
) -> None:
    empty = make_dataset(tmp_path / "empty", [])
    with pytest.raises(EmbeddingsError, match="holds no samples"):
        embed(EmbedJob(run=run_folder, dataset=empty, out=tmp_path / "e.zarr"))


def run(*words: str) -> Any:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(words))


def test_the_command_says_what_it_wrote(store: Path, run_folder: Path, small_dataset: str, tmp_path: Path) -> None:
    out = str(tmp_path / "e.zarr")
    result = run("--run", str(run_folder), "--data", small_dataset, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["num_volumes"] == 10
    assert np.array_equal(read_embeddings(Path(out)).features, read_embeddings(store).features)
    assert run("--run", "r", "--data", "d", "--out", out, "--which", "both").exit_code == 2
