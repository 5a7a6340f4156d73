"""The bytes of a file that are at hand, as a stream for a parser: all of them, or the first part."""

from typing import Final

from ingest.errors import IngestError
from manifests.reasons import Reason

FROM_END: Final = 2


class MoreNeededError(Exception):
    """The parser wants bytes behind the first part of a file."""


class Window:
    """A seekable stream over bytes that are already in memory; nothing is copied but what is read.

    Args:
        data: the file's bytes, or its first part.
        complete: whether `data` reaches the end of the file.
        limit: bytes that a header may take; what lies further in is never handed out.
    """

    def __init__(self, data: bytes | memoryview, *, complete: bool = True, limit: int) -> None:
        self._data = memoryview(data)
        self._complete = complete
        self._limit = limit
        self._position = 0

    @property
    def complete(self) -> bool:
        return self._complete

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        """As for any stream; from the end only of a complete file."""
        if whence == FROM_END and not self._complete:
            raise MoreNeededError
        base = (0, self._position, len(self._data))[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, fewer at the end of the file.

        Raises:
            MoreNeededError: when the answer lies behind an incomplete window.
            IngestError: PARSE_LIMIT_EXCEEDED when it lies behind the limit.
        """
        stop = len(self._data) if size < 0 else self._position + size
        if (stop > len(self._data) or size < 0) and not self._complete:
            raise self._beyond()
        stop = min(stop, len(self._data))
        if stop > self._limit:
            raise self._too_long()
        data = bytes(self._data[self._position : stop])
        self._position = max(self._position, stop)
        return data

    def rest(self) -> memoryview:
        """Everything at hand from here on; the position stays."""
        return self._data[self._position :]

    def at_end(self) -> bool:
        """Whether nothing follows.

        Raises:
            MoreNeededError: when nobody knows yet.
        """
        if self._position < len(self._data):
            return False
        if not self._complete:
            raise self._beyond()
        return True

    def _beyond(self) -> Exception:
        return self._too_long() if len(self._data) >= self._limit else MoreNeededError()

    def _too_long(self) -> IngestError:
        return IngestError(Reason.PARSE_LIMIT_EXCEEDED, f"the header takes over {self._limit} bytes.")
