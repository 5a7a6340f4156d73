"""Two sources of one spacing must agree: in the header it refuses, against protocol and manifest it warns."""

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from ingest.convert import probe_file
from ingest.cross_check import FIELDS_MM, check_depth
from ingest.errors import IngestError
from ingest.phantom.dicom import attach_native, serialise
from ingest.phantom.protocols import PROTOCOLS
from ingest.record import Probed, Rejection, ScanGeometry
from manifests.plan import ManifestRow
from manifests.reasons import Reason

PLANES, LOCATIONS, CIRRUS = "spectralis_ppol_mac_hr_oct", "triton_macula_12x12_octa", "cirrus_macula_6x6_octa"
RASTERS = [name for name, protocol in PROTOCOLS.items() if protocol.raster]


def probe(
    scan: Any, edit: Callable[[Dataset], object] = bool, manifest: ManifestRow | None = None
) -> Probed | Rejection:
    with disable_value_validation():
        dataset = scan.dataset()
        edit(dataset)
        attach_native(dataset, scan.volume)
        return probe_file(io.BytesIO(serialise(dataset)), scan.path, manifest)


def measures(dataset: Dataset) -> Dataset:
    item: Dataset = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    return item


def between(factor: float) -> Callable[[Dataset], None]:
    def edit(dataset: Dataset) -> None:
        measures(dataset).SpacingBetweenSlices = f"{float(measures(dataset).SliceThickness) * factor:.8g}"

    return edit


def top_level(factor: float) -> Callable[[Dataset], None]:
    def edit(dataset: Dataset) -> None:
        dataset.PixelSpacing = [f"{float(value) * factor:.8g}" for value in measures(dataset).PixelSpacing]

    return edit


def stretched(factor: float) -> Callable[[Dataset], None]:
    """Every source says the same, and all of it is wrong."""

    def edit(dataset: Dataset) -> None:
        axial, lateral = measures(dataset).PixelSpacing
        measures(dataset).PixelSpacing = [axial, f"{float(lateral) * factor:.8g}"]

    return edit


@pytest.mark.parametrize("name", [PLANES, LOCATIONS])
@pytest.mark.parametrize(("make", "factor"), [(between, 2.0), (between, 0.9), (top_level, 1.1), (top_level, 0.5)])
def test_sources_of_one_header_that_disagree_are_refused(scan: Any, name: str, make: Any, factor: float) -> None:
    result = probe(scan(name), make(factor))
    assert isinstance(result, Rejection)
    assert result.reason is Reason.SPACING_INCONSISTENT


@pytest.mark.parametrize("make", [between, top_level])
def test_sources_that_agree_are_accepted(scan: Any, make: Any) -> None:
    result = probe(scan(PLANES), make(1.01))
    assert isinstance(result, Probed)
    assert result.cautions == ()


def test_slice_thickness_is_no_distance(scan: Any) -> None:
    """Cirrus overwrites it with the lateral spacing, and elsewhere it is the thickness of the light (AI-READI)."""

    def thick(dataset: Dataset) -> None:
        measures(dataset).SliceThickness = "0.5"

    assert isinstance(probe(scan(PLANES), thick), Probed)
    assert isinstance(probe(scan(CIRRUS), between(0.3)), Probed), "nothing that Cirrus writes beside positions counts"


@pytest.mark.parametrize("value", ["-0.1", "0", "NaN"])
def test_a_distance_that_is_none_is_refused(scan: Any, value: str) -> None:
    def spoil(dataset: Dataset) -> None:
        measures(dataset).add_new(0x00180088, "LO", value)

    result = probe(scan(PLANES), spoil)
    assert isinstance(result, Rejection)
    assert result.reason is Reason.SPACING_INVALID


@pytest.mark.parametrize("name", RASTERS)
def test_every_protocol_has_its_field_of_view(scan: Any, name: str) -> None:
    result = probe(scan(name))
    assert isinstance(result, Probed)
    assert result.cautions == ()
    protocol = PROTOCOLS[name]
    assert FIELDS_MM[name] == (protocol.fov_slow_mm, protocol.fov_lateral_mm)


@pytest.mark.parametrize("factor", [0.6, 1.5])
def test_another_field_of_view_than_the_protocols_warns(scan: Any, factor: float) -> None:
    result = probe(scan(PLANES), stretched(factor))
    assert isinstance(result, Probed)
    assert [caution.reason for caution in result.cautions] == [Reason.SPACING_INCONSISTENT]
    assert "7.8 x 9.3 mm" in result.cautions[0].detail


def test_another_spacing_in_the_manifest_warns(scan: Any) -> None:
    good = probe(scan(PLANES))
    assert isinstance(good, Probed)
    _, axial, lateral = good.scan.spacing_mm
    same = ManifestRow(pixel_spacing=f"[{axial:.6f}, {lateral:.5f}]")
    other = ManifestRow(pixel_spacing=f"[{axial:.6f}, {lateral * 1.2:.5f}]")
    agreed, warned = probe(scan(PLANES), manifest=same), probe(scan(PLANES), manifest=other)
    assert isinstance(agreed, Probed)
    assert isinstance(warned, Probed)
    assert agreed.cautions == ()
    assert "manifest.tsv" in warned.cautions[0].detail


