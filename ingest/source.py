"""What lies in SOURCE: a recursive listing joined with `manifest.tsv`, archives opened, and how to read one file."""

import codecs
import csv
import functools
import io
import os
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Final

from ingest.archive import list_members
from ingest.errors import IngestError, SourceError
from ingest.reader import SourceReader, open_file
from manifests.plan import ManifestRow
from manifests.reasons import Reason
from shards import storage
from shards.errors import ShardError

MANIFEST_NAME: Final = "manifest.tsv"
PARTICIPANTS_NAME: Final = "participants.tsv"
COHORT_ROOT: Final = "retinal_oct/"
UNSAFE_MEMBER: Final = "its archive is unsafe."
MEMBER: Final = re.compile(r"(.*?[^/]\.zip)!(.+)", re.IGNORECASE | re.DOTALL)
"""File names may hold `.zip!` too: this takes the first."""

UID_IN_NAME: Final = re.compile(r"_[0-9]+\.[0-9.]*[0-9]")
"""Part of one is enough: no two scans of one participant and protocol share it."""

MANIFEST_BLOCK_BYTES: Final = 2**20
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
class Listed:
    """A line of a manifest: where its file should lie, the likeliest place first, in a cohort of the folder `base`."""

    base: str
    places: tuple[str, ...]
    row: ManifestRow


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
    """List SOURCE: `.dcm`, `.dicom`, no extension, `.zip`, and what a manifest lists; others are counted by extension.

    Raises:
        SourceError: if SOURCE cannot be listed, or a manifest cannot be read as a table.
    """
    listing = list_files(source)
    sizes = {path: size for path, size in listing.items() if size != IRREGULAR_BYTES}
    listed = _read_manifests(source, [path for path in sizes if PurePosixPath(path).name == MANIFEST_NAME])
    found = {path: size for path, size in sizes.items() if is_candidate(path)}
    settled: dict[str, Settled] = {}
    names = {_tail(line.places[0]) for line in listed}
    for path in sorted(path for path in sizes if _extension(path) == ".zip"):
        known = listing.keys() | found.keys() | settled.keys()
        members, rows = _open_archive(source, path, sizes[path], known=known, names=names)
        settled.update((row.path, row) for row in rows)
        found = {path: size for path, size in (found | members).items() if path not in settled}
    manifests, missing = _join(listing.keys() | found.keys() | settled.keys(), listed)
    found |= {path: sizes[path] for path in manifests.keys() & sizes.keys() - settled.keys()}
    irregular = (path for path in listing.keys() - sizes.keys() if _may_be_input(path) or path in manifests)
    settled |= {path: _irregular(path) for path in irregular} | {path: _missing(path) for path in missing}
    entries = tuple(Entry(path=path, bytes=size, manifest=manifests.get(path)) for path, size in sorted(found.items()))
    others = Counter(_counted_as(path) for path in sizes if path not in found and path not in settled)
    rows = [row for _, row in sorted(settled.items())]
    return Discovery(entries=entries, settled=tuple(rows), other_files=dict(sorted(others.items())))


def _irregular(path: str) -> Settled:
    return Settled(path=path, bytes=None, reason=Reason.IO_UNREADABLE, detail="it is no regular file.")


def _missing(path: str) -> Settled:
    outside = path.partition("/")[0] == ".."
    detail = f"listed in manifest.tsv, {'outside of SOURCE' if outside else 'not found'}."
    return Settled(path=path, bytes=None, reason=Reason.FILE_MISSING, detail=detail)


def list_files(source: str) -> dict[str, int]:
    """Path relative to SOURCE -> bytes, for every file under it.

    Raises:
        SourceError: if SOURCE is not there or cannot be listed.
    """
    try:
        place = storage.locate(source)
        if place.is_local and not place.fs.isdir(place.path):
            raise SourceError(f"SOURCE {source} is not a folder: give the folder that holds retinal_oct/.")
        found = _walk(place.fs, place.path) if place.is_local else storage.list_files(place)
    except (OSError, ValueError, ShardError) as error:
        raise SourceError(f"SOURCE {source} cannot be listed: {_without_path(error)}.") from error
    if not found and not place.is_local:
        raise SourceError(f"SOURCE {source} holds no file: give the folder that holds retinal_oct/.")
    prefix = place.path.rstrip("/") + "/"
    return {path.removeprefix(prefix): size for path, size in found.items()}


