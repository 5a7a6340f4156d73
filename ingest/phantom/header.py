"""What a header says: identity, spacing, where each B-scan lies. Values only; `dicom.py` writes them."""

import dataclasses
import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import numpy as np
from pydicom.uid import PYDICOM_ROOT_UID, generate_uid

from ingest.phantom.errors import PhantomHeaderError
from ingest.phantom.protocols import EXPLICIT_LE, Protocol
from shards.schema import Device, Laterality

LOCALIZER_PIXELS: Final = 512
LOCALIZER_MARGIN_MM: Final = 1.0

MANUFACTURERS: Final[MappingProxyType[Device, str]] = MappingProxyType(
    {
        "heidelberg_spectralis": "Heidelberg Engineering",
        "topcon_maestro2": "Topcon",
        "topcon_triton": "Topcon",
        "zeiss_cirrus": "Carl Zeiss Meditec",
    }
)
MODELS: Final[MappingProxyType[Device, tuple[str, ...]]] = MappingProxyType(
    {
        "heidelberg_spectralis": ("Spectralis",),
        "topcon_maestro2": ("Maestro2", "3DOCT-1Maestro2"),
        "topcon_triton": ("Triton", "Triton plus"),
        "zeiss_cirrus": ("CIRRUS HD-OCT 5000", "Cirrus"),
    }
)
"""Model strings vary within a device."""

