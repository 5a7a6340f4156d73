"""The scan protocols of the AI-READI cohort: sizes, fields of view, and how each device writes them.

Lengths are mm, in the order `[D, H, W]` = (B-scan step, axial, lateral).
"""

import dataclasses
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, Self

from ingest.phantom.errors import PhantomError
from shards.schema import Device, Shape, Spacing

Target = Literal["macula", "disc", "wide"]
PositionSource = Literal["plane_position", "frame_location", "none"]

IMPLICIT_LE: Final = "1.2.840.10008.1.2"
EXPLICIT_LE: Final = "1.2.840.10008.1.2.1"
DEFLATED_LE: Final = "1.2.840.10008.1.2.1.99"
JPEG_LS_LOSSLESS: Final = "1.2.840.10008.1.2.4.80"
JPEG_2000_LOSSLESS: Final = "1.2.840.10008.1.2.4.90"
JPEG_2000: Final = "1.2.840.10008.1.2.4.91"
RLE_LOSSLESS: Final = "1.2.840.10008.1.2.5"

NATIVE: Final = frozenset({IMPLICIT_LE, EXPLICIT_LE, DEFLATED_LE})
LOSSLESS: Final = NATIVE | {JPEG_LS_LOSSLESS, JPEG_2000_LOSSLESS, RLE_LOSSLESS}

