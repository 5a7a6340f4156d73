"""Recipes for a machine that has PyTorch and little else: the shipped ones as JSON, read without pydantic and YAML.

    python benchmarks/plain_recipe.py     writes benchmarks/recipes.json from train/recipes, and needs both

`tests/train/test_benchmark.py` compares the file with the recipes, and the two ways of reading.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.schema import GRID_SHAPE, Shape, token_grid
from train.errors import RecipeError

if TYPE_CHECKING:
    from train.config import Recipe

SHIPPED = Path(__file__).with_name("recipes.json")
SECTIONS = ("data", "model", "objective", "masks", "optim", "augment", "train")  # what a step may ask for
ABSENT = ("pydantic", "yaml")


@dataclass(frozen=True, slots=True)
class Section:
    """The keys of a section as attributes."""

    values: Mapping[str, Any]

    def __getattr__(self, key: str) -> Any:
        try:
            return self.values[key]
        except KeyError as error:
            raise AttributeError(key) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainRecipe:
    """What a step asks of a `train.config.Recipe`, by the same names."""

    name: str
    data: Section
    model: Section
    objective: Section
    masks: Section
    optim: Section
    augment: Section
    train: Section

    @property
    def grid(self) -> Shape:
        return self.data.grid or GRID_SHAPE

    @property
    def token_grid(self) -> Shape:
        return token_grid(self.grid, self.model.patch, self.data.pool)

    @property
    def num_tokens(self) -> int:
        return math.prod(self.token_grid)


def read_recipe(name: str, overrides: Sequence[str] = ()) -> "Recipe | PlainRecipe":
    """A recipe and its `a.b=c` overrides; where pydantic or YAML is missing, a shipped one and JSON values or words.

    Raises:
        RecipeError: if there is no such recipe or key.
    """
    try:
        from train.recipe import load_recipe
    except ModuleNotFoundError as error:
        if error.name not in ABSENT:
            raise
        return plain_recipe(name, overrides)
    return load_recipe(name, overrides)


def plain_recipe(name: str, overrides: Sequence[str] = ()) -> PlainRecipe:
    """A recipe of `recipes.json`."""
    shipped: dict[str, dict[str, dict[str, Any]]] = json.loads(SHIPPED.read_text())
    if name not in shipped:
        raise RecipeError(f"without {' and '.join(ABSENT)} the recipes are {', '.join(shipped)}, and not {name!r}.")
    sections = shipped[name]
    for override in overrides:
        _apply(sections, override)
    return PlainRecipe(name=name, **{key: Section(_frozen(values)) for key, values in sections.items()})


def shipped_recipes() -> str:
    """The text of `recipes.json`, from the recipes themselves."""
    from train.recipe import load_recipe, recipe_names

    recipes = {name: load_recipe(name).model_dump(mode="json", include=set(SECTIONS)) for name in recipe_names()}
    return json.dumps(recipes, indent=1) + "\n"


def _apply(sections: dict[str, dict[str, Any]], override: str) -> None:
    key, _, text = override.partition("=")
    section, _, leaf = key.partition(".")
    if leaf not in sections.get(section, {}):
        raise RecipeError(f"--set {override}: {key!r} is no key of {', '.join(SECTIONS)}, e.g. train.micro_batch=2.")
    try:
        sections[section][leaf] = json.loads(text)
    except json.JSONDecodeError:
        sections[section][leaf] = text


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _frozen(inner) for key, inner in value.items()}
    return tuple(_frozen(inner) for inner in value) if isinstance(value, list) else value


if __name__ == "__main__":
    SHIPPED.write_text(shipped_recipes())
