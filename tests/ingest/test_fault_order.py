"""Of two faults of the geometry of one header, the earlier code is the reason, whichever check finds it first."""

import struct
from collections.abc import Callable
from itertools import combinations
from typing import Any, Final

import numpy as np
import pytest
from pydicom.dataset import Dataset

from ingest.convert import probe_head
from ingest.phantom.dicom import attach_native, serialise
from ingest.record import Rejection
from manifests.reasons import Reason

PLANES, BARE = "spectralis_ppol_mac_hr_oct", "cirrus_mac_oct"
Edit = Callable[[Dataset], None]


def measures(dataset: Dataset) -> Dataset:
    item: Dataset = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    return item


def frames(dataset: Dataset) -> list[Dataset]:
    return list(dataset.PerFrameFunctionalGroupsSequence)


def put(dataset: Dataset, keyword: str, *values: str) -> None:
    """Text as it stands, whether or not it is a number."""
    dataset.pop(keyword, None)
    tag = {"PixelSpacing": 0x00280030, "SpacingBetweenSlices": 0x00180088, "ImagePositionPatient": 0x00200032}[keyword]
    dataset.add_new(tag, "LO", list(values))


def own_measures(dataset: Dataset, frame: int, *values: str) -> None:
    item = Dataset()
    if values:
        put(item, "PixelSpacing", *values)
    frames(dataset)[frame].PixelMeasuresSequence = [item]


def no_pixel_spacing(dataset: Dataset) -> None:
    measures(dataset).pop("PixelSpacing", None)
    for frame in range(len(frames(dataset))):
        own_measures(dataset, frame)


def one_frame_without(dataset: Dataset) -> None:
    pair = [str(value) for value in measures(dataset).PixelSpacing]
    del measures(dataset).PixelSpacing
    for frame, group in enumerate(frames(dataset)):
        if "PixelMeasuresSequence" not in group:
            own_measures(dataset, frame, *(pair if frame != 5 else ()))


def no_step(dataset: Dataset) -> None:
    measures(dataset).pop("SliceThickness", None)
    for group in frames(dataset):
        group.pop("PlanePositionSequence", None)


def pixel_spacing(*values: str) -> Edit:
    return lambda dataset: put(measures(dataset), "PixelSpacing", *values)


def top_level(*values: str) -> Edit:
    return lambda dataset: put(dataset, "PixelSpacing", *values)


def between(value: str) -> Edit:
    return lambda dataset: put(measures(dataset), "SpacingBetweenSlices", value)


def late_distance_of_none(dataset: Dataset) -> None:
    """The first frame says a distance that another source denies, the last none at all."""
    for group, value in zip((frames(dataset)[0], frames(dataset)[-1]), ("0.9", "0"), strict=True):
        if "PixelMeasuresSequence" not in group:
            group.PixelMeasuresSequence = [Dataset()]
        put(group.PixelMeasuresSequence[0], "SpacingBetweenSlices", value)


def position(change: Callable[[int, list[float]], list[str]]) -> Edit:
    def edit(dataset: Dataset) -> None:
        for frame, group in enumerate(frames(dataset)):
            if "PlanePositionSequence" in group:
                item = group.PlanePositionSequence[0]
                put(item, "ImagePositionPatient", *change(frame, [float(one) for one in item.ImagePositionPatient]))

    return edit


def some_unplaced(dataset: Dataset) -> None:
    for group in frames(dataset)[3:6]:
        group.pop("PlanePositionSequence", None)


def uneven(dataset: Dataset) -> None:
    own_measures(dataset, 4, "0.01", "0.03")


def turned(dataset: Dataset) -> None:
    dataset.SharedFunctionalGroupsSequence[0].pop("PlaneOrientationSequence", None)
    for frame, group in enumerate(frames(dataset)):
        item = Dataset()
        angle = 0.3 * frame
        item.ImageOrientationPatient = [float(np.cos(angle)), 0.0, float(np.sin(angle)), 0.0, 1.0, 0.0]
        group.PlaneOrientationSequence = [item]


def localizer(line: Callable[[int], list[float]]) -> Edit:
    def edit(dataset: Dataset) -> None:
        for frame, group in enumerate(frames(dataset)):
            item = Dataset()
            item.add_new(0x00220032, "FL", line(frame))
            group.OphthalmicFrameLocationSequence = [item]

    return edit


