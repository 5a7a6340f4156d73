"""Addresses of files, on a disk or in a bucket, and reading them: bounded retries, and no short read goes unseen."""

import contextlib
import functools
import hashlib
import importlib.util
import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, cast

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from shards import gcs, s3
from shards.clients import Client, Fingerprint, PlainClient
from shards.errors import AddressError
from shards.retries import PassingFaultError, ShortFileError, StoreError, retrying, status_of

SILENCE_S: Final = 30.0
"""A server that sends nothing for so long is asked again."""

REQUEST_S: Final = 300.0
"""One request, whatever it moves (64 MiB at most), is given up after this."""

READ_BYTES: Final = 64 * 2**20
"""Files are read in pieces of this size, so that a lost connection costs one piece."""

HASH_BYTES: Final = 8 * 2**20
"""What is only hashed need not be in memory whole."""

AHEAD_BYTES: Final = 2**20
"""A header and the small reads around it cost one request."""

REMOVERS: Final = 8

RANGE_NOT_SATISFIABLE: Final = 416


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A file or folder in a store. It holds no connection, so that it may go to another process or thread."""

    url: str
    path: str
    protocol: str

    def __truediv__(self, name: str) -> "Place":
        separator = "" if self.url.endswith("/") else "/"
        return Place(url=f"{self.url}{separator}{name}", path=f"{self.path.rstrip('/')}/{name}", protocol=self.protocol)

    @property
    def client(self) -> Client:
        """This process's own: what was opened before a fork is of no use after it."""
        return _client(self.protocol, _endpoint(self.protocol), SILENCE_S, REQUEST_S, os.getpid())

    @property
    def fs(self) -> AbstractFileSystem:
        """The fsspec file system behind it; its own retries are off, so prefer the functions here."""
        return self.client.fs

    @property
    def store(self) -> str:
        """Which store, and which bucket of it."""
        return f"{self.protocol}://{self.path.partition('/')[0]} at {_endpoint(self.protocol) or 'its own address'}"

    @property
    def is_local(self) -> bool:
        return self.protocol == "file"


def locate(url: str | os.PathLike[str]) -> Place:
    """The place that a path or URL names; nothing is asked of the store.

    Raises:
        AddressError: if it is empty, or fsspec does not know the kind of URL, or lacks the package for it.
    """
    address = os.fspath(url)
    if not address.strip():
        raise AddressError("an address is empty: give a path, or a URL such as gs://BUCKET/FOLDER.")
    try:
        if address.startswith(("gs://", "gcs://", "s3://", "s3a://")):
            return _in_bucket(address)
        fs, path = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise AddressError(
            f"{address} cannot be opened: {error}; give a path, or the URL of a store whose package is installed."
        ) from error
    protocol = "file" if type(fs) is LocalFileSystem else address.partition("://")[0]
    return Place(url=address, path=str(path), protocol=protocol)


def _in_bucket(address: str) -> Place:
    scheme, _, path = address.partition("://")
    bucket = path.partition("/")[0]
    if not bucket:
        raise AddressError(f"{address} names no bucket: write {scheme}://BUCKET/FOLDER.")
    package = "gcsfs" if scheme.startswith("g") else "s3fs"
    if importlib.util.find_spec(package) is None:
        raise AddressError(f"{address} cannot be opened: install {package} first.")
    return Place(url=address, path=path.rstrip("/"), protocol="gs" if package == "gcsfs" else "s3")


def _endpoint(protocol: str) -> str | None:
    """Where this kind of URL leads by the environment, which tests and jobs may change between calls."""
    if protocol == "s3":
        return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return os.environ.get("STORAGE_EMULATOR_HOST") if protocol == "gs" else None


@functools.lru_cache(maxsize=32)
def _client(protocol: str, endpoint: str | None, silence_s: float, request_s: float, pid: int) -> Client:
    del pid  # a key of the cache
    if protocol == "gs":
        return gcs.connect(silence_s, request_s)
    if protocol == "s3":
        return s3.connect(endpoint, silence_s, request_s)
    return PlainClient(fs=url_to_fs(f"{protocol}://")[0])


