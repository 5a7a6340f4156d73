"""Spacing per frame and the positions of the B-scans, from whichever source the header has. There is no default.

Sources of pixel spacing: per-frame, shared, top level, manifest row. Sources of B-scan positions: plane positions,
ophthalmic frame locations, a device correction, SpacingBetweenSlices, SliceThickness, manifest row (DESIGN section 5;
DICOM PS3.3 C.7.6.16.2.1, C.7.6.16.2.3, C.8.17.10).
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from ingest.cross_check import check_depth, check_localizer, check_step, check_top_level
from ingest.errors import IngestError
from ingest.faults import Faults
from ingest.fields import first_item, groups, integer, items, numbers
from ingest.raster import Line, check_aligned, raster_lines
from ingest.record import Identity, ScanGeometry
from manifests.plan import ManifestRow
from manifests.reasons import Reason
from shards.schema import Spacing

AXIAL_LIMITS_MM: Final = (0.0005, 0.05)
"""From under the finest optical sampling to a reduced phantom's: no OCT samples tissue outside of it."""
LATERAL_LIMITS_MM: Final = (0.001, 0.2)
"""A 12 mm line of 64 A-scans has 0.19 mm; the finest protocol has 0.006 mm."""
BSCAN_LIMITS_MM: Final = (0.002, 1.0)
"""Nine millimetres in eight B-scans is a step of 1.1 mm: more is not a volume."""

FRAME_TOLERANCE: Final = 0.01
"""Frames of one raster share their spacing; DS text of 16 characters rounds far below a percent."""
REPEAT_SHARE: Final = 0.1
"""Two B-scans closer than a tenth of the usual step are the same position."""
GAP_STEPS: Final = 3.0
"""A gap over three steps loses more than the resampler may invent (DESIGN section 5)."""

ROUNDED_PX: Final = 1.0
"""Rounding moves the ends of a line by half a pixel at most, along either axis; the fitted grid may lie off too."""
SKIP_STEPS: Final = 1.5
SKIP_SHARE: Final = 0.05
"""A few wide gaps are B-scans that are missing; many, evenly spread, are places that were rounded."""
EVEN_STEPS: Final = 1.0
"""Places within a step of an even grid are that grid, rounded or tracked: its step is their mean; a gap is none."""