RASTER_ORIENTATION: Final = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""A-scans run along patient x, depth along y; B-scans follow each other along z."""

RADIAL_SPACING_SPREAD: Final = 0.015
"""Each line of a radial scan has its own lateral spacing, within this share of the nominal one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameGeometry:
    """What the per-frame groups say about one stored B-scan; None is absent.

    `position_mm` and `orientation` are Plane Position and Plane Orientation (Patient), `location_px` the
    ReferenceCoordinates (row, column of the first A-scan, row, column of the end) on the localizer, and
    `pixel_spacing_mm` (axial, lateral) belongs to scans whose B-scans differ.
    """

    stack_position: int
    position_mm: tuple[float, float, float] | None = None
    orientation: tuple[float, float, float, float, float, float] | None = None
    location_px: tuple[float, float, float, float] | None = None
    pixel_spacing_mm: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Uids:
    """The synthetic identifiers of one image."""

    study: str
    series: str
    sop_instance: str
    frame_of_reference: str
    localizer: str

    @classmethod
    def from_entropy(cls, *entropy: str) -> "Uids":
        """Identifiers that depend on the given words only."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: str(generate_uid(entropy_srcs=[*entropy, name])) for name in names})


def topcon_uid(serial: str, acquired: datetime.datetime, number: int) -> str:
    """A UID with a (made-up) serial number and a time stamp in it, as Topcon's have."""
    return f"{PYDICOM_ROOT_UID}{int(serial)}.{acquired:%Y%m%d%H%M%S}.{number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderSpec:
    """Everything about a file except its pixels.

    `spacing_mm` is (axial, lateral), as PixelSpacing. `slice_thickness_mm` and `spacing_between_slices_mm` are written
    when given. Frames are in stored order. `offset_table` fills the Basic Offset Table of encapsulated pixels.
    """

    participant_id: str
    device: Device
    protocol: str
    anatomic_region: str
    laterality: Laterality
    model: str
    uids: Uids
    acquired: datetime.datetime
    spacing_mm: tuple[float, float]
    frames: tuple[FrameGeometry, ...] = field(repr=False)
    slice_thickness_mm: float | None = None
    spacing_between_slices_mm: float | None = None
    empty_plane_position: bool = False
    transfer_syntax: str = EXPLICIT_LE
    offset_table: bool = True
    instance_number: int = 1

    def __post_init__(self) -> None:
        if not self.frames:
            raise PhantomHeaderError("a header needs the geometry of at least one B-scan; its frames are empty.")

    @property
    def manufacturer(self) -> str:
        return MANUFACTURERS[self.device]

    @property
    def shared_measures(self) -> bool:
        """Whether PixelMeasures belongs to all B-scans together."""
        return all(frame.pixel_spacing_mm is None for frame in self.frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Who was scanned, on which instrument, when, and under which identifiers."""

    participant_id: str
    laterality: Laterality
    model: str
    uids: Uids
    acquired: datetime.datetime
    instance_number: int = 1


def protocol_header(
    protocol: Protocol, subject: Subject, transfer_syntax: str = EXPLICIT_LE, *, offset_table: bool = True
) -> HeaderSpec:
    """The header that the protocol's device would write, quirks included.

    Cirrus overwrites SliceThickness with the lateral spacing; Topcon leaves ImagePositionPatient empty; a radial scan
    has no slice thickness.
    """
    thickness = protocol.lateral_spacing_mm if protocol.device == "zeiss_cirrus" else protocol.bscan_step_mm
    return HeaderSpec(
        participant_id=subject.participant_id,
        device=protocol.device,
        protocol=protocol.name,
        anatomic_region=protocol.region,
        laterality=subject.laterality,
        model=subject.model,
        uids=subject.uids,
        acquired=subject.acquired,
        spacing_mm=(protocol.axial_spacing_mm, protocol.lateral_spacing_mm),
        frames=frames_of(protocol),
        slice_thickness_mm=thickness if protocol.raster else None,
        empty_plane_position=protocol.device.startswith("topcon"),
        transfer_syntax=transfer_syntax,
        offset_table=offset_table,
        instance_number=subject.instance_number,
    )


def frames_of(protocol: Protocol) -> tuple[FrameGeometry, ...]:
    """Stored B-scans of a protocol, with positions where that device writes them."""
    if not protocol.raster:
        return tuple(_radial_frame(protocol, index) for index in range(protocol.num_frames))
    if protocol.positions == "frame_location":
        frames = localizer_frames(protocol)
    else:
        step = protocol.bscan_step_mm
        slow = (np.arange(protocol.num_frames) - (protocol.num_frames - 1) / 2) * step
        width = protocol.fov_lateral_mm
        written = protocol.positions == "plane_position"
        frames = plane_frames(slow.tolist(), width) if written else plain_frames(protocol.num_frames)
    return frames[::-1] if protocol.reversed_frames else frames


def plane_frames(slow_mm: Sequence[float], width_mm: float) -> tuple[FrameGeometry, ...]:
    """Parallel B-scans with plane positions.

    Args:
        slow_mm: position of each stored B-scan along the slow axis.
        width_mm: length of a B-scan.

    Returns:
        One geometry per B-scan, with stack positions ranked by position.
    """
    rank = np.argsort(np.argsort(slow_mm, kind="stable"), kind="stable")
    return tuple(
        FrameGeometry(
            stack_position=int(order) + 1,
            position_mm=(-width_mm / 2, 0.0, float(slow)),
            orientation=RASTER_ORIENTATION,
        )
        for slow, order in zip(slow_mm, rank, strict=True)
    )


def plain_frames(count: int) -> tuple[FrameGeometry, ...]:
    """B-scans of which only the order is known."""
    return tuple(FrameGeometry(stack_position=index + 1, orientation=RASTER_ORIENTATION) for index in range(count))


def localizer_frames(protocol: Protocol) -> tuple[FrameGeometry, ...]:
    """Parallel B-scans drawn as lines on a localizer of 512 x 512 pixels."""
    pixel_mm = (max(protocol.fov_slow_mm, protocol.fov_lateral_mm) + LOCALIZER_MARGIN_MM) / LOCALIZER_PIXELS
    middle = LOCALIZER_PIXELS / 2
    half = protocol.fov_lateral_mm / pixel_mm / 2
    slow = np.arange(protocol.num_frames) - (protocol.num_frames - 1) / 2
    rows = middle + slow * protocol.bscan_step_mm / pixel_mm
    return tuple(
        FrameGeometry(
            stack_position=index + 1,
            orientation=RASTER_ORIENTATION,
            location_px=(float(row), middle - half, float(row), middle + half),
        )
        for index, row in enumerate(rows)
    )


def _radial_frame(protocol: Protocol, index: int) -> FrameGeometry:
    """A line through the disc's centre; lines turn by 180 degrees / frames."""
    angle = np.pi * index / protocol.num_frames
    along = (float(np.cos(angle)), 0.0, float(np.sin(angle)))
    lateral = protocol.lateral_spacing_mm * (1 + RADIAL_SPACING_SPREAD * float(np.sin(2.4 * index + 0.7)))
    half = protocol.columns * lateral / 2
    return FrameGeometry(
        stack_position=index + 1,
        position_mm=(-half * along[0], 0.0, -half * along[2]),
        orientation=(*along, 0.0, 1.0, 0.0),
        pixel_spacing_mm=(protocol.axial_spacing_mm, lateral),
    )
