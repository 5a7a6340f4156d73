"""Contradictions: what one part of a file says, another denies, and faults that hide one another."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Final

import numpy as np
from pydicom.dataset import Dataset

from ingest.phantom.protocols import (
    DEFLATED_LE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    RLE_LOSSLESS,
)
from ingest.phantom.stream import file_bytes
from manifests.reasons import Reason

from .build import (
    BIG_ENDIAN,
    ENCAPSULATED,
    JPEG_2000S,
    MACULA,
    NATIVE,
    SPECTRALIS,
    Case,
    Edit,
    Seed,
    both,
    by_bytes,
    by_edit,
    per_frame,
    put_numbers,
    put_text,
)
from .codestream import swapped
from .pairs import FRAME_FAULTS, cut_deflated, two_frames
from .raster import move


def swaps() -> Iterator[Case]:
    """Byte order, deflate and VR swapped; RLE under another name."""
    for written, declared in product((*NATIVE, *ENCAPSULATED), NATIVE):
        odd = {BIG_ENDIAN, DEFLATED_LE} & {written, declared} or declared == IMPLICIT_LE
        if written != declared and odd and (written, declared) != (IMPLICIT_LE, EXPLICIT_LE):
            yield swapped(MACULA, written, declared)
    for written, declared in product((BIG_ENDIAN, DEFLATED_LE), ENCAPSULATED):
        yield swapped(MACULA, written, declared)
    for declared in JPEG_2000S:
        yield swapped(MACULA, RLE_LOSSLESS, declared)


def positions() -> Iterator[Case]:
    """All equal, not finite, on a curve."""
    seed = Seed(name=SPECTRALIS)
    yield by_edit(Reason.POSITIONS_NONMONOTONE, "all_planes_equal", move(lambda _f, _v: [1.0, 2.0, 3.0]), seed)
    yield by_edit(Reason.POSITIONS_NONMONOTONE, "all_lines_equal", _equal_lines, Seed(name=MACULA))
    for word in ("NaN", "inf"):
        yield by_edit(Reason.SPACING_INVALID, f"a_position_{word}", _one_position(f"0\\0\\{word}"), seed)
    yield by_edit(Reason.NOT_RASTER, "radial_from_positions_alone", both(_no_orientation, move(_on_a_circle)), seed)
    yield by_edit(Reason.NOT_RASTER, "positions_on_an_arc", move(_on_an_arc), seed)


def _equal_lines(dataset: Dataset) -> None:
    items = per_frame(dataset, "OphthalmicFrameLocationSequence")
    for item in items:
        item.ReferenceCoordinates = items[0].ReferenceCoordinates


def _one_position(text: str) -> Edit:
    return lambda dataset: put_text("ImagePositionPatient", text)(per_frame(dataset, "PlanePositionSequence")[3])


def _no_orientation(dataset: Dataset) -> None:
    dataset.SharedFunctionalGroupsSequence[0].pop("PlaneOrientationSequence", None)


def _on_a_circle(frame: int, _: list[float]) -> list[float]:
    angle = np.pi * frame / 10
    return [-3 * float(np.cos(angle)), 0.0, -3 * float(np.sin(angle))]


def _on_an_arc(frame: int, _: list[float]) -> list[float]:
    angle = np.pi * (frame + 0.5) / 10
    return [3 * float(np.sin(angle)), 0.0, -3 * float(np.cos(angle))]


def identities() -> Iterator[Case]:
    """File meta information, maker and bits that contradict the rest."""
    reason, other = Reason.META_HEADER_INVALID, "MediaStorageSOPInstanceUID"
    nameless = f"topcon_maestro2/4123/4123_{MACULA}_l_1.2.3.dcm"
    for name, keyword, path in (
        ("other_class", "MediaStorageSOPClassUID", None),
        ("other_uid_than_name_and_data_set", other, nameless),
    ):
        yield Case(reason=reason, name=name, seed=Seed(), make=_meta(keyword), path=path, parsed=True)
    maker = put_text("Manufacturer", "Carl Zeiss Meditec")
    yield by_edit(Reason.DEVICE_PATH_MISMATCH, "Maestro2_by_Zeiss", maker, Seed())
    yield by_edit(Reason.PHOTOMETRIC_UNSUPPORTED, "no_bits_stored", put_numbers("BitsStored", 0), Seed())


def _meta(keyword: str) -> Callable[[], bytes]:
    """pydicom would put it right when it writes."""

    def make() -> bytes:
        dataset = Seed().dataset()
        setattr(dataset.file_meta, keyword, "1.2.840.10008.5.1.4.1.1.77.1.5.1")
        return file_bytes(dataset)

    return make


def junk() -> Iterator[Case]:
    """Junk behind native pixels."""
    for name, tail in {
        "text": b"JANE" * 9,
        "ones": b"\1" * 4096,
        "zeros_first": b"\0" * 50 + b"\7" * 14,
        "pixels": bytes(range(1, 200)),
    }.items():
        reason = Reason.PIXELDATA_LENGTH_MISMATCH
        yield by_bytes(reason, f"{name}_behind", lambda data, tail=tail: data + tail, Seed(name=SPECTRALIS))


def late() -> Iterator[Case]:
    """Pairs of faults that are found in another order than that of their codes."""
    names = list(FRAME_FAULTS)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            yield two_frames(first, second, (7, 2))
    yield from cut_deflated()


CASES: Final = (*swaps(), *positions(), *identities(), *junk())
PAIRS: Final = tuple(late())
