"""Does the spacing that was chosen agree with what else is known? Header against header refuses; the rest warns.

A wrong spacing that is plausible in itself is the worst fault of all: it stretches every retina of a device unnoticed.
"""

from types import MappingProxyType
from typing import Final

import numpy as np
from pydicom.dataset import Dataset

from ingest.errors import IngestError
from ingest.fields import groups, numbers
from ingest.record import Caution, Identity, ScanGeometry
from manifests.reasons import Reason
from shards.schema import Shape, Spacing

SOURCE_TOLERANCE: Final = 0.05
"""Two statements of one header are of one measurement; vendors round lengths to a hundredth of a millimetre."""

LINE_END_PX: Final = 1.5
"""Two ends, each rounded to half a pixel of the localizer along both axes, lie nearer or farther by 1.4 at most."""

MANIFEST_TOLERANCE: Final = 0.05
"""The manifest was made from the headers and rounds to four digits: more is another file's row."""

FIELD_TOLERANCE: Final = 0.25
"""Devices scale by the eye's length, up to 15% either way, and half of the documented fields are guesses."""

MAX_DEPTH_MM: Final = 6.0
"""The four devices see 1.9 to 2.6 mm; the deepest of any maker about 6."""

FIELDS_MM: Final = MappingProxyType(
    {
        "spectralis_ppol_mac_hr_oct": (7.8, 9.3),
        "spectralis_mac_20x20_hs_octa": (5.8, 5.8),
        "maestro2_3d_macula_oct": (6.0, 6.0),
        "maestro2_3d_wide_oct": (9.0, 12.0),
        "maestro2_macula_6x6_octa": (6.0, 6.0),
        "triton_3d_radial_oct": (9.0, 12.0),
        "triton_macula_6x6_octa": (6.0, 6.0),
        "triton_macula_12x12_octa": (12.0, 12.0),
        "cirrus_mac_oct": (6.0, 6.0),
        "cirrus_disc_oct": (6.0, 6.0),
        "cirrus_macula_6x6_octa": (6.0, 6.0),
        "cirrus_disc_6x6_octa": (6.0, 6.0),
    }
)
"""Protocol -> (slow, lateral) field of view in mm, as AI-READI's documents give it."""


def check_depth(scan: ScanGeometry, rows: int) -> None:
    """A B-scan is a few millimetres deep: with axial and lateral spacing swapped it would be ten.

    Raises:
        IngestError: SPACING_INVALID.
    """
    depth = rows * scan.spacing_mm[1]
    if depth > MAX_DEPTH_MM:
        detail = f"B-scans would be {depth:.1f} mm deep, no OCT of the retina sees {MAX_DEPTH_MM:g} mm."
        raise IngestError(Reason.SPACING_INVALID, detail)


def check_step(dataset: Dataset, scan: ScanGeometry, identity: Identity) -> None:
    """SpacingBetweenSlices must be the distance between the positions, where a header has both (PS3.3 C.7.6.16.2.1).

    SliceThickness is no distance. What Cirrus writes beside its positions is known to be wrong (AI-READI).

    Raises:
        IngestError: SPACING_INCONSISTENT, or SPACING_INVALID when it is no length.
    """
    if identity.device == "zeiss_cirrus":
        return
    holders = [item for _, _, item in groups(dataset, "PixelMeasuresSequence")] + [dataset]
    said = [values[0] for holder in holders if (values := numbers(holder, "SpacingBetweenSlices"))]
    if not all(np.isfinite(value) and value > 0 for value in said):
        raise IngestError(Reason.SPACING_INVALID, "SpacingBetweenSlices is not a length.")
    for value in said:
        _agree(value, scan.spacing_mm[0], "SpacingBetweenSlices")


def check_top_level(dataset: Dataset, scan: ScanGeometry) -> None:
    """PixelSpacing outside of the functional groups must say what they say.

    Raises:
        IngestError: SPACING_INCONSISTENT or SPACING_INVALID.
    """
    values = numbers(dataset, "PixelSpacing")
    if values is None:
        return
    if len(values) != 2 or not np.all(np.isfinite(values)) or min(values) <= 0:
        raise IngestError(Reason.SPACING_INVALID, "PixelSpacing outside of the functional groups is no spacing.")
    for value, chosen in zip(values, scan.spacing_mm[1:], strict=True):
        _agree(value, chosen, "PixelSpacing outside of the functional groups")


def check_localizer(extent_mm: float, extent_px: float, length_px: float, width_mm: float) -> None:
    """Plane positions and lines on the localizer must span the same: they are measured apart from one another.

    Lines are often rounded to whole pixels, so a short span says little; one that is rounded away says nothing.

    Args:
        extent_mm: from the first to the last B-scan, by their plane positions.
        extent_px: the same on the localizer.
        length_px: of a B-scan on the localizer.
        width_mm: of a B-scan, columns x lateral spacing: with `length_px`, the scale of the localizer.

    Raises:
        IngestError: SPACING_INCONSISTENT.
    """
    if not extent_mm or extent_px < LINE_END_PX:
        return
    scaled = extent_px * width_mm / length_px
    tolerance = SOURCE_TOLERANCE + LINE_END_PX * (1 / extent_px + 1 / length_px)
    if abs(scaled / extent_mm - 1) > tolerance:
        detail = f"B-scans span {extent_mm:.2f} mm by their plane positions, {scaled:.2f} mm on the localizer."
        raise IngestError(Reason.SPACING_INCONSISTENT, detail)


def _agree(value: float, chosen: float, name: str) -> None:
    """NaN, for what is not known, agrees with everything."""
    if abs(value - chosen) > SOURCE_TOLERANCE * chosen:
        detail = f"{name} says {value:g} mm, the source that comes first {chosen:g} mm."
        raise IngestError(Reason.SPACING_INCONSISTENT, detail)


def cautions(
    scan: ScanGeometry, shape: Shape, protocol: str, listed: tuple[float, float] | None
) -> tuple[Caution, ...]:
    """What an accepted file is warned of: the protocol's field of view, and the manifest's spacing, if they differ.

    Args:
        scan: the spacing that was chosen, mm `[D, H, W]`.
        shape: B-scans, rows and columns of the file.
        protocol: its name by AI-READI; others have no known field of view.
        listed: (axial, lateral) spacing in the manifest, mm, if it has one.
    """
    found = (_field_caution(scan.spacing_mm, shape, protocol), _manifest_caution(scan.spacing_mm, listed))
    return tuple(caution for caution in found if caution is not None)


def _field_caution(spacing: Spacing, shape: Shape, protocol: str) -> Caution | None:
    if protocol not in FIELDS_MM:
        return None
    extent = (spacing[0] * shape[0], spacing[2] * shape[2])
    known = FIELDS_MM[protocol]
    if all(abs(found / due - 1) <= FIELD_TOLERANCE for found, due in zip(extent, known, strict=True)):
        return None
    detail = f"the scan covers {extent[0]:.1f} x {extent[1]:.1f} mm, {protocol} {known[0]:g} x {known[1]:g} mm."
    return Caution(reason=Reason.SPACING_INCONSISTENT, detail=detail)


def _manifest_caution(spacing: Spacing, listed: tuple[float, float] | None) -> Caution | None:
    if listed is None or all(
        abs(value / chosen - 1) <= MANIFEST_TOLERANCE for value, chosen in zip(listed, spacing[1:], strict=True)
    ):
        return None
    detail = f"manifest.tsv says {listed[0]:g} x {listed[1]:g} mm, the header {spacing[1]:g} x {spacing[2]:g} mm."
    return Caution(reason=Reason.SPACING_INCONSISTENT, detail=detail)
