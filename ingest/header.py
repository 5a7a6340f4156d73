"""Reading a DICOM header: file meta information, the data set up to the pixels, and where the pixels start.

pydicom parses; this module decides what a failed parse means (DICOM PS3.10 section 7, PS3.5 section 7).
"""

import math
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, Final, cast

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import VR

from ingest.errors import IngestError
from ingest.fields import integer, raw
from ingest.record import Limits
from ingest.window import MoreNeededError, Window
from manifests.reasons import Reason

PREAMBLE_BYTES: Final = 128
MAGIC: Final = b"DICM"
NATIVE_ENCODINGS: Final = (
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
"""Of data sets; all other transfer syntaxes are explicit little endian (PS3.5 section 10)."""
FIRST_DEFLATED_BYTES: Final = 4096

MAX_RATIO: Final = 50
"""Speckle deflates to half, a scan that is mostly black to a tenth; zeros, of which bombs are made, to a thousandth."""
SMALL_BYTES: Final = 32 * 2**20
"""Up to here any ratio will do: so much memory is no danger."""
TAIL_BYTES: Final = 2**20
"""For what follows the pixels: padding, a signature."""

PIXEL_TAGS: Final = (0x7FE00008, 0x7FE00009, 0x7FE00010)
KNOWN_VRS: Final = frozenset(vr.value.encode() for vr in VR if len(vr.value) == 2)
UNDEFINED_LENGTH: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A parsed header.

    `body` holds the data set's bytes (inflated when deflated) if the file was read whole; `pixel_offset` is where
    the pixel data element starts in it, None when there is none. `encoding` is how the data set is really written.
    """

    dataset: Dataset
    transfer_syntax_uid: UID
    has_pixel_data: bool
    pixel_offset: int | None
    meta: Dataset = field(default_factory=Dataset)
    encoding: UID = ExplicitVRLittleEndian
    body: memoryview | None = field(repr=False, default=None)


def read_header(window: Window, limits: Limits) -> Header:
    """Read up to the pixel data and no further.

    Raises:
        IngestError: EMPTY_FILE, NOT_DICOM, META_HEADER_INVALID, PARSE_LIMIT_EXCEEDED, PARSER_CRASH, or
            TRUNCATED_DATASET when the file ends inside an element.
        MoreNeededError: when the header reaches beyond an incomplete window.
    """
    meta, syntax = _read_meta(window)
    encoding = _encoding(window, syntax)
    deflated = encoding == DeflatedExplicitVRLittleEndian
    header = _inflate_head(window, limits) if deflated else _parse_body(window, encoding)
    return replace(header, meta=meta, transfer_syntax_uid=syntax, encoding=encoding)


def parse_file(data: bytes | memoryview, limits: Limits) -> Header:
    """Parse a file that was read whole; raises like `read_header`."""
    window = Window(data, limit=limits.max_header_bytes)
    meta, syntax = _read_meta(window)
    encoding, body = _encoding(window, syntax), window.rest()
    if encoding == DeflatedExplicitVRLittleEndian:
        body = _inflate_all(body, limits)
    header = _parse_body(Window(body, limit=limits.max_header_bytes), encoding)
    return replace(header, meta=meta, transfer_syntax_uid=syntax, encoding=encoding, body=body)


def _read_meta(stream: Window) -> tuple[Dataset, UID]:
    """Preamble and group 0002, with the transfer syntax; leaves the stream at the data set."""
    if stream.at_end():
        raise IngestError(Reason.EMPTY_FILE, "the file has no bytes.")
    start = stream.read(PREAMBLE_BYTES + len(MAGIC))
    if start[PREAMBLE_BYTES:] != MAGIC:
        raise _not_part10(stream)
    meta, notes = _parse(stream, "file meta information", implicit=False, little=True, stop=_past_meta)
    if notes or _cut_element(meta, stream.tell()):
        raise IngestError(Reason.META_HEADER_INVALID, "the file meta information ends too early.")
    try:
        syntax = raw(meta, "TransferSyntaxUID")
    except IngestError as error:
        raise IngestError(Reason.META_HEADER_INVALID, error.detail) from error
    if not isinstance(syntax, UID) or not syntax.is_valid:
        raise IngestError(Reason.META_HEADER_INVALID, "the file meta information has no valid TransferSyntaxUID.")
    return meta, syntax


def _not_part10(stream: Window) -> IngestError:
    """No DICM marker: a bare data set is DICOM without its file meta information; anything else is not DICOM."""
    stream.seek(0)
    first = stream.read(8)
    stream.seek(0)
    explicit = first[4:6].isalpha() and first[4:6].isupper()
    try:
        dataset, _ = _parse(stream, "data set", implicit=not explicit, little=True, stop=_at_pixels)
        named = raw(dataset, "SOPClassUID") is not None and raw(dataset, "SOPInstanceUID") is not None
    except IngestError:
        return IngestError(Reason.NOT_DICOM, "no DICM marker, and nothing that can be parsed.")
    if named:
        return IngestError(Reason.META_HEADER_INVALID, "a data set without preamble and file meta information.")
    return IngestError(Reason.NOT_DICOM, "no DICM marker, and no data set that can be parsed.")


def _encoding(window: Window, syntax: UID) -> UID:
    """How the data set is written: as its transfer syntax says, unless its first element plainly shows another way."""
    declared = syntax if syntax in NATIVE_ENCODINGS else ExplicitVRLittleEndian
    found = _encoding_of(bytes(window.rest()[:6]))
    if found is None and declared != DeflatedExplicitVRLittleEndian:
        return DeflatedExplicitVRLittleEndian if _inflates_to_elements(window) else declared
    return found or declared


def _encoding_of(first: bytes) -> UID | None:
    """Byte order and VR of the first element, which is of group 0008; None when it is none."""
    explicit = first[4:6] in KNOWN_VRS
    if first[:2] == b"\x08\x00":
        return ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian
    return ExplicitVRBigEndian if explicit and first[:2] == b"\x00\x08" else None


def _inflates_to_elements(window: Window) -> bool:
    try:
        head = _inflate(window.rest()[:FIRST_DEFLATED_BYTES], FIRST_DEFLATED_BYTES)
    except IngestError:
        return False
    return _encoding_of(head.data[:6]) == ExplicitVRLittleEndian


def _parse_body(stream: Window, syntax: UID) -> Header:
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    begin = stream.tell()
    dataset, notes = _parse(stream, "data set", implicit=implicit, little=little, stop=_at_pixels)
    end = stream.tell()
    has_pixels = not stream.at_end()
    if not has_pixels and (notes or _cut_element(dataset, end)):
        raise IngestError(Reason.TRUNCATED_DATASET, "the file ends inside an element of the header.")
    return Header(
        dataset=dataset,
        transfer_syntax_uid=syntax,
        has_pixel_data=has_pixels,
        pixel_offset=end - begin if has_pixels else None,
    )


def check_tail(tail: memoryview, syntax: UID, reason: Reason) -> None:
    """What follows the pixel data is more elements, or zeros that a copy was padded with; else the file is damaged.

    Raises:
        IngestError: TRUNCATED_DATASET when it ends inside an element, `reason` when it is no data set.
    """
    if not bytes(tail).strip(b"\0"):
        return
    window = Window(tail, limit=len(tail))
    what = "1 byte behind the pixel data is" if len(tail) == 1 else f"{len(tail)} bytes behind the pixel data are"
    junk = IngestError(reason, f"{what} no data element.")
    if not _starts_behind_pixels(bytes(tail[:6]), syntax):
        raise junk
    try:
        header = _parse_body(window, syntax)
    except IngestError as error:
        raise (error if error.reason is Reason.TRUNCATED_DATASET else junk) from error
    if header.has_pixel_data or not header.dataset or min(header.dataset.keys()) <= PIXEL_TAGS[-1]:
        raise junk


def _starts_behind_pixels(first: bytes, syntax: UID) -> bool:
    """Whether these bytes may begin an element of a higher tag than the pixels'."""
    group, element = struct.unpack(">HH" if syntax == ExplicitVRBigEndian else "<HH", first[:4].ljust(4, b"\0"))
    behind = group << 16 | element > PIXEL_TAGS[-1]
    return behind and (syntax == ImplicitVRLittleEndian or first[4:6] in KNOWN_VRS)


StopRule = Callable[[Any, str | None, int], bool]


def _parse(stream: Window, what: str, *, implicit: bool, little: bool, stop: StopRule) -> tuple[Dataset, list[str]]:
    """Parse with pydicom, and return its complaints. A crash of the parser is that file's reason."""
    try:
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            dataset = read_dataset(cast("BinaryIO", stream), implicit, little, stop_when=stop)
    except (RecursionError, MemoryError) as error:
        raise IngestError(Reason.PARSE_LIMIT_EXCEEDED, f"{what}: {type(error).__name__}.") from error
    except (EOFError, struct.error) as error:
        raise IngestError(Reason.TRUNCATED_DATASET, f"the file ends inside the {what}.") from error
    except OSError as error:
        raise _behind(error, what) from error
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
        raise IngestError(Reason.PARSER_CRASH, f"{what}: the parser raised {type(error).__name__}.") from error
    return dataset, [str(note.message) for note in notes if "nd of file" in str(note.message)]


def _behind(error: OSError, what: str) -> Exception:
    """What ended the reading of an item: pydicom turns it, our own exceptions too, into an OSError, level by level."""
    cause: BaseException | None = error
    while isinstance(cause, OSError):
        cause = cause.__context__
    if isinstance(cause, IngestError | MoreNeededError):
        return cause
    if isinstance(cause, RecursionError | MemoryError):
        return IngestError(Reason.PARSE_LIMIT_EXCEEDED, f"{what}: {type(cause).__name__}.")
    if isinstance(cause, EOFError | struct.error):
        return IngestError(Reason.TRUNCATED_DATASET, f"the file ends inside the {what}.")
    return IngestError(Reason.PARSER_CRASH, f"{what}: the parser raised {type(cause or error).__name__}.")


def _past_meta(tag: Any, _vr: str | None, _length: int) -> bool:
    return int(tag) >> 16 != 2


def _at_pixels(tag: Any, _vr: str | None, _length: int) -> bool:
    return int(tag) in PIXEL_TAGS


def _cut_element(dataset: Dataset, end: int) -> bool:
    """Whether bytes are missing after the last element, or left over: pydicom takes what is there."""
    tags = sorted(dataset.keys())
    last: object = dataset.get_item(tags[-1], keep_deferred=True) if tags else None
    if not isinstance(last, RawDataElement) or last.length == UNDEFINED_LENGTH:
        return False
    return last.value_tell + last.length != end


def _inflate_head(window: Window, limits: Limits) -> Header:
    """Parse the first part of a deflated data set (PS3.5 A.5), enough for any header."""
    head = _inflate(window.rest(), limits.max_header_bytes)
    full = len(head.data) >= limits.max_header_bytes
    inner = Window(head.data, complete=head.ended or (window.complete and not full), limit=limits.max_header_bytes)
    header = _parse_body(inner, DeflatedExplicitVRLittleEndian)
    if not header.has_pixel_data and not head.ended:
        raise IngestError(Reason.TRUNCATED_DATASET, "the deflated data set ends before its end mark.")
    return header


def _inflate_all(body: memoryview, limits: Limits) -> memoryview:
    """Inflate to the size that the header declares, and a little more for what follows the pixels."""
    header = _inflate_head(Window(body, limit=limits.max_header_bytes), limits)
    plausible = max(SMALL_BYTES, MAX_RATIO * len(body))
    limit = (header.pixel_offset or 0) + min(_declared_bytes(header.dataset), plausible) + TAIL_BYTES
    inflated = _inflate(body, limit)
    if not inflated.ended and len(inflated.data) >= limit:
        raise IngestError(Reason.PARSE_LIMIT_EXCEEDED, f"the deflated data set inflates to over {limit} bytes.")
    if not inflated.ended:
        raise IngestError(Reason.TRUNCATED_DATASET, "the deflated data set ends before its end mark.")
    _check_deflated_end(body, inflated)
    return memoryview(inflated.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inflated:
    """What a deflate stream held, whether its end mark was reached, and the bytes behind that."""

    data: bytes
    ended: bool
    behind: bytes


def _check_deflated_end(body: memoryview, inflated: _Inflated) -> None:
    """An odd stream is padded with a zero (PS3.5 A.5): without it, a byte is missing. A gzip trailer may follow."""
    odd = (len(body) - len(inflated.behind)) % 2
    trailer = struct.pack("<LL", zlib.crc32(inflated.data), len(inflated.data) & UNDEFINED_LENGTH)
    if inflated.behind.removeprefix(trailer).strip(b"\0"):
        raise IngestError(Reason.TRUNCATED_DATASET, "what lies behind the deflated data set is no padding.")
    if odd and not inflated.behind:
        raise IngestError(Reason.TRUNCATED_DATASET, "the deflated data set does not end as one: a byte is missing.")


def _declared_bytes(dataset: Dataset) -> int:
    edges = [integer(dataset, name) or 1 for name in ("NumberOfFrames", "Rows", "Columns", "BitsAllocated")]
    return max(0, math.prod(edges)) // 8


def _inflate(compressed: memoryview, limit: int) -> _Inflated:
    """Raw deflate (RFC 1951), up to `limit` bytes."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflater.decompress(compressed, limit)
    except zlib.error as error:
        raise IngestError(Reason.TRUNCATED_DATASET, "the deflated data set is damaged.") from error
    return _Inflated(data=data, ended=inflater.eof, behind=inflater.unused_data)
