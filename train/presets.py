"""Encoder sizes by name, and the predictor that goes with each. Heads are `model.head_dim` wide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from train.encoder import EncoderConfig
from train.errors import RecipeError

if TYPE_CHECKING:  # pydantic, which a step does not need
    from train.config import ModelConfig, Preset, Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """Widths and depths of the encoder and of the transformer predictor."""

    dim: int
    depth: int
    predictor_dim: int
    predictor_depth: int


PRESETS: Final[dict[Preset, Dimensions]] = {
    "tiny": Dimensions(dim=192, depth=6, predictor_dim=128, predictor_depth=3),
    "small": Dimensions(dim=384, depth=12, predictor_dim=192, predictor_depth=6),
    "base": Dimensions(dim=768, depth=12, predictor_dim=384, predictor_depth=12),
    "large": Dimensions(dim=1024, depth=24, predictor_dim=384, predictor_depth=12),
}


def dimensions(model: ModelConfig) -> Dimensions:
    """The preset's sizes with the recipe's own in their place.

    Raises:
        RecipeError: if a width is not a whole number of heads.
    """
    preset = PRESETS[model.preset]
    chosen = Dimensions(
        dim=model.dim or preset.dim,
        depth=model.depth or preset.depth,
        predictor_dim=model.predictor_dim or preset.predictor_dim,
        predictor_depth=model.predictor_depth or preset.predictor_depth,
    )
    for name, width in (("dim", chosen.dim), ("predictor_dim", chosen.predictor_dim)):
        if width % model.head_dim:
            raise RecipeError(
                f"model.{name} {width} is not a multiple of model.head_dim {model.head_dim}: "
                f"choose one that is, e.g. {model.head_dim * max(1, width // model.head_dim)}."
            )
    return chosen


def encoder_config(recipe: Recipe) -> EncoderConfig:
    """The encoder that a recipe asks for.

    Raises:
        RecipeError: if a width is not a whole number of heads.
    """
    size = dimensions(recipe.model)
    return EncoderConfig(
        dim=size.dim,
        depth=size.depth,
        head_dim=recipe.model.head_dim,
        patch=recipe.model.patch,
        token_grid=recipe.token_grid,
        table=positions(recipe) == "table",
        reference_mm=recipe.model.rope_reference_mm,
    )


def positions(recipe: Recipe) -> str:
    """How the encoder knows where a token is: `rope` or `table`."""
    return recipe.model.positions or ("rope" if recipe.objective.name == "vjepa" else "table")
