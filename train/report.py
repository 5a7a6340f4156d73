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
WINDOW: Final = (-1.5, 3.0)  # grey levels shown, in standard deviations from the mean of the content


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
    labels = np.where(batch.content_BN[index].cpu().numpy(), HIDDEN, PADDING)
    labels[batch.visible_BK[index].cpu().numpy()] = CONTEXT
    labels[batch.targets_BT[index].cpu().numpy()] = TARGET
    return labels


def overlay(grey: Image, labels: npt.NDArray[np.int64]) -> Image:
    """RGB of a slice with each token tinted by its use."""
    tints = np.array([to_rgb(colour) for colour in COLOURS.values()], dtype=np.float32)
    low, high = WINDOW
    plain = np.clip((grey - low) / (high - low), 0, 1)[..., None]
    blended: Image = (1 - OPACITY) * plain + OPACITY * tints[labels]
    return blended


def _pair(axes: Any, grey: Image, labels: npt.NDArray[np.int64], title: str) -> None:
    axes[0].imshow(grey, cmap="gray", vmin=WINDOW[0], vmax=WINDOW[1], aspect="auto")
    axes[1].imshow(overlay(grey, labels), aspect="auto")
    axes[0].set_title(title, fontsize=9)
    for axis in axes:
        axis.set_axis_off()


def _enlarge(labels_dhw: npt.NDArray[np.int64], patch: tuple[int, ...]) -> npt.NDArray[np.int64]:
    for axis, edge in enumerate(patch):
        labels_dhw = labels_dhw.repeat(edge, axis=axis)
    return labels_dhw