def fingerprint(where: str | Place) -> Fingerprint | None:
    """Size and checksum of a file as the store has it, None if there is no such file."""
    place = _placed(where)
    return retrying(lambda: place.client.stat(place.path), place.url)


def exists(where: str | Place) -> bool:
    """Whether there is such a file, or a folder with files in it.

    Raises:
        StoreError, PermissionError: if the store does not say; that is no "no".
    """
    place = _placed(where)
    if fingerprint(place) is not None:
        return True
    if isinstance(place.client, PlainClient):
        return bool(place.fs.exists(place.path))
    page, token = retrying(lambda: place.client.list_page(place.path, None), place.url)
    return bool(page or token)


def size(where: str | Place) -> int:
    """Bytes of a file.

    Raises:
        FileNotFoundError: if there is none.
    """
    place = _placed(where)
    found = fingerprint(place)
    if found is None:
        raise FileNotFoundError(2, "there is no such file", place.url)
    return found.bytes


def list_files(where: str | Place) -> dict[str, int]:
    """Path in the store -> bytes, of every file below a folder, sorted; empty if there is no such folder.

    A listing comes in pages, and each is retried by itself.
    """
    place = _placed(where)
    client = place.client
    found: dict[str, int] = {}
    token: str | None = None
    while True:
        page, token = retrying(lambda token=token: client.list_page(place.path, token), place.url)  # type: ignore[misc]
        found.update(page)
        if not token:
            return dict(sorted(found.items()))


def names_below(where: str | Place) -> dict[str, int]:
    """Name below a folder, with `/` between -> bytes, of every file; empty if there is no such folder."""
    place = _placed(where)
    start = len(place.path.rstrip("/")) + 1
    return {path[start:]: size for path, size in list_files(place).items()}


def sha256(where: str | Place) -> str:
    """Of a whole file, read in pieces; raises as `read_range`."""
    place = _placed(where)
    total, digest = size(place), hashlib.sha256()
    for start in range(0, total, HASH_BYTES):
        digest.update(read_range(place, start, min(HASH_BYTES, total - start)))
    return digest.hexdigest()


def move(where: str | Place, target: str | Place) -> None:
    """Give a file another name in the same store: a rename on a disk, a copy by the store itself in a bucket.

    Raises:
        StoreError: if the copy is not as large as the file, which then stays.
        FileNotFoundError, PermissionError: as the store says.
    """
    place, end = _placed(where), _placed(target)
    if isinstance(place.client, PlainClient):
        place.fs.makedirs(end.path.rpartition("/")[0], exist_ok=True)
        place.fs.mv(place.path, end.path)
        return
    retrying(lambda: place.fs.cp_file(place.path, end.path), place.url)
    if size(end) != size(place):
        raise StoreError(f"{end.url}: the store made a copy of another size.")
    remove(place)


def remove(where: str | Place) -> None:
    """Remove a file. One that is not there, or that a lost attempt removed already, is removed."""
    place = _placed(where)
    try:
        retrying(lambda: place.client.remove(place.path), place.url)
    except FileNotFoundError:
        return


def remove_tree(where: str | Place) -> None:
    """Remove every file below a folder, and the folder where it is more than a name.

    What another process removes meanwhile is removed. What it adds meanwhile may stay, and its folder then.
    """
    place = _placed(where)
    with ThreadPoolExecutor(REMOVERS) as pool:
        list(pool.map(lambda name: remove(place / name), names_below(place)))
    if isinstance(place.client, PlainClient):
        _remove_folders(place)


def _remove_folders(place: Place) -> None:
    folders = [folder for folder, _, _ in place.fs.walk(place.path)]
    for folder in sorted(folders, reverse=True):  # the innermost first
        with contextlib.suppress(OSError):
            place.fs.rmdir(folder)


def read_range(where: str | Place, start: int, size: int) -> bytes:
    """Exactly `size` bytes from `start`.

    Raises:
        ShortFileError: if the file ends before.
        StoreError: if the store does not give them.
        FileNotFoundError, PermissionError: as the store says.
    """
    place = _placed(where)
    return retrying(lambda: _read_once(place, start, start + size), place.url) if size else b""


