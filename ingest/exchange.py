"""Memory that two processes share: one writes bytes, the other reads them in place."""

import mmap
import os
import tempfile
from typing import Final

KEEP_BYTES: Final = 192 * 2**20
"""Pages that were mapped once are cheap to fill again; more than most files need is given back."""


class Exchange:
    """A growing piece of shared memory, behind a file descriptor that a child process may inherit.

    Both sides name the same size when they map it; each maps it again when the size has changed.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = _anonymous_file() if descriptor is None else descriptor
        self._size = 0
        self._pages: mmap.mmap | None = None

    @property
    def size(self) -> int:
        return self._size

    def reserve(self, num_bytes: int) -> None:
        """Make room. The other side must not be at work."""
        if self._size > KEEP_BYTES >= num_bytes:
            os.ftruncate(self.descriptor, 0)
            self._map(0)
        if num_bytes > self._size:
            os.ftruncate(self.descriptor, num_bytes)
            self._map(num_bytes)

    def attach(self, size: int) -> None:
        """Map what the other side has reserved."""
        if size != self._size:
            self._map(size)

    def view(self, num_bytes: int) -> memoryview:
        """The first bytes, in place."""
        return memoryview(self._pages)[:num_bytes] if self._pages is not None else memoryview(b"")

    def _map(self, size: int) -> None:
        # A view that somebody still holds keeps the old pages mapped, and they go with it.
        self._pages = mmap.mmap(self.descriptor, size) if size else None
        self._size = size

    def close(self) -> None:
        """Give everything back."""
        self._map(0)
        os.close(self.descriptor)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fovea-file")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
