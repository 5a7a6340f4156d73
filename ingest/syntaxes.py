"""One pinned decoder per transfer syntax, and what a whole frame of it looks like. No decoder falls back to another.

Decoders are imagecodecs' (BSD-3): OpenJPEG, CharLS, libjpeg-turbo and its own RLE and SOF3 readers.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import imagecodecs
import numpy as np
import numpy.typing as npt
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from ingest.errors import IngestError
from manifests.reasons import Reason

NATIVE_SYNTAXES: Final = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)

J2K_START: Final = b"\xff\x4f\xff\x51"
JP2_START: Final = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
JPEG_START: Final = b"\xff\xd8"
END_OF_IMAGE: Final = b"\xff\xd9"
"""EOI of JPEG and JPEG-LS (T.81 B.1.1.3), EOC of JPEG 2000 (T.800 A.4.4)."""

PADDING: Final = b"\x00\xff"
"""PS3.5 A.4 pads with zero; encoders in the field also pad with fill bytes."""

RLE_HEADER: Final = struct.Struct("<16L")

Pixels = npt.NDArray[Any]
Shape2 = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """How frames of a family of transfer syntaxes start, end and are decoded."""

    start: bytes
    declared_shape: Callable[[bytes], Shape2 | None]
    decode: Callable[[bytes, Shape2, int], Pixels]
    start_of_frame: tuple[int, ...] = ()

    def starts(self, data: bytes) -> bool:
        """Whether a fragment begins a frame."""
        return data.startswith(self.start) if self.start else True

    def check(self, frame: bytes, rows: int, columns: int, number: int) -> None:
        """Start marker, end marker, declared size; nothing is decoded and nothing allocated.

        Raises:
            IngestError: TS_MISMATCH, CODESTREAM_OBFUSCATED, FRAME_INCOMPLETE or FRAME_UNDECODABLE.
        """
        self._check_start(frame, number)
        if self.start and not frame[-64:].rstrip(PADDING).endswith(END_OF_IMAGE):
            raise IngestError(Reason.FRAME_INCOMPLETE, f"frame {number} has no end-of-image marker.")
        try:
            declared = self.declared_shape(frame)
        except (struct.error, ValueError) as error:
            raise IngestError(Reason.FRAME_UNDECODABLE, f"frame {number} has no readable frame header.") from error
        if declared not in {None, (rows, columns)}:
            raise IngestError(Reason.FRAME_UNDECODABLE, f"frame {number} declares {declared}, not {(rows, columns)}.")

    def _check_start(self, frame: bytes, number: int) -> None:
        if self.start and self.starts(frame):
            marker = start_of_frame(frame)[0] if self.start_of_frame else 0
            if self.start_of_frame and marker and marker not in self.start_of_frame:
                raise IngestError(Reason.TS_MISMATCH, f"frame {number} is another JPEG process (SOF {marker:#x}).")
            return
        family = next((name for start, name in FAMILIES if frame.startswith(start)), None)
        if family and not (self.start == J2K_START and family == "JP2"):
            raise IngestError(Reason.TS_MISMATCH, f"frame {number} is {family}, not what the header declares.")
        if self.start == J2K_START and not family:
            raise IngestError(Reason.CODESTREAM_OBFUSCATED, f"frame {number} has no JPEG 2000 start marker.")
        if self.start and not family:
            raise IngestError(Reason.TS_MISMATCH, f"frame {number} has no JPEG start marker.")


FAMILIES: Final = ((J2K_START, "JPEG 2000"), (JP2_START, "JP2"), (JPEG_START, "JPEG"))


def start_of_frame(frame: bytes) -> tuple[int, Shape2 | None]:
    """Marker and (rows, columns) of a JPEG's SOF segment (T.81 B.2.2); (0, None) when there is none."""
    position = 2
    while position + 9 <= len(frame):
        lead, marker, length = struct.unpack_from(">BBH", frame, position)
        if lead != 0xFF:
            return 0, None
        if (0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}) or marker == 0xF7:
            return marker, struct.unpack_from(">HH", frame, position + 5)
        if marker == 0xDA:
            return 0, None
        position += 1 if marker == 0xFF else 2 + length
    return 0, None