def _read_once(place: Place, start: int, stop: int) -> bytes:
    data = _read_some(place, start, stop)
    if len(data) == stop - start:
        return data
    found = place.client.stat(place.path)
    if found is not None and found.bytes < stop:
        raise ShortFileError(f"{place.url}: it has {found.bytes} bytes, asked were those up to {stop}.", found.bytes)
    raise PassingFaultError(f"{place.url}: {len(data)} bytes came, {stop - start} were asked")


def _read_some(place: Place, start: int, stop: int) -> bytes:
    """As the store gives them; a range behind the end is an error for some stores, and nothing for others."""
    try:
        return place.client.read(place.path, start, stop)
    except Exception as error:
        if status_of(error) == RANGE_NOT_SATISFIABLE:
            return b""
        raise


def read_bytes(where: str | Place, expected_bytes: int | None = None) -> bytes:
    """A whole file.

    Args:
        where: a file.
        expected_bytes: its size if a listing or a manifest told; without it the store is asked first.

    Raises:
        StoreError: if it has fewer or more bytes, or the store does not give them.
        FileNotFoundError, PermissionError: as the store says.
    """
    place = _placed(where)
    total = size(place) if expected_bytes is None else expected_bytes
    pieces = [read_range(place, start, READ_BYTES) for start in range(0, total - READ_BYTES + 1, READ_BYTES)]
    start = len(pieces) * READ_BYTES
    pieces.append(retrying(lambda: _read_end(place, start, total), place.url))
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _read_end(place: Place, start: int, total: int) -> bytes:
    """The last piece, and one byte more is asked for: a file that grew shall not pass for the one that was listed."""
    data = _read_some(place, start, total + 1) if total else b""
    if len(data) == total - start and total:
        return data
    found = place.client.stat(place.path)
    if found is None:
        raise FileNotFoundError(2, "there is no such file", place.url)
    if found.bytes != total:
        raise StoreError(f"{place.url}: it has {found.bytes} bytes, expected were {total}.")
    if total:
        raise PassingFaultError(f"{place.url}: {len(data)} bytes came, {total - start} were asked")
    return data


def open_file(where: str | Place) -> BinaryIO:
    """A seekable stream of a file: of ranged reads in a bucket."""
    place = _placed(where)
    if place.is_local:
        return cast("BinaryIO", place.fs.open(place.path, "rb"))
    return cast("BinaryIO", RangedFile(place))


class RangedFile(io.RawIOBase):
    """A file in a bucket as a stream for many small reads, such as those of a header or of a ZIP's directory.

    It reads `ahead_bytes` at least, and keeps the last block. A read gives all that was asked, up to the end of the
    file. Not for several threads at once.
    """

    def __init__(self, where: str | Place, size_bytes: int | None = None, ahead_bytes: int = AHEAD_BYTES) -> None:
        """Open it.

        Args:
            where: a file.
            size_bytes: its size if it is known; else the store is asked.
            ahead_bytes: the smallest read.

        Raises:
            FileNotFoundError: if the store is asked and there is none.
        """
        self._place = _placed(where)
        self._size = size(self._place) if size_bytes is None else size_bytes
        self._ahead = ahead_bytes
        self._position = 0
        self._block_start = 0
        self._block = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(22, "a position must not be negative")  # as files do, and zipfile expects
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._take(len(view))
        view[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._take(self._size - self._position)

    def _take(self, wanted: int) -> bytes:
        stop = min(self._position + max(wanted, 0), self._size)
        if stop <= self._position:
            return b""
        if not (self._block_start <= self._position and stop <= self._block_start + len(self._block)):
            self._fetch(stop)
        at = self._position - self._block_start
        data = self._block[at : at + stop - self._position]
        self._position = stop
        return data

    def _fetch(self, stop: int) -> None:
        ahead = min(max(stop, self._position + self._ahead), self._size)
        self._block = read_range(self._place, self._position, ahead - self._position)
        self._block_start = self._position


def _placed(where: str | os.PathLike[str] | Place) -> Place:
    return where if isinstance(where, Place) else locate(where)