Floats = npt.NDArray[np.float64]
PixelSpacing = tuple[float, float]
UNREADABLE: Final[tuple[float, ...]] = (math.nan, math.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pixels:
    """Pixel spacing in mm `[frame, (axial, lateral)]`: of each frame, and as it is stated; NaN is unreadable."""

    source: str
    frames: Floats
    stated: Floats

    @property
    def usual(self) -> PixelSpacing:
        axial, lateral = np.median(self.frames, axis=0)
        return float(axial), float(lateral)


def scan_geometry(dataset: Dataset, num_frames: int, identity: Identity, manifest: ManifestRow | None) -> ScanGeometry:
    """Positions and spacing of a raster scan, which all that the header says of them agrees with.

    Lines that turn have neither a distance nor one lateral spacing: only those of a raster are asked for them.

    Raises:
        IngestError: SPACING_MISSING, SPACING_INVALID, SPACING_INCONSISTENT, NOT_RASTER or POSITIONS_NONMONOTONE;
            NFRAMES_MISMATCH when there are too few per-frame groups to say any of it. (That they are not as many as
            the frames is for whoever reads the pixels: `check_groups`.)
    """
    faults = Faults()
    described = num_described(dataset, num_frames)
    pixels = _pixel_spacing(dataset, described, manifest, faults)
    lines = faults.of(lambda: raster_lines(dataset, described))
    faults.of(lambda: _check_pixels(pixels, raster=lines is not None))
    if described < 2:
        faults.of(lambda: check_groups(dataset, num_frames))
        faults.raise_first()
        raise IngestError(Reason.SPACING_MISSING, "a single B-scan has no distance to another.")
    placed = None
    if lines is not None:
        _check_places(*lines, (integer(dataset, "Columns") or 0) * pixels.usual[1], faults)
        placed = faults.of(lambda: _placed(dataset, num_frames, identity, manifest, lines, pixels.usual[1]))
    scan = _unplaced(pixels) if placed is None else _ordered(*placed, pixels, faults)
    faults.of(lambda: check_depth(scan, integer(dataset, "Rows") or 0))
    faults.of(lambda: check_top_level(dataset, scan))
    faults.of(lambda: check_step(dataset, scan, identity))
    faults.raise_first()
    return scan


def num_described(dataset: Dataset, num_frames: int) -> int:
    """The frames of which per-frame groups can speak: all, unless there are fewer groups."""
    return min(num_frames, len(items(dataset, "PerFrameFunctionalGroupsSequence")) or num_frames)


def check_groups(dataset: Dataset, num_frames: int) -> None:
    """One per-frame group for each frame, or none at all (PS3.3 C.7.6.16).

    Raises:
        IngestError: NFRAMES_MISMATCH.
    """
    num_groups = len(items(dataset, "PerFrameFunctionalGroupsSequence"))
    if num_groups not in {0, num_frames}:
        raise IngestError(Reason.NFRAMES_MISMATCH, f"{num_groups} per-frame groups for {num_frames} frames.")


def _pixel_spacing(dataset: Dataset, num_frames: int, manifest: ManifestRow | None, faults: Faults) -> _Pixels:
    """Pixel spacing of each frame, and where it was found; raises SPACING_MISSING."""
    found: dict[int | None, PixelSpacing] = {}
    for _, frame, item in groups(dataset, "PixelMeasuresSequence"):
        pair = _stated(item, faults)
        if pair:
            found[frame] = pair
    shared = found.pop(None, None)
    single = shared or _stated(dataset, faults) or manifest_spacing(manifest)
    name = "perframe" if found else "shared" if shared else "top" if "PixelSpacing" in dataset else "manifest"
    known = [pair for frame in range(num_frames) if (pair := found.get(frame, single)) is not None]
    if len(known) < num_frames:
        raise IngestError(Reason.SPACING_MISSING, "no source gives PixelSpacing for every frame.")
    stated = [*known, shared] if shared and found else known
    return _Pixels(source=name, frames=np.array(known), stated=np.array(stated))


def _stated(item: Dataset, faults: Faults) -> PixelSpacing | None:
    """PixelSpacing; None when it is absent. One that cannot be read is a fault, and not missing."""
    values = faults.of(lambda: _two(numbers(item, "PixelSpacing") or ()), UNREADABLE)
    return (values[0], values[1]) if values else None


def _two(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(values) not in {0, 2}:
        raise IngestError(Reason.SPACING_INVALID, f"PixelSpacing has {len(values)} values instead of two.")
    return values


def manifest_spacing(manifest: ManifestRow | None) -> PixelSpacing | None:
    """The manifest's (axial, lateral) mm, from `[0.003872, 0.01206]`; `Varies by frame` and other words are none."""
    found = re.findall(r"-?\d*\.?\d+(?:[eE]-?\d+)?", (manifest and manifest.pixel_spacing) or "")
    return (float(found[0]), float(found[1])) if len(found) == 2 else None


def _check_limits(values: Floats, limits: tuple[float, float], name: str) -> None:
    if not np.all(np.isfinite(values)) or not np.all((values >= limits[0]) & (values <= limits[1])):
        worst = values[~((values >= limits[0]) & (values <= limits[1]))][0]
        raise IngestError(
            Reason.SPACING_INVALID, f"{name} spacing {worst:g} mm is not within {limits[0]:g} to {limits[1]:g} mm."
        )


def _check_equal(values: Floats, name: str) -> None:
    """Frames and sources agree within `FRAME_TOLERANCE`; values are lengths."""
    spread = values.max(axis=0) / values.min(axis=0) - 1
    if np.any(spread > FRAME_TOLERANCE):
        raise IngestError(Reason.SPACING_INCONSISTENT, f"{name} varies by {100 * spread.max():.1f}%.")


def _check_pixels(pixels: _Pixels, *, raster: bool) -> None:
    """Plausible, and the same wherever it stands; frames of their own lateral spacing are a radial scan's nature."""
    for axis, limits, name in ((0, AXIAL_LIMITS_MM, "axial"), (1, LATERAL_LIMITS_MM, "lateral")):
        _check_limits(pixels.stated[:, axis], limits, name)
    if raster or len(pixels.stated) > len(pixels.frames):
        _check_equal(pixels.stated, "PixelSpacing")


def _check_places(planes: list[Line] | None, locations: list[Line] | None, width_mm: float, faults: Faults) -> None:
    """B-scans lie side by side, and as far from one another by the one source as by the other."""
    length_px = float(np.median([line.length for line in locations or ()] or [0.0]))
    faults.of(lambda: check_aligned(planes, width_mm))
    faults.of(lambda: check_aligned(locations, length_px))
    if planes and locations:
        extent_mm, extent_px = (float(np.ptp(_along_normal(lines))) for lines in (planes, locations))
        faults.of(lambda: check_localizer(extent_mm, extent_px, length_px, width_mm))


def _placed(
    dataset: Dataset,
    num_frames: int,
    identity: Identity,
    manifest: ManifestRow | None,
    lines: tuple[list[Line] | None, list[Line] | None],
    lateral: float,
) -> tuple[Floats, str]:
    """Signed distance of each stored frame along the slow axis, mm, and where it was found."""
    width = (integer(dataset, "Columns") or 0, lateral)
    if any(lines):
        return _positions(*lines, width)
    step, source = _step(dataset, num_frames, identity, width, manifest)
    return _stack_order(dataset, num_described(dataset, num_frames)) * step, source


def _positions(planes: list[Line] | None, locations: list[Line] | None, width: tuple[int, float]) -> tuple[Floats, str]:
    """Of plane positions, else of lines on the localizer."""
    if planes:
        along = _along_normal(planes)
        if np.ptp(along) > 0:
            return along, "plane_positions"
    if locations:
        # Localizer pixels: the B-scan's own length, columns x lateral spacing, is the scale (AI-READI has no other).
        length = float(np.median([line.length for line in locations]))
        whole = np.allclose([line.middle * 2 % 1 for line in locations], 0.0, atol=1e-6)
        along, name = _unrounded(_along_normal(locations), whole=whole)
        along = along * (width[0] * width[1] / length if length else 0.0)
        if np.ptp(along) > 0:
            return along, name
    raise IngestError(Reason.POSITIONS_NONMONOTONE, "all B-scans have one position.")


def _unrounded(along: Floats, *, whole: bool) -> tuple[Floats, str]:
    """Lines that were rounded to whole pixels of the localizer, put back on the even grid that they came from.

    A quirk of devices: at less than a pixel a step, rounded lines repeat, and their gaps say nothing of the step.
    """
    ranks = np.arange(len(along), dtype=np.float64)
    straight = np.polynomial.Polynomial.fit(ranks, along, 1)(ranks)
    even = bool(np.abs(along - straight).max() <= ROUNDED_PX)
    if whole and even and not np.allclose(along, straight, atol=1e-6):
        return straight, "frame_locations_unrounded"
    return along, "frame_locations"


def _along_normal(lines: list[Line]) -> Floats:
    """Project middles on the normal whose largest component is positive, so that the order is reproducible."""
    normal = lines[0].normal
    if normal is None:
        middles = np.array([line.middle for line in lines])
        normal = middles[np.argmax(np.linalg.norm(middles - middles[0], axis=1))] - middles[0]
        normal = normal / (np.linalg.norm(normal) or 1.0)
    normal = normal * np.sign(normal[np.argmax(np.abs(normal))])
    return np.array([float(line.middle @ normal) for line in lines])


def _step(
    dataset: Dataset, num_frames: int, identity: Identity, width: tuple[int, float], manifest: ManifestRow | None
) -> tuple[float, str]:
    """The B-scan step in mm when no frame has a position, by precedence."""
    sources: Iterable[tuple[str, Callable[[], list[float]]]] = (
        ("cirrus_field_of_view", lambda: _cirrus_step(identity, num_frames, width)),
        ("spacing_between_slices", lambda: _measure(dataset, "SpacingBetweenSlices")),
        ("slice_thickness", lambda: _measure(dataset, "SliceThickness")),
        ("manifest", lambda: _manifest_step(manifest)),
    )
    for name, read in sources:
        found = np.array(read())
        if found.size:
            _check_limits(found, BSCAN_LIMITS_MM, "B-scan")
            _check_equal(found, name)
            return float(found[0]), name
    raise IngestError(Reason.SPACING_MISSING, "no source gives the distance between B-scans.")


def _cirrus_step(identity: Identity, num_frames: int, width: tuple[int, float]) -> list[float]:
    """Cirrus cubes are square, and their SliceThickness repeats the lateral PixelSpacing (AI-READI)."""
    return [width[0] * width[1] / num_frames] if identity.device == "zeiss_cirrus" else []


def _measure(dataset: Dataset, keyword: str) -> list[float]:
    """Wherever it stands."""
    holders = [item for _, _, item in groups(dataset, "PixelMeasuresSequence")] + [dataset]
    return [values[0] for holder in holders if (values := numbers(holder, keyword))]


def _manifest_step(manifest: ManifestRow | None) -> list[float]:
    try:
        return [float((manifest and manifest.slice_thickness) or "")]
    except ValueError:
        return []


def _stack_order(dataset: Dataset, num_frames: int) -> Floats:
    """Rank of each stored frame by InStackPositionNumber if that is a numbering, else as stored."""
    numbers_found = [
        integer(item, "InStackPositionNumber")
        for group in items(dataset, "PerFrameFunctionalGroupsSequence")
        if (item := first_item(group, "FrameContentSequence")) is not None
    ]
    ranks = [number for number in numbers_found if number is not None]
    if len(ranks) == num_frames and len(set(ranks)) > 1:
        _check_numbering(sorted(ranks))
        return np.argsort(np.argsort(ranks)).astype(np.float64)
    return np.arange(num_frames, dtype=np.float64)


def _check_numbering(numbers: list[int]) -> None:
    """A numbering has each number once, and leaves none out that the resampler would have to invent."""
    gaps = np.diff(numbers)
    if gaps.min() == 0 or gaps.max() > GAP_STEPS:
        detail = "InStackPositionNumber repeats, or leaves out more than two B-scans."
        raise IngestError(Reason.POSITIONS_NONMONOTONE, detail)


def _ordered(along: Floats, bscan_source: str, pixels: _Pixels, faults: Faults) -> ScanGeometry:
    order = np.argsort(along, kind="stable")
    positions = along[order] - along[order[0]]
    gaps = np.diff(positions)
    step = faults.of(lambda: _usual_step(positions), float(np.median(gaps))) or math.nan
    low, high = pixels.frames.min(axis=0), pixels.frames.max(axis=0)
    return ScanGeometry(
        order=tuple(int(index) for index in order),
        positions_mm=tuple(round(float(position), 9) for position in positions),
        spacing_mm=(step, *pixels.usual),
        spacing_min_mm=_spacing(gaps.min(), low),
        spacing_max_mm=_spacing(gaps.max(), high),
        source=f"pixels={pixels.source};bscans={bscan_source}",
    )


def _usual_step(positions: Floats) -> float:
    """The step of B-scans that neither repeat nor leave a gap: the mean of an even grid, else the median."""
    gaps = np.diff(positions)
    median = float(np.median(gaps))
    _check_limits(np.array([median]), BSCAN_LIMITS_MM, "B-scan")
    if gaps.min() < REPEAT_SHARE * median:
        raise IngestError(Reason.POSITIONS_NONMONOTONE, f"B-scan positions repeat: a step of {gaps.min():.4g} mm.")
    if gaps.max() > GAP_STEPS * median:
        raise IngestError(Reason.POSITIONS_NONMONOTONE, f"a gap of {gaps.max() / median:.1f} steps between B-scans.")
    mean = float(positions[-1] / len(gaps))
    wander = np.abs(positions - mean * np.arange(len(positions))).max()
    skips = np.count_nonzero(gaps > SKIP_STEPS * median)
    skipped = 0 < skips <= max(1, SKIP_SHARE * len(gaps))
    return mean if wander <= EVEN_STEPS * mean and not skipped else median


def _unplaced(pixels: _Pixels) -> ScanGeometry:
    """What is known of B-scans without places, for the checks that can go on; NaN stands for what is not."""
    known = (math.nan, *pixels.usual)
    return ScanGeometry(
        order=(), positions_mm=(), spacing_mm=known, spacing_min_mm=known, spacing_max_mm=known, source=""
    )


def _spacing(step: float, pixel: Floats) -> Spacing:
    return round(float(step), 9), float(pixel[0]), float(pixel[1])
