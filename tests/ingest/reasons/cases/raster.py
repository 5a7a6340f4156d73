"""Faults of where the B-scans lie: directions, lines on the localizer, positions."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
from pydicom.dataset import Dataset

from ingest.phantom.protocols import (
    DEFLATED_LE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    JPEG_2000,
    JPEG_2000_LOSSLESS,
    JPEG_LS_LOSSLESS,
    RLE_LOSSLESS,
)
from manifests.reasons import Reason

from .build import (
    BIG_ENDIAN,
    CIRRUS,
    CIRRUS_6X6,
    CIRRUS_DISC,
    HTJ2K_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    MACULA,
    NUM_FRAMES,
    RADIAL,
    RASTERS,
    REVERSED,
    SPECTRALIS,
    SYNTAXES,
    TRITON,
    TRITON_6X6,
    Case,
    Edit,
    Seed,
    by_edit,
    per_frame,
    put_text,
)

NO_SPACING: Final = {"spacing_d_mm": None, "spacing_h_mm": None, "spacing_w_mm": None, "spacing_source": None}
POSITIONED: Final = (SPECTRALIS, REVERSED, CIRRUS_6X6)
LOCATED: Final = (MACULA, TRITON, TRITON_6X6)
STEPPED: Final = (CIRRUS, CIRRUS_DISC)
GAP_STEPS: Final = 3.5


def turn(place: int, names: Sequence[str] = RASTERS) -> Seed:
    return Seed(name=names[place % len(names)], syntax=SYNTAXES[place % len(SYNTAXES)])


def move(change: Callable[[int, list[float]], Sequence[float] | None]) -> Edit:
    """Other plane positions, by stored B-scan; None leaves the position empty."""

    def edit(dataset: Dataset) -> None:
        for frame, item in enumerate(per_frame(dataset, "PlanePositionSequence")):
            value = change(frame, [float(part) for part in item.ImagePositionPatient])
            text = "" if value is None else "\\".join(f"{part:.8g}" for part in value)
            put_text("ImagePositionPatient", text)(item)

    return edit


def _locate(change: Callable[[int, list[float]], Sequence[float]]) -> Edit:
    """Other lines on the localizer, by stored B-scan."""

    def edit(dataset: Dataset) -> None:
        for frame, item in enumerate(per_frame(dataset, "OphthalmicFrameLocationSequence")):
            old = [float(part) for part in item.ReferenceCoordinates]
            item.ReferenceCoordinates = [float(part) for part in change(frame, old)]

    return edit


def _turned(degrees: float) -> Edit:
    """Directions that turn by so much from the first to the last B-scan, about the middle of the scan."""

    def edit(dataset: Dataset) -> None:
        dataset.SharedFunctionalGroupsSequence[0].pop("PlaneOrientationSequence", None)
        groups = dataset.PerFrameFunctionalGroupsSequence
        for angle, group in zip(np.radians(np.linspace(0, degrees, len(groups))), groups, strict=True):
            plane = Dataset()
            plane.ImageOrientationPatient = [f"{np.cos(angle):.9f}", "0", f"{np.sin(angle):.9f}", "0", "1", "0"]
            group.PlaneOrientationSequence = [plane]

    return edit


def _crossed(dataset: Dataset) -> None:
    """Five B-scans one way and five across, as a cross-hair protocol stores them."""
    _turned(0)(dataset)
    for item in per_frame(dataset, "PlaneOrientationSequence")[5:]:
        item.ImageOrientationPatient = ["0", "0", "1", "0", "1", "0"]


def _star(span_degrees: float, radius: float = 200.0) -> Edit:
    """Lines through one point of the localizer."""

    def line(frame: int, _: list[float]) -> list[float]:
        angle = np.radians(span_degrees) * frame / NUM_FRAMES
        down, across = radius * np.sin(angle), radius * np.cos(angle)
        return [256 - down, 256 - across, 256 + down, 256 + across]

    return _locate(line)


def _circle(points: int) -> Edit:
    """Closed curves of so many points, one in another."""

    def curve(frame: int, _: list[float]) -> list[float]:
        angles = np.linspace(0, 2 * np.pi, points)
        radius = 100 + 2 * frame
        return np.column_stack([256 + radius * np.sin(angles), 256 + radius * np.cos(angles)]).ravel().tolist()

    return _locate(curve)


def _spokes(frame: int, _: list[float]) -> list[float]:
    """Half lines from the centre outwards."""
    angle = 2 * np.pi * frame / NUM_FRAMES
    return [256.0, 256.0, 256 + 200 * np.sin(angle), 256 + 200 * np.cos(angle)]


def _closed(frame: int, old: list[float]) -> list[float]:
    return [old[0], old[1], old[0], old[1]]


def not_raster() -> Iterator[Case]:
    """Every one under a file name that says raster, but for the radial protocol itself."""
    reason = Reason.NOT_RASTER
    for syntax in (EXPLICIT_LE, IMPLICIT_LE, BIG_ENDIAN, DEFLATED_LE, JPEG_2000_LOSSLESS, RLE_LOSSLESS):
        yield Case(
            reason=reason,
            name="radial_protocol",
            seed=(seed := Seed(name=RADIAL, syntax=syntax)),
            make=seed.encode,
            known=NO_SPACING,
        )
    seed = Seed(name=RADIAL, syntax=JPEG_LS_LOSSLESS)
    plain = {"protocol": None, "laterality": None, "anatomic_region": None}
    yield Case(
        reason=reason,
        name="radial_nameless",
        seed=seed,
        make=seed.encode,
        path="4123/scan.dcm",
        known=plain | {"device": None},
    )
    for place, degrees in enumerate((180 * 0.9, 90, 20, 5, 350)):
        yield by_edit(reason, f"turns_by_{degrees}", _turned(degrees), turn(place, POSITIONED))
        yield by_edit(reason, f"turns_by_{degrees}", _turned(degrees), turn(place + 4, LOCATED + STEPPED))
    yield by_edit(reason, "crossed", _crossed, Seed(name=SPECTRALIS))
    yield by_edit(reason, "crossed", _crossed, Seed(name=CIRRUS, syntax=JPEG_LOSSLESS_SV1))
    for place, span in enumerate((180, 360, 45, 6)):
        yield by_edit(reason, f"star_of_{span}", _star(span), turn(place, LOCATED))
    for place, points in enumerate((3, 32, 256)):
        yield by_edit(reason, f"circle_of_{points}", _circle(points), turn(place + 2, LOCATED))
    yield by_edit(reason, "spokes", _locate(_spokes), Seed(name=TRITON, syntax=JPEG_2000))
    yield by_edit(reason, "closed_lines", _locate(_closed), Seed(name=MACULA, syntax=HTJ2K_LOSSLESS))


def _steps(*indices: float) -> Edit:
    """Plane positions at these multiples of the step."""

    def edit(dataset: Dataset) -> None:
        found = [float(item.ImagePositionPatient[2]) for item in per_frame(dataset, "PlanePositionSequence")]
        start, step = found[0], found[1] - found[0]
        move(lambda frame, old: [old[0], old[1], start + step * indices[frame]])(dataset)

    return edit


def _lines(*indices: float) -> Edit:
    """Lines on the localizer at these multiples of the step."""

    def edit(dataset: Dataset) -> None:
        found = [item.ReferenceCoordinates[0] for item in per_frame(dataset, "OphthalmicFrameLocationSequence")]
        rows = [found[0] + (found[1] - found[0]) * index for index in indices]
        _locate(lambda frame, old: [rows[frame], old[1], rows[frame], old[3]])(dataset)

    return edit


UNEVEN: Final[dict[str, tuple[float, ...]]] = {
    "first_repeated": (0, 0, 1, 2, 3, 4, 5, 6, 7, 8),
    "last_repeated": (0, 1, 2, 3, 4, 5, 6, 7, 8, 8),
    "middle_repeated": (0, 1, 2, 3, 4, 4, 5, 6, 7, 8),
    "repeated_far_apart": (0, 1, 2, 3, 4, 5, 6, 7, 8, 0),
    "nearly_repeated": (0, 1, 2, 3, 4, 4.05, 6, 7, 8, 9),
    "three_at_one_place": (0, 1, 2, 2, 2, 3, 4, 5, 6, 7),
    "gap_at_the_start": (0, 4, 5, 6, 7, 8, 9, 10, 11, 12),
    "gap_at_the_end": (0, 1, 2, 3, 4, 5, 6, 7, 8, 12),
    "gap_in_the_middle": (0, 1, 2, 3, 4, 4 + GAP_STEPS, 9, 10, 11, 12),
    "two_gaps": (0, 1, 2, 6, 7, 8, 9, 13, 14, 15),
    "one_far_away": (0, 1, 2, 3, 4, 5, 6, 7, 8, 100),
    "gap_and_repeat": (0, 1, 2, 3, 3, 8, 9, 10, 11, 12),
    "stored_backwards_with_gap": (12, 11, 10, 9, 8, 4, 3, 2, 1, 0),
    "shuffled_with_repeat": (5, 2, 8, 0, 3, 3, 1, 7, 4, 6),
}


def uneven() -> Iterator[Case]:
    reason = Reason.POSITIONS_NONMONOTONE
    for place, (name, indices) in enumerate(UNEVEN.items()):
        yield by_edit(reason, f"planes_{name}", _steps(*indices), turn(place, POSITIONED))
        yield by_edit(reason, f"lines_{name}", _lines(*indices), turn(place + 6, LOCATED))


CASES: Final = (*not_raster(), *uneven())
