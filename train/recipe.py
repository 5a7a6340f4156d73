"""Recipes as files: reading, overriding, resolving against a dataset, and comparing."""

import difflib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import pydantic
import yaml

from shards.schema import SampleRow
from train.config import Recipe, Section
from train.errors import RecipeError
from train.presets import dimensions, positions

RECIPES: Final = Path(__file__).parent / "recipes"
SPACING_TOLERANCE: Final = 1e-3  # relative; stored spacings of one geometry agree to float rounding

RANK_KEYS: Final = ("train.device", "train.micro_batch", "train.recompute", "train.compile", "data.workers")
"""Of these, keys that may differ between the ranks of a run."""
MACHINE_KEYS: Final = (*RANK_KEYS, "train.shard", "log.", "checkpoint.")
"""Keys that say where and how a run computes, not what: a run may be resumed with others."""


def recipe_names() -> tuple[str, ...]:
    """The recipes that ship with the package."""
    return tuple(sorted(path.stem for path in RECIPES.glob("*.yaml")))


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe by name, or a YAML file, and apply `a.b=c` overrides.

    Raises:
        RecipeError: if there is no such recipe, a key is not known, or a value does not fit.
    """
    path = _find(name_or_path)
    try:
        values = yaml.load(path.read_text(), _PlainLoader)  # noqa: S506 - it is a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no text, or a day that there is not
        raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path} holds {type(values).__name__}, not the keys of a recipe.")
    values.setdefault("name", path.stem)
    for override in overrides:
        _apply(values, override)
    return parse_recipe(values)


def parse_recipe(values: Mapping[str, Any]) -> Recipe:
    """Check values against the schema of a recipe.

    Raises:
        RecipeError: names the first key that is not known with its nearest neighbour, or the value that fails.
    """
    try:
        recipe = Recipe.model_validate(values)
    except pydantic.ValidationError as error:
        raise RecipeError(_sentence(error)) from error
    dimensions(recipe.model)
    return recipe


def recipe_text(recipe: Recipe) -> str:
    """The recipe as YAML; reading it again gives an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def resolve(recipe: Recipe, *, grid: Sequence[int], rows: Sequence[SampleRow], geometry: str | None = None) -> Recipe:
    """Write down what the recipe leaves to its preset and to the dataset, so that the run describes itself.

    Args:
        recipe: as the user gave it.
        grid: voxels `[D, H, W]` of the dataset's volumes.
        rows: the samples of the run, for their spacing.
        geometry: the name of theirs, if they are of a dataset.

    Raises:
        RecipeError: if the recipe is for volumes of another grid or geometry.
    """
    values = recipe.model_dump(mode="json")
    if recipe.data.grid not in (None, tuple(grid)):
        raise RecipeError(f"data.grid is {list(recipe.grid)}, the dataset's volumes are {list(grid)}: leave it out.")
    if geometry and recipe.data.geometry not in (None, geometry):
        raise RecipeError(f"data.geometry is {recipe.data.geometry}, the dataset's is {geometry}: leave it out.")
    values["data"].update(grid=list(grid), geometry=geometry or recipe.data.geometry)
    values["model"].update(asdict(dimensions(recipe.model)), positions=positions(recipe))
    if values["model"]["positions"] == "rope" and recipe.model.rope_reference_mm is None:
        values["model"]["rope_reference_mm"] = _reference_spacing(rows)
    values["optim"].update(_for_batch(recipe))
    return parse_recipe(values)


def _for_batch(recipe: Recipe) -> dict[str, Any]:
    """What depends on the global batch, for the recipe's own."""
    optim, batch = recipe.optim, recipe.train.global_batch
    ratio = batch / (optim.reference_batch or batch)
    return {
        "reference_batch": batch if optim.reference_batch else None,
        "lr": optim.lr * math.sqrt(ratio),
        "ema_start": optim.ema_start**ratio,
        "ema_end": optim.ema_end**ratio,
    }


def differences(old: Recipe, new: Recipe) -> list[str]:
    """`key: old -> new` for each key that would make a resumed run another run."""
    before, after = dict(_flatten(old.model_dump(mode="json"))), dict(_flatten(new.model_dump(mode="json")))
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(MACHINE_KEYS)
    ]


def shared_sha256(recipe: Recipe) -> str:
    """A hash over all that must be the same on every rank."""
    flat = dict(_flatten(recipe.model_dump(mode="json")))
    shared = {key: value for key, value in flat.items() if not key.startswith(RANK_KEYS)}
    return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()


class _PlainLoader(yaml.SafeLoader):
    """Of two equal keys YAML takes the last and says nothing; what an alias repeats an override would change twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*name): write it out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((key for place, key in enumerate(keys) if key in keys[:place]), None):
            raise yaml.YAMLError(f"the key {twice} is there twice")
        return super().construct_mapping(node, deep)


def _find(name_or_path: str) -> Path:
    if name_or_path in recipe_names():
        return RECIPES / f"{name_or_path}.yaml"
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        return path
    raise RecipeError(
        f"there is no recipe {name_or_path!r}: give the path of a .yaml file, or one of {', '.join(recipe_names())}."
    )


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one dotted key; the value is read as YAML, as it would be in a file."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override} is not of the form key=value, e.g. --set train.max_steps=100.")
    *parents, leaf = key.split(".")
    place = values
    for parent in parents:
        if place.get(parent) is None:
            place[parent] = {}
        if not isinstance(place[parent], dict):
            known = key in set(_keys(Recipe))
            raise RecipeError(f"recipe key `{parent}` is {place[parent]!r}, not a section." if known else _unknown(key))
        place = place[parent]
    try:
        place[leaf] = yaml.load(text, _PlainLoader)  # noqa: S506 - it is a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"--set {override}: {text!r} is not a YAML value.") from error


def _sentence(error: pydantic.ValidationError) -> str:
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return _unknown(key)
    if first["type"] == "value_error":  # of our own validators, which say all that there is to say
        return f"{f'recipe key `{key}`' if key else 'the recipe'}: {first['ctx']['error']}."
    return f"recipe key `{key or 'recipe'}`: {first['msg']}, but it is {first['input']!r}."[:500]


def _unknown(key: str) -> str:
    keys = list(_keys(Recipe))
    by_leaf = [known for known in keys if known.rpartition(".")[2] == key.rpartition(".")[2]]
    nearest = by_leaf or difflib.get_close_matches(key, keys, n=1, cutoff=0.0)
    return f"recipe key `{key}` is not known; the nearest is `{nearest[0]}`."


def _keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    for name, info in section.model_fields.items():
        yield prefix + name
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from _keys(info.annotation, f"{prefix}{name}.")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _reference_spacing(rows: Sequence[SampleRow]) -> list[float] | None:
    """The median spacing when spacing differs between volumes, else None: then grid indices are as good."""
    if not rows:
        return None
    spacing = np.array([[row.spacing_d_mm, row.spacing_h_mm, row.spacing_w_mm] for row in rows])
    median = np.median(spacing, axis=0)
    if np.all(np.abs(spacing - median) <= SPACING_TOLERANCE * median):
        return None
    return [float(f"{value:.6g}") for value in median]
