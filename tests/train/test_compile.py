"""`train.compile`: the same run, compiled once for each network and shape, and checkpoints that know nothing of it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from shards.reader import open_dataset
from shards.schema import Sample
from tests.train.conftest import OBJECTIVES
from train import step
from train.checkpoint import newest_checkpoint
from train.config import Recipe
from train.device import Device
from train.errors import DeviceError
from train.feed import training_batch
from train.loop import pretrain
from train.objective import Batch, compile_blocks
from train.recipe import differences
from train.recorder import Listener
from train.run_folder import RunFolder
from train.step import start_state, train_step

# What torch itself does while it takes a graph of the second of two blocks.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture(autouse=True)
def _no_code_is_made(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are taken and differentiated as for any backend, and then run as they are: inductor takes minutes."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(step, "compile_blocks", partial(compile_blocks, backend="aot_eager"))
    yield
    torch._dynamo.reset()


def compiled(make_recipe: Callable[..., Recipe], name: str = "vjepa", **train: object) -> Recipe:
    return make_recipe(objective=OBJECTIVES[name], train={"compile": True, **train})


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("recompute", [False, True])
def test_losses_are_those_of_a_run_that_is_not_compiled(
    make_recipe: Callable[..., Recipe], tiny_samples: list[Sample], cpu: Device, name: str, recompute: bool
) -> None:
    recipe = compiled(make_recipe, name, recompute=recompute)
    plain = make_recipe(objective=OBJECTIVES[name])
    state, expected = start_state(recipe, cpu), start_state(plain, cpu)
    assert list(state.networks.state_dict()) == list(expected.networks.state_dict())
    batches = cut(tiny_samples, recipe, cpu)
    graphs = []
    for _ in range(4):
        ours = train_step(state, batches, recipe, cpu)
        theirs = train_step(expected, batches, plain, cpu)
        assert ours.summary["loss"] == pytest.approx(theirs.summary["loss"], rel=1e-5)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
    networks = 2 if name == "methods" else 3  # context, target, predictor; each for both sizes of a micro-batch
    assert graphs == [2 * networks] * 4
    assert not counters["graph_break"]


def cut(samples: list[Sample], recipe: Recipe, device: Device) -> list[Batch]:
    """A batch of three and one, as the last micro-batch may be smaller."""
    drawn = [(0, sample) for sample in samples[:4]]
    return [training_batch(drawn[:3], recipe, device), training_batch(drawn[3:], recipe, device)]


def test_a_run_goes_on_compiled_or_not_and_nothing_is_compiled_late(
    make_recipe: Callable[..., Recipe], tiny_dataset: str, tmp_path: Path
) -> None:
    dataset = open_dataset(tiny_dataset)
    recipes = {"plain": make_recipe(), "compiled": compiled(make_recipe)}
    assert differences(*recipes.values()) == []
    graphs: list[tuple[int, int]] = []
    listener = Listener(row=lambda row: graphs.append((row["step"], counters["stats"]["unique_graphs"])))
    for name, recipe in recipes.items():
        pretrain(recipe, dataset, tmp_path / name, listener if name == "compiled" else None)
    losses, ours = ([row["loss"] for row in RunFolder(path=tmp_path / name).rows()] for name in recipes)
    assert ours == pytest.approx(losses, rel=1e-5)
    assert graphs[-1][0] == 6
    assert graphs[0][1] > 0
    assert {count for at, count in graphs if at >= 2} == {graphs[-1][1]}
    assert not counters["graph_break"]
    files = {name: newest_checkpoint(tmp_path / name / "checkpoints").checkpoint.path for name in recipes}  # type: ignore[union-attr]
    keys = [set(load_file(path / "target.safetensors")) for path in files.values()]
    assert keys[0] == keys[1]
    shutil.copytree(tmp_path / "compiled", tmp_path / "goes on")
    shutil.rmtree(tmp_path / "goes on/checkpoints/step-00000006")
    (tmp_path / "goes on/summary.json").unlink()
    pretrain(recipes["plain"], dataset, tmp_path / "goes on")
    assert RunFolder(path=tmp_path / "goes on").rows()[-1]["loss"] == pytest.approx(losses[-1], rel=1e-5)


def test_xla_compiles_by_itself(make_recipe: Callable[..., Recipe], cpu: Device) -> None:
    lazy = SimpleNamespace(torch_device=cpu.torch_device, is_lazy=True, telling_memory=nullcontext)
    with pytest.raises(DeviceError, match=r"set train\.compile=false"):
        start_state(compiled(make_recipe), lazy)  # type: ignore[arg-type]