def fan(frame: int) -> list[float]:
    across, down = 100 * np.cos(0.3 * frame), 100 * np.sin(0.3 * frame)
    return [256 - down, 256 - across, 256 + down, 256 + across]


def moved(number: int, steps: float) -> Edit:
    """From this B-scan on, so many steps of 0.41 mm farther."""
    return position(lambda frame, at: [*map(str, at[:2]), f"{at[2] + 0.41 * steps * (frame >= number):.9g}"])


FAULTS: Final[dict[str, tuple[Reason, Edit]]] = {
    "no_pixel_spacing": (Reason.SPACING_MISSING, no_pixel_spacing),
    "one_frame_without": (Reason.SPACING_MISSING, one_frame_without),
    "no_step": (Reason.SPACING_MISSING, no_step),
    "not_a_number": (Reason.SPACING_INVALID, pixel_spacing("JANE", "0.07")),
    "negative": (Reason.SPACING_INVALID, pixel_spacing("0.01", "-0.07")),
    "one_frame_huge": (Reason.SPACING_INVALID, lambda d: own_measures(d, 7, "0.01", "1000")),
    "too_deep": (Reason.SPACING_INVALID, pixel_spacing("0.049", "0.07")),
    "top_level_zero": (Reason.SPACING_INVALID, top_level("0", "0.07")),
    "distance_zero": (Reason.SPACING_INVALID, between("0")),
    "late_distance_zero": (Reason.SPACING_INVALID, late_distance_of_none),
    "place_not_finite": (Reason.SPACING_INVALID, position(lambda f, at: ["NaN" if f == 8 else str(x) for x in at])),
    "line_not_finite": (Reason.SPACING_INVALID, localizer(lambda frame: [float("nan"), 0.0, 1.0, frame])),
    "step_too_wide": (Reason.SPACING_INVALID, position(lambda _, at: [str(at[0]), str(at[1]), str(90 * at[2])])),
    "uneven": (Reason.SPACING_INCONSISTENT, uneven),
    "some_unplaced": (Reason.SPACING_INCONSISTENT, some_unplaced),
    "top_level_differs": (Reason.SPACING_INCONSISTENT, top_level("0.015", "0.2")),
    "distance_differs": (Reason.SPACING_INCONSISTENT, between("0.9")),
    "lines_differ": (Reason.SPACING_INCONSISTENT, localizer(lambda f: [100 + 2.0 * f, 50.0, 100 + 2.0 * f, 450.0])),
    "turned": (Reason.NOT_RASTER, turned),
    "fan": (Reason.NOT_RASTER, localizer(fan)),
    "shifted": (Reason.NOT_RASTER, position(lambda f, at: [str(at[0] + f), str(at[1]), str(at[2])])),
    "repeated": (Reason.POSITIONS_NONMONOTONE, moved(9, -1.0)),
    "gap": (Reason.POSITIONS_NONMONOTONE, moved(9, 4.0)),
}
"""In the order of the codes."""

ONE_PLACE: Final = {"not_a_number", "negative", "too_deep", "no_pixel_spacing", "one_frame_without"}
PLACED: Final = {"place_not_finite", "step_too_wide", "some_unplaced", "shifted", "repeated", "gap"}
EXCLUDE: Final = (
    *({first, second} for first, second in combinations(sorted(ONE_PLACE), 2)),
    *({"no_step", other} for other in {*PLACED, "line_not_finite", "lines_differ", "fan", "turned"}),
    *({"no_step", other} for other in ("distance_zero", "late_distance_zero", "distance_differs")),
    *({pixels, "top_level_zero"} for pixels in ("no_pixel_spacing", "one_frame_without")),
    *({pixels, "top_level_differs"} for pixels in ("no_pixel_spacing", "one_frame_without")),
    *({one, other} for one in ("turned", "fan") for other in ("step_too_wide", "distance_differs")),
    *({"one_frame_without", other} for other in ("one_frame_huge", "uneven")),
    *({first, second} for first, second in combinations(("line_not_finite", "lines_differ", "fan"), 2)),
    {"turned", "lines_differ"},
    {"step_too_wide", "some_unplaced"},
    {"no_pixel_spacing", "one_frame_huge"},
    {"no_pixel_spacing", "uneven"},
)
"""Faults that undo each other; lines that turn have no distance that could be wrong; a single source is no other's."""

