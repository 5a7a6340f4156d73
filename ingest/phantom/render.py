"""From an eye and a protocol to the grey levels of a volume."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ingest.phantom.anatomy import INL, Eye, Pockets, disc_weight, layer_thickness
from ingest.phantom.optics import (
    DEEP_LEVEL,
    FLUID_LEVEL,
    LAYER_LEVELS,
    NERVE_LEVEL,
    VESSEL_SHADOW_LEVELS,
    Acquisition,
    compress,
    draw_acquisition,
    intensity,
    speckle,
)
from ingest.phantom.protocols import Protocol
from ingest.phantom.texture import DEPTH_CELL_MM, DEPTH_CELLS, Field, choroid_field, shading_field

Array = npt.NDArray[np.float32]
Volume8 = npt.NDArray[np.uint8]

MAX_SAG_MM = 0.32
"""A wider scan than the curvature allows would leave the picture: instruments bend the reference arm path instead."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScanGrid:
    """Where each A-scan of a protocol lies, mm from the scan's centre: `x`, `y` are `[D, W]`, in position order."""

    x: Array
    y: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """An eye as one scan sees it; arrays are `[..., D, W]`."""

    protocol: Protocol
    eye: Eye
    grid: ScanGrid
    eye_x: Array
    eye_y: Array
    surfaces_mm: Array
    levels: Array
    disc: Array
    shadow: Array
    choroid: Field
    acquisition: Acquisition


def scan_grid(protocol: Protocol) -> ScanGrid:
    """A-scan positions: parallel B-scans, or lines that rotate about the centre for a radial scan."""
    lateral = (np.arange(protocol.columns) - (protocol.columns - 1) / 2) * protocol.lateral_spacing_mm
    frame = np.arange(protocol.num_frames)
    if protocol.raster:
        slow = (frame - (protocol.num_frames - 1) / 2) * protocol.bscan_step_mm
        x, y = np.broadcast_arrays(lateral[None, :], slow[:, None])
    else:
        angle = np.pi * frame[:, None] / protocol.num_frames
        x, y = lateral * np.cos(angle), lateral * np.sin(angle)
    return ScanGrid(x=x.astype(np.float32), y=y.astype(np.float32))


def render_volume(protocol: Protocol, eye: Eye, seed: tuple[int, ...], *, speckle_seed: int = 0) -> Volume8:
    """Scan an eye.

    Args:
        protocol: how the eye is sampled.
        eye: what is scanned.
        seed: names this acquisition's random streams; it must not depend on the label.
        speckle_seed: another number gives the same acquisition in other speckle.

    Returns:
        uint8 `[D, H, W]`, B-scans in position order (whatever order the device stores them in).
    """
    scene = _set_scene(protocol, eye, np.random.default_rng([*seed, 1]))
    volume = np.empty(protocol.shape, dtype=np.uint8)
    for index in range(protocol.num_frames):
        rng = np.random.default_rng([*seed, 3, index, speckle_seed] if speckle_seed else [*seed, 2, index])
        noise = speckle(rng, scene.acquisition.optics.looks, protocol.shape[1:])
        volume[index] = compress(_paint(scene, index), noise, scene.acquisition)
    return volume


def _set_scene(protocol: Protocol, eye: Eye, rng: np.random.Generator) -> Scene:
    """Everything that can be computed for all B-scans at once."""
    grid = scan_grid(protocol)
    center_x, center_y = _center(protocol, eye, rng)
    eye_x, eye_y = grid.x + np.float32(center_x), grid.y + np.float32(center_y)
    extent = (float(np.ptp(grid.y)), float(np.ptp(grid.x)))
    shadow = eye.vessels.coverage(eye_x, eye_y)
    disc = disc_weight(eye, eye_x, eye_y)
    shading = shading_field(rng, extent)
    shade = np.stack([shading.sample(x, y) for x, y in zip(grid.x, grid.y, strict=True)])
    return Scene(
        protocol=protocol,
        eye=eye,
        grid=grid,
        eye_x=eye_x,
        eye_y=eye_y,
        surfaces_mm=_surfaces(protocol, eye, grid, layer_thickness(eye, eye_x, eye_y), rng),
        levels=_levels(disc, shadow, shade),
        disc=disc,
        shadow=shadow * VESSEL_SHADOW_LEVELS - 5 * shade,
        choroid=choroid_field(rng, extent, protocol.bscan_step_mm),
        acquisition=draw_acquisition(rng, protocol.device),
    )


