"""What lies in SOURCE: a recursive listing joined with `manifest.tsv`, archives opened, and how to read one file."""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ingest.archive import list_members
from ingest.errors import IngestError, SourceError
from ingest.reader import SourceReader, open_file
from manifests.plan import ManifestRow
from manifests.reasons import Reason

MANIFEST_NAME: Final = "manifest.tsv"
PARTICIPANTS_NAME: Final = "participants.tsv"
COHORT_ROOT: Final = "retinal_oct/"
UNSAFE_MEMBER: Final = "its archive is unsafe."
MEMBER: Final = re.compile(r"(.*?[^/]\.zip)!(.+)", re.IGNORECASE | re.DOTALL)
"""File names may hold `.zip!` too: this takes the first."""

IRREGULAR_BYTES: Final = -1
"""The size of what is no file, in listings: no file has it."""

COUNTED_EXTENSIONS: Final = frozenset({
    ".7z", ".bak", ".bmp", ".bz2", ".csv", ".doc", ".docx", ".e2e", ".fda", ".fds", ".gif", ".gz", ".htm", ".html",
    ".ini", ".jpeg", ".jpg", ".json", ".log", ".md", ".md5", ".mp4", ".nii", ".npy", ".npz", ".nrrd", ".parquet",
    ".part", ".pdf", ".png", ".rar", ".raw", ".sha256", ".svg", ".tar", ".tgz", ".tif", ".tiff", ".tmp", ".tsv",
    ".txt", ".vol", ".xls", ".xlsx", ".xml", ".xz", ".yaml", ".yml", ".zst",
})  # fmt: skip
"""Others are counted together: what stands behind the last dot of a name may be part of a person's."""


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
    listing = list_files(source)
    sizes = {path: size for path, size in listing.items() if size != IRREGULAR_BYTES}
    found = {path: size for path, size in sizes.items() if is_candidate(path)}
    settled = {
        path: Settled(path=path, bytes=None, reason=Reason.IO_UNREADABLE, detail="it is no regular file.")
        for path in listing.keys() - sizes.keys()
        if _may_be_input(path)
    }
    for path in sorted(path for path in sizes if _extension(path) == ".zip"):
        members, rows = _open_archive(source, path, sizes[path], known=found.keys() | settled.keys())
        settled.update((row.path, row) for row in rows)
        found = {path: size for path, size in (found | members).items() if path not in settled}
    listed = _read_manifests(source, [path for path in sizes if PurePosixPath(path).name == MANIFEST_NAME])
    manifests, missing = _join([*found, *settled], listed)
    for path in missing - sizes.keys() - found.keys() - settled.keys():
        detail = "listed in manifest.tsv, not found."
        settled[path] = Settled(path=path, bytes=None, reason=Reason.FILE_MISSING, detail=detail)
    entries = tuple(Entry(path=path, bytes=size, manifest=manifests.get(path)) for path, size in sorted(found.items()))
    others = Counter(_counted_as(path) for path in sizes if path not in found and path not in settled)
    rows = [row for _, row in sorted(settled.items())]
    return Discovery(entries=entries, settled=tuple(rows), other_files=dict(sorted(others.items())))


def list_files(source: str) -> dict[str, int]:
    """Path relative to SOURCE -> bytes, for every file under it.

    Raises:
        SourceError: if SOURCE is not there or cannot be listed.
    """
    try:
        fs, root = fsspec.core.url_to_fs(source)
        if not fs.isdir(root):
            raise SourceError(f"SOURCE {source} is not a folder: give the folder that holds retinal_oct/.")
        found = _walk(fs, root)
    except (OSError, ValueError, ImportError) as error:
        raise SourceError(f"SOURCE {source} cannot be listed: {_without_path(error)}.") from error
    prefix = root.rstrip("/") + "/"
    return {path.removeprefix(prefix): int(info.get("size") or 0) for path, info in found.items()}


def _walk(fs: Any, root: str) -> dict[str, Any]:
    """Every file under `root`, through links to folders too; each real folder once, so that no link leads in a circle.

    What is neither file nor folder (a pipe, a device, a link to nothing) has no bytes: reading it could wait for ever.
    """
    found: dict[str, Any] = {}
    folders, seen = [root], set()
    while folders:
        folder = folders.pop()
        real = os.path.realpath(folder) if isinstance(fs, LocalFileSystem) else folder
        if real in seen:
            continue
        seen.add(real)
        for path, info in fs.find(folder, detail=True).items():
            if info.get("type") == "directory" or (info.get("islink") and fs.isdir(path)):
                folders.append(path)
            else:
                regular = info.get("type", "file") == "file" or fs.isfile(path)
                found[path] = info if regular else {"size": IRREGULAR_BYTES}
    return found


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
    suffix = PurePosixPath(path).suffix.lower().strip()  # a copied name may end in a space
    return "" if suffix[1:].isdigit() else suffix


