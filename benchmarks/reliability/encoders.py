"""Encoders for every encapsulated transfer syntax that fovea decodes; the phantom generator writes fewer."""

import struct
from collections.abc import Callable
from typing import Any, Final

import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

Frame = npt.NDArray[Any]
"""One B-scan, uint8 or uint16 `[H, W]`."""


def _j2k(frame: Frame, *, reversible: bool) -> bytes:
    level = None if reversible else 40
    encoded = imagecodecs.jpeg2k_encode(frame, level=level, codecformat="j2k", resolutions=3, reversible=reversible)
    return bytes(encoded)


def _htj2k(frame: Frame, *, reversible: bool) -> bytes:
    return bytes(imagecodecs.htj2k_encode(frame, reversible=reversible))


def _lossless(frame: Frame, predictor: int) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(frame, lossless=True, predictor=predictor))


def _extended(frame: Frame) -> bytes:
    """Process 4 with 12 bits a sample when the frame has more than 8, else as baseline."""
    bits = 12 if frame.dtype == np.uint16 else 8
    return bytes(imagecodecs.jpeg8_encode(frame, level=90, bitspersample=bits))


def _rle(frame: Frame) -> bytes:
    """One PackBits segment a byte, most significant first, each row on its own (PS3.5 annex G)."""
    planes = frame.astype(frame.dtype.newbyteorder(">")).view(np.uint8).reshape(*frame.shape, -1)
    segments = [_even(b"".join(_packed(row) for row in planes[..., place])) for place in range(planes.shape[-1])]
    offsets = [64 + sum(map(len, segments[:place])) for place in range(len(segments))]
    return struct.pack("<16L", len(segments), *offsets, *([0] * (15 - len(segments)))) + b"".join(segments)


def _packed(row: Frame) -> bytes:
    return bytes(imagecodecs.packbits_encode(row.tobytes()))


def _even(data: bytes) -> bytes:
    return data + b"\0" * (len(data) % 2)


ENCODERS: Final[dict[UID, Callable[[Frame], bytes]]] = {
    JPEGBaseline8Bit: lambda frame: bytes(imagecodecs.jpeg8_encode(frame, level=90)),
    JPEGExtended12Bit: _extended,
    JPEGLossless: lambda frame: _lossless(frame, predictor=4),
    JPEGLosslessSV1: lambda frame: _lossless(frame, predictor=1),
    JPEGLSLossless: lambda frame: bytes(imagecodecs.jpegls_encode(frame)),
    JPEGLSNearLossless: lambda frame: bytes(imagecodecs.jpegls_encode(frame, level=2)),
    JPEG2000Lossless: lambda frame: _j2k(frame, reversible=True),
    JPEG2000: lambda frame: _j2k(frame, reversible=False),
    HTJ2KLossless: lambda frame: _htj2k(frame, reversible=True),
    HTJ2KLosslessRPCL: lambda frame: _htj2k(frame, reversible=True),  # OpenJPH's own order is RPCL
    HTJ2K: lambda frame: _htj2k(frame, reversible=False),
    RLELossless: _rle,
}


def encode(volume: Frame, syntax: UID) -> list[bytes]:
    """One fragment per B-scan of `[D, H, W]`."""
    return [ENCODERS[syntax](np.ascontiguousarray(frame)) for frame in volume]
