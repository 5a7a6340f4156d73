"""One file explained: what each check found, and the verdict.

The verdict comes from `ingest.guard.Guard`, the very code that a job runs: a probe, then a conversion. The checks one
by one run in another process of their own (`ingest.examine`) with the same limits: they also decode files that a job
rejects before, so that a verdict does not say what the codecs would do.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Final

from ingest.archive import list_members
from ingest.convert import DEFAULT_LIMITS
from ingest.errors import GuardError, IngestError, SourceError
from ingest.examine import CHECKS
from ingest.facts import path_facts
from ingest.findings import NOT_REACHED, OK, WARNING, Check, Finding, Request
from ingest.geometry import Geometry
from ingest.guard import ONE_THREAD, OUTSIDERS, Death, Guard
from ingest.reader import SourceReader
from ingest.record import Facts, Limits, Rejection, VolumeRecord
from ingest.source import (
    MANIFEST_NAME,
    Settled,
    _join,
    _read_manifests,
    is_candidate,
)
from manifests.plan import ManifestRow
from manifests.reasons import Reason
from shards.errors import ShardError
from shards.storage import exists, fingerprint, locate

MEMBER_MARK: Final = re.compile(r"(?<=\.zip)!", re.IGNORECASE)
NUM_FOLDERS: Final = 4
"""`retinal_oct/structural_oct/DEVICE/PARTICIPANT/` before the file's name."""
EXAMINE_S: Final = 600.0
"""The largest scan takes under a minute; CPU time has limits of its own."""
EXAMINE: Final = "from ingest.examine import main; main()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What every check found on one file, and what a job makes of it.

    `path` is the path that participant, device and protocol were read from; `reason` is empty when it is accepted.
    """

    path: str
    geometry: str
    findings: tuple[Finding, ...]
    reason: str
    detail: str
    warnings: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        return not self.reason

    @property
    def verdict(self) -> str:
        """`"accepted"`, or the reason, what was found, and what to do."""
        if self.accepted:
            return "; ".join(["accepted", *self.warnings])
        return f"not accepted: {self.reason}: {self.detail} {Reason(self.reason).info.hint}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"accepted": self.accepted}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A file under the folder that stands for SOURCE; `path` is what identity is read from."""

    source: str
    file: str
    path: str
    num_bytes: int
    manifest: ManifestRow | None = None
    archive: Settled | None = None
    is_member: bool = False


def explain(
    file: str, guard: Guard, *, path: str | None = None, geometry: Geometry, limits: Limits = DEFAULT_LIMITS
) -> Explanation:
    """Run every check on one file, and ask the guard for the verdict.

    Args:
        file: path or URL of a DICOM file, of a ZIP, or of a member of one: `a.zip!b.dcm`.
        guard: who says what a job makes of it.
        path: its path in a cohort, when it lies elsewhere now; by default its own with up to four folders.
        geometry: what the job would resample to.
        limits: what no true scan exceeds.

    Raises:
        SourceError: if there is no such file.
        GuardError: if the processes that parse and decode cannot be used.
    """
    place = _locate(file, path)
    if place.archive is not None and not place.is_member:
        return _explain_archive(place.archive, place, geometry)
    result, data = _judge(place, guard, geometry, limits)
    first = (*_archive_finding(place), _bytes_finding(place, result, data, limits))
    if data:
        request = Request(data=data, path=place.path, manifest=place.manifest, geometry=geometry, limits=limits)
        rest = _examine(request)
    else:
        rest = _not_reached("there are no bytes to look at.")
    return Explanation(
        path=place.path,
        geometry=geometry.name,
        findings=(*first, *rest),
        reason=result.reason.value if isinstance(result, Rejection) else "",
        detail=result.detail if isinstance(result, Rejection) else "",
        warnings=() if isinstance(result, Rejection) else _cautions(result),
    )


