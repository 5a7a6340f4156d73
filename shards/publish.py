"""Publishing a file: it is there whole under its final name or not at all, and equal bytes may be published again."""

import contextlib
import errno
import functools
import hashlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Final

from shards.body import Body
from shards.clients import Fingerprint
from shards.errors import ShardError
from shards.retries import StoreError, status_of
from shards.storage import Place, fingerprint, locate, remove, sha256

LOCAL_ATTEMPTS: Final = 5
"""A temporary file may be cleared away by another process, but not for ever."""

COPY_BYTES: Final = 4 * 2**20
NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS})
"""What file systems without hard links answer (FAT, some that are mounted over a network)."""

PROBE_NAME: Final = ".fovea-probe-"
NO_CONDITIONS: Final = frozenset({400, 405, 501})
"""How stores say that they know no conditional upload; Backblaze B2 says 501."""


class ContentConflictError(ShardError):
    """An object is already there under this name, with other bytes."""


class Way(StrEnum):
    """How two that publish under one name at the same time are kept apart."""

    CONDITIONAL = "conditional"
    """The store itself refuses a second object under the name."""

    CHECK = "check"
    """The name is looked up before the upload, and the content after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What lies under the name now; `created` is False if equal bytes lay there before."""

    bytes: int
    sha256: str
    created: bool


def publish(url: str, data: bytes | BinaryIO, *, replace: bool = False) -> Published:
    """Put `data` under its final name, unless equal bytes are there.

    On a disk it is written under a unique name beside it, and linked. In an object store an upload cannot be seen
    before it is whole (docs/adr/0009-publishing-objects.md).

    Args:
        url: of the file.
        data: bytes, or an open seekable file, which is read from its beginning and stays open.
        replace: let other bytes go that lie under the name now; not those that another puts there meanwhile.

    Raises:
        ContentConflictError: if other bytes are there and `replace` is not set.
        StoreError, FileNotFoundError, PermissionError: if the store refuses.
    """
    place = locate(url)
    body = Body.of(data)
    there = fingerprint(place)
    if there is not None and _is_same(place, there, body, replace=replace):
        return _published(body, created=False)
    write = _write_file if place.is_local else _upload
    return _published(body, created=write(place, body, replace=replace and there is not None))


def _published(body: Body, *, created: bool) -> Published:
    return Published(bytes=body.size, sha256=body.sha256, created=created)


def _is_same(place: Place, there: Fingerprint, body: Body, *, replace: bool) -> bool:
    """Whether what is there has the bytes.

    Raises:
        ContentConflictError: if it has others, which shall not be replaced.
    """
    if there.bytes == body.size:
        by_checksum = there.checksum is not None and there.checksum == body.checksum
        if by_checksum or sha256(place) == body.sha256:
            return True
    if replace:
        return False
    raise ContentConflictError(
        f"{place.url} is there already with other content ({there.bytes} bytes, not the {body.size} of sha256"
        f" {body.sha256[:12]}): remove it, or choose another place."
    )


def _holds(place: Place, body: Body) -> bool:
    """Whether the bytes are there now; raises as `_is_same`."""
    there = fingerprint(place)
    return there is not None and _is_same(place, there, body, replace=False)


def _upload(place: Place, body: Body, *, replace: bool) -> bool:
    """Whether this call made the object."""
    conditional = not replace and probe_store(place.url) is Way.CONDITIONAL
    try:
        place.client.upload(place.path, body, create=conditional)
    except FileExistsError as error:  # another was faster, or this one's own answer was lost
        if not _holds(place, body):
            raise StoreError(f"{place.url}: what became of the upload is not known; run it again.") from error
        return False
    if not conditional and not _holds(place, body):
        raise StoreError(f"{place.url}: it does not hold what was just uploaded; another job writes it too.")
    return True


def probe_store(url: str) -> Way:
    """Whether the store keeps two publishers of one name apart, found by trying it, once a process and bucket.

    Raises:
        StoreError, FileNotFoundError, PermissionError: if the probe can be neither made nor removed.
    """
    place = locate(url)
    if place.is_local:
        return Way.CONDITIONAL
    known = _known_ways(os.getpid())
    if place.store not in known:
        known[place.store] = _try_store(locate(f"{url.rpartition('/')[0]}/{PROBE_NAME}{uuid.uuid4().hex}"))
    return known[place.store]


@functools.lru_cache(maxsize=1)
def _known_ways(pid: int) -> dict[str, Way]:
    """What was found in this process."""
    del pid
    return {}


def _try_store(place: Place) -> Way:
    """Create one object twice: some stores refuse the condition, and some take it without keeping it."""
    body = Body.of(place.url.encode())
    try:
        created = _create(place, body)
        return Way.CONDITIONAL if created and not _create(place, body) else Way.CHECK
    finally:
        remove(place)


def _create(place: Place, body: Body) -> bool:
    """Whether it was made; not, also where the store has no conditions."""
    try:
        place.client.upload(place.path, body, create=True)
    except FileExistsError:
        return False
    except StoreError as error:
        if status_of(error) not in NO_CONDITIONS:
            raise
        return False
    return True


def _write_file(place: Place, body: Body, *, replace: bool) -> bool:
    """Whether this call made the file."""
    final = Path(place.path)
    final.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(LOCAL_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError), _temporary(final, body) as temporary:
            if _move(temporary, final, replace=replace):
                _sync_folder(final.parent)
                return True
            if _holds(place, body):
                return False
    raise StoreError(f"{place.url}: its temporary file was removed {LOCAL_ATTEMPTS} times before it was whole.")


@contextlib.contextmanager
def _temporary(final: Path, body: Body) -> Iterator[Path]:
    """The bytes under a unique name in the same folder, on the disk and as they should be."""
    path = final.parent / f".{final.name}.{uuid.uuid4().hex}"
    try:
        with path.open("xb") as file:
            for part in body.parts(COPY_BYTES):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        with path.open("rb") as file:
            written = hashlib.file_digest(file, "sha256").hexdigest()
        if written != body.sha256:
            raise StoreError(f"{final}: the disk gives back other bytes than were written.")
        yield path
    finally:
        path.unlink(missing_ok=True)


def _move(temporary: Path, final: Path, *, replace: bool) -> bool:
    """Give it its name; False if that is taken."""
    if replace:
        temporary.replace(final)
        return True
    try:
        final.hardlink_to(temporary)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if final.exists():
            return False
        temporary.replace(final)
    return True


def _sync_folder(folder: Path) -> None:
    """So that the name outlasts a power cut; some file systems have no such thing for folders."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
