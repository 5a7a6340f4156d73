"""One volume on its way to disk: the good file, and the forms in which damage is done to it."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from pydicom.dataset import Dataset

from ingest.phantom.dicom import attach_fragments, attach_native, build_dataset, encode_dicom, serialise
from ingest.phantom.header import HeaderSpec
from ingest.phantom.manifest import manifest_cells
from ingest.phantom.pixels import Volume8, encode_frames
from ingest.phantom.protocols import EXPLICIT_LE, JPEG_2000_LOSSLESS, NATIVE, Protocol
from manifests.reasons import Reason

ACCEPTED: Final = ""
"""What `truth.csv` says of a good file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A rendered volume with its header, and where it would be written."""

    volume: Volume8 = field(repr=False)
    header: HeaderSpec
    protocol: Protocol
    path: str
    rng: np.random.Generator

    @property
    def manifest(self) -> dict[str, str]:
        return manifest_cells(self.header, self.protocol.shape, self.path)

    @property
    def middle(self) -> int:
        """A B-scan that every geometry keeps."""
        return len(self.volume) // 2

    def encode(self) -> bytes:
        """The undamaged file."""
        return encode_dicom(self.volume, self.header)

    def with_header(self, **changes: object) -> "Case":
        """The same volume under a changed header."""
        return dataclasses.replace(self, header=dataclasses.replace(self.header, **changes))  # type: ignore[arg-type]

    def with_volume(self, volume: Volume8) -> "Case":
        """The same header over other pixels of the same shape."""
        return dataclasses.replace(self, volume=volume)

    def sibling(self, suffix: str) -> str:
        """Another file name beside this one: the same stem, another suffix."""
        return self.path.removesuffix(".dcm") + suffix


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What comes of a case: files (path, bytes), rows of `truth.csv` (path, reason), a row of the manifest or none."""

    files: tuple[tuple[str, bytes], ...] = field(repr=False)
    truth: tuple[tuple[str, str], ...]
    manifest: Mapping[str, str] | None


def good(case: Case) -> Outcome:
    """The undamaged file; a radial scan is not a volume even then."""
    return one_file(case, case.encode(), ACCEPTED)


def one_file(case: Case, payload: bytes, reason: str, **cells: str) -> Outcome:
    """One file under the planned name, with changed manifest cells where the damage is in them too."""
    manifest = {**case.manifest, **cells}
    return Outcome(files=((case.path, payload),), truth=((case.path, reason_of(case, reason)),), manifest=manifest)


def reason_of(case: Case, reason: str) -> str:
    """A radial scan stays one when it is damaged: the earlier of both reasons wins."""
    if case.protocol.raster:
        return reason
    if reason == ACCEPTED:
        return Reason.NOT_RASTER.value
    return min(Reason(reason), Reason.NOT_RASTER, key=lambda code: code.precedence).value


Make = Callable[[Case, str], Outcome]
"""Writes a case with the damage done, and says so in `truth` with the reason that is passed in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One kind of damage, or (without `breaks`) one oddity that a good file may have."""

    name: str
    reason: str
    make: Make
    fits: Callable[[Protocol], bool]
    breaks: bool = True

    def apply(self, case: Case) -> Outcome:
        """The case with this damage done to it, and nothing else."""
        return self.make(case, self.reason)


def any_scan(_: Protocol) -> bool:
    """Damage that can be done to every scan."""
    return True


def raster_scan(protocol: Protocol) -> bool:
    """Damage that would be lost on a radial scan."""
    return protocol.raster


def positioned_scan(protocol: Protocol) -> bool:
    """Damage to the positions of B-scans: the header must hold some."""
    return protocol.raster and protocol.positions != "none"


def way(name: str, reason: Reason | None, make: Make, fits: Callable[[Protocol], bool] = any_scan) -> Way:
    """A kind of damage; without a reason it is an oddity that an ingest must accept."""
    return Way(name=name, reason=reason.value if reason else ACCEPTED, make=make, fits=fits)


def dataset_of(case: Case) -> Dataset:
    """The undamaged data set with its pixels, to be edited."""
    if case.header.transfer_syntax not in NATIVE:
        return fragments_dataset(case, lambda fragments: fragments)
    dataset = build_dataset(case.volume, case.header)
    attach_native(dataset, case.volume)
    return dataset


def native_dataset(case: Case) -> Dataset:
    """A data set in explicit VR little endian: plain bytes, which damage can count on."""
    return dataset_of(case.with_header(transfer_syntax=EXPLICIT_LE))


def fragments_dataset(case: Case, edit: Callable[[list[bytes]], list[bytes]], syntax: str | None = None) -> Dataset:
    """A data set with encapsulated pixels, whose fragments `edit` may damage."""
    declared = syntax or case.header.transfer_syntax
    header = dataclasses.replace(case.header, transfer_syntax=declared)
    dataset = build_dataset(case.volume, header)
    attach_fragments(dataset, edit(encode_frames(case.volume, declared)), offset_table=header.offset_table)
    return dataset


def by_dataset(edit: Callable[[Dataset], None], **cells: str) -> Make:
    """Damage in the data set's elements; `cells` are what the manifest then says."""

    def make(case: Case, reason: str) -> Outcome:
        dataset = dataset_of(case)
        edit(dataset)
        return one_file(case, serialise(dataset), reason, **cells)

    return make


def by_case(change: Callable[[Case], Case]) -> Make:
    """Damage in what the header says, or in the pixels before they are encoded."""

    def make(case: Case, reason: str) -> Outcome:
        changed = change(case)
        return one_file(changed, changed.encode(), reason)

    return make


def by_fragments(edit: Callable[[list[bytes]], list[bytes]], syntax: str = JPEG_2000_LOSSLESS) -> Make:
    """Damage in the compressed B-scans."""

    def make(case: Case, reason: str) -> Outcome:
        return one_file(case, serialise(fragments_dataset(case, edit, syntax)), reason)

    return make


def by_bytes(edit: Callable[[Case], bytes]) -> Make:
    """Damage in the file's bytes."""
    return lambda case, reason: one_file(case, edit(case), reason)