def _locate(file: str, path: str | None) -> _Place:
    """Find the file, its archive if it is a member of one, and its row of a manifest.

    Raises:
        SourceError: if there is none.
    """
    outer, member = _outer_and_member(file)
    source, relative, num_bytes = _on_disk(outer)
    if PurePosixPath(relative).suffix.lower() != ".zip":
        return _listed(_Place(source=source, file=relative, path=path or relative, num_bytes=num_bytes))
    archive, members = _look_into(source, relative, num_bytes)
    whole = f"{relative}!{member}" if member else relative
    if archive.reason is not Reason.OUTSIDE_FILTER or not member:
        return _Place(source=source, file=whole, path=path or whole, num_bytes=num_bytes, archive=archive)
    if member not in members:
        raise SourceError(f"{file}: the archive has no file of that name.")
    found = _Place(source=source, file=whole, path=path or whole, num_bytes=members[member], archive=archive)
    return _listed(replace(found, is_member=True))


def _outer_and_member(file: str) -> tuple[str, str | None]:
    """An archive and its member, unless the whole name is that of a file."""
    marks = (mark for mark in MEMBER_MARK.finditer(file) if _is_file(file[: mark.start()]))
    mark = None if _is_file(file) else next(marks, None)
    return (file[: mark.start()], file[mark.end() :]) if mark else (file, None)


def _is_file(file: str) -> bool:
    try:
        return fingerprint(file) is not None
    except (OSError, ValueError, ShardError):
        return False


def _look_into(source: str, relative: str, num_bytes: int) -> tuple[Settled, dict[str, int]]:
    """What a job's listing says of an archive, and the sizes of its members."""

    def settled(reason: Reason, detail: str) -> Settled:
        return Settled(path=relative, bytes=num_bytes, reason=reason, detail=detail)

    try:
        with SourceReader(source) as reader, reader.open(relative) as stream:
            listing = list_members(stream)
    except IngestError as error:
        return settled(error.reason, error.detail), {}
    if listing.unsafe:
        return settled(Reason.ZIP_UNSAFE, listing.unsafe), {}
    members = {member.name: member.bytes for member in listing.members}
    return settled(Reason.OUTSIDE_FILTER, f"an archive of {len(members)} files."), members


def _on_disk(file: str) -> tuple[str, str, int]:
    """The folder that stands for SOURCE, the file's path in it, and its size."""
    try:
        place = locate(file)
        found = fingerprint(place)
        if found is None:
            what = "is a folder: name one file in it" if exists(place) else "does not exist"
            raise SourceError(f"{file} {what}.")
    except (OSError, ValueError, ShardError) as error:
        raise SourceError(f"{file} cannot be read: {type(error).__name__}.") from error
    parts = place.path.split("/")
    kept = min(NUM_FOLDERS + 1, len(parts) - 1)
    source = "/".join(parts[:-kept]) or "/"
    return source if place.is_local else f"{place.protocol}://{source}", "/".join(parts[-kept:]), found.bytes


def _listed(place: _Place) -> _Place:
    """With the row of the nearest manifest.tsv above the file that lists it; a table of another kind is none."""
    folders = place.file.split("!", maxsplit=1)[0].split("/")[:-1]
    for depth in range(len(folders), -1, -1):
        manifest = "/".join([*folders[:depth], MANIFEST_NAME])
        try:
            listed = _read_manifests(place.source, [manifest])
        except SourceError:
            continue
        row = _join([place.path], listed)[0].get(place.path)
        if row:
            return replace(place, manifest=row)
    return place


def _judge(place: _Place, guard: Guard, geometry: Geometry, limits: Limits) -> tuple[VolumeRecord | Rejection, bytes]:
    """What a job makes of the file, and its bytes as far as a job would read them."""
    try:
        with SourceReader(place.source) as reader, reader.open(place.file) as stream:
            probed = guard.probe(stream, place.path, place.manifest, limits)
        if place.num_bytes > limits.max_file_bytes:
            return probed if isinstance(probed, Rejection) else _too_large(place, limits), b""
        with SourceReader(place.source) as reader:
            data = reader.read(place.file)
        if isinstance(probed, Rejection):
            return probed, data
        return guard.convert(data, place.path, place.manifest, geometry, limits), data
    except IngestError as error:
        return Rejection(reason=error.reason, detail=error.detail, facts=path_facts(place.path)), b""


