"""ZIP archives, streamed and never unpacked to disk. An archive with one unsafe member is quarantined whole."""

import io
import re
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath
from typing import IO, Any, BinaryIO, Final, cast

from ingest.errors import IngestError
from manifests.reasons import Reason

MAX_MEMBERS: Final = 100_000
"""The largest release has 56,477 scans in all."""
MAX_DIRECTORY_BYTES: Final = 32 * 2**20
"""100,000 names of AI-READI's length with their attributes take about 20 MB."""
DIRECTORY_ENTRY: Final = b"PK\x01\x02"

MAX_MEMBER_BYTES: Final = 4 * 2**30
MAX_RATIO: Final = 250
"""Deflate reaches 1032:1 on zeros; no scan comes near this, but a small blank file may."""
RATIO_APPLIES_BYTES: Final = 64 * 2**20

LOCAL_HEADER_BYTES: Final = 30
"""The fixed part of what lies before a member's data (APPNOTE 4.3.7)."""
ENCRYPTED_FLAGS: Final = 0x0001 | 0x0040 | 0x2000
METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""The others are rare, and Python inflates them without a bound: a few kilobytes of bzip2 hold gigabytes."""

DRIVE: Final = re.compile(r"[A-Za-z]:")
DAMAGED: Final = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    ArithmeticError,
    LookupError,
    ValueError,
)
BLOCK_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One file in an archive; `bytes` is what the directory declares."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The files of an archive, each name once. None of them may be opened when something is `unsafe`."""

    members: tuple[Member, ...]
    unsafe: str | None = None


def list_members(stream: BinaryIO) -> Listing:
    """The files of an archive, from its central directory; no member is read.

    Raises:
        IngestError: ZIP_INVALID_OR_TRUNCATED without a readable directory, ZIP_UNSAFE when it is too large to be read.
    """
    try:
        with zipfile.ZipFile(cast("IO[bytes]", _DirectoryReader(stream))) as archive:
            infos, end = archive.infolist(), archive.start_dir
    except DAMAGED as error:
        raise IngestError(
            Reason.ZIP_INVALID_OR_TRUNCATED, f"no readable directory ({type(error).__name__})."
        ) from error
    files = [info for info in infos if not info.is_dir()]
    members = {info.filename: Member(name=info.filename, bytes=info.file_size) for info in files}
    return Listing(members=tuple(members.values()), unsafe=_unsafe(files) or _overlap(infos, end))


class _DirectoryReader:
    """A stream from which no larger directory than that of any cohort is read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY_BYTES:
            raise IngestError(Reason.ZIP_UNSAFE, f"its directory has {size} bytes.")
        data = self._stream.read(size)
        if data.count(DIRECTORY_ENTRY) > MAX_MEMBERS:
            raise IngestError(Reason.ZIP_UNSAFE, f"it has more than {MAX_MEMBERS} members.")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _unsafe(files: Sequence[zipfile.ZipInfo]) -> str | None:
    """What is wrong with the first member that no archive of scans would hold."""
    found = next((what for info in files if (what := _unsafe_member(info))), None)
    names = Counter(info.filename for info in files)
    if found is None and len(names) < len(files):
        return f"{len(files) - len(names)} members repeat the name of another."
    return found


def _unsafe_member(info: zipfile.ZipInfo) -> str | None:
    path = PurePosixPath(info.filename.replace("\\", "/"))
    if not info.filename or path.is_absolute() or ".." in path.parts or DRIVE.match(info.filename):
        return "a member's name leaves the archive."
    if stat.S_IFMT(info.external_attr >> 16) not in {0, stat.S_IFREG}:
        return "a member is a link or a device."
    if info.flag_bits & ENCRYPTED_FLAGS:
        return "a member is encrypted."
    if path.suffix.lower() == ".zip":
        return "a member is an archive itself."
    bomb = info.file_size > RATIO_APPLIES_BYTES and info.file_size > MAX_RATIO * max(1, info.compress_size)
    return f"a member declares {info.file_size} bytes." if bomb or info.file_size > MAX_MEMBER_BYTES else None


def _overlap(infos: Sequence[zipfile.ZipInfo], end: int) -> str | None:
    """Members that share compressed bytes multiply them: a bomb of petabytes in 46 MB (Fifield, WOOT 2019)."""
    if any(info.header_offset < 0 for info in infos):
        return "a member lies outside of the archive."
    spans = sorted((info.header_offset, info.header_offset + LOCAL_HEADER_BYTES + info.compress_size) for info in infos)
    overlapping = sum(stop > start for (_, stop), (start, _) in pairwise([*spans, (end, end)]))
    return f"{overlapping} members overlap what follows them." if overlapping else None


@contextmanager
def open_member(stream: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """A member as a stream; raises like `open_archive` and `member_of`."""
    with open_archive(stream) as archive, member_of(archive, name) as member:
        yield member


def open_archive(stream: BinaryIO) -> zipfile.ZipFile:
    """An archive with its directory, which is read now.

    Raises:
        IngestError: ZIP_INVALID_OR_TRUNCATED.
    """
    try:
        return zipfile.ZipFile(stream)
    except DAMAGED as error:
        raise _unreadable(error) from error


@contextmanager
def member_of(archive: zipfile.ZipFile, name: str) -> Iterator[BinaryIO]:
    """A member as a stream; its length and its checksum are verified when it is read to its end.

    Raises:
        IngestError: ZIP_INVALID_OR_TRUNCATED, now or from a read, when the archive or the member is damaged, or
            compressed in another way than deflate.
    """
    try:
        info = archive.getinfo(name)
        member = archive.open(info) if info.compress_type in METHODS else None
    except DAMAGED as error:
        raise _unreadable(error) from error
    if member is None:
        detail = f"compression method {info.compress_type} is not supported; deflate is."
        raise IngestError(Reason.ZIP_INVALID_OR_TRUNCATED, detail)
    with member:
        yield cast("BinaryIO", io.BufferedReader(_Checked(member, info.file_size), BLOCK_BYTES))


class _Checked(io.RawIOBase):
    """A member whose reads never inflate more than they ask for, and which must be as long as it says."""

    def __init__(self, member: IO[bytes], num_bytes: int) -> None:
        super().__init__()
        self._member = member
        self._left = num_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._member.read(len(buffer))
        except DAMAGED as error:
            raise _unreadable(error) from error
        self._left -= len(data)
        if not data and len(buffer) and self._left:
            raise IngestError(Reason.ZIP_INVALID_OR_TRUNCATED, "a member is shorter than it says.")
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """In blocks: `read` of the standard library inflates all that is left at once, however much that is."""
        return b"".join(iter(lambda: self.read(BLOCK_BYTES), b""))


def _unreadable(error: Exception) -> IngestError:
    return IngestError(Reason.ZIP_INVALID_OR_TRUNCATED, f"a member cannot be read ({type(error).__name__}).")
