"""Features of whole samples, for those who score an encoder.

Shapes: B volumes, N tokens, C channels.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from shards.schema import Sample
from train.config import Recipe
from train.data import Prepared, prepare
from train.encoder import Encoder
from train.objective import pool_content


def pooled_features(encoder: Encoder, recipe: Recipe, samples: Sequence[Sample], device: torch.device) -> Tensor:
    """Mean of the content tokens of each sample: float32 `[B, C]`, on the CPU."""
    batches = _encode(encoder, recipe, samples, device)
    return torch.cat([pool_content(x_BNC, prepared.content_BN).cpu() for x_BNC, prepared in batches])


def token_features(
    encoder: Encoder, recipe: Recipe, samples: Sequence[Sample], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Every token of each sample, and which of them are content: `[B, N, C]` and bool `[B, N]`, on the CPU."""
    batches = list(_encode(encoder, recipe, samples, device))
    tokens_BNC = torch.cat([x_BNC.cpu() for x_BNC, _ in batches])
    return tokens_BNC, torch.cat([prepared.content_BN.cpu() for _, prepared in batches])


@torch.no_grad()
def _encode(
    encoder: Encoder, recipe: Recipe, samples: Sequence[Sample], device: torch.device
) -> Iterator[tuple[Tensor, Prepared]]:
    """Run the encoder on micro-batches, in float32 and evaluation mode."""
    encoder.to(device).eval()
    size = recipe.train.micro_batch
    for start in range(0, len(samples), size):
        prepared = prepare(samples[start : start + size], recipe, device)
        yield encoder(prepared.x_BDHW, prepared.content_BN, prepared.spacing_B3).float(), prepared
