"""Files with two faults at once: the earlier reason wins, by stage and then in the order of `reasons.csv`."""

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from ingest.phantom.dicom import serialise
from ingest.phantom.protocols import DEFLATED_LE, EXPLICIT_LE, JPEG_2000_LOSSLESS
from manifests.reasons import Reason

from .build import (
    JPEG_BASELINE,
    MACULA,
    SPECTRALIS,
    TRITON,
    Case,
    Edit,
    Seed,
    both,
    by_edit,
    measures,
    per_frame,
    put_numbers,
    put_text,
    without,
)

Fault = tuple[Reason, Edit]


def _wrong_class(dataset: Dataset) -> None:
    dataset.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.77.1.5.1")
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID


def _spacing(value: str) -> Edit:
    def edit(dataset: Dataset) -> None:
        for item in measures(dataset):
            put_text("PixelSpacing", value)(item)

    return edit


def _no_spacing(dataset: Dataset) -> None:
    for item in measures(dataset):
        del item.PixelSpacing


def _uneven_spacing(dataset: Dataset) -> None:
    item = Dataset()
    item.PixelSpacing = [0.01, 0.5 * 0.09]
    dataset.PerFrameFunctionalGroupsSequence[4].PixelMeasuresSequence = [item]


def _turned(dataset: Dataset) -> None:
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.pop("PlaneOrientationSequence", None)
    for frame, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        plane = Dataset()
        angle = 0.3 * frame
        plane.ImageOrientationPatient = [f"{np.cos(angle):.9f}", "0", f"{np.sin(angle):.9f}", "0", "1", "0"]
        group.PlaneOrientationSequence = [plane]


def _repeated(dataset: Dataset) -> None:
    items = per_frame(dataset, "PlanePositionSequence")
    items[5].ImagePositionPatient = items[4].ImagePositionPatient


def _lost_group(dataset: Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[-1]


def _short(dataset: Dataset) -> None:
    dataset.PixelData = dataset.PixelData[:-100]


def _black(dataset: Dataset) -> None:
    dataset.PixelData = bytes(len(dataset.PixelData))


FAULTS: Final[dict[str, Fault]] = {
    "no_uid": (Reason.META_HEADER_INVALID, put_text("SOPInstanceUID", "")),
    "many_frames": (Reason.PARSE_LIMIT_EXCEEDED, put_text("NumberOfFrames", "1000000")),
    "wrong_class": (Reason.WRONG_SOP_CLASS, _wrong_class),
    "enface": (Reason.MODALITY_ENFACE_OR_OCTA, put_text("ImageType", "DERIVED\\PRIMARY\\ENFACE")),
    "participant": (Reason.PARTICIPANT_PATH_MISMATCH, put_text("PatientID", "4999")),
    "device": (
        Reason.DEVICE_PATH_MISMATCH,
        both(put_text("Manufacturer", "CANON"), put_text("ManufacturerModelName", "X")),
    ),
    "eye": (Reason.LATERALITY_MISSING_OR_CONFLICT, put_text("ImageLaterality", "R")),
    "no_pixels": (Reason.PIXELDATA_MISSING, without("PixelData")),
    "no_frames": (Reason.NFRAMES_INVALID, put_text("NumberOfFrames", "0")),
    "no_rows": (Reason.DIMENSIONS_INVALID, put_numbers("Rows", 0)),
    "colour": (Reason.PHOTOMETRIC_UNSUPPORTED, put_text("PhotometricInterpretation", "RGB")),
    "few_frames": (Reason.TOO_FEW_FRAMES, put_text("NumberOfFrames", "4")),
    "no_spacing": (Reason.SPACING_MISSING, _no_spacing),
    "wrong_spacing": (Reason.SPACING_INVALID, _spacing("NaN\\0.01")),
    "uneven_spacing": (Reason.SPACING_INCONSISTENT, _uneven_spacing),
    "turned": (Reason.NOT_RASTER, _turned),
    "repeated": (Reason.POSITIONS_NONMONOTONE, _repeated),
    "short": (Reason.PIXELDATA_LENGTH_MISMATCH, _short),
    "lost_group": (Reason.NFRAMES_MISMATCH, _lost_group),
    "black": (Reason.ALL_ZERO, _black),
    "burned_in": (Reason.BURNED_IN_SUSPECT, put_text("BurnedInAnnotation", "YES")),
}
"""One of each that can be combined, in the order of precedence."""

EXCLUDE: Final = (
    {"no_pixels", "short"},
    {"no_pixels", "black"},
    {"many_frames", "no_frames"},
    {"many_frames", "few_frames"},
    {"no_frames", "few_frames"},
    {"no_spacing", "wrong_spacing"},
    {"no_spacing", "uneven_spacing"},
    {"short", "black"},
)
"""Faults that undo each other."""


def combined(first: str, second: str) -> Case:
    """Both faults in one file."""
    (reason, one), (_, two) = FAULTS[first], FAULTS[second]
    seed = Seed(name=SPECTRALIS, syntax=EXPLICIT_LE)

    def make() -> bytes:
        dataset = seed.dataset()
        # The later one first: what the earlier one removes cannot be edited any more.
        two(dataset)
        one(dataset)
        return serialise(dataset)

    return Case(reason=reason, name=f"{first}_and_{second}", seed=seed, make=make)


def in_header() -> Iterator[Case]:
    names = list(FAULTS)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            if {first, second} not in EXCLUDE:
                yield combined(first, second)


def _other(data: bytes) -> bytes:
    del data
    return Seed(syntax=JPEG_BASELINE).fragments()[0]


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2].rstrip(b"\xff\xd9\0")


