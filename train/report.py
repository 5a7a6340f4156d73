"""Pictures of what the networks see: B-scans and en face, with context, targets and hidden tokens in colour.

Shapes: D H W voxels after pooling, N tokens of the grid `[d, h, w]`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from shards.schema import Shape
from train.config import Recipe
from train.objective import Batch

Image = npt.NDArray[np.float32]

COLOURS: Final = {"context": "#2a9d8f", "target": "#e63946", "hidden": "#6c757d", "padding": "#000000"}
CONTEXT, TARGET, HIDDEN, PADDING = range(4)
OPACITY: Final = 0.35
WINDOW: Final = (1, 99)  # percentiles of a slice that are black and white


def save_masks(path: Path, batch: Batch, recipe: Recipe, *, title: str) -> None:
    """Draw the first volume of a batch: four B-scans and the en face mean, plain above and coloured below."""
    labels_dhw = token_labels(batch, 0).reshape(recipe.token_grid)
    figure = draw_slices(first_volume(batch), labels_dhw, recipe.model.patch, overlay, "masks")
    figure.suptitle(title)
    handles = [Patch(color=colour, label=name) for name, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=80)


def first_volume(batch: Batch) -> Image:
    """The target's view of the first volume of a batch, `[D, H, W]`."""
    volume_DHW: Image = batch.target_BDHW[0].float().cpu().numpy()
    return volume_DHW


def draw_slices(
    volume_DHW: Image, tokens_dhw: Any, patch: Shape, colour: Callable[[Image, Any], Image], what: str
) -> Figure:
    """Four B-scans and the en face mean, plain above; below with what is known of each token, as `colour` shows it.

    Args:
        volume_DHW: grey levels.
        tokens_dhw: a value, or several along a last axis, of each token.
        patch: voxels of a token.
        colour: RGB of a slice's grey levels and of its voxels' values.
        what: the tokens show, for the title of the en face.
    """
    tokens_DHW = _enlarge(tokens_dhw, patch)
    slices = [int((index + 0.5) * len(volume_DHW) / 4) for index in range(4)]
    figure = Figure(figsize=(15, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 5)
    for column, index in enumerate(slices):
        grey = volume_DHW[index]
        _pair(axes[:, column], grey, colour(grey, tokens_DHW[index]), f"B-scan {index}")
    middle = tokens_dhw.shape[1] // 2
    en_face, grey = _enlarge(tokens_dhw[:, [middle]], patch)[:, 0], volume_DHW.mean(1)
    _pair(axes[:, 4], grey, colour(grey, en_face), f"en face ({what} at mid depth)")
    return figure


def token_labels(batch: Batch, index: int) -> npt.NDArray[np.int64]:
    """What each token of a volume is used for, int `[N]`."""
    hidden_N, content_N = batch.hidden_BN[index].cpu().numpy(), batch.content_BN[index].cpu().numpy()
    labels = np.where(hidden_N, HIDDEN, np.where(content_N, CONTEXT, PADDING))
    labels[batch.targets_BT[index].cpu().numpy()] = TARGET
    return labels


def overlay(grey: Image, labels: npt.NDArray[np.int64]) -> Image:
    """RGB of a slice with each token tinted by its use."""
    tints = np.array([to_rgb(colour) for colour in COLOURS.values()], dtype=np.float32)
    blended: Image = (1 - OPACITY) * window(grey)[..., None] + OPACITY * tints[labels]
    return blended


def window(grey: Image) -> Image:
    """Grey levels stretched to 0-1."""
    low, high = np.percentile(grey, WINDOW)
    stretched: Image = np.clip((grey - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
    return stretched


def _pair(axes: Any, grey: Image, coloured: Image, title: str) -> None:
    axes[0].imshow(window(grey), cmap="gray", aspect="auto")
    axes[1].imshow(coloured, aspect="auto")
    axes[0].set_title(title, fontsize=9)
    for axis in axes:
        axis.set_axis_off()


def _enlarge(tokens_dhw: Any, patch: Shape) -> Any:
    for axis, edge in enumerate(patch):
        tokens_dhw = tokens_dhw.repeat(edge, axis=axis)
    return tokens_dhw
