"""A frame that is not whole is refused, also when its end marker is there."""

from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import pytest
from pydicom.uid import (
    HTJ2K,
    UID,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from ingest.errors import IngestError
from ingest.syntaxes import codec_of
from manifests.reasons import Reason

SHAPE = (128, 128)
ENCODERS: dict[UID, Callable[[Any], bytes]] = {
    JPEGBaseline8Bit: lambda image: imagecodecs.jpeg8_encode(image, level=90),
    JPEGLosslessSV1: imagecodecs.ljpeg_encode,
    JPEGLSLossless: imagecodecs.jpegls_encode,
    JPEG2000Lossless: lambda image: imagecodecs.jpeg2k_encode(image, codecformat="j2k", level=0),
    HTJ2K: imagecodecs.htj2k_encode,
}
MARKED = list(ENCODERS)
END = b"\xff\xd9"


def tissue(*, flat_below: bool = False) -> Any:
    """A bright band in noise; below it, optionally, nothing at all, which codecs spend no bytes on."""
    rows = np.arange(SHAPE[0])[:, None]
    noise = np.random.default_rng(0).normal(10, 12, SHAPE)
    image = np.clip(180 * np.exp(-(((rows - 40) / 15.0) ** 2)) + noise, 0, 255).astype(np.uint8)
    if flat_below:
        image[64:] = 0
    return image


def rle(image: Any) -> bytes:
    packed = imagecodecs.packbits_encode(image.tobytes())
    return np.array([1, 64] + [0] * 14, "<u4").tobytes() + packed


def check(syntax: UID, frame: bytes) -> Reason | None:
    try:
        codec_of(syntax).check(frame, SHAPE, 8, 0)
        codec_of(syntax).decode(frame, SHAPE, 8)
    except IngestError as error:
        return error.reason
    except RuntimeError:
        return Reason.FRAME_UNDECODABLE
    return None


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("syntax", MARKED, ids=lambda uid: uid.keyword)
def test_whole_frames_pass(syntax: UID, flat: bool) -> None:
    frame = ENCODERS[syntax](tissue(flat_below=flat))
    assert check(syntax, frame) is None
    assert check(syntax, frame + b"\0") is None, "padded to be even"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("syntax", MARKED, ids=lambda uid: uid.keyword)
def test_cut_frames_are_incomplete(syntax: UID, share: float) -> None:
    frame = ENCODERS[syntax](tissue())
    assert check(syntax, frame[: int(len(frame) * share)]) is Reason.FRAME_INCOMPLETE


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("syntax", MARKED, ids=lambda uid: uid.keyword)
def test_cut_frames_with_an_end_marker_are_refused(syntax: UID, share: float) -> None:
    """libjpeg fills up what is missing, and says nothing."""
    frame = ENCODERS[syntax](tissue())
    assert check(syntax, frame[: int(len(frame) * share)] + END) is Reason.FRAME_UNDECODABLE


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLSLossless], ids=lambda uid: uid.keyword)
def test_a_scan_that_another_marker_breaks_off_is_refused(syntax: UID) -> None:
    """The decoder would stop at the first end marker and fill up the rest."""
    frame = ENCODERS[syntax](tissue())
    middle = len(frame) // 2
    assert check(syntax, frame[:middle] + END + frame[middle + 2 :]) is Reason.FRAME_UNDECODABLE


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_rle_has_no_markers_and_must_unpack_to_every_pixel(share: float) -> None:
    frame = rle(tissue())
    assert check(RLELossless, frame) is None
    assert check(RLELossless, frame[: int(len(frame) * share)]) is Reason.FRAME_INCOMPLETE


@pytest.mark.parametrize("syntax", MARKED, ids=lambda uid: uid.keyword)
def test_rle_that_is_something_else_is_a_mismatch(syntax: UID) -> None:
    assert check(RLELossless, ENCODERS[syntax](tissue())) is Reason.TS_MISMATCH


def test_tile_parts_must_reach_the_end_marker() -> None:
    frame = bytearray(ENCODERS[JPEG2000Lossless](tissue()))
    place = frame.index(b"\xff\x90") + 6
    length = int.from_bytes(frame[place : place + 4], "big")
    for lie in (length - 10, length + 10, 3, 2**32 - 1):
        frame[place : place + 4] = lie.to_bytes(4, "big")
        assert check(JPEG2000Lossless, bytes(frame)) is Reason.FRAME_UNDECODABLE
    frame[place : place + 4] = bytes(4)
    assert check(JPEG2000Lossless, bytes(frame)) is None, "0 means: up to the end marker (T.800 A.4.2)"
