"""A store on the disk that refuses files and changes on demand."""

from typing import Any

from fsspec.implementations.local import LocalFileSystem


class FlakyStore(LocalFileSystem):
    """A store that does not give some files, and stops at the n-th change: as root, permissions prove nothing."""

    protocol = "flaky"
    unreadable: frozenset[str] = frozenset()
    changes_left: int | None = None

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).removeprefix("flaky://"))

    def _open(self, path: str, mode: str = "rb", **choices: Any) -> Any:
        if "r" in mode and any(path.endswith(name) for name in FlakyStore.unreadable):
            raise OSError(5, "the store is away", path)
        if "w" in mode:
            self._change()
        return super()._open(path, mode, **choices)

    def rm_file(self, path: Any) -> None:
        self._change()
        super().rm_file(path)

    def mv(self, *paths: Any, **choices: Any) -> None:
        self._change()
        super().mv(*paths, **choices)

    def _change(self) -> None:
        if FlakyStore.changes_left is not None:
            FlakyStore.changes_left -= 1
            if FlakyStore.changes_left < 0:
                raise OSError(5, "the store went away")
