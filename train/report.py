"""Pictures of what the networks see: B-scans and en face, with context, targets and hidden tokens in colour.

Shapes: D H W voxels after pooling, N tokens of the grid `[d, h, w]`.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from train.config import Recipe
from train.objective import Batch

Image = npt.NDArray[np.float32]

COLOURS: Final = {"context": "#2a9d8f", "target": "#e63946", "hidden": "#6c757d", "padding": "#000000"}
CONTEXT, TARGET, HIDDEN, PADDING = range(4)
OPACITY: Final = 0.35
WINDOW: Final = (1, 99)  # percentiles of a slice that are black and white


def save_masks(path: Path, batch: Batch, recipe: Recipe, *, title: str) -> None:
    """Draw the first volume of a batch: four B-scans and the en face mean, plain above and coloured below."""
    volume_DHW = batch.target_BDHW[0].float().cpu().numpy()
    labels_dhw = token_labels(batch, 0).reshape(recipe.token_grid)
    labels_DHW = _enlarge(labels_dhw, recipe.model.patch)
    slices = [int((index + 0.5) * len(volume_DHW) / 4) for index in range(4)]
    figure = Figure(figsize=(15, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 5)
    for column, index in enumerate(slices):
        _pair(axes[:, column], volume_DHW[index], labels_DHW[index], f"B-scan {index}")
    middle = labels_dhw.shape[1] // 2
    en_face = _enlarge(labels_dhw[:, [middle]], recipe.model.patch)[:, 0]
    _pair(axes[:, 4], volume_DHW.mean(1), en_face, "en face (masks at mid depth)")
    figure.suptitle(title)
    handles = [Patch(color=colour, label=name) for name, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=80)


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


def _pair(axes: Any, grey: Image, labels: npt.NDArray[np.int64], title: str) -> None:
    axes[0].imshow(window(grey), cmap="gray", aspect="auto")
    axes[1].imshow(overlay(grey, labels), aspect="auto")
    axes[0].set_title(title, fontsize=9)
    for axis in axes:
        axis.set_axis_off()


def _enlarge(labels_dhw: npt.NDArray[np.int64], patch: tuple[int, ...]) -> npt.NDArray[np.int64]:
    for axis, edge in enumerate(patch):
        labels_dhw = labels_dhw.repeat(edge, axis=axis)
    return labels_dhw
