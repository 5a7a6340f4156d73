"""Reading the files of a SOURCE, members of archives too. What a store does not give is never counted as corrupt."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, cast
from zipfile import ZipFile

from ingest.archive import member_of, open_archive
from ingest.errors import IngestError
from manifests.reasons import Reason
from shards.storage import RangedFile, locate, read_bytes

READ_BLOCK_BYTES: Final = 2**20
MEMBER_MARK: Final = re.compile(r"(?<=[^/]\.zip)!", re.IGNORECASE)
"""Where a member's name may begin; file names may hold `.zip!` too."""
NO_SUCH_FILE: Final = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


@contextmanager
def open_file(source: str, path: str, num_bytes: int | None = None) -> Iterator[BinaryIO]:
    """A file of SOURCE itself, whatever its name, as a stream of ranged reads.

    Args:
        source: a folder or bucket.
        path: in it.
        num_bytes: its size if it is known; else a bucket is asked.

    Raises:
        IngestError: IO_UNREADABLE, now or from a read.
    """
    try:
        place = locate(source) / path
        stream = place.fs.open(place.path, "rb") if place.is_local else RangedFile(place, num_bytes)
    except Exception as error:  # every store's client has exceptions of its own
        raise _unreadable(error) from error
    with stream:
        yield cast("BinaryIO", _Stored(cast("BinaryIO", stream)))


def _unreadable(error: Exception) -> IngestError:
    return IngestError(Reason.IO_UNREADABLE, f"the store answered {type(error).__name__}.")


class _Stored:
    """A stream whose failed reads are the store's fault, whatever exception its client has for them."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        try:
            return self._stream.read(size)
        except Exception as error:
            raise _unreadable(error) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class SourceReader:
    """Reads the files of one SOURCE by path, `a.zip!b.dcm` for members.

    It keeps the archive that it read from last open: a cohort may come as one archive of ten thousand files for each
    device, and reading its directory anew for each file would cost hours. Not for several threads at once.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._kept = ExitStack()
        self._outer: str | None = None
        self._archive: ZipFile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what is kept open; the reader can be used again."""
        self._outer = self._archive = None
        self._kept.close()

    @contextmanager
    def open(self, path: str, num_bytes: int | None = None) -> Iterator[BinaryIO]:
        """A file, or a member of an archive, as a stream; its size, if known, spares a question to a bucket.

        Raises:
            IngestError: IO_UNREADABLE when the store does not give the bytes; ZIP_INVALID_OR_TRUNCATED.
        """
        for mark in MEMBER_MARK.finditer(path):
            archive = self._archive_at(path[: mark.start()])
            if archive is not None:
                with self._dropped_on_failure(), member_of(archive, path[mark.end() :]) as member:
                    yield member
                return
        with open_file(self._source, path, num_bytes) as stream:
            yield stream

    def _archive_at(self, outer: str) -> ZipFile | None:
        """The archive, from before or opened now; None when there is no such file."""
        if self._outer == outer and self._archive is not None:
            return self._archive
        self.close()
        with ExitStack() as opened:
            try:
                stream = opened.enter_context(open_file(self._source, outer))
            except IngestError as error:
                if isinstance(error.__cause__, NO_SUCH_FILE):
                    return None
                raise
            self._archive = opened.enter_context(open_archive(stream))
            self._outer = outer
            self._kept = opened.pop_all()
        return self._archive

    @contextmanager
    def _dropped_on_failure(self) -> Iterator[None]:
        """A connection that failed once is not used again."""
        try:
            yield
        except IngestError:
            self.close()
            raise

    def read(self, path: str, num_bytes: int | None = None) -> bytes:
        """All bytes of a file, which a bucket must not give more or fewer of than `num_bytes`; raises like `open`."""
        place = locate(self._source) / path
        if place.is_local or MEMBER_MARK.search(path):
            with self.open(path, num_bytes) as stream:
                return stream.read()
        try:
            return read_bytes(place, num_bytes)
        except Exception as error:  # as in `open_file`
            raise _unreadable(error) from error

    def sha256(self, path: str) -> str:
        """The sha256 of a file, streamed; raises like `open`."""
        digest = hashlib.sha256()
        with self.open(path) as stream:
            while block := stream.read(READ_BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def sha256_or_none(self, path: str) -> str | None:
        """The sha256 of a rejected file; None when the store does not give its bytes, which its row says already."""
        try:
            return self.sha256(path)
        except IngestError:
            return None
