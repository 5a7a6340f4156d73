"""Damage to whole files: missing, empty, cut, not DICOM, copies, ZIP archives, files made to exhaust a reader."""

import dataclasses
import io
import zipfile
from pathlib import PurePosixPath
from typing import Final

import numpy as np
from pydicom.uid import UID

from ingest.phantom.case import (
    ACCEPTED,
    Case,
    Outcome,
    by_bytes,
    fragments_dataset,
    good,
    native_dataset,
    raster_scan,
    way,
)
from ingest.phantom.damage_pixels import broken_j2k
from ingest.phantom.dicom import serialise
from ingest.phantom.protocols import DEFLATED_LE, JPEG_2000_LOSSLESS
from ingest.phantom.stream import (
    PREAMBLE,
    dataset_bytes,
    deflated_with_zeros,
    file_bytes,
    meta_bytes,
    nested_sequences,
    split_at_private,
)
from manifests.reasons import Reason

LOGIN_PAGE: Final = (
    b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head>\n"
    b"<body><h1>Your session has expired</h1><p>Sign in again to download this file.</p></body></html>\n"
)
COPY_SUFFIX: Final = ".dicom"
"""Sorts after `.dcm`: in path order the copy is the later one."""

ZIP_TIME: Final = (2024, 1, 1, 0, 0, 0)
NESTED_DEPTH: Final = 500
INFLATED_BYTES: Final = 1_100_000_000


def _missing(case: Case, reason: str) -> Outcome:
    """Listed in the manifest, never written."""
    return Outcome(files=(), truth=((case.path, reason),), manifest=case.manifest)


def _header_cut(case: Case) -> bytes:
    """The file ends inside a value of the per-frame groups, before the pixels."""
    data = serialise(native_dataset(case))
    stack = data.rindex(b"\x20\x00\x56\x90SH")  # (0020,9056) StackID of the last B-scan
    return data[: stack + 9]


def _random_bytes(case: Case) -> bytes:
    return case.rng.integers(0, 256, 4096, dtype=np.uint8).tobytes()


def _no_transfer_syntax(case: Case) -> bytes:
    dataset = native_dataset(case)
    del dataset.file_meta.TransferSyntaxUID
    return file_bytes(dataset)


def _no_meta(case: Case) -> bytes:
    """The DICM marker, and at once the data set."""
    return PREAMBLE + dataset_bytes(native_dataset(case))


def _deep(case: Case) -> bytes:
    dataset = native_dataset(case)
    before, after = split_at_private(dataset)
    return PREAMBLE + meta_bytes(dataset.file_meta) + before + nested_sequences(NESTED_DEPTH) + after


def _bomb(case: Case) -> bytes:
    """About a megabyte that inflates to more than a gigabyte, before the first attribute of interest."""
    dataset = native_dataset(case)
    before, after = split_at_private(dataset)
    dataset.file_meta.TransferSyntaxUID = UID(DEFLATED_LE)
    return PREAMBLE + meta_bytes(dataset.file_meta) + deflated_with_zeros(before, after, INFLATED_BYTES)


def _identical_copy(case: Case, reason: str) -> Outcome:
    """The same bytes under a second name."""
    first = good(case)
    copy = case.sibling(COPY_SUFFIX)
    files = (*first.files, (copy, first.files[0][1]))
    return Outcome(files=files, truth=(*first.truth, (copy, reason)), manifest=first.manifest)


def _conflicting_copy(case: Case, reason: str) -> Outcome:
    """A second valid file with the same SOP Instance UID and other pixels: nobody can tell which is right."""
    other = case.with_volume(np.roll(case.volume, 5, axis=2)).encode()
    copy = case.sibling(COPY_SUFFIX)
    files = ((case.path, case.encode()), (copy, other))
    return Outcome(files=files, truth=((case.path, reason), (copy, reason)), manifest=case.manifest)


def _broken_copy(case: Case, reason: str) -> Outcome:
    """A second file with the same SOP Instance UID, one of whose B-scans cannot be decoded: the first one stands."""
    broken = serialise(fragments_dataset(case, broken_j2k, JPEG_2000_LOSSLESS))
    copy = case.sibling(COPY_SUFFIX)
    files = ((case.path, case.encode()), (copy, broken))
    return Outcome(files=files, truth=((case.path, ACCEPTED), (copy, reason)), manifest=case.manifest)


def _zip_of(name: str, payload: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(name, ZIP_TIME), payload, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _zipped(case: Case, reason: str) -> Outcome:
    """A good file that came in an archive, which is no volume itself; the manifest does not list it."""
    member = PurePosixPath(case.path).name
    archive = case.sibling(".zip")
    inside = good(case)
    truth = ((archive, reason), (f"{archive}!{member}", inside.truth[0][1]))
    return Outcome(files=((archive, _zip_of(member, inside.files[0][1])),), truth=truth, manifest=None)


def _zip_cut(case: Case, reason: str) -> Outcome:
    """An archive without its end, and so without its directory."""
    payload = _zip_of(PurePosixPath(case.path).name, case.encode())
    archive = case.sibling(".zip")
    return Outcome(files=((archive, payload[: len(payload) * 2 // 3]),), truth=((archive, reason),), manifest=None)


def _zip_climbs(case: Case, reason: str) -> Outcome:
    """An archive whose member would be written outside the folder it is unpacked in."""
    archive, member = case.sibling(".zip"), f"../{PurePosixPath(case.path).name}"
    truth = ((archive, reason), (f"{archive}!{member}", reason))
    return Outcome(files=((archive, _zip_of(member, case.encode())),), truth=truth, manifest=None)


FILE_WAYS: Final = (
    way("missing", Reason.FILE_MISSING, _missing),
    way("empty", Reason.EMPTY_FILE, by_bytes(lambda _: b"")),
    way("login_page", Reason.NOT_DICOM, by_bytes(lambda _: LOGIN_PAGE)),
    way("random_bytes", Reason.NOT_DICOM, by_bytes(_random_bytes)),
    way("no_transfer_syntax", Reason.META_HEADER_INVALID, by_bytes(_no_transfer_syntax)),
    way("no_meta", Reason.META_HEADER_INVALID, by_bytes(_no_meta)),
    way("deep", Reason.PARSE_LIMIT_EXCEEDED, by_bytes(_deep)),
    way("bomb", Reason.PARSE_LIMIT_EXCEEDED, by_bytes(_bomb)),
    way("header_cut", Reason.TRUNCATED_DATASET, by_bytes(_header_cut), raster_scan),
    way("identical_copy", Reason.DUP_SOP_UID_IDENTICAL, _identical_copy, raster_scan),
    way("conflicting_copy", Reason.DUP_SOP_UID_CONFLICT, _conflicting_copy, raster_scan),
    way("broken_copy", Reason.FRAME_UNDECODABLE, _broken_copy, raster_scan),
    way("zip_cut", Reason.ZIP_INVALID_OR_TRUNCATED, _zip_cut),
    way("zip_climbs", Reason.ZIP_UNSAFE, _zip_climbs),
)

ZIPPED: Final = dataclasses.replace(way("zipped", Reason.OUTSIDE_FILTER, _zipped, raster_scan), breaks=False)