PAIRS: Final = [
    (first, second)
    for first, second in combinations(FAULTS, 2)
    if FAULTS[first][0] is not FAULTS[second][0] and {first, second} not in EXCLUDE
]


def reason_of(scan: Any, *edits: Edit) -> Reason | None:
    dataset = scan.dataset()
    for edit in edits:
        edit(dataset)
    attach_native(dataset, scan.volume)
    result = probe_head(serialise(dataset), True, scan.path, None)
    return result.reason if isinstance(result, Rejection) else None


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_alone_has_its_reason(scan: Any, name: str) -> None:
    assert reason_of(scan(PLANES), FAULTS[name][1]) is FAULTS[name][0]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_the_earlier_code_wins(scan: Any, first: str, second: str) -> None:
    (reason, one), (_, two) = FAULTS[first], FAULTS[second]
    assert reason_of(scan(PLANES), two, one) is reason


def test_pairs_join_all_five_codes() -> None:
    codes = {frozenset({FAULTS[first][0], FAULTS[second][0]}) for first, second in PAIRS}
    assert len(codes) == 5 * 4 // 2


@pytest.mark.parametrize("numbers", [[1, *range(1, 16)], [*range(1, 16), 90]])
@pytest.mark.parametrize(
    ("edit", "reason"), [(top_level("0.015", "0.2"), "SPACING_INCONSISTENT"), (turned, "NOT_RASTER")]
)
def test_a_wrong_numbering_comes_last(scan: Any, numbers: list[int], edit: Edit, reason: str) -> None:
    def numbered(dataset: Dataset) -> None:
        for group, number in zip(frames(dataset), numbers, strict=True):
            group.FrameContentSequence[0].InStackPositionNumber = number

    assert reason_of(scan(BARE), numbered) is Reason.POSITIONS_NONMONOTONE
    assert reason_of(scan(BARE), numbered, edit) is Reason[reason]


@pytest.mark.parametrize("spread", [1.02, 1.5])
def test_lines_that_turn_may_each_have_a_lateral_spacing_of_their_own(scan: Any, spread: float) -> None:
    """That is what a radial scan is: NOT_RASTER tells why it is refused, uneven spacing would not."""

    def each(dataset: Dataset) -> None:
        axial, lateral = measures(dataset).PixelSpacing
        del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
        for frame in range(len(frames(dataset))):
            own_measures(dataset, frame, str(axial), f"{float(lateral) * spread ** (frame % 2):.6g}")

    assert reason_of(scan(PLANES), each) is Reason.SPACING_INCONSISTENT
    assert reason_of(scan(PLANES), each, turned) is Reason.NOT_RASTER


def test_too_few_groups_are_no_reason_before_spacing(scan: Any) -> None:
    def one_group(dataset: Dataset) -> None:
        del dataset.PerFrameFunctionalGroupsSequence[1:]

    assert reason_of(scan(PLANES), one_group) is Reason.NFRAMES_MISMATCH
    assert reason_of(scan(PLANES), one_group, no_pixel_spacing) is Reason.SPACING_MISSING


@pytest.mark.parametrize("tag", [0x00280301, 0x00081090], ids=["BurnedInAnnotation", "ManufacturerModelName"])
def test_what_cannot_be_read_comes_before_what_it_says(scan: Any, tag: int) -> None:
    """Also of elements that only a late check reads."""
    good = scan(PLANES)
    dataset = good.dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
    attach_native(dataset, good.volume)
    data = serialise(dataset)
    element = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + dataset[tag].VR.encode()
    assert data.count(element) == 1
    reasons = []
    for damaged in (data, data.replace(element, element[:4] + b"ZZ")):
        result = probe_head(damaged, True, good.path, None)
        assert isinstance(result, Rejection)
        reasons.append(result.reason)
    assert reasons == [Reason.WRONG_SOP_CLASS, Reason.PARSER_CRASH]


def test_groups_that_are_no_sequence_come_before_what_they_say(scan: Any) -> None:
    def no_sequence(dataset: Dataset) -> None:
        del dataset.PerFrameFunctionalGroupsSequence
        dataset.add_new(0x52009230, "LO", "JANE")

    def other_patient(dataset: Dataset) -> None:
        dataset.PatientID = "4999"

    assert reason_of(scan(PLANES), other_patient) is Reason.PARTICIPANT_PATH_MISMATCH
    assert reason_of(scan(PLANES), no_sequence, other_patient) is Reason.PARSER_CRASH
