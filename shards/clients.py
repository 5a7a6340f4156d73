"""What Fovea asks of a store, one request at a time, and how a disk or any file system of fsspec answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from shards.body import Body

Page = Mapping[str, int]

CONNECT_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """How many bytes an object has, and its checksum if the store keeps one, as `md5:` or `etag:` and what follows."""

    bytes: int
    checksum: str | None = None


class Client(Protocol):
    """One store. Except for `upload`, a call is a single attempt: `shards.storage` retries."""

    @property
    def fs(self) -> AbstractFileSystem:
        """The fsspec file system, whose own retries are off."""

    def stat(self, path: str) -> Fingerprint | None:
        """None if there is no such object; a folder is none."""

    def list_page(self, path: str, token: str | None) -> tuple[Page, str | None]:
        """Some of the files below a folder with their bytes, and the token of the next page, None after the last."""

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Bytes from `start` to before `stop`, or fewer."""

    def remove(self, path: str) -> None:
        """Raises FileNotFoundError if there is no such object and the store says so."""

    def upload(self, path: str, body: Body, *, create: bool) -> None:
        """Put the whole object there, each request of it retried; with `create` only if the name is free.

        Raises:
            FileExistsError: if it is not free.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainClient:
    """A disk, or any store that only fsspec knows."""

    fs: AbstractFileSystem

    def stat(self, path: str) -> Fingerprint | None:
        try:
            info = self.fs.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if info.get("type") == "directory":
            return None
        return Fingerprint(bytes=int(info["size"]))

    def list_page(self, path: str, token: str | None) -> tuple[Page, str | None]:
        del token
        found = self.fs.find(path, detail=True)
        return {name: int(info.get("size") or 0) for name, info in found.items()}, None

    def read(self, path: str, start: int, stop: int) -> bytes:
        data: bytes = self.fs.cat_file(path, start=start, end=stop)
        return data

    def remove(self, path: str) -> None:
        self.fs.rm_file(path)

    def upload(self, path: str, body: Body, *, create: bool) -> None:
        """For what is neither disk, GCS nor S3; a disk is written by `shards.publish`."""
        if create and self.fs.exists(path):
            raise FileExistsError(17, "there is such a file already", path)
        if type(self.fs) is LocalFileSystem:
            raise TypeError("files on a disk are published by rename")
        self.fs.pipe_file(path, body.part(0, body.size))


def split_path(path: str) -> tuple[str, str]:
    """The bucket, and the name of an object in it."""
    bucket, _, name = path.partition("/")
    return bucket, name
