"""A tiny dataset and a tiny recipe: 8x32x32 voxels in 64 tokens, a step of milliseconds."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.reader import open_dataset
from shards.schema import Sample
from train.config import Recipe
from train.device import Device, open_device
from train.feed import training_batch
from train.objective import Batch
from train.plan import Plan, plan_run
from train.recipe import parse_recipe

SHAPE = (8, 32, 32)
TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"grid": SHAPE},
    "model": {"patch": (2, 8, 8), "dim": 32, "head_dim": 16, "depth": 2, "predictor_dim": 16, "predictor_depth": 1},
    "objective": {"name": "vjepa", "num_visible": 16, "num_targets": 12},
    "optim": {"lr": 1e-3, "ema_start": 0.9},
    "train": {"max_steps": 6, "global_batch": 4, "micro_batch": 2, "seed": 3, "precision": "fp32"},
    "validation": {"every_steps": 3},
    "checkpoint": {"every_steps": 2, "keep": 10},
    "log": {"every_steps": 1, "images_every_steps": 100, "wandb": False},
}

OBJECTIVES: dict[str, dict[str, Any]] = {
    "vjepa": {"name": "vjepa"},
    "dense": {"name": "vjepa", "context_weight": 0.5, "target_blocks": "all"},
    "methods": {"name": "methods"},
}


def tiny(**sections: dict[str, Any]) -> Recipe:
    """The tiny recipe with some keys of some sections changed."""
    return parse_recipe({**TINY, **{name: {**TINY.get(name, {}), **keys} for name, keys in sections.items()}})


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Networks of this size only wait for a second thread, and sums over one thread are the same everywhere."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _no_components() -> Iterator[None]:
    """Drawing takes longer than these runs; `test_pca.py` draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.recorder.save_components", lambda path, *_, **__: path.write_bytes(b""))
        yield


@pytest.fixture(scope="session")
def make_recipe() -> Callable[..., Recipe]:
    return tiny


@pytest.fixture(scope="session")
def tiny_samples(make_sample: Callable[..., Sample]) -> list[Sample]:
    return [make_sample(number, SHAPE) for number in range(20)]


@pytest.fixture(scope="session")
def tiny_dataset(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_samples: list[Sample],
    make_dataset: Callable[[Path, list[Sample]], str],
) -> str:
    """Twenty samples of 8x32x32: 12 train, 4 val, 4 test. Read only."""
    return make_dataset(tmp_path_factory.mktemp("tiny") / "dataset", tiny_samples)


@pytest.fixture
def plan(tiny_dataset: str) -> Plan:
    return plan_run(tiny(), open_dataset(tiny_dataset))


@pytest.fixture(scope="session")
def cpu() -> Device:
    return open_device("cpu", "fp32")


@pytest.fixture(scope="session", params=list(OBJECTIVES))
def recipe(request: pytest.FixtureRequest) -> Recipe:
    """The tiny recipe, once for each objective."""
    return tiny(objective=OBJECTIVES[request.param])


@pytest.fixture
def batch(recipe: Recipe, tiny_samples: list[Sample], cpu: Device) -> Batch:
    return training_batch([(0, sample) for sample in tiny_samples[:4]], recipe, cpu)
