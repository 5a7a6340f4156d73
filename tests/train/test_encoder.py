"""The encoder: its size, its positions, and what it may not look at."""

from pathlib import Path

import pytest
import torch

from train.config import Recipe
from train.encoder import Encoder, grid_positions, num_parameters, patches, rotate, rotation, take_tokens
from train.objective import build_encoder
from train.predictor import TransformerPredictor
from train.presets import PRESETS, encoder_config
from train.recipe import load_recipe


def formula(dim: int, depth: int, tokens: int, patch_voxels: int) -> int:
    """Parameters of an encoder: patches, blocks, last norm, mask token, and a learnable table of positions."""
    block = 12 * dim**2 + 13 * dim  # qkv, proj, fc1, fc2 with biases, two norms
    return (patch_voxels + 1) * dim + depth * block + 2 * dim + dim + tokens * dim


def counted(preset: str, positions: str) -> tuple[Encoder, TransformerPredictor]:
    recipe = load_recipe("vjepa-base", [f"model.preset={preset}", f"model.positions={positions}"])
    with torch.device("meta"):
        return Encoder(encoder_config(recipe)), TransformerPredictor(recipe)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_number_of_parameters_is_counted_and_true(preset: str) -> None:
    """Each number of the table in docs/training.md."""
    page = (Path(__file__).parents[2] / "docs/training.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith(f"| {preset} |"))
    encoder, predictor = counted(preset, "rope")
    with_table, _ = counted(preset, "table")
    dim, depth = encoder.dim, len(encoder.blocks)
    p, layers = predictor.embed.out_features, len(predictor.blocks)
    assert num_parameters(encoder) == formula(dim, depth, 0, 4 * 16 * 16)
    assert num_parameters(with_table) == formula(dim, depth, 9216, 4 * 16 * 16)
    assert num_parameters(predictor) == 2 * dim * p + dim + 4 * p + layers * (12 * p**2 + 13 * p)
    millions = [f"{num_parameters(one) / 1e6:.1f}M" for one in (encoder, with_table, predictor)]
    assert [cell.strip() for cell in line.split("|")[2:-1]] == [*map(str, (dim, depth, p, layers)), *millions]


def test_patches_are_cut_in_row_major_order() -> None:
    x_BDHW = torch.arange(2 * 4 * 6 * 8).view(2, 4, 6, 8)
    cut_BNP = patches(x_BDHW, (2, 3, 4))
    assert cut_BNP.shape == (2, 8, 24)
    second_in_h = x_BDHW[1, 0:2, 3:6, 0:4].reshape(-1)
    assert torch.equal(cut_BNP[1, 2], second_in_h)


def test_rotary_attention_depends_on_relative_position_only() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 24, generator=generator)
    here, there = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[4.0, 2.5, 0.0]]])

    def logit(shift: tuple[float, float, float]) -> torch.Tensor:
        moved = torch.tensor(shift)
        return (rotate(q, rotation(here + moved, 24)) * rotate(k, rotation(there + moved, 24))).sum()

    torch.testing.assert_close(logit((0, 0, 0)), logit((5, 1, 7)), rtol=1e-4, atol=1e-5)
    assert abs(logit((0, 0, 0)) - (q * k).sum()) > 1e-3


def test_each_axis_turns_the_features() -> None:
    positions_NA = grid_positions((2, 2, 2), device=torch.device("cpu"))
    angles = rotation(positions_NA[None], 24).cos[0, 0]
    assert len({tuple(row.tolist()) for row in angles}) == 8


def test_positions_in_mm_give_equal_angles_to_equal_distances(recipe: Recipe) -> None:
    values = recipe.model_dump()
    values["model"].update(positions="rope", rope_reference_mm=(0.1, 0.1, 0.1))
    encoder = build_encoder(Recipe.model_validate(values), seed=0)
    spacing_B3 = torch.tensor([[0.1, 0.1, 0.1], [0.2, 0.1, 0.1]])
    turn = encoder.rotation(spacing_B3, None, device=torch.device("cpu"))
    step_in_d = 16  # tokens of one B-scan plane in a grid of 4x4x4
    torch.testing.assert_close(turn.cos[0, 0, 2 * step_in_d], turn.cos[1, 0, step_in_d])
    with pytest.raises(ValueError, match="spacing_B3"):
        encoder(torch.zeros(1, 8, 32, 32))


def test_kept_tokens_are_encoded_as_if_the_others_did_not_exist(recipe: Recipe) -> None:
    encoder = build_encoder(recipe, seed=1)
    x_BDHW = torch.randn(2, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    keep_BK = torch.stack([torch.randperm(64, generator=torch.Generator().manual_seed(b))[:20] for b in range(2)])
    only_BN = torch.zeros(2, 64, dtype=torch.bool).scatter(1, keep_BK, torch.ones(2, 20, dtype=torch.bool))
    gathered_BKC = encoder(x_BDHW, keep_BK=keep_BK)
    attended_BKC = take_tokens(encoder(x_BDHW, only_BN), keep_BK)
    torch.testing.assert_close(gathered_BKC, attended_BKC, rtol=1e-4, atol=1e-5)


def test_a_seed_gives_one_encoder_and_leaves_the_global_stream_alone(recipe: Recipe) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = build_encoder(recipe, seed=2), build_encoder(recipe, seed=2)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.patchify.weight, build_encoder(recipe, seed=3).patchify.weight)
