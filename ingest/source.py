"""What lies in SOURCE: a recursive listing joined with `manifest.tsv`, archives opened, and how to read one file."""

import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Final

import fsspec

from ingest.archive import list_members, open_member
from ingest.errors import IngestError, SourceError
from manifests.plan import ManifestRow
from manifests.reasons import Reason

MANIFEST_NAME: Final = "manifest.tsv"
PARTICIPANTS_NAME: Final = "participants.tsv"
COHORT_ROOT: Final = "retinal_oct/"
READ_BLOCK_BYTES: Final = 2**20
MEMBER: Final = re.compile(r"(.+?\.zip)!(.+)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file to ingest; `path` is relative to SOURCE, `a.zip!b.dcm` for a member of an archive."""

    path: str
    bytes: int
    manifest: ManifestRow | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """An input whose row is known from the listing alone. An archive that was opened is no volume: OUTSIDE_FILTER."""

    path: str
    bytes: int | None
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    """Everything in SOURCE: nothing is in none of these."""

    entries: tuple[Entry, ...]
    settled: tuple[Settled, ...]
    other_files: Mapping[str, int] = field(default_factory=dict)


def discover(source: str) -> Discovery:
    """List SOURCE: `.dcm`, `.dicom`, no extension, `.zip`; other files are counted by extension.

    Raises:
        SourceError: if SOURCE cannot be listed, or a manifest cannot be read as a table.
    """
    sizes = list_files(source)
    archives = {path: size for path, size in sizes.items() if _extension(path) == ".zip"}
    found = {path: size for path, size in sizes.items() if is_candidate(path)}
    settled: list[Settled] = []
    for path, size in archives.items():
        members, row = _open_archive(source, path, size)
        found.update(members)
        settled.append(row)
    listed = _read_manifests(source, [path for path in sizes if PurePosixPath(path).name == MANIFEST_NAME])
    rows, missing = _join(found, listed)
    settled += [
        Settled(path=path, bytes=None, reason=Reason.FILE_MISSING, detail="listed in manifest.tsv, not found.")
        for path in missing
    ]
    entries = tuple(Entry(path=path, bytes=size, manifest=rows.get(path)) for path, size in sorted(found.items()))
    others = Counter(_extension(path) for path in sizes if path not in archives and not is_candidate(path))
    return Discovery(entries=entries, settled=tuple(settled), other_files=dict(sorted(others.items())))


def list_files(source: str) -> dict[str, int]:
    """Path relative to SOURCE -> bytes, for every file under it.

    Raises:
        SourceError: if SOURCE is not there or cannot be listed.
    """
    try:
        fs, root = fsspec.core.url_to_fs(source)
        if not fs.isdir(root):
            raise SourceError(f"SOURCE {source} is not a folder: give the folder that holds retinal_oct/.")
        found = fs.find(root, detail=True)
    except (OSError, ValueError, ImportError) as error:
        raise SourceError(f"SOURCE {source} cannot be listed: {error}.") from error
    prefix = root.rstrip("/") + "/"
    return {path.removeprefix(prefix): int(info.get("size") or 0) for path, info in found.items()}


def is_candidate(path: str) -> bool:
    """Whether a file may be a DICOM by its name; a name that ends in digits is a UID, not an extension."""
    name = PurePosixPath(path).name
    return _extension(path) in {".dcm", ".dicom", ""} and not name.startswith(".")


def find_participants(source: str) -> str | None:
    """The cohort's `participants.tsv`, wherever it lies in SOURCE: the one nearest to the top.

    Raises:
        SourceError: if SOURCE cannot be listed.
    """
    found = [path for path in list_files(source) if PurePosixPath(path).name == PARTICIPANTS_NAME]
    nearest = min(found, key=lambda path: (path.count("/"), path), default=None)
    return None if nearest is None else f"{source.rstrip('/')}/{nearest}"


def find_candidate(source: str, known: Collection[str] = ()) -> str | None:
    """The first file of SOURCE that may hold a DICOM and is not known, in the order of the listing.

    Raises:
        SourceError: if SOURCE cannot be listed.
    """
    files = (path for path in list_files(source) if is_candidate(path) or _extension(path) == ".zip")
    return next((path for path in files if path not in known), None)


def _extension(path: str) -> str:
    suffix = PurePosixPath(path).suffix.lower()
    return "" if suffix[1:].isdigit() else suffix


def _open_archive(source: str, path: str, size: int) -> tuple[dict[str, int], Settled]:
    try:
        with open_source(source, path) as stream:
            members = list_members(stream)
    except IngestError as error:
        return {}, Settled(path=path, bytes=size, reason=error.reason, detail=error.detail)
    taken = {f"{path}!{member.name}": member.bytes for member in members if is_candidate(member.name)}
    detail = f"an archive of {len(members)} files, {len(taken)} of them taken as DICOM."
    return taken, Settled(path=path, bytes=size, reason=Reason.OUTSIDE_FILTER, detail=detail)


@contextmanager
def open_source(source: str, path: str) -> Iterator[BinaryIO]:
    """A file of SOURCE, or a member of an archive in it, as a stream of ranged reads.

    Raises:
        IngestError: IO_UNREADABLE when the store does not give the bytes; ZIP_INVALID_OR_TRUNCATED.
    """
    match = MEMBER.fullmatch(path)
    outer, member = match.groups() if match else (path, None)
    try:
        fs, root = fsspec.core.url_to_fs(source)
        with fs.open(f"{root.rstrip('/')}/{outer}", "rb", block_size=READ_BLOCK_BYTES) as stream:
            if not member:
                yield stream
                return
            with open_member(stream, member) as inner:
                yield inner
    except OSError as error:
        raise IngestError(Reason.IO_UNREADABLE, f"the store answered {type(error).__name__}.") from error


def read_source(source: str, path: str) -> bytes:
    """All bytes of a file; raises like `open_source`."""
    with open_source(source, path) as stream:
        return stream.read()


def read_source_file(url: str) -> bytes:
    """A small file beside SOURCE, such as the participants' table.

    Raises:
        SourceError: if it is not there or cannot be read.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
        data: bytes = fs.cat_file(path)
    except (OSError, ValueError) as error:
        raise SourceError(f"{url} cannot be read: {error}.") from error
    return data


def hash_source(source: str, path: str) -> str:
    """The sha256 of a file, streamed; raises like `open_source`."""
    digest = hashlib.sha256()
    with open_source(source, path) as stream:
        while block := stream.read(READ_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def hash_or_none(source: str, path: str) -> str | None:
    """The sha256 of a rejected file; None when the store does not give its bytes, which its row says already."""
    try:
        return hash_source(source, path)
    except IngestError:
        return None


def _read_manifests(source: str, paths: list[str]) -> dict[str, tuple[str, ManifestRow]]:
    """Canonical path -> (path where the file should lie, its row) of every manifest found."""
    listed: dict[str, tuple[str, ManifestRow]] = {}
    for path in sorted(paths):
        try:
            text = read_source(source, path).decode("utf-8-sig")
        except (IngestError, UnicodeDecodeError) as error:
            raise SourceError(f"{path} cannot be read as UTF-8 text: {error}.") from error
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t")
        if "filepath" not in (rows.fieldnames or ()):
            raise SourceError(f"{path} has no column filepath: it is no AI-READI manifest.")
        base = str(PurePosixPath(path).parent).removesuffix("retinal_oct")
        for row in rows:
            relative = (row["filepath"] or "").strip().lstrip("/")
            if relative:
                home = str(PurePosixPath(base) / relative)
                listed[_canonical(relative)] = (home if COHORT_ROOT in home else relative, _manifest_row(row))
    return listed


def _manifest_row(row: dict[str, Any]) -> ManifestRow:
    return ManifestRow(
        pixel_spacing=row.get("pixel_spacing"),
        slice_thickness=row.get("slice_thickness"),
        anatomic_region=row.get("anatomic_region"),
    )


def _canonical(path: str) -> str:
    """A manifest's paths start with `/retinal_oct/`, wherever that folder lies in SOURCE, or if SOURCE is it."""
    return path[path.find(COHORT_ROOT) + len(COHORT_ROOT) :] if COHORT_ROOT in path else path


def _join(
    found: Mapping[str, int], listed: Mapping[str, tuple[str, ManifestRow]]
) -> tuple[dict[str, ManifestRow], list[str]]:
    """Manifest rows by path, and listed paths without a file. In an archive, names identify: they hold the UID."""
    by_path = {_canonical(path): path for path in found}
    in_archives = {PurePosixPath(path).name.rpartition("!")[2]: path for path in found if MEMBER.fullmatch(path)}
    rows, missing = {}, []
    for canonical, (home, row) in listed.items():
        path = by_path.get(canonical) or in_archives.get(PurePosixPath(canonical).name)
        if path is None:
            missing.append(home)
        else:
            rows[path] = row
    return rows, missing