@pytest.mark.parametrize("pixels", [0.93, 1.7, 3.4])
def test_lines_rounded_to_whole_pixels_of_the_localizer_keep_their_step(scan: Any, pixels: float) -> None:
    """At under a pixel a step, rounded lines repeat: neither a gap nor a repeat says anything of the scan."""
    good = scan(LOCATIONS)
    count = len(good.volume)

    def whole(dataset: Dataset) -> None:
        length = round(6 * pixels * count)
        for number, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            row = round(100 + number * pixels)
            item = group.OphthalmicFrameLocationSequence[0]
            item.ReferenceCoordinates = [float(row), 50.0, float(row), 50.0 + length]

    result = probe(good, whole)
    assert isinstance(result, Probed)
    lateral = result.scan.spacing_mm[2]
    scale = lateral * good.volume.shape[2] / round(6 * pixels * count)
    assert result.scan.spacing_mm[0] == pytest.approx(pixels * scale, rel=0.03)
    assert "frame_locations_unrounded" in result.scan.source
    assert np.all(np.diff(result.scan.positions_mm) > 0)


@pytest.mark.parametrize("name", [name for name in RASTERS if "spectralis" not in name])
def test_axial_and_lateral_spacing_swapped_are_refused(name: str) -> None:
    """At full size: both values are plausible in themselves, a retina of ten millimetres is not."""
    protocol = PROTOCOLS[name]
    right = ScanGeometry(
        order=(0, 1),
        positions_mm=(0.0, 0.1),
        spacing_mm=(0.1, protocol.axial_spacing_mm, protocol.lateral_spacing_mm),
        spacing_min_mm=(0.1, 0.1, 0.1),
        spacing_max_mm=(0.1, 0.1, 0.1),
        source="",
    )
    check_depth(right, protocol.rows)
    swapped = dataclasses.replace(right, spacing_mm=(0.1, protocol.lateral_spacing_mm, protocol.axial_spacing_mm))
    with pytest.raises(IngestError) as caught:
        check_depth(swapped, protocol.rows)
    assert caught.value.reason is Reason.SPACING_INVALID


def lines_too(
    scan: Any, factor: float = 1.0, pixel_mm: float = 0.02, round_to: float = 0.0
) -> Callable[[Dataset], None]:
    """The same B-scans on a localizer, `factor` times as far from one another as plane positions say."""

    def edit(dataset: Dataset) -> None:
        length = scan.volume.shape[2] * float(measures(dataset).PixelSpacing[1]) / pixel_mm
        for group in dataset.PerFrameFunctionalGroupsSequence:
            row = 300 + factor * float(group.PlanePositionSequence[0].ImagePositionPatient[2]) / pixel_mm
            item = Dataset()
            ends = [row, 50.3, row, 50.3 + length]
            item.ReferenceCoordinates = [round(end / round_to) * round_to if round_to else end for end in ends]
            group.OphthalmicFrameLocationSequence = Sequence([item])

    return edit


POSITIONED = [
    name for name, protocol in PROTOCOLS.items() if protocol.raster and protocol.positions == "plane_position"
]


@pytest.mark.parametrize("name", POSITIONED)
@pytest.mark.parametrize("factor", [0.5, 0.93, 1.08, 2.0])
def test_positions_and_lines_that_disagree_are_refused(scan: Any, name: str, factor: float) -> None:
    result = probe(scan(name), lines_too(scan(name), factor))
    assert isinstance(result, Rejection)
    assert result.reason is Reason.SPACING_INCONSISTENT
    assert "on the localizer" in result.detail


@pytest.mark.parametrize("name", POSITIONED)
@pytest.mark.parametrize(
    ("pixel_mm", "round_to"), [(0.02, 0.0), (0.01, 1.0), (0.05, 1.0), (0.2, 1.0), (1.0, 1.0), (5.0, 0.5), (5.0, 1.0)]
)
def test_lines_that_are_rounded_agree(scan: Any, name: str, pixel_mm: float, round_to: float) -> None:
    """However coarse the localizer is: what is rounded away says nothing."""
    result = probe(scan(name), lines_too(scan(name), 1.0, pixel_mm, round_to))
    assert isinstance(result, Probed), result
    assert result == probe(scan(name))


@pytest.mark.parametrize("line", [[0.0] * 4, [9.0, 50.0, 9.0, 450.0]])
def test_a_placeholder_for_all_lines_says_nothing(scan: Any, line: list[float]) -> None:
    def same(dataset: Dataset) -> None:
        for group in dataset.PerFrameFunctionalGroupsSequence:
            item = Dataset()
            item.ReferenceCoordinates = line
            group.OphthalmicFrameLocationSequence = Sequence([item])

    assert probe(scan(PLANES), same) == probe(scan(PLANES))


def test_a_factor_of_two_is_seen_on_any_localizer_that_can_show_it(scan: Any) -> None:
    """Rounding may hide it below eight pixels; above, it may not."""
    for pixel_mm in (0.02, 0.1, 0.5):
        for factor in (0.5, 2.0):
            result = probe(scan(PLANES), lines_too(scan(PLANES), factor, pixel_mm, 1.0))
            assert isinstance(result, Rejection), (pixel_mm, factor)
