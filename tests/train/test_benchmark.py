"""`benchmarks/train_step.py`: with PyTorch and little else, checked against float32, beside others' modules."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.train.conftest import OBJECTIVES
from train.device import Device
from train.errors import RecipeError
from train.presets import dimensions, encoder_config
from train.recipe import load_recipe, recipe_names
from train.step import start_state

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
ABSENT = ("typer", "pydantic", "yaml", "wandb", "pandas", "safetensors", "matplotlib", "pyarrow", "rich", "torchvision")
WITHOUT = f"""
import sys
from importlib.machinery import PathFinder
class Without:
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in {ABSENT!r} else PathFinder.find_spec(name, path, target)
sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""
SMALL = ("train.precision=fp32", "model.dim=64", "train.global_batch=3", "train.device=cpu")

# The layout and the parameters of facebookresearch/vjepa2, and nothing else of it: what a plan of a checkout needs.
STANDINS = {
    "masks/utils.py": """
import torch
def apply_masks(x, masks):
    return torch.cat([x.gather(1, one[:, :, None].expand(-1, -1, x.shape[-1])) for one in masks])
""",
    "models/vision_transformer.py": """
from einops import rearrange
from timm.models.layers import drop_path
from torch import nn
from train.encoder import Encoder, EncoderConfig
class VisionTransformer(nn.Module):
    def __init__(self, *, img_size, num_frames, patch_size, tubelet_size, embed_dim, depth, num_heads, in_chans, **_):
        super().__init__()
        assert in_chans == 1
        grid = num_frames // tubelet_size, *(size // patch_size for size in img_size)
        self.inner = Encoder(EncoderConfig(
            dim=embed_dim, depth=depth, head_dim=embed_dim // num_heads, token_grid=grid,
            patch=(tubelet_size, patch_size, patch_size),
        ))
        del self.inner.mask_token
    def forward(self, x, masks=None):
        return self.inner(x[:, 0], keep_BK=None if masks is None else masks[0])
""",
    "models/predictor.py": """
import torch
from torch import nn
from train.encoder import Block
class VisionTransformerPredictor(nn.Module):
    def __init__(self, *, embed_dim, predictor_embed_dim, depth, num_heads, num_mask_tokens, **_):
        super().__init__()
        p = predictor_embed_dim
        self.embed, self.norm, self.proj = nn.Linear(embed_dim, p), nn.LayerNorm(p), nn.Linear(p, embed_dim)
        self.token = nn.Parameter(torch.zeros(num_mask_tokens, p))
        self.blocks = nn.ModuleList(Block(p, p // num_heads) for _ in range(depth))
    def forward(self, x, visible, targets):
        x = torch.cat([self.embed(x), self.token.expand(*targets[0].shape, -1)], dim=1)
        for block in self.blocks:
            x = block(x, None, None)
        return self.proj(self.norm(x))[:, visible[0].shape[1]:]
""",
}


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The scripts of `benchmarks/` are no package of ours: they are found as when one of them is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import plain_recipe
    import reference_step
    import step_check
    import train_step

    named = {"plain": plain_recipe, "check": step_check, "step": train_step, "reference": reference_step}
    for name in ("plain_recipe", "step_check", "train_step", "reference_step"):
        monkeypatch.delitem(sys.modules, name)
    return named


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in STANDINS.items():
        path = tmp_path / "vjepa2" / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "vjepa2"