def _may_be_input(path: str) -> bool:
    return is_candidate(path) or _extension(path) == ".zip"


def _counted_as(path: str) -> str:
    extension = _extension(path)
    return extension if not extension or extension in COUNTED_EXTENSIONS else "other"


def _open_archive(source: str, path: str, size: int, known: Collection[str]) -> tuple[dict[str, int], list[Settled]]:
    """The members to ingest, and the rows that are settled: the archive's, and those of members if it is unsafe."""
    if size == 0:
        return {}, [Settled(path=path, bytes=0, reason=Reason.EMPTY_FILE, detail="the file has no bytes.")]
    try:
        with open_file(source, path) as stream:
            listing = list_members(stream)
    except IngestError as error:
        return {}, [Settled(path=path, bytes=size, reason=error.reason, detail=error.detail)]
    taken = {f"{path}!{member.name}": member.bytes for member in listing.members if is_candidate(member.name)}
    clashes = taken.keys() & known
    unsafe = listing.unsafe or (f"{len(clashes)} members have the path of another file." if clashes else None)
    if unsafe:
        rows = [Settled(path=one, bytes=None, reason=Reason.ZIP_UNSAFE, detail=UNSAFE_MEMBER) for one in sorted(taken)]
        return {}, [Settled(path=path, bytes=size, reason=Reason.ZIP_UNSAFE, detail=unsafe), *rows]
    detail = f"an archive of {len(listing.members)} files, {len(taken)} of them taken as DICOM."
    return taken, [Settled(path=path, bytes=size, reason=Reason.OUTSIDE_FILTER, detail=detail)]


def read_source_file(url: str) -> bytes:
    """A small file beside SOURCE, such as the participants' table.

    Raises:
        SourceError: if it is not there or cannot be read.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
        data: bytes = fs.cat_file(path)
    except (OSError, ValueError) as error:
        raise SourceError(f"{url} cannot be read: {_without_path(error)}.") from error
    return data


def _read_manifests(source: str, paths: list[str]) -> dict[str, tuple[str, ManifestRow]]:
    """Canonical path -> (path where the file should lie, its row) of every manifest found."""
    listed: dict[str, tuple[str, ManifestRow]] = {}
    for path in sorted(paths):
        base = str(PurePosixPath(path).parent).removesuffix("retinal_oct")
        for row in _manifest_lines(source, path):
            relative = str(PurePosixPath((row["filepath"] or "").strip().lstrip("/")))
            ours = COHORT_ROOT in relative or PurePosixPath(path).parent.name in {"", "retinal_oct"}
            if relative != "." and ours:
                home = str(PurePosixPath(base) / relative)
                listed[_canonical(relative)] = (home if COHORT_ROOT in home else relative, _manifest_row(row))
    return listed


def _manifest_lines(source: str, path: str) -> list[dict[str, Any]]:
    try:
        with SourceReader(source) as reader:
            text = reader.read(path).decode("utf-8-sig")
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t")
        # Every folder of AI-READI has a manifest.tsv, of other columns: of electrocardiograms, of photographs.
        return list(rows) if "filepath" in (rows.fieldnames or ()) else []
    except (IngestError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path} cannot be read as a table in UTF-8: {error}.") from error


def _without_path(error: Exception) -> str:
    """What an error says; the system's own would name a file of SOURCE."""
    return getattr(error, "strerror", None) or str(error)


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
    paths: Collection[str], listed: Mapping[str, tuple[str, ManifestRow]]
) -> tuple[dict[str, ManifestRow], set[str]]:
    """Manifest rows by path, and listed paths without a file. In an archive, names identify: they hold the UID."""
    by_path = {_canonical(path): path for path in paths}
    in_archives = {PurePosixPath(match[2]).name: match[0] for path in paths if (match := MEMBER.fullmatch(path))}
    rows, missing = {}, set()
    for canonical, (home, row) in listed.items():
        path = by_path.get(canonical) or in_archives.get(PurePosixPath(canonical).name)
        if path is None:
            missing.add(home)
        else:
            rows[path] = row
    return rows, missing