def _cautions(record: VolumeRecord) -> tuple[str, ...]:
    return tuple(f"{one.reason}: {one.detail}" for one in record.cautions)


def _too_large(place: _Place, limits: Limits) -> Rejection:
    detail = f"the file has {place.num_bytes} bytes, the limit is {limits.max_file_bytes}."
    return Rejection(reason=Reason.PARSE_LIMIT_EXCEEDED, detail=detail, facts=path_facts(place.path))


def _explain_archive(archive: Settled, place: _Place, geometry: Geometry) -> Explanation:
    """An archive is no volume itself, and one that is damaged or unsafe is not opened further."""
    outcome = OK if archive.reason is Reason.OUTSIDE_FILTER else archive.reason.value
    first = (
        Finding(check="archive", outcome=outcome, found=archive.detail),
        Finding(check="bytes", outcome=OK, found=f"{place.num_bytes} bytes."),
    )
    rest = _not_reached("name a member to look at: ARCHIVE.zip!MEMBER.")
    return Explanation(
        path=place.path,
        geometry=geometry.name,
        findings=(*first, *rest),
        reason=archive.reason.value,
        detail=archive.detail,
    )


def _archive_finding(place: _Place) -> tuple[Finding, ...]:
    if place.archive is None:
        return ()
    return (Finding(check="archive", outcome=OK, found=place.archive.detail),)


def _bytes_finding(place: _Place, result: VolumeRecord | Rejection, data: bytes, limits: Limits) -> Finding:
    """Whether the bytes are there, and not too many. The name decides whether a job looks at the file at all."""
    size = f"{place.num_bytes} bytes, at most {limits.max_file_bytes}"
    if not data and isinstance(result, Rejection):
        return Finding(check="bytes", outcome=result.reason.value, found=result.detail)
    if not is_candidate(place.file) and place.manifest is None:
        return Finding(check="bytes", outcome=WARNING, found=f"{size}; by its name, a job would only count the file.")
    return Finding(check="bytes", outcome=OK, found=f"{size}.")


def _not_reached(why: str, checks: Sequence[Check] = CHECKS) -> tuple[Finding, ...]:
    return tuple(Finding(check=check.name, outcome=NOT_REACHED, found=why) for check in checks)


def _examine(request: Request) -> tuple[Finding, ...]:
    """Run the checks in another process; its death is what the check found that it died in."""
    output, returncode, stalled = _run_examination(request)
    lines = [json.loads(line) for line in output.splitlines(keepends=True) if line.endswith(b"\n")]
    findings = tuple(Finding(**line) for line in lines if "outcome" in line)
    if returncode == 0 and len(findings) == len(CHECKS):
        return findings
    if not lines or -returncode in OUTSIDERS:
        raise GuardError(f"the process that looks at the file did not start, or was ended from outside ({returncode}).")
    fatal, *later = CHECKS[len(findings) :]
    death = Death(returncode=returncode, stalled=stalled, stage=fatal.stage, facts=Facts()).rejection()
    last = Finding(check=fatal.name, outcome=death.reason.value, found=death.detail)
    return (*findings, last, *_not_reached(f"{fatal.name} ended the process.", later))


def _run_examination(request: Request) -> tuple[bytes, int, bool]:
    """Output, return code, and whether it was stopped because nothing came of it."""
    words = [sys.executable, "-P", "-c", EXAMINE]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            words,
            input=request.to_bytes(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | ONE_THREAD,
            timeout=EXAMINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        return error.stdout or b"", -signal.SIGKILL, True
    return done.stdout, done.returncode, False
