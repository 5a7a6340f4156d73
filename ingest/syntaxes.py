"""One pinned decoder per transfer syntax, and what a whole frame of it looks like. No decoder falls back to another.

Decoders are imagecodecs' (BSD-3): OpenJPEG, CharLS, libjpeg-turbo and its own RLE and SOF3 readers.
"""

import struct
from collections.abc import Callable, Sequence
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

from ingest.codestream import (
    END_OF_IMAGE,
    J2K_START,
    JP2_START,
    JPEG_START,
    IncompleteError,
    Shape2,
    family_of,
    has_end,
    j2k_shape,
    jpeg_shape,
    rle_segments,
    start_of_frame,
)
from ingest.errors import IngestError
from manifests.reasons import Reason

NATIVE_SYNTAXES: Final = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)

Pixels = npt.NDArray[Any]


PROBE_BYTES: Final = 4
"""At one bit a sample, the least that a Huffman code takes, they hold 32 of them."""


def _undeclared(_frame: bytes) -> Shape2:
    raise ValueError("frames of this transfer syntax declare no size")


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """How frames of a family of transfer syntaxes start, end and are decoded.

    `shape_of` walks a frame from its first marker to its last and returns the (rows, columns) that it declares.
    `lenient_block` is the edge of the blocks of a decoder that fills up what is missing instead of refusing it.
    """

    start: tuple[bytes, ...]
    decode: Callable[[bytes, Shape2, int], Pixels]
    shape_of: Callable[[bytes], Shape2] = _undeclared
    start_of_frame: tuple[int, ...] = ()
    lenient_block: int | None = None

    def starts(self, fragments: Sequence[bytes]) -> list[int]:
        """The fragments that begin a frame, as the first of them does: behind a JP2's boxes its codestream begins."""
        kind = next((start for start in self.start if fragments and fragments[0].startswith(start)), None)
        return [place for place, data in enumerate(fragments) if kind and data.startswith(kind)]

    def check(self, frame: bytes, shape: Shape2, bits_allocated: int, number: int) -> None:
        """Start marker, end marker, what lies between them, declared size: of any frame, whether it is needed or not.

        Raises:
            IngestError: TS_MISMATCH, CODESTREAM_OBFUSCATED, FRAME_INCOMPLETE or FRAME_UNDECODABLE.
        """
        if not self.start:
            self._check_unmarked(frame, shape, bits_allocated, number)
            return
        self._check_start(frame, number)
        if not has_end(frame):
            raise IngestError(Reason.FRAME_INCOMPLETE, f"frame {number} has no end-of-image marker.")
        try:
            declared = self.shape_of(frame)
        except struct.error as error:
            raise IngestError(Reason.FRAME_UNDECODABLE, f"frame {number} has no readable frame header.") from error
        except ValueError as error:
            raise IngestError(Reason.FRAME_UNDECODABLE, f"frame {number}: {error}.") from error
        if declared != shape:
            raise IngestError(Reason.FRAME_UNDECODABLE, f"frame {number} declares {declared}, not {shape}.")
        if self.lenient_block and not self._reaches_last_block(frame, shape, bits_allocated):
            raise IngestError(Reason.FRAME_UNDECODABLE, f"frame {number} ends before its last pixels.")

    def _reaches_last_block(self, frame: bytes, shape: Shape2, bits_allocated: int) -> bool:
        """Whether the data go on to the end of the image, though the decoder would not complain if they did not.

        A few bytes less before the end marker must change nothing but the last few blocks: in a scan that was cut and
        given an end marker, they change blocks in its middle.
        """
        end = frame.rindex(END_OF_IMAGE)
        try:
            whole = self.decode(frame, shape, bits_allocated)
            shorter = self.decode(frame[: end - PROBE_BYTES] + END_OF_IMAGE, shape, bits_allocated)
        except (RuntimeError, ValueError):
            return True  # a refusal is for whoever decodes
        if whole.shape != shape or shorter.shape != shape:
            return True
        edge = self.lenient_block or 1
        rows, columns = np.nonzero(whole != shorter)
        across = -(-shape[1] // edge)
        first = (rows // edge * across + columns // edge).min(initial=np.iinfo(np.int64).max)
        fewest_bits = 1 if edge == 1 else 2  # of a sample; of a block, which has an end of its own too
        return int(first) >= across * -(-shape[0] // edge) - PROBE_BYTES * 8 // fewest_bits

    def _check_start(self, frame: bytes, number: int) -> None:
        if frame.startswith(self.start):
            marker = start_of_frame(frame)[0] if self.start_of_frame else 0
            if marker and marker not in self.start_of_frame:
                raise IngestError(Reason.TS_MISMATCH, f"frame {number} is another JPEG process (SOF {marker:#x}).")
            return
        family = family_of(frame)
        if family:
            raise IngestError(Reason.TS_MISMATCH, f"frame {number} is {family}, not what the header declares.")
        if J2K_START in self.start:
            raise IngestError(Reason.CODESTREAM_OBFUSCATED, f"frame {number} has no JPEG 2000 start marker.")
        raise IngestError(Reason.TS_MISMATCH, f"frame {number} has no JPEG start marker.")

    def _check_unmarked(self, frame: bytes, shape: Shape2, bits_allocated: int, number: int) -> None:
        """RLE has no markers and declares no size: a frame is whole when it unpacks to every pixel."""
        family = family_of(frame)
        if family not in {"RLE", None}:
            raise IngestError(Reason.TS_MISMATCH, f"frame {number} is {family}, not what the header declares.")
        try:
            self.decode(frame, shape, bits_allocated)
        except IncompleteError as error:
            raise IngestError(Reason.FRAME_INCOMPLETE, f"frame {number}: {error}.") from error
        except (struct.error, ValueError, RuntimeError) as error:
            raise IngestError(Reason.FRAME_UNDECODABLE, f"frame {number} cannot be unpacked.") from error


def _decode_rle(frame: bytes, shape: Shape2, bits_allocated: int) -> Pixels:
    """Segments are bytes of the pixels, most significant first; each must unpack to every pixel."""
    segments = rle_segments(frame)
    if len(segments) * 8 != bits_allocated:
        raise ValueError(f"{len(segments)} RLE segments for {bits_allocated} bits")
    size = shape[0] * shape[1]
    try:
        planes = [imagecodecs.packbits_decode(segment) for segment in segments]
    except RuntimeError as error:
        raise IncompleteError("an RLE segment ends inside a run") from error
    for plane in planes:
        if len(plane) < size:
            raise IncompleteError(f"an RLE segment unpacks to {len(plane)} bytes of {size}")
        if len(plane) > size + 1:
            raise ValueError(f"an RLE segment unpacks to {len(plane)} bytes")
    pixels = np.stack([np.frombuffer(plane, np.uint8, size) for plane in planes], axis=-1)
    return pixels.view(f">u{len(planes)}").reshape(shape)


def _decoder(name: str) -> Callable[[bytes, Shape2, int], Pixels]:
    def decode(frame: bytes, _shape: Shape2, _bits_allocated: int) -> Pixels:
        pixels: Pixels = getattr(imagecodecs, name)(frame)
        return pixels

    return decode


_JPEG_2000: Final = Codec(start=(J2K_START, JP2_START), shape_of=j2k_shape, decode=_decoder("jpeg2k_decode"))
_JPEG_LS: Final = Codec(
    start=(JPEG_START,), shape_of=jpeg_shape, decode=_decoder("jpegls_decode"), start_of_frame=(0xF7,)
)
_JPEG_DCT: Final = Codec(
    start=(JPEG_START,),
    shape_of=jpeg_shape,
    decode=_decoder("jpeg8_decode"),
    start_of_frame=(0xC0, 0xC1),
    lenient_block=8,
)
_JPEG_LOSSLESS: Final = Codec(
    start=(JPEG_START,),
    shape_of=jpeg_shape,
    decode=_decoder("jpegsof3_decode"),
    start_of_frame=(0xC3,),
    lenient_block=1,
)
_RLE: Final = Codec(start=(), decode=_decode_rle)

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
