"""A frozen encoder over a dataset: one vector a volume, in a zarr store that says where it came from."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eval.errors import EmbeddingsError
from eval.store import INTENSITY_COLUMNS, TEXT_COLUMNS, Embeddings, Matrix, check_replaceable, write_embeddings
from shards.reader import Dataset, iterate, open_dataset
from shards.schema import Sample, SampleRow
from train.checkpoint import Checkpoint, Choice, load_encoder, open_checkpoint
from train.device import open_device
from train.features import pooled_features
from train.run_folder import samples_sha256

Which = Literal["target", "context"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedJob:
    """What to embed with what. `run` is a run folder or one checkpoint, `which` the EMA target or the context encoder.

    `choice` is of a run folder: its newest checkpoint, or the best by a probe. `force` replaces embeddings of another
    run or dataset at `out`.
    """

    run: Path
    dataset: str
    out: Path
    choice: Choice = "newest"
    which: Which = "target"
    device: str = "auto"
    force: bool = False
    code_version: str = "unknown"


def embed(job: EmbedJob, progress: Progress | None = None) -> Embeddings:
    """Embed every volume of a dataset and write the store.

    Args:
        job: what to do.
        progress: called with the number of volumes done and in all, after each batch.

    Raises:
        EmbeddingsError: if `out` holds something else, the dataset is empty or of another geometry than the run's, or
            features are not finite.
        PlaceError: if `out` cannot be written.
        CheckpointError: as `open_checkpoint`.
    """
    dataset = open_dataset(job.dataset)
    if not dataset.samples:
        raise EmbeddingsError(f"{job.dataset} holds no samples: there is nothing to embed.")
    checkpoint = open_checkpoint(job.run, job.choice)
    check_geometry(checkpoint, dataset)
    attributes = describe(job, dataset, checkpoint)
    check_replaceable(job.out, attributes, force=job.force)
    features, intensity = _features(job, dataset, checkpoint, progress)
    embeddings = Embeddings(
        features=features, intensity=intensity, columns=_columns(dataset.samples), attributes=attributes
    )
    write_embeddings(job.out, embeddings, force=job.force)
    return embeddings


def check_geometry(checkpoint: Checkpoint, dataset: Dataset) -> None:
    """Grids of different geometries have one shape, and voxels of which one may be three times the other.

    Raises:
        EmbeddingsError: if the encoder has learned from volumes of another geometry.
    """
    learned, given = checkpoint.recipe.data.geometry, dataset.info["geometry"].get("name")
    if learned not in (None, given):
        raise EmbeddingsError(
            f"{dataset.url} is of geometry {given}, the encoder learned from {learned}: its features would be of other "
            f"lengths; ingest with --geometry {learned}."
        )


def describe(job: EmbedJob, dataset: Dataset, checkpoint: Checkpoint) -> dict[str, Any]:
    """The attributes of the store: whoever has it can tell which weights met which volumes."""
    return {
        "checkpoint": str(checkpoint.path),
        "checkpoint_step": checkpoint.step,
        "encoder": job.which,
        "encoder_sha256": _encoder_sha256(checkpoint, job.which),
        "recipe": checkpoint.recipe.name,
        "recipe_sha256": checkpoint.recipe.hash(),
        "dataset": dataset.url,
        "dataset_config_sha256": dataset.info.get("config_sha256"),
        "samples_sha256": samples_sha256(dataset.samples),
        "code_version": job.code_version,
    }


def _encoder_sha256(checkpoint: Checkpoint, which: Which) -> str:
    name = "target.safetensors" if which == "target" else "encoder.safetensors"
    with (checkpoint.path / name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _features(
    job: EmbedJob, dataset: Dataset, checkpoint: Checkpoint, progress: Progress | None
) -> tuple[Matrix, Matrix]:
    """Features [N, dim] and grey-level statistics [N, 6], in the order of the dataset's samples."""
    encoder, recipe = load_encoder(checkpoint.path, which=job.which)
    device = open_device(job.device).torch_device
    features, intensity = [], []
    for samples in _batches(dataset, recipe.train.micro_batch):
        features.append(pooled_features(encoder, recipe, samples, device).numpy())
        intensity += [[getattr(sample.meta.intensity, name) for name in INTENSITY_COLUMNS] for sample in samples]
        if progress:
            progress(len(intensity), len(dataset.samples))
    return np.concatenate(features), np.array(intensity, np.float32)


def _batches(dataset: Dataset, size: int) -> Iterator[list[Sample]]:
    stream = iterate(dataset)
    while batch := list(islice(stream, size)):
        yield batch


def _columns(samples: tuple[SampleRow, ...]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(str(getattr(row, name) or "") for row in samples) for name in TEXT_COLUMNS}
