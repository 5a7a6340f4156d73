"""ZIP archives, streamed and never unpacked to disk. An archive with one unsafe member is quarantined whole."""

import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO, Final, cast

from ingest.errors import IngestError
from manifests.reasons import Reason

MAX_MEMBER_BYTES: Final = 4 * 2**30
MAX_RATIO: Final = 250
"""Deflate reaches 1032:1 on zeros; no scan comes near this, but a small blank file may."""
RATIO_APPLIES_BYTES: Final = 64 * 2**20
DAMAGED: Final = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One file in an archive."""

    name: str
    bytes: int


def list_members(stream: BinaryIO) -> list[Member]:
    """The files of an archive, from its central directory.

    Raises:
        IngestError: ZIP_INVALID_OR_TRUNCATED, or ZIP_UNSAFE for traversal, links, encryption, nesting, repeated names
            or a member that inflates too much.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except DAMAGED as error:
        raise IngestError(
            Reason.ZIP_INVALID_OR_TRUNCATED, f"no readable directory ({type(error).__name__})."
        ) from error
    for info in infos:
        _check_safe(info)
    if len({info.filename for info in infos}) < len(infos):
        raise IngestError(Reason.ZIP_UNSAFE, "two members share a name.")
    return [Member(name=info.filename, bytes=info.file_size) for info in infos]


def _check_safe(info: zipfile.ZipInfo) -> None:
    path = PurePosixPath(info.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in info.filename or "!" in info.filename:
        raise IngestError(Reason.ZIP_UNSAFE, "a member's name leaves the archive.")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise IngestError(Reason.ZIP_UNSAFE, "a member is a link.")
    if info.flag_bits & 1:
        raise IngestError(Reason.ZIP_UNSAFE, "a member is encrypted.")
    if path.suffix.lower() == ".zip":
        raise IngestError(Reason.ZIP_UNSAFE, "a member is an archive itself.")
    bomb = info.file_size > RATIO_APPLIES_BYTES and info.file_size > MAX_RATIO * max(1, info.compress_size)
    if bomb or info.file_size > MAX_MEMBER_BYTES:
        raise IngestError(Reason.ZIP_UNSAFE, f"a member declares {info.file_size} bytes.")


@contextmanager
def open_member(stream: BinaryIO, name: str) -> Iterator[BinaryIO]:
    """A member as a stream; its checksum is verified when it is read to its end.

    Raises:
        IngestError: ZIP_INVALID_OR_TRUNCATED when the archive, or the member, cannot be read to its end.
    """
    try:
        with zipfile.ZipFile(stream) as archive, archive.open(name) as member:
            yield cast("BinaryIO", member)
    except (*DAMAGED, KeyError) as error:
        raise IngestError(
            Reason.ZIP_INVALID_OR_TRUNCATED, f"a member cannot be read ({type(error).__name__})."
        ) from error