def _walk(fs: Any, root: str) -> dict[str, int]:
    """Every file under `root`, through links to folders too; each real folder once, so that no link leads in a circle.

    What is neither file nor folder (a pipe, a device, a link to nothing) has no bytes: reading it could wait for ever.
    """
    found: dict[str, int] = {}
    folders, seen = [root], set()
    while folders:
        folder = folders.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        for path, info in fs.find(folder, detail=True).items():
            if info.get("type") == "directory" or (info.get("islink") and fs.isdir(path)):
                folders.append(path)
            else:
                regular = info.get("type", "file") == "file" or fs.isfile(path)
                found[path] = int(info["size"]) if regular else IRREGULAR_BYTES
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


def _open_archive(
    source: str, path: str, size: int, *, known: Collection[str], names: Collection[str]
) -> tuple[dict[str, int], list[Settled]]:
    """The members to ingest, and the rows that are settled: the archive's, and those of members if it is unsafe.

    `known` are paths that no member may have, `names` the tails of files that a manifest lists.
    """
    if size == 0:
        return {}, [Settled(path=path, bytes=0, reason=Reason.EMPTY_FILE, detail="the file has no bytes.")]
    try:
        with open_file(source, path) as stream:
            listing = list_members(stream)
    except IngestError as error:
        return {}, [Settled(path=path, bytes=size, reason=error.reason, detail=error.detail)]
    wanted = (one for one in listing.members if is_candidate(one.name) or _tail(f"{path}!{one.name}") in names)
    taken = {f"{path}!{member.name}": member.bytes for member in wanted}
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
        return storage.read_bytes(url)
    except (OSError, ValueError, ShardError) as error:
        raise SourceError(f"{url} cannot be read: {_without_path(error)}.") from error


def _read_manifests(source: str, paths: Iterable[str]) -> list[Listed]:
    """Every line of these manifests that names a file."""
    lines = ((path, cells) for path in sorted(paths) for cells in _manifest_lines(source, path))
    return [listed for path, cells in lines if (listed := _listed(path, cells))]


def _manifest_lines(source: str, path: str) -> Iterator[dict[str, str]]:
    """Cells by column. Lines are lines: a quote that nobody closes must not swallow those behind it.

    They are read as they come: the manifest of a million files has four hundred megabytes.
    """
    try:
        with SourceReader(source) as reader, reader.open(path) as stream:
            lines = (line for line in _text_lines(stream) if line.strip())
            table = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            columns = [_unquoted(cell) for cell in next(table, [])]
            # Every folder of AI-READI has a manifest.tsv, of other columns: of electrocardiograms, of photographs.
            for row in table if "filepath" in columns else ():
                yield dict(zip(columns, map(_unquoted, row), strict=False))
    except (IngestError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path} cannot be read as a table in UTF-8: {error}.") from error


def _text_lines(stream: BinaryIO) -> Iterator[str]:
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    rest = ""
    while block := stream.read(MANIFEST_BLOCK_BYTES):
        *whole, rest = (rest + decoder.decode(block)).split("\n")
        yield from whole
    yield from (rest + decoder.decode(b"", final=True)).split("\n")


def _unquoted(cell: str) -> str:
    """A cell without the quotes that some programs put around all of it (RFC 4180)."""
    stripped = cell.strip()
    whole = len(stripped) > 1 and stripped[0] == stripped[-1] == '"'
    return stripped[1:-1].replace('""', '"').strip() if whole else stripped


def _listed(path: str, cells: dict[str, str]) -> Listed | None:
    """A line of the manifest at `path`; None if it names no file, or one that is not of `retinal_oct/`.

    A path that leads out of SOURCE is kept: it is a file that is missing. Only what was listed in SOURCE is ever read.
    """
    folder = PurePosixPath(path).parent
    relative = posixpath.normpath(cells.get("filepath", "").replace("\\", "/").lstrip("/"))
    of_cohort = COHORT_ROOT in relative
    if relative == "." or not (of_cohort or folder.name in {"", COHORT_ROOT.rstrip("/")}):
        return None
    base = f"{folder}/".partition(COHORT_ROOT)[0].removeprefix("./")
    beside = posixpath.normpath(f"{base}{relative}")
    inside = posixpath.normpath(f"{folder}/{_canonical(relative)}")
    return Listed(
        base=base,
        places=(beside, inside) if of_cohort else (inside, beside),
        row=_manifest_row(cells.get("pixel_spacing"), cells.get("slice_thickness"), cells.get("anatomic_region")),
    )


