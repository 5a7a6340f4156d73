"""Smooth random fields over the scanned area: choroidal vessels, patchy shading."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

Array = npt.NDArray[np.float32]

CELL_MM: Final = 0.05
MAX_CELL_MM: Final = 0.3
DEPTH_CELL_MM: Final = 0.03
DEPTH_CELLS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Field:
    """Values on a grid `[Y, X, ...]` about the scan's centre, read by bilinear interpolation.

    `cell_mm` is the grid's spacing along (slow, lateral).
    """

    values: Array
    cell_mm: tuple[float, float]

    def sample(self, x: Array, y: Array) -> Array:
        """Values at scan coordinates `[W]` mm: `[W, ...]`."""
        rows, columns = self.values.shape[:2]
        v = np.clip(y / self.cell_mm[0] + (rows - 1) / 2, 0, rows - 1.001)
        u = np.clip(x / self.cell_mm[1] + (columns - 1) / 2, 0, columns - 1.001)
        i, j = v.astype(np.intp), u.astype(np.intp)
        tail = [1] * (self.values.ndim - 2)
        a = (v - i).astype(np.float32).reshape(-1, *tail)
        b = (u - j).astype(np.float32).reshape(-1, *tail)
        grid = self.values
        upper = grid[i, j] * (1 - b) + grid[i, j + 1] * b
        lower = grid[i + 1, j] * (1 - b) + grid[i + 1, j + 1] * b
        return np.asarray(upper * (1 - a) + lower * a)


def choroid_field(rng: np.random.Generator, extent_mm: tuple[float, float], step_mm: float) -> Field:
    """Texture `[Y, X, depth]` between -1 (lumen of a vessel) and 1 (stroma), cells of 50 x 50 x 30 um.

    B-scans further apart than a vessel is wide are independent, so there the slow cells grow with the step.
    """
    cell = (min(max(CELL_MM, step_mm), MAX_CELL_MM), CELL_MM)
    shape = (*_cells(extent_mm, cell), DEPTH_CELLS)
    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), (1.2, 1.2, 0.9))
    return Field(values=np.tanh(noise * np.float32(1.6 / noise.std())), cell_mm=cell)


def shading_field(rng: np.random.Generator, extent_mm: tuple[float, float]) -> Field:
    """Floaters and uneven illumination: standard deviation 1, over about 0.8 mm."""
    cell = (MAX_CELL_MM, MAX_CELL_MM)
    noise = gaussian_filter(rng.standard_normal(_cells(extent_mm, cell), dtype=np.float32), 2.5)
    return Field(values=noise / noise.std(), cell_mm=cell)


def _cells(extent_mm: tuple[float, float], cell_mm: tuple[float, float]) -> tuple[int, int]:
    return int(extent_mm[0] / cell_mm[0]) + 3, int(extent_mm[1] / cell_mm[1]) + 3
