"""Faults of spacing: missing, wrong or at odds with itself, in every place that holds one."""

from collections.abc import Callable, Iterator
from typing import Final

from pydicom.dataset import Dataset

from manifests.plan import ManifestRow
from manifests.reasons import Reason

from .build import (
    NUM_FRAMES,
    REVERSED,
    SPECTRALIS,
    Case,
    Edit,
    Seed,
    both,
    by_edit,
    measures,
    per_frame,
    put_text,
)
from .raster import LOCATED, POSITIONED, move, turn

SPOKEN: Final = (SPECTRALIS, REVERSED, *LOCATED)
"""Nothing but the header tells their B-scan step: on Cirrus the known field of view stands in."""


def _in_measures(edit: Callable[[Dataset], object]) -> Edit:
    """The same change in every PixelMeasuresSequence item."""

    def change(dataset: Dataset) -> None:
        for item in measures(dataset):
            edit(item)

    return change


def _drop(*keywords: str) -> Edit:
    def edit(item: Dataset) -> None:
        for keyword in keywords:
            item.pop(keyword, None)

    return edit


def _own_measures(spacing: Callable[[int], str | None], *, keep_shared: bool = False) -> Edit:
    """PixelSpacing in the per-frame groups instead of the shared ones; None leaves a B-scan without."""

    def edit(dataset: Dataset) -> None:
        shared = dataset.SharedFunctionalGroupsSequence[0]
        old = shared.PixelMeasuresSequence[0]
        for frame, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            item = Dataset()
            item.set_original_encoding(*dataset.original_encoding, old.original_character_set)
            if "SliceThickness" in old:
                item.SliceThickness = old.SliceThickness
            value = spacing(frame)
            if value is not None:
                put_text("PixelSpacing", value)(item)
            group.PixelMeasuresSequence = [item]
        if not keep_shared:
            del shared.PixelMeasuresSequence

    return edit


def _at_top(value: str) -> Edit:
    """PixelSpacing at the top level only."""
    return both(_in_measures(_drop("PixelSpacing")), put_text("PixelSpacing", value))


def _drop_positions(dataset: Dataset) -> None:
    for group in dataset.PerFrameFunctionalGroupsSequence:
        for keyword in ("PlanePositionSequence", "OphthalmicFrameLocationSequence"):
            group.pop(keyword, None)


def _no_step(dataset: Dataset) -> None:
    """Nothing says how far B-scans lie apart."""
    _drop_positions(dataset)
    _in_measures(_drop("SliceThickness", "SpacingBetweenSlices"))(dataset)


def _empty_group(dataset: Dataset) -> None:
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = []


def _no_groups(dataset: Dataset) -> None:
    del dataset.SharedFunctionalGroupsSequence
    dataset.ImageLaterality = "L"


def missing() -> Iterator[Case]:
    reason = Reason.SPACING_MISSING
    no_pixel_spacing = _in_measures(_drop("PixelSpacing"))
    for place in range(8):
        yield by_edit(reason, "no_pixel_spacing", no_pixel_spacing, turn(place))
    empty = _in_measures(put_text("PixelSpacing", ""))
    for place in (0, 3, 8):
        yield by_edit(reason, "empty_pixel_spacing", empty, turn(place))
    for place in (1, 5):
        yield by_edit(reason, "measures_without_item", _empty_group, turn(place))
        yield by_edit(reason, "no_shared_groups", _no_groups, turn(place + 1))
    holes: dict[str, Callable[[int], bool]] = {
        "first": lambda frame: frame == 0,
        "last": lambda frame: frame == NUM_FRAMES - 1,
        "middle": lambda frame: frame == 4,
        "half": lambda frame: frame % 2 == 0,
    }
    for place, (name, hole) in enumerate(holes.items()):

        def spacing(frame: int, hole: Callable[[int], bool] = hole) -> str | None:
            return None if hole(frame) else "0.01\\0.09"

        yield by_edit(reason, f"{name}_without", _own_measures(spacing), turn(place, SPOKEN))
    for place in range(6):
        yield by_edit(reason, "no_step", _no_step, turn(place, SPOKEN))
    yield from missing_in_manifest()


def missing_in_manifest() -> Iterator[Case]:
    """What the manifest says of a header without spacing is no number."""
    reason = Reason.SPACING_MISSING
    no_pixel_spacing = _in_measures(_drop("PixelSpacing"))
    for place, words in enumerate(("Varies by frame", "Not reported", "", "[0.0039]", "n/a")):
        row = ManifestRow(pixel_spacing=words, slice_thickness="0.1")
        yield by_edit(reason, f"manifest_says_{words}", no_pixel_spacing, turn(place), manifest=row)
    for place, words in enumerate(("Not reported", "", "unknown")):
        row = ManifestRow(pixel_spacing="[0.01, 0.09]", slice_thickness=words)
        yield by_edit(reason, f"manifest_thickness_{words}", _no_step, turn(place, LOCATED), manifest=row)


WRONG_VALUES: Final = {
    "nan": "NaN",
    "inf": "inf",
    "minus_inf": "-Infinity",
    "negative": "-0.01",
    "zero": "0",
    "zero_float": "0.0000000",
    "tiny": "0.00000001",
    "huge": "1000000",
    "metres": "0.0000039",
    "micrometres": "39",
    "overflow": "1e400",
    "words": "JANE",
    "comma": "0,01",
    "unit": "0.01mm",
    "two_dots": "0.0.1",
    "blank": " ",
}