def _scrambled(data: bytes) -> bytes:
    return bytes(byte ^ 0x5A for byte in data)


def _no_size(data: bytes) -> bytes:
    return data[:6] + bytes(36) + data[42:]


FRAME_FAULTS: Final[dict[str, tuple[Reason, Callable[[bytes], bytes]]]] = {
    "other_syntax": (Reason.TS_MISMATCH, _other),
    "scrambled": (Reason.CODESTREAM_OBFUSCATED, _scrambled),
    "cut": (Reason.FRAME_INCOMPLETE, _cut),
    "no_size": (Reason.FRAME_UNDECODABLE, _no_size),
}


def two_frames(first: str, second: str, places: tuple[int, int]) -> Case:
    """Two B-scans of one file, damaged differently; the reason does not depend on which comes first."""
    (reason, one), (_, two) = FRAME_FAULTS[first], FRAME_FAULTS[second]
    seed = Seed(name=MACULA, syntax=JPEG_2000_LOSSLESS)

    def edit(dataset: Dataset) -> None:
        fragments = seed.fragments()
        fragments[places[0]] = one(fragments[places[0]])
        fragments[places[1]] = two(fragments[places[1]])
        dataset.PixelData = encapsulate(fragments, has_bot=False)

    return by_edit(reason, f"frame_{places[0]}_{first}_and_{places[1]}_{second}", edit, seed)


def frame_and_file(name: str, lost: int, tail: int) -> Case:
    """One fragment too few or a cut end mark in a file with a damaged B-scan."""
    seed = Seed(name=TRITON, syntax=JPEG_2000_LOSSLESS)
    reason, change = FRAME_FAULTS[name]
    reason = Reason.TRUNCATED_DATASET if tail else Reason.NFRAMES_MISMATCH

    def make() -> bytes:
        dataset = seed.dataset()
        fragments = seed.fragments()[lost:]
        fragments[3] = change(fragments[3])
        dataset.PixelData = encapsulate(fragments, has_bot=False)
        data = serialise(dataset)
        return data[: len(data) - tail]

    return Case(reason=reason, name=f"{name}_and_{lost}_lost_and_cut_by_{tail}", seed=seed, make=make)


def in_frames() -> Iterator[Case]:
    names = list(FRAME_FAULTS)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            yield two_frames(first, second, (2, 7))
        yield frame_and_file(first, lost=1, tail=0)
        yield frame_and_file(first, lost=0, tail=8)
        yield frame_and_file(first, lost=1, tail=3)
        reason, change = FRAME_FAULTS[first]

        def edit(dataset: Dataset, change: Callable[[bytes], bytes] = change) -> None:
            fragments = Seed(syntax=JPEG_2000_LOSSLESS).fragments()
            fragments[5] = change(fragments[5])
            dataset.PixelData = encapsulate(fragments, has_bot=False)
            dataset.BurnedInAnnotation = "YES"

        yield by_edit(reason, f"{first}_and_burned_in", edit, Seed(name=SPECTRALIS, syntax=JPEG_2000_LOSSLESS))


def cut_deflated() -> Iterator[Case]:
    """A stream that is cut behind the header: what the header says of itself comes first."""
    for name in ("wrong_class", "participant", "eye", "no_frames", "wrong_spacing", "turned"):
        reason, edit = FAULTS[name]
        seed = Seed(name=SPECTRALIS, syntax=DEFLATED_LE)

        def make(seed: Seed = seed, edit: Edit = edit) -> bytes:
            dataset = seed.dataset()
            edit(dataset)
            return serialise(dataset)[:-5000]

        yield Case(reason=reason, name=f"{name}_and_cut_deflated", seed=seed, make=make)


CASES: Final = (*in_header(), *in_frames())
