"""Every source of spacing that a header has, in the order of precedence, to show which one won and over what.

`ingest.spacing` decides; nothing here does. Values are shown as numbers, as they stand.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np
from pydicom.dataset import Dataset

from ingest.errors import IngestError
from ingest.fields import groups, numbers
from manifests.plan import ManifestRow

NUMBER: Final = re.compile(r"-?\d+\.?\d*(?:[eE]-?\d+)?")
SOURCE_WORDS: Final = re.compile(r"(\w+)=(\w+)")

WHY: Final = {
    "perframe": "what a frame says of itself comes before what all share",
    "shared": "no frame says it for itself",
    "top": "the functional groups say nothing",
    "plane_positions": "true positions come before any distance",
    "frame_locations": "no plane positions; lines on the localizer are scaled by columns x lateral spacing",
    "frame_locations_unrounded": "no plane positions; lines that were rounded to whole pixels lie on an even grid",
    "cirrus_field_of_view": "no positions; on Cirrus SliceThickness repeats the lateral spacing; cubes are square",
    "spacing_between_slices": "no positions",
    "slice_thickness": "no positions and no SpacingBetweenSlices",
    "manifest": "the header has none",
}
"""Why a source comes before those that have a value too."""

Values = Sequence[float]


def winners(source: str) -> dict[str, str]:
    """`pixels` and `bscans` -> the name of the source that won, from `ScanGeometry.source`."""
    return dict(SOURCE_WORDS.findall(source))


def describe_pixels(dataset: Dataset, num_frames: int, manifest: ManifestRow | None, used: str | None) -> str:
    """All sources of axial and lateral spacing."""
    return _listed(
        (
            ("perframe", lambda: _per_frame(dataset, "PixelMeasuresSequence", "PixelSpacing", num_frames)),
            ("shared", lambda: _millimetres(_shared(dataset, "PixelSpacing"))),
            ("top", lambda: _millimetres(numbers(dataset, "PixelSpacing"))),
            ("manifest", lambda: _millimetres(_numbers_in(manifest.pixel_spacing if manifest else None))),
        ),
        used,
    )


def describe_bscans(dataset: Dataset, num_frames: int, manifest: ManifestRow | None, used: str | None) -> str:
    """All sources of the distance between B-scans."""
    return _listed(
        (
            ("plane_positions", lambda: _places(dataset, "PlanePositionSequence", "ImagePositionPatient", num_frames)),
            (
                "frame_locations",
                lambda: _places(dataset, "OphthalmicFrameLocationSequence", "ReferenceCoordinates", num_frames),
            ),
            ("spacing_between_slices", lambda: _measure(dataset, "SpacingBetweenSlices", num_frames)),
            ("slice_thickness", lambda: _measure(dataset, "SliceThickness", num_frames)),
            ("manifest", lambda: _millimetres(_numbers_in(manifest.slice_thickness if manifest else None))),
        ),
        used,
    )


def _listed(sources: Iterable[tuple[str, Callable[[], str | None]]], used: str | None) -> str:
    """`shared: 0.0026 x 0.0117 mm (used); top: none; ...`; a device's correction is no source of the header."""
    found = {name: _value(read) for name, read in sources}
    base = next((name for name in found if used and used.startswith(name)), None)
    if used and base is None:
        found = {used: "a correction for this device", **found}
    marks = {base or used: f" (used as {used})" if base != used and base else " (used)"}
    parts = [f"{name}: {value}{marks.get(name, '')}" for name, value in found.items()]
    return "; ".join(parts) + (f". Why: {WHY[used]}." if used in WHY else ".")


def _value(read: Callable[[], str | None]) -> str:
    try:
        return read() or "none"
    except IngestError as error:
        return f"unreadable ({error.reason})"


def _per_frame(dataset: Dataset, macro: str, keyword: str, num_frames: int) -> str | None:
    """How many frames have it, and in what range."""
    found = [
        values
        for where, _, item in groups(dataset, macro)
        if where == "perframe" and (values := numbers(item, keyword))
    ]
    if not found:
        return None
    low, high = (_millimetres([pick(column) for column in zip(*found, strict=False)]) for pick in (min, max))
    return f"{len(found)} of {num_frames} frames, {low if low == high else f'{low} to {high}'}"


def _shared(dataset: Dataset, keyword: str) -> Values | None:
    found = (numbers(item, keyword) for where, _, item in groups(dataset, "PixelMeasuresSequence") if where == "shared")
    return next(found, None)


def _measure(dataset: Dataset, keyword: str, num_frames: int) -> str | None:
    """Of the frames, of all of them together, or at the top level."""
    whole = _shared(dataset, keyword) or numbers(dataset, keyword)
    parts = [_per_frame(dataset, "PixelMeasuresSequence", keyword, num_frames), _millimetres(whole)]
    return ", ".join(part for part in parts if part) or None


def _places(dataset: Dataset, macro: str, keyword: str, num_frames: int) -> str | None:
    """How many frames have a place, and over what range: mm, or pixels of the localizer."""
    found = [values for _, _, item in groups(dataset, macro) if (values := numbers(item, keyword))]
    if not found:
        return None
    lengths = {len(values) for values in found}
    if len(lengths) > 1:
        return f"{len(found)} of {num_frames} frames, of different numbers of values"
    unit = "mm" if keyword == "ImagePositionPatient" else "localizer pixels"
    reach = float(np.linalg.norm(np.ptp(np.array(found)[:, : 3 if unit == "mm" else 2], axis=0)))
    return f"{len(found)} of {num_frames} frames over {reach:.4g} {unit}"


def _millimetres(values: Values | None) -> str | None:
    return " x ".join(f"{value:.6g}" for value in values[:4]) + " mm" if values else None


def _numbers_in(text: str | None) -> Values:
    return [float(word) for word in NUMBER.findall(text or "")[:4]]