def wrong_pixel_spacing() -> Iterator[Case]:
    reason = Reason.SPACING_INVALID
    for place, (name, value) in enumerate(WRONG_VALUES.items()):
        axial = _in_measures(put_text("PixelSpacing", f"{value}\\0.09"))
        yield by_edit(reason, f"shared_axial_{name}", axial, turn(place))
        lateral = _in_measures(put_text("PixelSpacing", f"0.01\\{value}"))
        yield by_edit(reason, f"shared_lateral_{name}", lateral, turn(place + 5))
    for place, name in enumerate(("nan", "inf", "negative", "zero", "huge", "words")):
        value = WRONG_VALUES[name]
        yield by_edit(reason, f"top_{name}", _at_top(f"{value}\\0.09"), turn(place + 2))

        def every(_: int, value: str = value) -> str:
            return f"0.01\\{value}"

        def one(frame: int, value: str = value) -> str:
            return f"{value}\\0.09" if frame == 6 else "0.01\\0.09"

        yield by_edit(reason, f"every_frame_{name}", _own_measures(every), turn(place + 3))
        yield by_edit(reason, f"one_frame_{name}", _own_measures(one), turn(place + 4))
    for place, value in enumerate(("0.01", "0.01\\0.09\\0.1", "0.01\\0.09\\", "\\")):
        edit = _in_measures(put_text("PixelSpacing", value))
        yield by_edit(reason, f"count_{value}", edit, turn(place))
        yield by_edit(reason, f"count_at_top_{value}", _at_top(value), turn(place + 7))
    for place, value in enumerate(("[0, 0.09]", "[0.01, 90]", "[5.0, 5.0]", "[0.01, 0]")):
        row = ManifestRow(pixel_spacing=value, slice_thickness="0.1")
        edit = _in_measures(_drop("PixelSpacing"))
        yield by_edit(reason, f"manifest_{value}", edit, turn(place), manifest=row)


def wrong_step() -> Iterator[Case]:
    """The distance between B-scans, from each source that can hold it."""
    reason = Reason.SPACING_INVALID
    for place, name in enumerate(("nan", "inf", "negative", "zero", "tiny", "huge", "words", "comma")):
        for keyword in ("SliceThickness", "SpacingBetweenSlices"):
            edit = both(_drop_positions, _in_measures(put_text(keyword, WRONG_VALUES[name])))
            yield by_edit(reason, f"{keyword}_{name}", edit, turn(place, SPOKEN))
        value = WRONG_VALUES[name]
        if name not in {"words", "comma"}:
            row = ManifestRow(pixel_spacing=None, slice_thickness=value)
            yield by_edit(reason, f"manifest_thickness_{name}", _no_step, turn(place, LOCATED), manifest=row)
    for place, factor in enumerate((1e-4, 1e3)):
        edit = move(lambda _, values, factor=factor: [values[0], values[1], values[2] * factor])
        yield by_edit(reason, f"positions_times_{factor}", edit, turn(place, POSITIONED))
    text = _move_text("JANE\\0\\0")
    yield by_edit(reason, "position_words", text, Seed(name=SPECTRALIS))


def _move_text(text: str) -> Edit:
    """One B-scan's position as text."""

    def edit(dataset: Dataset) -> None:
        put_text("ImagePositionPatient", text)(per_frame(dataset, "PlanePositionSequence")[3])

    return edit


def inconsistent() -> Iterator[Case]:
    reason = Reason.SPACING_INCONSISTENT
    spreads: dict[str, Callable[[int], str]] = {
        "every_second_lateral": lambda frame: f"0.01\\{0.09 if frame % 2 else 0.099}",
        "every_second_axial": lambda frame: f"{0.01 if frame % 2 else 0.0102}\\0.09",
        "one_lateral": lambda frame: f"0.01\\{0.0915 if frame == 3 else 0.09}",
        "one_axial": lambda frame: f"{0.0105 if frame == 9 else 0.01}\\0.09",
        "drifting": lambda frame: f"0.01\\{0.09 * (1 + frame / 500):.6f}",
        "two_halves": lambda frame: f"0.01\\{0.09 if frame < 5 else 0.18}",
        "swapped_once": lambda frame: "0.01\\0.02" if frame else "0.02\\0.01",
        "ten_times": lambda frame: "0.001\\0.01" if frame == 7 else "0.01\\0.1",
    }
    for place, (name, spacing) in enumerate(spreads.items()):
        yield by_edit(reason, name, _own_measures(spacing), turn(place))
        yield by_edit(reason, name, _own_measures(spacing), turn(place + 5, POSITIONED))
    for place, value in enumerate(("0.01\\0.05", "0.03\\0.09", "0.012\\0.1")):
        edit = _own_measures(lambda _, value=value: value, keep_shared=True)
        yield by_edit(reason, f"frames_{value}_against_shared", edit, turn(place))
    for place, keyword in enumerate(("SliceThickness", "SpacingBetweenSlices", "SliceThickness")):
        edit = both(_drop_positions, _own_measures(lambda _: "0.01\\0.09"), _varying(keyword))
        yield by_edit(reason, f"{keyword}_varies", edit, turn(place, LOCATED))


def _varying(keyword: str) -> Edit:
    def edit(dataset: Dataset) -> None:
        for frame, item in enumerate(per_frame(dataset, "PixelMeasuresSequence")):
            put_text(keyword, "0.2" if frame == 5 else "0.1")(item)

    return edit


CASES: Final = (*missing(), *wrong_pixel_spacing(), *wrong_step(), *inconsistent())
