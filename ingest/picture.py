"""A stored sample as one picture, to look at before it is believed."""

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from shards.schema import Sample

NUM_BSCANS: Final = 8
COLUMNS: Final = 4
PANEL_INCHES: Final = 3.5
LABEL_INCHES: Final = 0.7
LOWER_INCHES: Final = 5.0
BOX_COLOR: Final = "tab:orange"

Image = npt.NDArray[np.float32] | npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


def sample_figure(sample: Sample, path: Path) -> None:
    """Write a PNG: eight B-scans across the content, the en-face mean, and the axial profile; all axes in mm.

    B-scans and en-face projection have the aspect ratio of the tissue. Orange outlines the content box: what lies
    outside is padding. Grey runs from the 1st to the 99th percentile of the content.
    """
    bscans_inches = NUM_BSCANS // COLUMNS * (PANEL_INCHES * _bscan_aspect(sample) + LABEL_INCHES)
    figure = Figure(figsize=(COLUMNS * PANEL_INCHES + 1, bscans_inches + LOWER_INCHES), layout="constrained")
    figure.suptitle(_title(sample), fontsize=12)
    heights = (bscans_inches, LOWER_INCHES)
    upper, lower = figure.subfigures(2, 1, height_ratios=heights, squeeze=False)[:, 0]
    _draw_bscans(upper, sample)
    enface, profile = lower.subplots(1, 2, width_ratios=(1.2, 1))
    _draw_enface(enface, sample)
    _draw_profile(profile, sample)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, format="png", metadata={"Software": None})


def _bscan_aspect(sample: Sample) -> float:
    """Height over width of a B-scan in mm."""
    _, height, width = (size * step for size, step in zip(sample.volume.shape, sample.meta.spacing_mm, strict=True))
    return float(height / width)


def _title(sample: Sample) -> str:
    meta = sample.meta
    eye = {"R": "right", "L": "left"}[meta.laterality]
    spacing = " x ".join(f"{step:.4f}" for step in meta.spacing_mm)
    native = " x ".join(str(size) for size in meta.native_shape)
    return (
        f"{meta.key}\n{meta.manufacturer_model}, {meta.anatomic_region}, {eye} eye, native {native} "
        f"(spacing from {meta.spacing_source}) on the {meta.geometry} grid, spacing {spacing} mm [D, H, W]"
    )


def _draw_bscans(figure: SubFigure, sample: Sample) -> None:
    start, stop = sample.meta.content_box[0]
    indices = np.linspace(start, max(start, stop - 1), NUM_BSCANS).round().astype(int)
    panels = figure.subplots(NUM_BSCANS // COLUMNS, COLUMNS, sharex=True, sharey=True)
    for axes, index in zip(panels.flat, indices, strict=True):
        _draw(axes, sample.volume[index], sample, (1, 2))
        axes.set_title(f"B-scan {index}, {index * sample.meta.spacing_mm[0]:.2f} mm", fontsize=10)
    for axes in panels[-1]:
        axes.set_xlabel("lateral (mm)")
    for axes in panels[:, 0]:
        axes.set_ylabel("axial (mm)")


def _draw_enface(axes: Axes, sample: Sample) -> None:
    start, stop = sample.meta.content_box[1]
    _draw(axes, sample.volume[:, start:stop].mean(axis=1, dtype=np.float32), sample, (0, 2), stretch=True)
    axes.set_title("en face: mean over the axial content", fontsize=10)
    axes.set_xlabel("lateral (mm)")
    axes.set_ylabel("across B-scans (mm)")


def _draw_profile(axes: Axes, sample: Sample) -> None:
    """Mean grey level by axial position, over the B-scans and A-scans of the content."""
    d, h, w = (slice(*extent) for extent in sample.meta.content_box)
    spacing = sample.meta.spacing_mm[1]
    profile = sample.volume[d, :, w].mean(axis=(0, 2), dtype=np.float32)
    axes.plot(profile, (np.arange(len(profile)) + 0.5) * spacing, color="black", linewidth=1)
    for edge in (h.start, h.stop):
        axes.axhline(edge * spacing, color=BOX_COLOR, linestyle="--", linewidth=1)
    axes.set_ylim(len(profile) * spacing, 0)
    axes.set_title("axial profile of the content (dashed: content box)", fontsize=10)
    axes.set_xlabel("mean grey level (stored units)")
    axes.set_ylabel("axial (mm)")


def _draw(axes: Axes, image: Image, sample: Sample, plane: tuple[int, int], *, stretch: bool = False) -> None:
    """Draw an image of two axes of the volume in mm, with the outline of the content box.

    Projections have less contrast than B-scans, so `stretch` scales them to their own content.
    """
    rows, columns = (sample.meta.content_box[axis] for axis in plane)
    row_mm, column_mm = (sample.meta.spacing_mm[axis] for axis in plane)
    content = image[slice(*rows), slice(*columns)]
    low, high = sample.meta.intensity.p01, sample.meta.intensity.p99
    if stretch and content.size:
        low, high = (float(level) for level in np.percentile(content, (1, 99)))
    height, width = image.shape
    axes.imshow(
        image,
        cmap="gray",
        vmin=low,
        vmax=max(high, low + 1),
        extent=(0, width * column_mm, height * row_mm, 0),
        aspect="equal",
        interpolation="nearest",
    )
    corner = (columns[0] * column_mm, rows[0] * row_mm)
    size = ((columns[1] - columns[0]) * column_mm, (rows[1] - rows[0]) * row_mm)
    axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=BOX_COLOR, linewidth=1.2, clip_on=False))