def _center(protocol: Protocol, eye: Eye, rng: np.random.Generator) -> tuple[float, float]:
    """Where the operator aimed, in eye coordinates: within about 0.1 mm of the target."""
    fraction = {"macula": 0.0, "disc": 1.0, "wide": 0.5}[protocol.target]
    off_x, off_y = 0.1 * rng.normal(size=2)
    return fraction * eye.disc_x_mm + off_x, fraction * eye.disc_y_mm + off_y


def _surfaces(protocol: Protocol, eye: Eye, grid: ScanGrid, thickness: Array, rng: np.random.Generator) -> Array:
    """Depth of each layer's upper surface, and of Bruch's membrane: `[12, D, W]` mm from the top of the B-scan."""
    extent = protocol.rows * protocol.axial_spacing_mm
    square = grid.x**2 + grid.y**2
    radius = max(eye.curvature_mm, float(square.max()) / (2 * MAX_SAG_MM))
    tilt_x, tilt_y = 0.012 * rng.normal(size=2)
    motion = np.cumsum(0.004 * rng.normal(size=protocol.num_frames))
    motion = np.clip(motion - motion.mean(), -0.08, 0.08)
    depth = 0.6 * extent + 0.04 * extent * rng.uniform(-1, 1) - square / (2 * radius)
    membrane = depth + tilt_x * grid.x + tilt_y * grid.y + motion[:, None]
    below = np.cumsum(thickness[::-1], axis=0)[::-1]
    surfaces = np.concatenate([membrane - below, membrane[None]])
    return np.asarray(np.maximum(surfaces, surfaces[:1]), dtype=np.float32)


def _levels(disc: Array, shadow: Array, shade: Array) -> Array:
    """Grey level of each layer in each A-scan: `[11, D, W]`."""
    level = np.array(LAYER_LEVELS, dtype=np.float32).reshape(-1, 1, 1) + 5 * shade
    level[0] += disc * (NERVE_LEVEL - LAYER_LEVELS[0]) + 12 * shadow
    level[2:] -= VESSEL_SHADOW_LEVELS * shadow
    return level.astype(np.float32)


def _paint(scene: Scene, index: int) -> Array:
    """Linear intensity `[H, W]` of one B-scan: layers, what lies beneath, fluid."""
    spacing = scene.protocol.axial_spacing_mm
    rows = scene.surfaces_mm[:, index] * np.float32(1 / spacing) - np.float32(0.5)
    image = _paint_layers(rows, intensity(scene.levels[:, index]), scene.protocol.rows)
    _add_deep(scene, index, rows[-1], image)
    for pockets in (scene.eye.fovea_pockets, scene.eye.disc_pockets):
        _cut_pockets(scene, index, pockets, image)
    if spacing < 0.008:
        image = _blur_axially(image)
    return image


def _paint_layers(rows: Array, values: Array, height: int) -> Array:
    """Fill between surfaces; a voxel that a surface crosses gets its share of both sides.

    Each surface's jump is added to a derivative image that is then summed downwards: one pass however many layers.
    """
    columns = np.arange(rows.shape[1])
    edges = np.zeros((height + 2, rows.shape[1]), dtype=np.float32)
    jumps = np.diff(values, axis=0, prepend=0, append=0)
    position = np.clip(rows, 0, height - 0.001)
    start = position.astype(np.intp)
    part = position - start
    for k in range(len(rows)):
        edges[start[k], columns] += jumps[k] * (1 - part[k])
        edges[start[k] + 1, columns] += jumps[k] * part[k]
    return np.asarray(np.maximum(np.cumsum(edges[:height], axis=0), 0), dtype=np.float32)


