"""Anti-aliased resampling in integer arithmetic: the same input gives the same bytes on every CPU.

Each axis is one sparse matrix of non-negative weights (a triangle filter as wide as the coarser of the two grids;
linear interpolation where the target is finer), quantised so that every row sums to exactly 2**WEIGHT_BITS. Sums of
integers do not depend on their order, so neither BLAS, nor vector width, nor threads change a voxel. The oracle is
float64 (tests/ingest/test_resample.py).
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import sparse

from ingest.geometry import Geometry
from ingest.record import ScanGeometry
from shards.schema import Box, Shape, Spacing, Volume

WEIGHT_BITS: Final = 15
"""Rounds a weight by at most 2**-16: with ten taps, far below a tenth of a grey level of 8 bits."""
FRACTION_BITS: Final = 6
"""Kept between axes for 8-bit sources: 8 + 6 + 15 bits fit in 31."""

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.signedinteger[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisPlan:
    """One axis: which source samples are needed, and the weights `[target, source]` that rows of content have.

    `start:stop` are the target voxels with content; source samples outside `first:last` have no weight.
    """

    weights: sparse.csr_matrix
    start: int
    stop: int
    first: int
    last: int
    cropped: float
    padded: float


def plan_axis(positions_mm: Floats, target_mm: Floats, step_mm: float) -> AxisPlan:
    """Weights from samples at increasing positions to a regular target grid.

    A sample stands for the tissue half-way to its neighbours. Target voxels whose centre is outside of all
    samples' tissue are padding.

    Args:
        positions_mm: source positions, increasing.
        target_mm: centres of the target voxels, increasing by `step_mm`.
        step_mm: target spacing.
    """
    edges = _cell_edges(positions_mm)
    inside = np.flatnonzero((target_mm >= edges[0] - 1e-9) & (target_mm <= edges[-1] + 1e-9))
    start, stop = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
    rows = [_row(positions_mm, edges, center, step_mm) for center in target_mm[start:stop]]
    first = min((int(indices[0]) for indices, _ in rows), default=0)
    last = max((int(indices[-1]) + 1 for indices, _ in rows), default=0)
    extent = edges[-1] - edges[0]
    overlap = max(0.0, min(edges[-1], target_mm[-1] + step_mm / 2) - max(edges[0], target_mm[0] - step_mm / 2))
    return AxisPlan(
        weights=_matrix(rows, first, last),
        start=start,
        stop=stop,
        first=first,
        last=last,
        cropped=round(float(1 - overlap / extent), 6),
        padded=round(1 - (stop - start) / len(target_mm), 6),
    )


def _cell_edges(positions: Floats) -> Floats:
    middles = (positions[1:] + positions[:-1]) / 2
    return np.concatenate(
        [[1.5 * positions[0] - 0.5 * positions[1]], middles, [1.5 * positions[-1] - 0.5 * positions[-2]]]
    )


def _row(positions: Floats, edges: Floats, center: float, step: float) -> tuple[npt.NDArray[np.int64], Floats]:
    """Source indices and weights of one target voxel."""
    right = int(np.clip(np.searchsorted(positions, center), 1, len(positions) - 1))
    gap = positions[right] - positions[right - 1]
    if step <= gap:
        share = float(np.clip((center - positions[right - 1]) / gap, 0.0, 1.0))
        return np.array([right - 1, right]), np.array([1 - share, share])
    low, high = np.searchsorted(positions, [center - step, center + step])
    indices = np.arange(max(0, min(low, right - 1)), min(len(positions), max(high, right + 1)))
    tent = np.clip(1 - np.abs(positions[indices] - center) / step, 0.0, None)
    weights = tent * (edges[indices + 1] - edges[indices])
    return indices, weights / weights.sum()


def _matrix(rows: list[tuple[npt.NDArray[np.int64], Floats]], first: int, last: int) -> sparse.csr_matrix:
    """Quantise each row to integers that sum to exactly 2**WEIGHT_BITS: the largest weight takes the rounding."""
    data, columns, ends = [], [], [0]
    for indices, weights in rows:
        whole = np.rint(weights * (1 << WEIGHT_BITS)).astype(np.int64)
        whole[np.argmax(whole)] += (1 << WEIGHT_BITS) - whole.sum()
        data.append(whole)
        columns.append(indices - first)
        ends.append(ends[-1] + len(indices))
    flat = np.concatenate(data) if data else np.zeros(0, np.int64)
    where = np.concatenate(columns) if columns else np.zeros(0, np.int64)
    matrix = sparse.csr_matrix((flat, where, np.array(ends)), shape=(len(rows), max(1, last - first)))
    matrix.eliminate_zeros()
    return matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class GridPlan:
    """The target grid laid over a scan."""

    axes: tuple[AxisPlan, AxisPlan, AxisPlan]
    size: Shape
    spacing_mm: Spacing

    @property
    def content_box(self) -> Box:
        d, h, w = self.axes
        return ((d.start, d.stop), (h.start, h.stop), (w.start, w.stop))

    @property
    def has_content(self) -> bool:
        return all(axis.stop > axis.start for axis in self.axes)


def plan_slow_axis(scan: ScanGeometry, geometry: Geometry) -> AxisPlan:
    """The D axis alone, which says what B-scans must be decoded; centred on the scan."""
    positions = np.array(scan.positions_mm)
    edges = _cell_edges(positions)
    step = _target_step(geometry, 0, float(edges[-1] - edges[0]))
    return plan_axis(positions, _centers(float(edges[0] + edges[-1]) / 2, step, geometry.size[0]), step)


def plan_grid(scan: ScanGeometry, native: Shape, geometry: Geometry, retina_mm: float) -> GridPlan:
    """Lay the target grid over a scan: D and W centred on it, H on the retina, clamped to the scan.

    Args:
        scan: positions and native spacing.
        native: native shape `[D, H, W]`.
        geometry: the target.
        retina_mm: axial position of the retina from the top of the scan.
    """
    extents = (_slow_extent(scan), native[1] * scan.spacing_mm[1], native[2] * scan.spacing_mm[2])
    d, h, w = (_target_step(geometry, axis, extent) for axis, extent in enumerate(extents))
    rows = (np.arange(native[1]) + 0.5) * scan.spacing_mm[1]
    columns = (np.arange(native[2]) + 0.5) * scan.spacing_mm[2]
    center = extents[1] / 2 if geometry.anchor == "center" else _clamped(retina_mm, h * geometry.size[1], extents[1])
    return GridPlan(
        axes=(
            plan_slow_axis(scan, geometry),
            plan_axis(rows, _centers(center, h, geometry.size[1]), h),
            plan_axis(columns, _centers(extents[2] / 2, w, geometry.size[2]), w),
        ),
        size=geometry.size,
        spacing_mm=(d, h, w),
    )


def _slow_extent(scan: ScanGeometry) -> float:
    edges = _cell_edges(np.array(scan.positions_mm))
    return float(edges[-1] - edges[0])


def _target_step(geometry: Geometry, axis: int, extent_mm: float) -> float:
    spacing = geometry.target_spacing_mm
    return spacing[axis] if spacing is not None else extent_mm / geometry.size[axis]


def _clamped(center: float, block: float, extent: float) -> float:
    """Keep the block inside of the scan where it fits, else in its middle."""
    if block >= extent:
        return extent / 2
    return min(max(center, block / 2), extent - block / 2)


def _centers(middle: float, step: float, count: int) -> Floats:
    return middle + (np.arange(count) - (count - 1) / 2) * step


def resample(frames: Volume, plan: GridPlan) -> Volume:
    """Resample the needed B-scans onto the grid; padding is zero.

    Args:
        frames: the B-scans `plan.axes[0].first:last`, in order, uint8 or uint16 `[D, H, W]`.
        plan: the grid.

    Returns:
        The grid `[D, H, W]` in the type of the source.
    """
    d, h, w = plan.axes
    target = np.zeros(plan.size, frames.dtype)
    if not plan.has_content:
        return target
    wide = np.int32 if frames.dtype == np.uint8 else np.int64
    across, down, along = (axis.weights.astype(wide) for axis in (d, h, w))
    source = frames[:, h.first : h.last, w.first : w.last]
    rows, columns = source.shape[1:]
    for place in range(d.stop - d.start):
        taps = across[place]
        low, high = int(taps.indices.min()), int(taps.indices.max()) + 1
        flat: Integers = source[low:high].reshape(high - low, rows * columns).astype(wide)
        bscan: Integers = _product(taps[:, low:high], flat, WEIGHT_BITS - FRACTION_BITS).reshape(rows, columns)
        bscan = _product(down, bscan, WEIGHT_BITS)
        bscan = _product(along, np.ascontiguousarray(bscan.T), WEIGHT_BITS + FRACTION_BITS).T
        target[d.start + place, h.start : h.stop, w.start : w.stop] = bscan
    return target


def _product(weights: Any, values: Integers, bits: int) -> Integers:
    """Weighted sums divided by 2**bits, halves up."""
    sums: Integers = np.asarray(weights @ values)
    return (sums + (1 << (bits - 1))) >> bits