def run(path: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    """The script as a user runs it; modules found in `path` come first."""
    environment = os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    chosen = [word for key in SMALL for word in ("--set", key)]
    command = [sys.executable, BENCHMARKS / "train_step.py", "--recipe", "smoke", "--synthetic", "--steps", "2"]
    done = subprocess.run(
        [*command, *chosen, *words], capture_output=True, text=True, env=environment, timeout=600, check=False
    )
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def test_a_dataset_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "train_step.py", "--recipe", "smoke", "--data", tmp_path / "nowhere"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert "nowhere" in done.stderr


def test_it_runs_with_pytorch_and_little_else_and_computes_the_same(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    code, plain, said = run(tmp_path, "--baseline", "full")
    assert (code, plain.get("recipe_reader")) == (0, "plain"), said
    code, whole, said = run(tmp_path / "nothing", "--baseline", "full")
    assert (code, whole.get("recipe_reader")) == (0, "pydantic"), said
    assert plain["check"] == whole["check"]
    same = ("loss", "full_tokens_loss", "encoder_parameters", "predictor_parameters", "tokens", "precision")
    assert [plain[key] for key in same] == [whole[key] for key in same]
    assert plain.keys() >= {
        "step_s", "volumes_per_s", "tflops", "mfu", "data_wait", "peak_memory_gib", "speedup_over_full_tokens",
    }  # fmt: skip


def test_shipped_recipes_are_the_same_by_both_ways_of_reading(modules: dict[str, ModuleType]) -> None:
    plain = modules["plain"]
    assert plain.SHIPPED.read_text() == plain.shipped_recipes(), "run make bench-recipes"
    overrides = ("train.micro_batch=2", "data.pool=2", "objective.name=methods", "model.rope_reference_mm=[1, 1, 1.5]")
    for name in recipe_names():
        for chosen in ((), overrides):
            ours, full = plain.plain_recipe(name, chosen), load_recipe(name, chosen)
            for section in plain.SECTIONS:
                values = getattr(full, section).model_dump()
                assert {key: getattr(getattr(ours, section), key) for key in values} == values
            assert (ours.grid, ours.token_grid, ours.num_tokens) == (full.grid, full.token_grid, full.num_tokens)
            assert (dimensions(ours.model), encoder_config(ours)) == (dimensions(full.model), encoder_config(full))


def test_a_plain_recipe_knows_its_keys(modules: dict[str, ModuleType]) -> None:
    for override in ("train.micro_batsh=2", "train=2", "micro_batch=2", "validation.every_steps=2"):
        with pytest.raises(RecipeError, match=r"no key of data, .* e\.g\. train\.micro_batch=2"):
            modules["plain"].plain_recipe("smoke", [override])
    with pytest.raises(RecipeError, match=r"the recipes are cpu-small, .* and not 'mine\.yaml'"):
        modules["plain"].plain_recipe("mine.yaml")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_check_passes_what_is_right_and_nothing_else(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, objective: str, precision: str
) -> None:
    recipe = load_recipe("smoke", [f"objective.{key}={value}" for key, value in OBJECTIVES[objective].items()])
    device = modules["step"].open_device("cpu", precision)
    batch = modules["step"].synthetic_batch(recipe, device, 1)
    check = modules["check"]
    assert check.check_step(recipe, device, batch)["passed"]

    def wrong(recipe: Any, device: Device) -> Any:
        state = start_state(recipe, device)
        state.networks.context.blocks[0].attention.head_dim //= 2  # wrong heads, the same weights
        state.networks.context.head_dim //= 2
        return state

    monkeypatch.setattr(check, "start_state", wrong)
    assert not check.check_step(recipe, device, batch)["passed"]


def test_it_fails_when_gradients_are_wrong(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(modules["check"], "BOUNDS", {"fp32": (-1.0, 1.0, 0.0)})
    chosen = [word for key in SMALL for word in ("--set", key)]
    monkeypatch.setattr(sys, "argv", ["train_step.py", "--recipe", "smoke", "--synthetic", "--steps", "1", *chosen])
    assert modules["step"].main() == 1
    assert json.loads(capsys.readouterr().out)["check"]["passed"] is False


def test_the_reference_is_imported_from_its_checkout_alone(checkout: Path, tmp_path: Path) -> None:
    code, found, said = run(tmp_path, "--reference", str(checkout), "--baseline", "fp32")
    assert code == 0, said
    assert min(found["speedup_over_reference"], found["speedup_over_fp32"]) > 0
    assert found["fp32_loss"] == found["loss"], "in float32 already: two runs of one thing"
    assert found["reference_loss"] == pytest.approx(0.8, abs=0.2)
    code, _, said = run(tmp_path, "--reference", str(tmp_path))
    assert (code, "is no checkout of facebookresearch/vjepa2" in said) == (2, True)


def test_a_reference_of_another_size_is_no_reference(
    modules: dict[str, ModuleType], checkout: Path, monkeypatch: pytest.MonkeyPatch, cpu: Device
) -> None:
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    recipe = load_recipe("smoke")
    reference = modules["reference"].ReferenceStep(str(checkout), recipe, cpu)
    for name in set(sys.modules) - before:
        monkeypatch.delitem(sys.modules, name)
    modules["reference"].check_equal(reference, start_state(recipe, cpu))
    with pytest.raises(RecipeError, match="ours and the reference differ in size"):
        modules["reference"].check_equal(reference, start_state(load_recipe("smoke", ["model.depth=3"]), cpu))
    with pytest.raises(RecipeError, match="one height and width"):
        modules["reference"].check_sizes(load_recipe("smoke", ["objective.name=methods"]))


def test_the_baseline_sees_all_tokens(modules: dict[str, ModuleType], make_recipe: Callable[..., Any]) -> None:
    full = load_recipe("vjepa-base", modules["step"].BASELINES["full"][1])
    assert full.num_tokens == 9216
    assert modules["step"].volume_flops(full) / 1e12 == pytest.approx(18.9, abs=0.1)