@functools.lru_cache(maxsize=2**12)
def _manifest_row(pixel_spacing: str | None, slice_thickness: str | None, anatomic_region: str | None) -> ManifestRow:
    """A million lines say a few hundred different things: equal rows are one object."""
    return ManifestRow(pixel_spacing=pixel_spacing, slice_thickness=slice_thickness, anatomic_region=anatomic_region)


def _without_path(error: Exception) -> str:
    """What an error says; the system's own would name a file of SOURCE."""
    return getattr(error, "strerror", None) or str(error)


def _canonical(path: str) -> str:
    """A manifest's paths start with `/retinal_oct/`, wherever that folder lies in SOURCE, or if SOURCE is it."""
    return path[path.find(COHORT_ROOT) + len(COHORT_ROOT) :] if COHORT_ROOT in path else path


def _join(paths: Collection[str], listed: Iterable[Listed]) -> tuple[dict[str, ManifestRow], set[str]]:
    """Manifest rows by path, and where the listed files should lie that are nowhere.

    What two lines say differently of one file, neither says.
    """
    lines = tuple(listed)
    files = _Files(paths, {line.base for line in lines})
    rows: dict[str, ManifestRow] = {}
    missing = set()
    for line in lines:
        found = files.meant_by(line)
        if len(found) == 1:
            rows[found[0]] = _agreed(rows.get(found[0], line.row), line.row)
        elif not found:
            missing.add(line.places[0])
    return rows, missing


def _agreed(one: ManifestRow, other: ManifestRow) -> ManifestRow:
    if one == other:
        return one
    return ManifestRow(**{name: value if asdict(other)[name] == value else None for name, value in asdict(one).items()})


class _Files:
    """The files of SOURCE, to be found by what a line of a manifest calls them."""

    def __init__(self, paths: Iterable[str], bases: Collection[str]) -> None:
        self._bases = bases
        known = tuple(paths)
        self._by_place = _grouped(known, _folded)
        self._by_root = _grouped(known, lambda path: _canonical(_folded(path)))
        self._in_archives = _grouped(filter(MEMBER.fullmatch, known), _tail)

    def meant_by(self, line: Listed) -> list[str]:
        """Its file: where it should lie, else the only one of its path from `retinal_oct/` on, else in archives.

        More than one is a file that is there, in several archives.
        """
        for place in line.places:
            same = self._by_place[_folded(place)]
            if place in same or len(same) == 1:
                return [place] if place in same else same
        home = line.places[0]
        elsewhere = self._of_no_other(line.base, self._by_root[_canonical(_folded(home))])
        return elsewhere if len(elsewhere) == 1 else self._of_no_other(line.base, self._in_archives[_tail(home)])

    def _of_no_other(self, base: str, paths: Iterable[str]) -> list[str]:
        """Without the files of another cohort, which has a manifest of its own."""
        return [path for path in paths if self._cohort_of(path) in {base, None}]

    def _cohort_of(self, path: str) -> str | None:
        return max((base for base in self._bases if path.startswith(base)), key=len, default=None)


def _grouped(paths: Iterable[str], key: Callable[[str], str]) -> defaultdict[str, list[str]]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for path in paths:
        groups[key(path)].append(path)
    return groups


def _folded(path: str) -> str:
    """A path whatever the case of its extension, with Windows' separators or without."""
    stem, extension = posixpath.splitext(path.replace("\\", "/"))
    return stem + extension.lower()


def _tail(path: str) -> str:
    """What a file is called in an archive: a name with its UID says enough, another one needs its folder."""
    *_, name = parts = re.split(r"[/!]", _folded(path))
    return name if UID_IN_NAME.search(name) else "/".join(parts[-2:])
