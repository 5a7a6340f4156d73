"""Training from a bucket: the run that a disk gives, bit for bit, also when requests fail."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards.publish import publish
from shards.reader import open_dataset
from tests.stores.faults import Plan
from tests.stores.fixtures import Store
from train.config import Recipe
from train.loop import pretrain
from train.run_folder import RunFolder

MEASURED = ("step", "samples", "epoch", "loss", "cosine", "grad_norm", "rankme")


@pytest.fixture
def in_bucket(store: Store, tiny_dataset: str) -> str:
    """The tiny dataset, object by object."""
    folder = Path(tiny_dataset)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        publish(f"{store.url}/cohort/{path.relative_to(folder)}", path.read_bytes())
    return f"{store.url}/cohort"


def run(dataset: str, out: Path, recipe: Recipe) -> tuple[list[list[Any]], dict[str, Any]]:
    """What was measured at each step, and the hashes of the last weights."""
    pretrain(recipe, open_dataset(dataset), out)
    rows = RunFolder(path=out).rows()
    state = json.loads((max((out / "checkpoints").glob("step-*")) / "state.json").read_text())
    return [[row.get(name) for name in MEASURED] for row in rows], state["files"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bucket_gives_the_run_of_a_disk(
    in_bucket: str, tiny_dataset: str, tmp_path: Path, make_recipe: Callable[..., Recipe], workers: int
) -> None:
    recipe = make_recipe(data={"workers": workers})
    assert run(in_bucket, tmp_path / "bucket", recipe) == run(tiny_dataset, tmp_path / "disk", recipe)


def test_requests_that_fail_change_nothing(
    in_bucket: str, store: Store, tiny_dataset: str, tmp_path: Path, make_recipe: Callable[..., Recipe]
) -> None:
    """429, 500, 503, resets and short bodies, one request in five."""
    store.proxy.plan(Plan(share=0.2, seed=5))
    assert run(in_bucket, tmp_path / "bucket", make_recipe()) == run(tiny_dataset, tmp_path / "disk", make_recipe())
    assert store.proxy.faults.total() > 5
