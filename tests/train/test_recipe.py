"""Recipes: what may be written in them, and what a misspelling teaches."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shards.reader import open_dataset
from train.config import Recipe
from train.errors import RecipeError
from train.plan import plan_run
from train.recipe import differences, load_recipe, parse_recipe, recipe_names, recipe_text, resolve


def test_a_misspelt_key_names_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"`train\.max_stesp` is not known; the nearest is `train\.max_steps`"):
        load_recipe("smoke", ["train.max_stesp=3"])
    path = tmp_path / "mine.yaml"
    path.write_text("objectiv: {name: vjepa}\n")
    with pytest.raises(RecipeError, match=r"`objectiv` is not known; the nearest is `objective`"):
        load_recipe(str(path))


def test_a_key_in_the_wrong_section_is_found_where_it_belongs() -> None:
    with pytest.raises(RecipeError, match=r"the nearest is `train\.max_steps`"):
        load_recipe("smoke", ["optim.max_steps=3"])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("train: {max_steps: 6, max_steps: 1}", "the key max_steps is there twice"),
        ("train: {max_steps: 6}\ndata: {pool: 2}\ntrain: {seed: 1}", "the key train is there twice"),
        ("validation: &each {every_steps: 3}\ncheckpoint: *each", r"it has an alias \(\*name\): write it out"),
        ("[" * 5000, "is not YAML"),
    ],
)
def test_a_file_that_says_less_than_it_seems_to_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=complaint):
        load_recipe(str(path))


def test_an_unknown_recipe_names_those_that_exist() -> None:
    with pytest.raises(RecipeError, match="methods-single-domain, smoke, vjepa-base, vjepa-large"):
        load_recipe("resnet")


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("train.max_steps", "key=value"),
        ("train.max_steps=many", "train.max_steps"),
        ("train.max_steps=0", "greater than or equal to 1"),
        ("objective.name=mae", "objective.name"),
        ("train=5", "`train`"),
        ("train.max_steps.deep=5", "not known"),
        ("train.micro_batch=64", "greater than global_batch"),
        ("data.pool=5", "whole number of tokens"),
        ("model.dim=100", "multiple of model.head_dim"),
        ("data.devices=[iphone]", "data.devices"),
        ("data.devices=[", "not a YAML value"),
        ("name=2023-02-30", "not a YAML value"),
        ("optim.lr=.inf", "optim.lr"),
        ("optim.betas=[0.9, 1.0]", "optim.betas.1"),
        ("masks.aspect=[2.0, 0.5]", "recipe key `masks.aspect`: the first number is above the second."),
        ("masks.tube_area=[0.3, 0.1]", "recipe key `masks.tube_area`: the first number is above the second."),
        ("model.rope_reference_mm=[0, 0, 0]", "model.rope_reference_mm.0"),
        ("model.rope_reference_mm=[1.0e-45, 1, 1]", "model.rope_reference_mm.0"),
        ("model.patch=[0, 16, 16]", "model.patch.0"),
        ("model.patch=[-4, -16, 16]", "model.patch.0"),
        ("model.dim=64000000", "model.dim"),
        ("model.depth=1000000000000000", "model.depth"),
        ("train.global_batch=100000000000000", "train.global_batch"),
        ("masks.aspect=[5.0e-324, 5.0e-324]", "masks.aspect.0"),
        ("masks.aspect=[1, 1.0e+308]", "masks.aspect.1"),
        ("optim.lr=1.0e+300", "optim.lr"),
        ("optim.weight_decay=1.0e+300", "optim.weight_decay"),
        ("augment.offset=1.0e+300", "augment.offset"),
        ("augment.shift_voxels=[1000000000000000000000, 0, 0]", "augment.shift_voxels.0"),
        ("augment.tilt_voxels=[1000000000000000000000000, 1]", "augment.tilt_voxels.0"),
        ("train.max_steps=true", "recipe key `train.max_steps`: true is not a number."),
        ("optim.lr=true", "recipe key `optim.lr`: true is not a number."),
        ("data.workers=on", "recipe key `data.workers`: true is not a number."),
        ("train={max_steps: 2, max_steps: 3}", "not a YAML value"),
        ("checkpoint.copies=http://a/b", "recipe key `checkpoint.copies`: http://a/b is in no store that is known"),
    ],
)
def test_a_value_that_does_not_fit_is_an_error_that_names_it(override: str, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint.replace(".", r"\.")):
        load_recipe("smoke", [override])


def test_a_section_that_is_empty_is_filled_and_one_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("train:\n  # max_steps: 3\n")
    assert load_recipe(str(path), ["train.max_steps=2"]).train.max_steps == 2
    path.write_text("train: [1]\n")
    with pytest.raises(RecipeError, match=re.escape("recipe key `train` is [1], not a section.")):
        load_recipe(str(path), ["train.max_steps=2"])
    path.write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(RecipeError, match="is not YAML"):
        load_recipe(str(path))


def test_what_does_not_go_together_is_said_without_the_whole_recipe() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("smoke", ["data.pool=3"])
    assert str(caught.value).startswith("the recipe: an axis of 64 voxels")
    assert "{" not in str(caught.value)


def test_overrides_change_what_they_name() -> None:
    recipe = load_recipe("smoke", ["train.max_steps=7", "optim.lr=1e-4", "data.devices=[zeiss_cirrus]"])
    assert (recipe.train.max_steps, recipe.optim.lr, recipe.data.devices) == (7, 1e-4, ("zeiss_cirrus",))


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_is_valid_and_states_its_cost_and_its_curve(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    header = (Path(__file__).parents[2] / "train" / "recipes" / f"{name}.yaml").read_text()
    assert all(word in header for word in ("# Cost:", "# Expect:", "# Run: fovea pretrain"))


def test_the_baseline_keeps_the_documented_values() -> None:
    recipe = load_recipe("methods-multi-domain")
    optim = recipe.optim
    assert (recipe.masks.ratio, optim.lr, optim.betas, optim.weight_decay) == (0.6, 1e-4, (0.9, 0.95), 0.05)
    assert (optim.warmup_fraction, optim.final_lr_fraction) == (0.03, 0.1)
    assert (optim.ema_start, optim.ema_end) == (0.996, 1.0)


def test_a_recipe_survives_being_written_and_read(tmp_path: Path, make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(data={"devices": ["zeiss_cirrus"]}, optim={"lr": 1e-5})
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(recipe))
    assert load_recipe(str(path)) == recipe
    assert load_recipe(str(path)).hash() == recipe.hash()


def test_a_resolved_recipe_leaves_nothing_to_the_preset(tiny_dataset: str) -> None:
    plan = plan_run(
        parse_recipe(
            {
                "name": "x",
                "data": {"grid": (8, 32, 32)},
                "model": {"preset": "tiny", "patch": (2, 8, 8)},
                "objective": {"num_visible": 4, "num_targets": 4},
            }
        ),
        open_dataset(tiny_dataset),
    )
    assert plan.recipe.model.model_dump(include={"dim", "depth", "predictor_dim", "predictor_depth", "positions"}) == {
        "dim": 192, "depth": 6, "predictor_dim": 128, "predictor_depth": 3, "positions": "rope",
    }  # fmt: skip
    assert resolve(plan.recipe, grid=(8, 32, 32), rows=plan.train.samples) == plan.recipe
    with pytest.raises(RecipeError, match=r"data\.grid is \[8, 32, 32\], the dataset's .* \[8, 16, 32\]: leave"):
        resolve(plan.recipe, grid=(8, 16, 32), rows=plan.train.samples)


def test_only_what_changes_the_result_is_a_difference(make_recipe: Callable[..., Recipe]) -> None:
    old = make_recipe()
    assert differences(old, make_recipe(train={"device": "cpu", "micro_batch": 4}, log={"wandb": True})) == []
    assert differences(old, make_recipe(train={"seed": 4})) == ["train.seed: 3 -> 4"]


def test_positions_are_in_mm_exactly_where_spacing_differs(
    tiny_dataset: str, make_recipe: Callable[..., Recipe]
) -> None:
    rows = open_dataset(tiny_dataset).samples
    same = resolve(make_recipe(), grid=(8, 32, 32), rows=rows)
    assert same.model.rope_reference_mm is None
    wider = [
        replace(row, spacing_w_mm=row.spacing_w_mm * (1.5 if number > 8 else 1)) for number, row in enumerate(rows)
    ]
    mixed = resolve(make_recipe(), grid=(8, 32, 32), rows=wider)
    assert mixed.model.rope_reference_mm == pytest.approx((6 / 64, 2.3 / 384, 1.5 * 6 / 384), rel=1e-5)
    table = resolve(make_recipe(objective={"name": "methods"}), grid=(8, 32, 32), rows=wider)
    assert table.model.rope_reference_mm is None


def test_rate_and_momentum_follow_the_batch() -> None:
    """Four times the batch: twice the rate, and in a quarter of the steps the target forgets as much."""
    recipe = load_recipe("vjepa-base", ["train.global_batch=256"])
    assert recipe.optim.reference_batch == 64
    resolved = resolve(recipe, grid=recipe.grid, rows=())
    assert resolved.optim.lr == pytest.approx(2 * recipe.optim.lr)
    assert resolved.optim.ema_start == pytest.approx(recipe.optim.ema_start**4)
    assert resolved.optim.ema_end == 1.0
    constant = recipe.model_copy(update={"optim": recipe.optim.model_copy(update={"ema_start": 0.99, "ema_end": 0.99})})
    schedule = resolve(constant, grid=recipe.grid, rows=()).optim
    assert schedule.ema_start == schedule.ema_end == pytest.approx(0.99**4)
    assert resolve(resolved, grid=recipe.grid, rows=()) == resolved
    as_written = load_recipe("vjepa-base")
    assert resolve(as_written, grid=recipe.grid, rows=()).optim == as_written.optim


@pytest.mark.parametrize("key", ["num_visible", "num_targets"])
def test_a_budget_of_one_token_is_refused(make_recipe: Callable[..., Recipe], key: str) -> None:
    """It has no spread, which would be called a collapse, and BatchNorm takes no batch of one."""
    with pytest.raises(RecipeError, match=f"objective.{key}`: Input should be greater than or equal to 2"):
        make_recipe(objective={key: 1})


def test_the_geometry_is_the_datasets_and_no_other(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe()
    resolved = resolve(recipe, grid=(8, 32, 32), rows=(), geometry="block6")
    assert resolved.data.geometry == "block6"
    with pytest.raises(RecipeError, match=r"data.geometry is block6, the dataset's is fit: leave it out"):
        resolve(resolved, grid=(8, 32, 32), rows=(), geometry="fit")


def test_a_recipe_without_a_reference_keeps_its_values_at_any_batch(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(train={"global_batch": 2, "micro_batch": 2})
    assert resolve(recipe, grid=(8, 32, 32), rows=()).optim == recipe.optim
