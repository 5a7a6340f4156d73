"""Target grids: `methods`, `block6`, `fit`, or a YAML file. Axes `[D, H, W]`, spacing in mm."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

import yaml

from ingest.errors import GeometryError
from shards.schema import GRID_SHAPE, PATCH_SHAPE, Shape, Spacing

MAX_VOXELS: Final = 2**28
"""268 million voxels: a wrong spacing must never ask for terabytes (PREDECESSOR 1)."""

Anchor = Literal["retina", "center"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """A target grid.

    `target_spacing_mm` None means the whole field of view onto `size`. `anchor` says where the axial centre of the
    grid lies: on the retina, or on the middle of the scan.
    """

    name: str
    target_spacing_mm: Spacing | None
    size: Shape = GRID_SHAPE
    anchor: Anchor = "retina"

    def __post_init__(self) -> None:
        if len(self.size) != 3 or not all(isinstance(edge, int) and edge > 0 for edge in self.size):
            raise GeometryError(f"geometry {self.name}: size must be three positive whole numbers, not {self.size}.")
        if self.size[0] * self.size[1] * self.size[2] > MAX_VOXELS:
            raise GeometryError(f"geometry {self.name}: {self.size} is over {MAX_VOXELS} voxels.")
        if any(edge % patch for edge, patch in zip(self.size, PATCH_SHAPE, strict=True)):
            raise GeometryError(
                f"geometry {self.name}: size {self.size} is not a whole number of {PATCH_SHAPE} tokens."
            )
        spacing = self.target_spacing_mm
        if spacing is not None and (len(spacing) != 3 or not all(0 < step < 100 for step in spacing)):
            raise GeometryError(f"geometry {self.name}: target_spacing_mm must be three positive numbers.")
        if self.anchor not in get_args(Anchor):
            raise GeometryError(f"geometry {self.name}: anchor must be one of {', '.join(get_args(Anchor))}.")

    def describe(self) -> dict[str, Any]:
        """As `dataset.json` records it."""
        return asdict(self)


METHODS: Final = Geometry(name="methods", target_spacing_mm=(0.05, 0.02, 0.02))
BLOCK6: Final = Geometry(name="block6", target_spacing_mm=(6 / 64, 2.3 / 384, 6 / 384))
FIT: Final = Geometry(name="fit", target_spacing_mm=None, anchor="center")
GEOMETRIES: Final = {geometry.name: geometry for geometry in (METHODS, BLOCK6, FIT)}


def load_geometry(name: str) -> Geometry:
    """A named geometry, or one from a YAML file with `target_spacing_mm`, `size` and `anchor`.

    Raises:
        GeometryError: if there is no such name or file, or the file is not a geometry.
    """
    if name in GEOMETRIES:
        return GEOMETRIES[name]
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        raise GeometryError(f"no geometry {name!r}: use {', '.join(GEOMETRIES)} or a .yaml file.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise GeometryError(f"geometry file {name}: {type(error).__name__}; it must be readable YAML.") from error
    return _from_mapping(path.stem, values)


def _from_mapping(name: str, values: object) -> Geometry:
    known = {"target_spacing_mm", "size", "anchor"}
    if not isinstance(values, dict) or not set(values) <= known or "target_spacing_mm" not in values:
        raise GeometryError(f"geometry {name}: needs target_spacing_mm, and may have size and anchor; nothing else.")
    try:
        spacing = values["target_spacing_mm"]
        return Geometry(
            name=name,
            target_spacing_mm=None if spacing is None else cast("Spacing", tuple(float(step) for step in spacing)),
            size=cast("Shape", tuple(values.get("size", GRID_SHAPE))),
            anchor=values.get("anchor", "retina"),
        )
    except (TypeError, ValueError) as error:
        raise GeometryError(f"geometry {name}: {error}.") from error


def content_share(extent_mm: Spacing, geometry: Geometry) -> float:
    """Share of the target grid that a scan of this field of view fills, the rest being padding."""
    spacing = geometry.target_spacing_mm
    if spacing is None:
        return 1.0
    blocks = [step * edge for step, edge in zip(spacing, geometry.size, strict=True)]
    return math.prod(min(1.0, extent / block) for extent, block in zip(extent_mm, blocks, strict=True))