def _jpeg_shape(frame: bytes) -> Shape2:
    shape = start_of_frame(frame)[1]
    if shape is None:
        raise ValueError("no SOF segment")
    return shape


def _j2k_shape(frame: bytes) -> Shape2 | None:
    """(rows, columns) of the SIZ segment (T.800 A.5.1); None for a JP2 wrapper."""
    if not frame.startswith(J2K_START):
        return None
    width, height, left, top = struct.unpack_from(">4L", frame, 8)
    return height - top, width - left


def _rle_shape(frame: bytes) -> None:
    """An RLE frame declares no size: its header must be whole and its segments in order (PS3.5 annex G.5)."""
    count, *offsets = RLE_HEADER.unpack_from(frame)
    used = offsets[:count]
    if not 1 <= count <= 15 or used[0] != RLE_HEADER.size or used != sorted(used) or used[-1] >= len(frame):
        raise ValueError("RLE header")


def _decode_rle(frame: bytes, shape: Shape2, bits_allocated: int) -> Pixels:
    """Segments are bytes of the pixels, most significant first; each must unpack to every pixel."""
    count, *offsets = RLE_HEADER.unpack_from(frame)
    if count * 8 != bits_allocated:
        raise ValueError(f"{count} RLE segments for {bits_allocated} bits")
    stops = [*offsets[1:count], len(frame)]
    planes = []
    for start, stop in zip(offsets[:count], stops, strict=True):
        plane = imagecodecs.packbits_decode(frame[start:stop])
        if not shape[0] * shape[1] <= len(plane) <= shape[0] * shape[1] + 1:
            raise ValueError(f"an RLE segment unpacks to {len(plane)} bytes")
        planes.append(np.frombuffer(plane, np.uint8, shape[0] * shape[1]))
    return np.stack(planes, axis=-1).view(f">u{count}").reshape(shape)


def _decoder(name: str) -> Callable[[bytes, Shape2, int], Pixels]:
    def decode(frame: bytes, _shape: Shape2, _bits_allocated: int) -> Pixels:
        pixels: Pixels = getattr(imagecodecs, name)(frame)
        return pixels

    return decode


_JPEG_2000: Final = Codec(start=J2K_START, declared_shape=_j2k_shape, decode=_decoder("jpeg2k_decode"))
_JPEG_LS: Final = Codec(
    start=JPEG_START, declared_shape=_jpeg_shape, decode=_decoder("jpegls_decode"), start_of_frame=(0xF7,)
)
_JPEG_DCT: Final = Codec(
    start=JPEG_START, declared_shape=_jpeg_shape, decode=_decoder("jpeg8_decode"), start_of_frame=(0xC0, 0xC1)
)
_JPEG_LOSSLESS: Final = Codec(
    start=JPEG_START, declared_shape=_jpeg_shape, decode=_decoder("jpegsof3_decode"), start_of_frame=(0xC3,)
)
_RLE: Final = Codec(start=b"", declared_shape=_rle_shape, decode=_decode_rle)

CODECS: Final[dict[str, Codec]] = {
    JPEGBaseline8Bit: _JPEG_DCT,
    JPEGExtended12Bit: _JPEG_DCT,
    JPEGLossless: _JPEG_LOSSLESS,
    JPEGLosslessSV1: _JPEG_LOSSLESS,
    JPEGLSLossless: _JPEG_LS,
    JPEGLSNearLossless: _JPEG_LS,
    JPEG2000Lossless: _JPEG_2000,
    JPEG2000: _JPEG_2000,
    HTJ2KLossless: _JPEG_2000,
    HTJ2KLosslessRPCL: _JPEG_2000,
    HTJ2K: _JPEG_2000,
    RLELossless: _RLE,
}


def is_supported(syntax: UID) -> bool:
    """Whether a decoder is pinned for the transfer syntax."""
    return syntax in NATIVE_SYNTAXES or syntax in CODECS


def codec_of(syntax: UID) -> Codec:
    """The pinned codec of an encapsulated transfer syntax.

    Raises:
        IngestError: TS_UNSUPPORTED.
    """
    if syntax not in CODECS:
        raise IngestError(Reason.TS_UNSUPPORTED, f"no decoder for transfer syntax {syntax}.")
    return CODECS[syntax]
