"""Decoding frames. A frame that does not decode to what the header declares rejects the file; nothing is guessed."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from pydicom.uid import UID, ExplicitVRBigEndian

from ingest.errors import IngestError
from ingest.frames import PixelFormat, find_frames, pixel_format
from ingest.header import Header
from ingest.syntaxes import NATIVE_SYNTAXES, Pixels, codec_of
from ingest.watch import UNWATCHED, Watch
from manifests.reasons import Reason


def decode_file(header: Header) -> Pixels:
    """Every frame of a parsed file: `[frames, rows, columns]`, little endian, as stored (no rescaling).

    Raises:
        IngestError: see `ingest.frames.find_frames` and `decode_frames`.
    """
    layout = pixel_format(header)
    frames = find_frames(header, layout)
    return decode_frames(frames, range(layout.num_frames), layout, header.transfer_syntax_uid)


def decode_frames(
    frames: Sequence[bytes], wanted: Iterable[int], layout: PixelFormat, syntax: UID, watch: Watch = UNWATCHED
) -> Pixels:
    """Decode the frames with these indices, in this order.

    Returns:
        `[len(wanted), rows, columns]`, uint8, uint16 or int16 by the header's BitsAllocated and PixelRepresentation.

    Raises:
        IngestError: FRAME_UNDECODABLE when a decoder refuses a frame or gives another shape or type;
            PHOTOMETRIC_UNSUPPORTED when pixels are not one sample of 8 or 16 bits.
    """
    if layout.samples_per_pixel != 1 or layout.bits_allocated not in {8, 16}:
        detail = f"{layout.samples_per_pixel} samples of {layout.bits_allocated} bits per pixel."
        raise IngestError(Reason.PHOTOMETRIC_UNSUPPORTED, detail)
    dtype = np.dtype(f"{'i' if layout.signed else 'u'}{layout.bits_allocated // 8}").newbyteorder("<")
    indices = list(wanted)
    volume = np.empty((len(indices), layout.rows, layout.columns), dtype)
    for place, index in enumerate(indices):
        watch.frame(layout.rows * layout.columns)
        volume[place] = _decode(frames[index], index, layout, syntax)
    return volume


def check_bits(pixels: Pixels, layout: PixelFormat) -> None:
    """Grey levels fit into BitsStored (PS3.3 C.7.6.3.1): full scale and inversion are reckoned by it.

    Raises:
        IngestError: FRAME_UNDECODABLE.
    """
    if layout.bits_stored < layout.bits_allocated and int(pixels.max()) >= 2**layout.bits_stored:
        raise IngestError(Reason.FRAME_UNDECODABLE, f"grey levels beyond {layout.bits_stored} bits.")


def _decode(frame: bytes, number: int, layout: PixelFormat, syntax: UID) -> npt.NDArray[np.generic]:
    shape = (layout.rows, layout.columns)
    if syntax in NATIVE_SYNTAXES:
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        kind = "i" if layout.signed else "u"
        return np.frombuffer(frame, f"{order}{kind}{layout.bits_allocated // 8}").reshape(shape)
    try:
        pixels = codec_of(syntax).decode(frame, shape, layout.bits_allocated)
    except IngestError:
        raise
    except (RuntimeError, ValueError, OSError, MemoryError, TypeError) as error:
        raise IngestError(Reason.FRAME_UNDECODABLE, f"frame {number}: {type(error).__name__}.") from error
    if pixels.dtype.kind == "i" and not layout.signed:
        raise IngestError(Reason.FRAME_UNDECODABLE, f"frame {number} is signed, the header says unsigned.")
    if pixels.shape != shape or pixels.dtype.itemsize * 8 > layout.bits_allocated:
        found = f"frame {number} decodes to {pixels.shape} {pixels.dtype}"
        raise IngestError(Reason.FRAME_UNDECODABLE, f"{found}, declared are {shape} of {layout.bits_allocated} bits.")
    return pixels