SMALL_SIDE: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How one scan protocol samples the eye, and where its header says so.

    `spans_ends` tells whether the first and last B-scans lie on the edges of the field of view (step
    = field / (frames - 1)) or half a step inside (step = field / frames).
    """

    name: str
    device: Device
    region: str
    target: Target
    num_frames: int
    rows: int
    columns: int
    fov_slow_mm: float
    fov_lateral_mm: float
    axial_spacing_mm: float
    spans_ends: bool = False
    positions: PositionSource
    raster: bool = True
    reversed_frames: bool = False
    small_frames: int = 20

    @property
    def bscan_step_mm(self) -> float:
        """Distance between neighbouring B-scans; 0 for a radial scan, which has none."""
        return self.fov_slow_mm / (self.num_frames - 1 if self.spans_ends else self.num_frames)

    @property
    def lateral_spacing_mm(self) -> float:
        return self.fov_lateral_mm / self.columns

    @property
    def shape(self) -> Shape:
        return (self.num_frames, self.rows, self.columns)

    def small(self) -> Self:
        """The same field of view in 16-24 B-scans of 128 x 128: coarser spacing, nothing cut off."""
        return dataclasses.replace(
            self,
            num_frames=self.small_frames,
            rows=SMALL_SIDE,
            columns=SMALL_SIDE,
            axial_spacing_mm=self.rows * self.axial_spacing_mm / SMALL_SIDE,
        )


def true_spacing_mm(protocol: Protocol) -> Spacing:
    """The spacing that an ingest must find, whatever the header's quirks.

    Raises:
        PhantomError: for a radial scan, which is not a volume.
    """
    if not protocol.raster:
        raise PhantomError(f"{protocol.name} is a radial scan: it has no B-scan step, so no spacing as a volume.")
    return (protocol.bscan_step_mm, protocol.axial_spacing_mm, protocol.lateral_spacing_mm)


_SPECTRALIS_AXIAL_MM: Final = 0.00387
_TOPCON_AXIAL_MM: Final = 0.0026
_CIRRUS_AXIAL_MM: Final = 2.0 / 1024

_ALL: Final = (
    Protocol(
        name="spectralis_onh_rc_hr_oct",
        device="heidelberg_spectralis",
        region="Optic Disc",
        target="disc",
        num_frames=27,
        rows=496,
        columns=768,
        fov_slow_mm=0.0,
        fov_lateral_mm=5.8,
        axial_spacing_mm=_SPECTRALIS_AXIAL_MM,
        positions="plane_position",
        raster=False,
        small_frames=18,
    ),
    Protocol(
        name="spectralis_ppol_mac_hr_oct",
        device="heidelberg_spectralis",
        region="Macula",
        target="macula",
        num_frames=61,
        rows=496,
        columns=768,
        fov_slow_mm=7.8,
        fov_lateral_mm=9.3,
        axial_spacing_mm=_SPECTRALIS_AXIAL_MM,
        positions="plane_position",
        small_frames=20,
    ),
    Protocol(
        name="spectralis_mac_20x20_hs_octa",
        device="heidelberg_spectralis",
        region="Macula, 20 x 20 degrees",
        target="macula",
        num_frames=512,
        rows=496,
        columns=512,
        fov_slow_mm=5.8,
        fov_lateral_mm=5.8,
        axial_spacing_mm=_SPECTRALIS_AXIAL_MM,
        spans_ends=True,
        positions="plane_position",
        reversed_frames=True,
        small_frames=24,
    ),
    Protocol(
        name="maestro2_3d_macula_oct",
        device="topcon_maestro2",
        region="Macula",
        target="macula",
        num_frames=128,
        rows=885,
        columns=512,
        fov_slow_mm=6.0,
        fov_lateral_mm=6.0,
        axial_spacing_mm=_TOPCON_AXIAL_MM,
        spans_ends=True,
        positions="frame_location",
        small_frames=20,
    ),
    Protocol(
        name="maestro2_3d_wide_oct",
        device="topcon_maestro2",
        region="Wide Field",
        target="wide",
        num_frames=128,
        rows=885,
        columns=512,
        fov_slow_mm=9.0,
        fov_lateral_mm=12.0,
        axial_spacing_mm=_TOPCON_AXIAL_MM,
        spans_ends=True,
        positions="frame_location",
        small_frames=22,
    ),
    Protocol(
        name="maestro2_macula_6x6_octa",
        device="topcon_maestro2",
        region="Macula, 6 x 6",
        target="macula",
        num_frames=360,
        rows=885,
        columns=360,
        fov_slow_mm=6.0,
        fov_lateral_mm=6.0,
        axial_spacing_mm=_TOPCON_AXIAL_MM,
        positions="frame_location",
        small_frames=24,
    ),
    Protocol(
        name="triton_3d_radial_oct",
        device="topcon_triton",
        region="Optic Disc",
        target="disc",
        num_frames=256,
        rows=992,
        columns=512,
        fov_slow_mm=9.0,
        fov_lateral_mm=12.0,
        axial_spacing_mm=_TOPCON_AXIAL_MM,
        positions="frame_location",
        small_frames=22,
    ),
    Protocol(
        name="triton_macula_6x6_octa",
        device="topcon_triton",
        region="Macula, 6 x 6",
        target="macula",
        num_frames=320,
        rows=992,
        columns=320,
        fov_slow_mm=6.0,
        fov_lateral_mm=6.0,
        axial_spacing_mm=_TOPCON_AXIAL_MM,
        positions="frame_location",
        small_frames=24,
    ),
    Protocol(
        name="triton_macula_12x12_octa",
        device="topcon_triton",
        region="Macula, 12 x 12",
        target="macula",
        num_frames=512,
        rows=992,
        columns=512,
        fov_slow_mm=12.0,
        fov_lateral_mm=12.0,
        axial_spacing_mm=_TOPCON_AXIAL_MM,
        positions="frame_location",
        small_frames=24,
    ),
    Protocol(
        name="cirrus_mac_oct",
        device="zeiss_cirrus",
        region="Macula",
        target="macula",
        num_frames=128,
        rows=1024,
        columns=512,
        fov_slow_mm=6.0,
        fov_lateral_mm=6.0,
        axial_spacing_mm=_CIRRUS_AXIAL_MM,
        positions="none",
        small_frames=16,
    ),
    Protocol(
        name="cirrus_disc_oct",
        device="zeiss_cirrus",
        region="Optic Disc",
        target="disc",
        num_frames=200,
        rows=1024,
        columns=200,
        fov_slow_mm=6.0,
        fov_lateral_mm=6.0,
        axial_spacing_mm=_CIRRUS_AXIAL_MM,
        positions="none",
        small_frames=20,
    ),
    Protocol(
        name="cirrus_macula_6x6_octa",
        device="zeiss_cirrus",
        region="Macula, 6 x 6",
        target="macula",
        num_frames=350,
        rows=1024,
        columns=350,
        fov_slow_mm=6.0,
        fov_lateral_mm=6.0,
        axial_spacing_mm=_CIRRUS_AXIAL_MM,
        positions="plane_position",
        small_frames=24,
    ),
    Protocol(
        name="cirrus_disc_6x6_octa",
        device="zeiss_cirrus",
        region="Optic Disc, 6 x 6",
        target="disc",
        num_frames=350,
        rows=1024,
        columns=350,
        fov_slow_mm=6.0,
        fov_lateral_mm=6.0,
        axial_spacing_mm=_CIRRUS_AXIAL_MM,
        positions="plane_position",
        small_frames=24,
    ),
)

PROTOCOLS: Final = MappingProxyType({protocol.name: protocol for protocol in _ALL})
"""Every protocol of the cohort, by name."""

TRANSFER_SYNTAXES: Final[MappingProxyType[Device, tuple[str, ...]]] = MappingProxyType(
    {
        "heidelberg_spectralis": (EXPLICIT_LE, DEFLATED_LE, IMPLICIT_LE),
        "topcon_maestro2": (JPEG_2000_LOSSLESS, EXPLICIT_LE),
        "topcon_triton": (JPEG_2000, JPEG_LS_LOSSLESS),
        "zeiss_cirrus": (JPEG_2000_LOSSLESS, RLE_LOSSLESS),
    }
)
"""What each device writes here, the commonest first; the cohort's documents name none."""
