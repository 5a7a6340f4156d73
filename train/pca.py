"""A picture of what the target encoder tells apart: the first three principal components of its tokens as colours.

Shapes: D H W voxels after pooling, N tokens of the grid `[d, h, w]`, M content tokens, C channels.
"""

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from train.config import Recipe
from train.objective import Batch
from train.report import Image, draw_slices, first_volume

EXTENT: Final = (2, 98)  # percentiles of a component that have none and all of its colour


def save_components(path: Path, batch: Batch, tokens_BNC: Tensor, recipe: Recipe, *, title: str) -> None:
    """Draw the first volume of a batch: four B-scans and the en face mean, and below the colours of its tokens.

    Args:
        path: a PNG file.
        batch: of at least one volume.
        tokens_BNC: the target's features of each token.
        recipe: for the grid.
        title: above the picture.
    """
    content_N = batch.content_BN[0].cpu()
    grey_N = _mean_of_tokens(batch.target_BDHW[0].float().cpu(), recipe)
    colours_N3 = component_colours(tokens_BNC[0], content_N, grey_N)
    colours_dhw3 = colours_N3.numpy().astype(np.float32).reshape(*recipe.token_grid, 3)
    figure = draw_slices(first_volume(batch), colours_dhw3, recipe.model.patch, _only_colours, "components")
    figure.suptitle(f"{title}: principal components 1, 2, 3 of its tokens as red, green, blue")
    figure.savefig(path, dpi=80)


def component_colours(tokens_NC: Tensor, content_N: Tensor, grey_N: Tensor) -> Tensor:
    """Three components of each token, from 0 to 1, float64 `[N, 3]`; padding is black.

    They are fitted on the content of this volume. A component's sign means nothing: it is turned so that it grows with
    the brightness of the tokens, so that pictures of one volume at several steps can be compared.
    """
    x_MC, grey_M = tokens_NC[content_N].double(), grey_N[content_N].double()
    x_MC = x_MC - x_MC.mean(0)
    _, directions_CC = torch.linalg.eigh(x_MC.T @ x_MC)  # the greatest last
    found_M3 = x_MC @ directions_CC[:, -3:].flip(1)
    with_grey_3 = (found_M3 * (grey_M - grey_M.mean())[:, None]).sum(0)
    found_M3 = found_M3 * torch.where(with_grey_3 < 0, -1.0, 1.0)
    low_3, high_3 = torch.quantile(found_M3, torch.tensor(EXTENT, dtype=found_M3.dtype) / 100, dim=0)
    colours_N3 = torch.zeros(len(tokens_NC), 3, dtype=found_M3.dtype)
    colours_N3[content_N] = ((found_M3 - low_3) / (high_3 - low_3).clamp_min(1e-9)).clamp(0, 1)
    return colours_N3


def _mean_of_tokens(volume_DHW: Tensor, recipe: Recipe) -> Tensor:
    return torch.nn.functional.avg_pool3d(volume_DHW[None], recipe.model.patch).flatten()


def _only_colours(_grey: Image, colours: npt.NDArray[np.float32]) -> Image:
    return colours