def _add_deep(scene: Scene, index: int, membrane: Array, image: Array) -> None:
    """Choroid with its vessels and sclera, or nerve tissue under the disc, fading with depth."""
    height = scene.protocol.rows
    first = np.clip(np.ceil(membrane).astype(np.intp), 0, height)
    table = _deep_table(scene, index)
    top = int(first.min())
    offset = np.arange(top, height)[:, None] - first[None, :]
    inside = (offset >= 0) & (offset < len(table))
    deep = np.take_along_axis(table, np.clip(offset, 0, len(table) - 1), axis=0)
    image[top:] += np.where(inside, deep, 0)


def _deep_table(scene: Scene, index: int) -> Array:
    """Intensity below Bruch's membrane by depth: `[Z, W]` in rows of the B-scan."""
    optics, spacing = scene.acquisition.optics, scene.protocol.axial_spacing_mm
    reach_mm = (DEEP_LEVEL - optics.floor_level + 40) / optics.deep_slope
    depth = (np.arange(int(reach_mm / spacing), dtype=np.float32) + np.float32(0.5)) * np.float32(spacing)
    cell = depth / np.float32(DEPTH_CELL_MM)
    k = np.minimum(cell.astype(np.intp), DEPTH_CELLS - 2)
    part = np.minimum(cell - k, 1)[:, None]
    texture = np.ascontiguousarray(scene.choroid.sample(scene.grid.x[index], scene.grid.y[index]).T)
    choroid = texture[k] * (1 - part) + texture[k + 1] * part
    slope = np.float32(optics.deep_slope)
    fade = depth[:, None]
    disc = scene.disc[index]
    vascular = np.clip((fade - 0.015) / 0.03, 0, 1) * np.clip((scene.eye.choroid_mm - fade) / 0.05, 0, 1)
    level = DEEP_LEVEL - slope * fade + (26 * vascular * (1 - disc)) * choroid + disc * (14 - 0.2 * slope * fade)
    return intensity((level - scene.shadow[index]).astype(np.float32))


def _cut_pockets(scene: Scene, index: int, pockets: Pockets, image: Array) -> None:
    """Darken the ellipsoids that this B-scan meets; they are centred in the inner nuclear layer."""
    x, y = scene.eye_x[index], scene.eye_y[index]
    spacing = scene.protocol.axial_spacing_mm
    middle = (scene.surfaces_mm[INL, index] + scene.surfaces_mm[INL + 1, index]) / 2
    row = np.arange(len(image), dtype=np.float32)[:, None]
    dark = np.float32(np.exp(FLUID_LEVEL / 38))
    for px, py, lateral, axial in zip(pockets.x, pockets.y, pockets.lateral, pockets.axial, strict=True):
        inside = 1 - ((x - px) ** 2 + (y - py) ** 2) / lateral**2
        columns = np.flatnonzero((inside > 0) & (scene.disc[index] < 0.05))
        if columns.size:
            half = axial * np.sqrt(inside[columns]) / spacing
            center = middle[columns] / spacing - 0.5
            low, high = _span(center, half, len(image))
            block = image[low:high, columns]
            cover = np.clip(half - np.abs(row[low:high] - center) + 0.5, 0, 1)
            image[low:high, columns] = block * (1 - cover) + dark * cover


def _span(center: Array, half: Array, height: int) -> tuple[int, int]:
    low, high = float((center - half).min()) - 1, float((center + half).max()) + 2
    return max(int(low), 0), min(int(high) + 1, height)


def _blur_axially(image: Array) -> Array:
    """The axial point spread, a few um: three rows weighted (1, 2, 1)/4."""
    blurred = image.copy()
    blurred[1:-1] = (image[:-2] + 2 * image[1:-1] + image[2:]) * np.float32(0.25)
    return blurred
