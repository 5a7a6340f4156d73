"""The sample schema: what a shard, its manifests and `dataset.json` hold.

Axes are `[D, H, W]`: B-scan index, axial sample, A-scan index. Spacing is mm in the same order.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from shards.errors import SchemaError

SCHEMA_VERSION: Final = 1
GRID_SHAPE: Final = (64, 384, 384)
PATCH_SHAPE: Final = (4, 16, 16)

Split = Literal["train", "val", "test"]
Device = Literal["heidelberg_spectralis", "topcon_maestro2", "topcon_triton", "zeiss_cirrus"]
Laterality = Literal["R", "L"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)
DEVICES: Final[tuple[Device, ...]] = get_args(Device)

Volume = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Spacing = tuple[float, float, float]
Shape = tuple[int, int, int]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

KEY_PATTERN: Final = re.compile(r"[a-z0-9_]+(-[A-Za-z0-9_]+){3}-[0-9a-f]{10}")

SAMPLE_COLUMNS: Final = (
    "key", "shard", "split", "device", "protocol", "anatomic_region", "laterality",
    "participant_id", "clinical_site", "study_group", "age", "content_tokens",
    "spacing_d_mm", "spacing_h_mm", "spacing_w_mm",
    "volume_offset", "volume_bytes", "meta_offset", "meta_bytes", "sha256",
)  # fmt: skip
SHARD_COLUMNS: Final = ("shard", "split", "device", "num_samples", "bytes", "sha256")

VOLUME_SUFFIX: Final = ".volume.npy"
META_SUFFIX: Final = ".meta.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class IntensityStats:
    """Grey levels over content voxels, in stored units (0-255, or 0-65535)."""

    mean: float
    std: float
    min: float
    max: float
    p01: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleMeta:
    """`{key}.meta.json`: everything a reader may know about a volume. No other DICOM text leaves.

    `native_spacing_*_mm` are the source's; `spacing_mm` is that of the stored grid.
    `content_box` is the half-open voxel range, per axis of the stored grid, that is not padding.
    `cropped_fraction` is the share of the scan's extent outside the grid, and `padded_fraction`
    the share of the grid outside the scan, per axis.
    """

    key: str
    participant_id: str
    device: Device
    manufacturer_model: str
    protocol: str
    anatomic_region: str
    laterality: Laterality
    split: Split
    clinical_site: str | None = None
    study_group: str | None = None
    age: float | None = None
    native_shape: Shape
    native_spacing_mm: Spacing
    native_spacing_min_mm: Spacing
    native_spacing_max_mm: Spacing
    bscan_positions_mm: tuple[float, ...]
    spacing_source: str
    spacing_mm: Spacing
    geometry: str
    retina_center_mm: float
    content_box: Box
    content_tokens: int
    cropped_fraction: Spacing
    padded_fraction: Spacing
    num_frames_decoded: int
    intensity: IntensityStats
    warnings: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if not KEY_PATTERN.fullmatch(self.key):
            raise SchemaError(f"key {self.key!r} is not participant-device-laterality-protocol-hash without dots.")
        if self.split not in SPLITS or self.device not in DEVICES:
            raise SchemaError(f"{self.key}: split {self.split!r} or device {self.device!r} is not known.")
        if not all(math.isfinite(s) and s > 0 for s in self.spacing_mm):
            raise SchemaError(f"{self.key}: spacing {self.spacing_mm} mm must be finite and positive.")
        if len(self.spacing_mm) != 3 or not _is_box(self.content_box):
            raise SchemaError(f"{self.key}: spacing and content box have three axes, with a start and a stop of each.")

    def to_json(self) -> bytes:
        """UTF-8 JSON with sorted keys: the same values give the same bytes."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Typed view of a decoded `meta.json`.

        Raises:
            SchemaError: if a field is missing, unknown, or of another schema version.
        """
        if values.get("schema_version") != SCHEMA_VERSION:
            raise SchemaError(
                f"meta.json has schema version {values.get('schema_version')!r}, this code reads {SCHEMA_VERSION}."
            )
        try:
            converted = {name: _as_tuples(value) for name, value in values.items()}
            converted["intensity"] = IntensityStats(**values["intensity"])
            return cls(**converted)
        except (TypeError, KeyError, ValueError) as error:
            raise SchemaError(f"meta.json does not fit the schema: {error}.") from error


def _is_box(value: Any) -> bool:
    return len(value) == 3 and all(len(pair) == 2 and all(isinstance(place, int) for place in pair) for pair in value)


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One volume with its metadata: `volume` is uint8 or uint16 `[64, 384, 384]`."""

    meta: SampleMeta
    volume: Volume = field(repr=False)

    def __post_init__(self) -> None:
        shape = self.volume.shape
        if len(shape) != 3 or self.volume.dtype not in (np.uint8, np.uint16):
            raise SchemaError(
                f"{self.key}: a volume is uint8 or uint16 [D, H, W], not {self.volume.dtype} with shape {shape}."
            )
        if not all(
            0 <= start <= stop <= size for (start, stop), size in zip(self.meta.content_box, shape, strict=True)
        ):
            raise SchemaError(f"{self.key}: content box {self.meta.content_box} is not inside the volume {shape}.")

    @property
    def key(self) -> str:
        return self.meta.key


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """A row of `samples.csv`: where a sample lies, and the columns that filters use."""

    key: str
    shard: str
    split: str
    device: str
    protocol: str
    anatomic_region: str
    laterality: str
    participant_id: str
    clinical_site: str | None
    study_group: str | None
    age: float | None
    content_tokens: int
    spacing_d_mm: float
    spacing_h_mm: float
    spacing_w_mm: float
    volume_offset: int
    volume_bytes: int
    meta_offset: int
    meta_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRow:
    """A row of `shards.csv`; `shard` is the file name without a folder, `sha256` of the whole tar."""

    shard: str
    split: str
    device: str
    num_samples: int
    bytes: int
    sha256: str


def shard_name(split: str, device: str, number: int) -> str:
    """`train-topcon_triton-00003.tar`."""
    return f"{split}-{device}-{number:05d}.tar"


def token_grid(grid_shape: Shape, patch: Shape, pool: int) -> Shape:
    """Tokens `[D, H, W]` of a stored grid that is averaged by `pool` on each axis and then cut into patches."""
    d, h, w = (size // (edge * pool) for size, edge in zip(grid_shape, patch, strict=True))
    return d, h, w


def content_token_mask(
    content_box: Box, grid_shape: Shape = GRID_SHAPE, patch: Shape = PATCH_SHAPE, pool: int = 1
) -> npt.NDArray[np.bool_]:
    """Which tokens hold content: at least half of the token's extent lies in the box, on each axis.

    Args:
        content_box: half-open voxel ranges of the stored grid that are not padding.
        grid_shape: shape of the stored grid `[D, H, W]`.
        patch: voxels per token `[D, H, W]`, after pooling.
        pool: each axis of the grid is averaged by this factor before it is cut into tokens.

    Returns:
        bool `[D/pool/patch, H/pool/patch, W/pool/patch]`.

    Raises:
        SchemaError: if the grid is not a whole number of tokens.
    """
    axes = []
    for (start, stop), size, edge in zip(content_box, grid_shape, patch, strict=True):
        extent = edge * pool
        if size % extent:
            raise SchemaError(f"an axis of {size} voxels is not a whole number of {extent}-voxel tokens.")
        lower = np.arange(0, size, extent)
        overlap = np.minimum(lower + extent, stop) - np.maximum(lower, start)
        axes.append(2 * overlap >= extent)
    d, h, w = axes
    return d[:, None, None] & h[None, :, None] & w[None, None, :]
