"""From grey levels to the fragments of a transfer syntax."""

import struct
from collections.abc import Callable
from types import MappingProxyType
from typing import Final

import imagecodecs
import numpy as np
import numpy.typing as npt

from ingest.phantom.errors import PhantomHeaderError
from ingest.phantom.protocols import JPEG_2000, JPEG_2000_LOSSLESS, JPEG_LS_LOSSLESS, RLE_LOSSLESS

Frame8 = npt.NDArray[np.uint8]
Volume8 = npt.NDArray[np.uint8]

LOSSY_PSNR_DB: Final = 38
"""Quality of lossy JPEG 2000: speckle loses about 3 grey levels, which is what vendors' exports look like."""


def encode_frames(volume: Volume8, transfer_syntax: str) -> list[bytes]:
    """One encapsulated fragment per B-scan.

    Args:
        volume: uint8 `[D, H, W]` in stored order.
        transfer_syntax: UID of an encapsulated syntax.

    Raises:
        PhantomHeaderError: if this generator has no encoder for the syntax.
    """
    encoder = ENCODERS.get(transfer_syntax)
    if encoder is None:
        known = ", ".join(sorted(ENCODERS))
        raise PhantomHeaderError(f"no encoder for transfer syntax {transfer_syntax}; encapsulated ones here: {known}.")
    return [encoder(np.ascontiguousarray(frame)) for frame in volume]


def _jpeg_2000_lossless(frame: Frame8) -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(frame, reversible=True, codecformat="j2k", resolutions=_levels(frame)))


def _jpeg_2000(frame: Frame8) -> bytes:
    resolutions = _levels(frame)
    encoded = imagecodecs.jpeg2k_encode(
        frame, level=LOSSY_PSNR_DB, reversible=False, codecformat="j2k", resolutions=resolutions
    )
    return bytes(encoded)


def _levels(frame: Frame8) -> int:
    """Wavelet resolutions: six for a full B-scan, fewer for a small one."""
    return min(6, max(1, int(np.log2(min(frame.shape))) - 2))


def _jpeg_ls(frame: Frame8) -> bytes:
    return bytes(imagecodecs.jpegls_encode(frame))


def _rle(frame: Frame8) -> bytes:
    """One segment of PackBits, each row on its own (PS3.5 annex G)."""
    header = struct.pack("<16L", 1, 64, *([0] * 14))
    return header + b"".join(bytes(imagecodecs.packbits_encode(row.tobytes())) for row in frame)


ENCODERS: Final[MappingProxyType[str, Callable[[Frame8], bytes]]] = MappingProxyType(
    {
        JPEG_2000_LOSSLESS: _jpeg_2000_lossless,
        JPEG_2000: _jpeg_2000,
        JPEG_LS_LOSSLESS: _jpeg_ls,
        RLE_LOSSLESS: _rle,
    }
)
