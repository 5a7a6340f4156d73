"""Is it a raster? B-scans as lines in space, recognised from their positions and orientations, not by name."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from ingest.errors import IngestError
from ingest.faults import Faults
from ingest.fields import groups, numbers
from manifests.reasons import Reason

PARALLEL_TOLERANCE_DEGREES: Final = 2.0
"""Neighbouring lines of a radial scan of 27 turn by 6.7 degrees; eye tracking turns a raster by less than one."""

STRAIGHT_SHARE: Final = 0.2
"""Across over along: corners of tracked B-scans wander by a few percent of the field, half a circle by half of it."""

SHIFT_SHARE: Final = 0.2
"""Of a B-scan's length: tracking corrects by a few percent. The grid has one lateral place for all."""

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One B-scan: the middle of its fast axis, that axis's unit direction, and the slow axis's unit normal.

    Units are mm for planes and localizer pixels for frame locations; `direction` and `normal` are None when the
    header gives no orientation.
    """

    middle: Vector
    direction: Vector | None
    normal: Vector | None
    length: float = 0.0


def raster_lines(dataset: Dataset, num_frames: int) -> tuple[list[Line] | None, list[Line] | None]:
    """Plane positions and frame locations, each None where absent, as lines that run in one direction.

    Raises:
        IngestError: SPACING_INVALID, SPACING_INCONSISTENT or NOT_RASTER, of either.
    """
    faults = Faults()
    planes = faults.of(lambda: plane_lines(dataset, num_frames))
    locations = faults.of(lambda: frame_lines(dataset, num_frames))
    faults.of(lambda: check_parallel(planes))
    faults.of(lambda: check_parallel(locations))
    faults.raise_first()
    return planes, locations


def plane_lines(dataset: Dataset, num_frames: int) -> list[Line] | None:
    """Lines from PlanePositionSequence and PlaneOrientationSequence; None when no frame has a position.

    Raises:
        IngestError: SPACING_INVALID, SPACING_INCONSISTENT when only some frames have a position, or NOT_RASTER.
    """
    orientations = _per_frame(dataset, num_frames, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    positions = _per_frame(dataset, num_frames, "PlanePositionSequence", "ImagePositionPatient", 3)
    absent = all(position is None or not np.any(position) for position in positions)  # or placeholders
    placed = [] if absent else _all_or_none(positions, "ImagePositionPatient")
    if all(orientation is not None for orientation in orientations):
        check_parallel([_plane(np.zeros(3), orientation) for orientation in orientations])
    pairs = zip(placed, orientations, strict=False)
    lines = [_plane(position, orientation) for position, orientation in pairs]
    if lines and all(line.direction is None for line in lines):
        _check_straight(np.array([line.middle for line in lines]))
    return lines or None


def _all_or_none(values: list[Vector | None], keyword: str) -> list[Vector]:
    """A scan of which only some B-scans have a place is not placed by guessing."""
    known = [value for value in values if value is not None]
    if known and len(known) < len(values):
        detail = f"{len(known)} of {len(values)} frames have {keyword}."
        raise IngestError(Reason.SPACING_INCONSISTENT, detail)
    return known


def _check_straight(places: Vector) -> None:
    """Without orientations, the places themselves must lie on a line: those of a radial scan lie on a circle."""
    centred = places - places.mean(axis=0)
    spread = np.linalg.svd(centred, compute_uv=False)
    if len(spread) > 1 and spread[1] > STRAIGHT_SHARE * spread[0]:
        raise IngestError(Reason.NOT_RASTER, "the places of the B-scans lie on a curve: a radial or circular scan.")


def _plane(position: Vector, orientation: Vector | None) -> Line:
    if orientation is None or not np.any(orientation):
        return Line(middle=position, direction=None, normal=None)
    across, down = _unit(orientation[:3]), _unit(orientation[3:])
    return Line(middle=position, direction=across, normal=_unit(np.cross(across, down)))


def frame_lines(dataset: Dataset, num_frames: int) -> list[Line] | None:
    """Lines from OphthalmicFrameLocationSequence: (row, column) of start and end on the localizer image.

    Raises:
        IngestError: NOT_RASTER when a B-scan has more than two points (a circle or a curve), or no length.
    """
    found = _per_frame(dataset, num_frames, "OphthalmicFrameLocationSequence", "ReferenceCoordinates", None)
    if all(points is None or not np.any(points) for points in found):
        return None  # absent, or a placeholder
    lines = []
    for points in _all_or_none(found, "ReferenceCoordinates"):
        if len(points) != 4:
            raise IngestError(Reason.NOT_RASTER, f"a B-scan has {len(points) // 2} points on the localizer, not two.")
        start, stop = points[:2], points[2:]
        length = float(np.linalg.norm(stop - start))
        if length == 0:
            raise IngestError(Reason.NOT_RASTER, "a B-scan ends on the localizer where it starts: a circle.")
        direction = (stop - start) / length
        normal = np.array([direction[1], -direction[0]])
        lines.append(Line(middle=(start + stop) / 2, direction=direction, normal=normal, length=length))
    return lines or None


def check_parallel(lines: list[Line] | None) -> None:
    """All B-scans run in one direction.

    Raises:
        IngestError: NOT_RASTER for a radial or circular scan.
    """
    directions = [line.direction for line in lines or () if line.direction is not None]
    if not directions:
        return
    cosines = np.clip(np.array(directions) @ directions[0], -1.0, 1.0)
    turn = float(np.degrees(np.arccos(cosines)).max())
    if turn > PARALLEL_TOLERANCE_DEGREES:
        raise IngestError(Reason.NOT_RASTER, f"B-scans turn by up to {turn:.0f} degrees: a radial or circular scan.")


def check_aligned(lines: list[Line] | None, length: float) -> None:
    """B-scans lie side by side: none is shifted along its own direction by more than a share of its `length`.

    Raises:
        IngestError: NOT_RASTER.
    """
    placed = [(line.middle, line.direction) for line in lines or () if line.direction is not None]
    if not placed or not length:
        return
    along = np.array([middle @ direction for middle, direction in placed])
    if float(np.ptp(along)) > SHIFT_SHARE * length:
        raise IngestError(Reason.NOT_RASTER, "the B-scans are shifted against one another along their own direction.")


def _per_frame(dataset: Dataset, num_frames: int, macro: str, keyword: str, count: int | None) -> list[Vector | None]:
    """Per-frame values, a shared one filling in; None where absent or empty.

    Raises:
        IngestError: SPACING_INVALID for a number that is not finite, or another count of them.
    """
    found: list[Vector | None] = [None] * num_frames
    for _, frame, item in groups(dataset, macro):
        values = numbers(item, keyword)
        if not values:
            continue
        if (count is not None and len(values) != count) or not np.all(np.isfinite(values)):
            raise IngestError(Reason.SPACING_INVALID, f"{keyword} of a frame is not {count or 'all'} finite numbers.")
        vector = np.array(values, dtype=np.float64)
        if frame is None:
            found = [vector if known is None else known for known in found]
        elif frame < num_frames:
            found[frame] = vector
    return found


def _unit(vector: Vector) -> Vector:
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector
