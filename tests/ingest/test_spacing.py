"""Spacing comes from the file or the file is refused: every source, every quirk, and no default."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from ingest.errors import IngestError
from ingest.identity import identify
from ingest.phantom.protocols import PROTOCOLS, true_spacing_mm
from ingest.record import ScanGeometry
from ingest.spacing import check_groups, scan_geometry
from manifests.plan import ManifestRow
from manifests.reasons import Reason

PLANES, LOCATIONS, BARE = "spectralis_ppol_mac_hr_oct", "maestro2_3d_macula_oct", "cirrus_mac_oct"
RASTERS = [name for name, protocol in PROTOCOLS.items() if protocol.raster]


def geometry(scan: Any, edit: Callable[[Dataset], object] = bool, manifest: ManifestRow | None = None) -> ScanGeometry:
    with disable_value_validation():
        dataset = scan.dataset()
        edit(dataset)
        return scan_geometry(dataset, len(scan.volume), identify(dataset, scan.path, manifest), manifest)


def refusal(scan: Any, edit: Callable[[Dataset], object], manifest: ManifestRow | None = None) -> Reason:
    with pytest.raises(IngestError) as caught:
        geometry(scan, edit, manifest)
    return caught.value.reason


def shared(dataset: Dataset) -> Dataset:
    group: Dataset = dataset.SharedFunctionalGroupsSequence[0]
    return group


def measures(dataset: Dataset) -> Dataset:
    item: Dataset = shared(dataset).PixelMeasuresSequence[0]
    return item


def frames(dataset: Dataset) -> Any:
    return dataset.PerFrameFunctionalGroupsSequence


def drop_positions(dataset: Dataset) -> None:
    for frame in frames(dataset):
        for macro in ("PlanePositionSequence", "OphthalmicFrameLocationSequence"):
            if macro in frame:
                del frame[macro]


@pytest.mark.parametrize("name", RASTERS)
def test_every_protocol_has_its_true_spacing(scan: Any, name: str) -> None:
    found = geometry(scan(name))
    assert found.spacing_mm == pytest.approx(true_spacing_mm(PROTOCOLS[name].small()), abs=1e-6)
    assert found.positions_mm[0] == 0
    assert all(gap > 0 for gap in np.diff(found.positions_mm))


def test_spacing_never_defaults(scan: Any) -> None:
    """PREDECESSOR 1: it was looked for in per-frame groups only, and was 1.0 mm when absent."""
    assert refusal(scan(PLANES), lambda d: measures(d).pop("PixelSpacing")) is Reason.SPACING_MISSING


def test_shared_groups_are_read_and_per_frame_ones_win(scan: Any) -> None:
    """PREDECESSOR 1: Shared groups read."""
    spectralis = scan(PLANES)
    assert geometry(spectralis).source.startswith("pixels=shared")

    def per_frame(dataset: Dataset) -> None:
        for frame in frames(dataset):
            item = Dataset()
            item.PixelSpacing = list(measures(dataset).PixelSpacing)
            frame.PixelMeasuresSequence = Sequence([item])

    assert geometry(spectralis, per_frame).source.startswith("pixels=perframe")


def test_top_level_and_manifest_are_the_last_sources(scan: Any) -> None:
    def top(dataset: Dataset) -> None:
        dataset.PixelSpacing = measures(dataset).PixelSpacing
        del measures(dataset).PixelSpacing

    assert geometry(scan(PLANES), top).source.startswith("pixels=top")
    listed = ManifestRow(pixel_spacing="[0.0150, 0.0727]")
    found = geometry(scan(PLANES), lambda d: measures(d).pop("PixelSpacing"), listed)
    assert found.spacing_mm[1:] == (0.015, 0.0727)
    varies = ManifestRow(pixel_spacing="Varies by frame")
    assert refusal(scan(PLANES), lambda d: measures(d).pop("PixelSpacing"), varies) is Reason.SPACING_MISSING


@pytest.mark.parametrize("value", ["NaN", "inf", "-0.01", "0", "1000000", "abc"])
@pytest.mark.parametrize("axis", [0, 1])
def test_implausible_pixel_spacing_is_refused(scan: Any, value: str, axis: int) -> None:
    def spoil(dataset: Dataset) -> None:
        pair = [str(number) for number in measures(dataset).PixelSpacing]
        pair[axis] = value
        item = measures(dataset)
        del item.PixelSpacing
        item.add_new(0x00280030, "LO", pair)

    assert refusal(scan(PLANES), spoil) is Reason.SPACING_INVALID


def test_frames_that_disagree_are_refused(scan: Any) -> None:
    def disagree(dataset: Dataset) -> None:
        axial, lateral = measures(dataset).PixelSpacing
        item = Dataset()
        item.PixelSpacing = [axial, float(lateral) * 1.1]
        frames(dataset)[3].PixelMeasuresSequence = Sequence([item])

    assert refusal(scan(PLANES), disagree) is Reason.SPACING_INCONSISTENT


def test_bscan_step_falls_through_its_sources_in_order(scan: Any) -> None:
    topcon = scan(LOCATIONS)

    def bare(dataset: Dataset) -> None:
        drop_positions(dataset)
        for keyword in ("SpacingBetweenSlices", "SliceThickness"):
            measures(dataset).pop(keyword, None)

    def thickness(dataset: Dataset) -> None:
        bare(dataset)
        measures(dataset).SliceThickness = "0.3"

    def between(dataset: Dataset) -> None:
        thickness(dataset)
        measures(dataset).SpacingBetweenSlices = "0.25"

    assert geometry(topcon).source.endswith("bscans=frame_locations")
    assert geometry(topcon, between).spacing_mm[0] == pytest.approx(0.25)
    assert geometry(topcon, thickness).spacing_mm[0] == pytest.approx(0.3)
    listed = ManifestRow(slice_thickness="0.0472")
    assert geometry(topcon, bare, listed).spacing_mm[0] == pytest.approx(0.0472)
    assert refusal(topcon, bare, ManifestRow(slice_thickness="Not reported")) is Reason.SPACING_MISSING


def test_cirrus_slice_thickness_is_never_believed(scan: Any) -> None:
    """AI-READI: it repeats the lateral spacing; a Cirrus cube is square."""
    cirrus = scan(BARE)
    assert float(measures(cirrus.dataset()).SliceThickness) == pytest.approx(6 / 128)
    found = geometry(cirrus)
    assert found.spacing_mm[0] == pytest.approx(6 / len(cirrus.volume))
    assert found.source.endswith("cirrus_field_of_view")


def test_empty_image_position_is_no_position(scan: Any) -> None:
    topcon = scan(LOCATIONS)
    first = frames(topcon.dataset())[0]
    assert not first.PlanePositionSequence[0].ImagePositionPatient
    assert geometry(topcon).source.endswith("frame_locations")


def test_reversed_frames_are_put_in_order(scan: Any) -> None:
    found = geometry(scan("spectralis_mac_20x20_hs_octa"))
    assert list(found.order) == sorted(found.order, reverse=True)


def test_stack_numbers_order_frames_without_positions(scan: Any) -> None:
    def renumber(dataset: Dataset) -> None:
        for index, frame in enumerate(frames(dataset)):
            frame.FrameContentSequence[0].InStackPositionNumber = len(frames(dataset)) - index

    cirrus = scan(BARE)
    assert list(geometry(cirrus, renumber).order) == list(range(len(cirrus.volume)))[::-1]


def test_radial_scan_is_no_volume_whatever_its_name(scan: Any) -> None:
    assert refusal(scan("spectralis_onh_rc_hr_oct"), bool) is Reason.NOT_RASTER


def test_raster_with_radial_in_its_name_is_a_raster(scan: Any) -> None:
    assert geometry(scan("triton_3d_radial_oct")).spacing_mm[0] > 0


def test_radial_scan_is_found_on_the_localizer_too(scan: Any) -> None:
    def fan(dataset: Dataset) -> None:
        for index, frame in enumerate(frames(dataset)):
            angle = np.pi * index / len(frames(dataset))
            along = 100 * np.array([np.sin(angle), np.cos(angle)])
            points = [*(256 - along), *(256 + along)]
            frame.OphthalmicFrameLocationSequence[0].ReferenceCoordinates = [float(value) for value in points]

    assert refusal(scan(LOCATIONS), fan) is Reason.NOT_RASTER


def test_circle_scan_is_no_volume(scan: Any) -> None:
    def close(dataset: Dataset) -> None:
        for frame in frames(dataset):
            frame.OphthalmicFrameLocationSequence[0].ReferenceCoordinates = [100.0, 50.0, 100.0, 50.0]

    assert refusal(scan(LOCATIONS), close) is Reason.NOT_RASTER


def test_repeated_position_and_wide_gap_are_refused_and_a_small_gap_is_not(scan: Any) -> None:
    def shift(steps: float) -> Callable[[Dataset], None]:
        def edit(dataset: Dataset) -> None:
            step = PROTOCOLS[PLANES].small().bscan_step_mm
            for frame in list(frames(dataset))[10:]:
                x, y, z = frame.PlanePositionSequence[0].ImagePositionPatient
                frame.PlanePositionSequence[0].ImagePositionPatient = [x, y, round(float(z) + steps * step, 9)]

        return edit

    assert refusal(scan(PLANES), shift(-1.0)) is Reason.POSITIONS_NONMONOTONE
    assert refusal(scan(PLANES), shift(2.5)) is Reason.POSITIONS_NONMONOTONE
    found = geometry(scan(PLANES), shift(1.0))
    assert found.spacing_mm[0] == pytest.approx(PROTOCOLS[PLANES].small().bscan_step_mm, rel=1e-6)
    assert found.spacing_max_mm[0] == pytest.approx(2 * found.spacing_mm[0], rel=1e-6)


def test_groups_for_other_frames_are_refused(scan: Any) -> None:
    with pytest.raises(IngestError) as caught:
        check_groups(scan(PLANES).dataset(), len(scan(PLANES).volume) + 1)
    assert caught.value.reason is Reason.NFRAMES_MISMATCH
    assert refusal(scan(PLANES), lambda d: frames(d).__delitem__(slice(1, None))) is Reason.NFRAMES_MISMATCH
