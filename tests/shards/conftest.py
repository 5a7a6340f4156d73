"""A file system that refuses, as a disk without permission or a bucket without credentials does."""

from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem


class RefusingFileSystem(MemoryFileSystem):
    """Holds files in memory, and refuses to read those whose path ends in `refused`."""

    protocol = "refusing"
    refused = ""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("refusing://")))

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        self._refuse(path)
        return bytes(super().cat_file(path, *args, **kwargs))

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self._refuse(path)
        return super()._open(path, *args, **kwargs)

    def _refuse(self, path: str) -> None:
        if self.refused and path.endswith(self.refused):
            raise PermissionError(13, "Permission denied", path)


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], str]]:
    """`refusing(folder, ".tar")` -> the address of a copy of the folder whose `.tar` files cannot be read."""
    fsspec.register_implementation("refusing", RefusingFileSystem, clobber=True)

    def copy(folder: str, refused: str) -> str:
        fsspec.filesystem("memory").put(folder, "/refusing/dataset", recursive=True)
        monkeypatch.setattr(RefusingFileSystem, "refused", refused)
        return "refusing://refusing/dataset"

    yield copy
    fsspec.filesystem("memory").rm("/refusing", recursive=True)
