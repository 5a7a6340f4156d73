"""Retinal vessels seen from the front: arcades that leave the disc and branch."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

Array = npt.NDArray[np.float32]

STEP_MM: Final = 0.03
AVASCULAR_MM: Final = 1.0
"""No large vessel comes nearer to the fovea than about this."""
TRUNKS: Final = ((1.0, 1.4, -0.31), (-1.0, 1.4, -0.31), (1.0, 2.0, 0.08), (-1.0, 2.0, 0.08))
"""Upper and lower temporal arcades, upper and lower nasal: (vertical sign, start angle, bend per mm), angles in radians
from the temporal direction."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VesselTree:
    """Points along the vessels `[N, 2]` (x, y in eye mm) and the half-width there `[N]` mm."""

    points: Array
    half_width: Array

    def coverage(self, x: Array, y: Array) -> Array:
        """How much of the light a vessel takes, 0-1, at eye coordinates of any shape."""
        query = np.stack([x.ravel(), y.ravel()], axis=1)
        distance, nearest = cKDTree(self.points).query(query, distance_upper_bound=0.3)
        found = np.isfinite(distance)
        width = self.half_width[np.where(found, nearest, 0)]
        depth = np.where(found, np.exp(-np.minimum((distance / width) ** 2, 50)), 0)
        near_fovea = np.exp(-((np.hypot(x, y) / AVASCULAR_MM) ** 4))
        return np.asarray(depth.reshape(x.shape) * (1 - near_fovea), dtype=np.float32)


def grow_vessels(rng: np.random.Generator, disc: tuple[float, float], side: int) -> VesselTree:
    """Four trunks (an artery and a vein each) with branches; `side` +1 puts the temporal side to the left."""
    points: list[Array] = []
    widths: list[Array] = []
    for vertical, start, bend in TRUNKS:
        for caliber in (0.055, 0.075):
            angle = start + 0.12 * rng.normal() + 2 * (caliber - 0.065)
            trunk = _walk(rng, np.zeros(2), angle, bend, 9.0)
            pieces = [(trunk, caliber), *_branches(rng, trunk, caliber, bend)]
            for piece, width in pieces:
                points.append(_place(piece, disc, side, vertical))
                widths.append(np.linspace(width, 0.6 * width, len(piece), dtype=np.float32))
    return VesselTree(points=np.concatenate(points), half_width=np.concatenate(widths))


def _branches(
    rng: np.random.Generator, trunk: npt.NDArray[np.float64], caliber: float, bend: float
) -> list[tuple[npt.NDArray[np.float64], float]]:
    branches = []
    for _ in range(4):
        origin = int(rng.integers(25, len(trunk) - 60))
        heading = np.arctan2(*(trunk[origin + 1] - trunk[origin])[::-1])
        turn = rng.choice((-1, 1)) * rng.uniform(0.5, 1.0)
        branches.append((_walk(rng, trunk[origin], heading + turn, bend - 0.25 * turn, 3.5), 0.6 * caliber))
    return branches


def _walk(
    rng: np.random.Generator, origin: npt.NDArray[np.float64], angle: float, bend: float, length_mm: float
) -> npt.NDArray[np.float64]:
    """A meandering path in disc coordinates: temporal is +x, outward from the midline +y."""
    count = int(length_mm / STEP_MM)
    along = np.arange(count) * STEP_MM
    wiggle = np.cumsum(rng.normal(0, 0.035, count))
    heading = angle + bend * np.minimum(along, 5.0) + wiggle - wiggle.mean() * along / length_mm
    steps = STEP_MM * np.stack([np.cos(heading), np.sin(heading)], axis=1)
    return np.asarray(origin + np.cumsum(steps, axis=0))


def _place(path: npt.NDArray[np.float64], disc: tuple[float, float], side: int, vertical: float) -> Array:
    """Disc coordinates to eye coordinates."""
    x = disc[0] - side * path[:, 0]
    y = disc[1] - vertical * path[:, 1]
    return np.stack([x, y], axis=1).astype(np.float32)
