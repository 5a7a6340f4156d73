"""What becomes of one file: facts for its row, and a `VolumeRecord` or a `Rejection`."""

from dataclasses import dataclass, field

from manifests.cohort import Participant
from manifests.plan import FileRef, ManifestRow
from manifests.reasons import Reason
from shards.schema import Box, Device, IntensityStats, Laterality, Sample, SampleMeta, Shape, Spacing, Split, Volume


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Nothing that a true scan comes near; the largest protocol known has 512 x 992 x 512 voxels."""

    min_frames: int = 8
    max_frames: int = 4096
    max_edge: int = 8192
    max_voxels: int = 2**29
    max_header_bytes: int = 64 * 2**20
    max_file_bytes: int = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a file, as far as it could be read: the columns of `sources.csv`. None is unknown."""

    participant_id: str | None = None
    device: Device | None = None
    manufacturer_model: str | None = None
    protocol: str | None = None
    anatomic_region: str | None = None
    laterality: Laterality | None = None
    num_frames: int | None = None
    rows: int | None = None
    columns: int | None = None
    transfer_syntax_uid: str | None = None
    spacing_d_mm: float | None = None
    spacing_h_mm: float | None = None
    spacing_w_mm: float | None = None
    spacing_source: str | None = None
    sop_instance_uid: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A file that is not accepted, why, and what is known of it."""

    reason: Reason
    detail: str
    facts: Facts = field(default_factory=Facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caution:
    """Something to know of a file that is accepted all the same."""

    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whose eye, which device, which protocol: path and header agree on it."""

    participant_id: str
    device: Device
    manufacturer_model: str
    protocol: str
    anatomic_region: str
    laterality: Laterality
    sop_instance_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanGeometry:
    """Where the B-scans lie.

    `order` are indices of the stored frames, so that `positions_mm[i]` (increasing, from 0) is the position of
    frame `order[i]`. Spacing is mm `[D, H, W]`; minimum and maximum are over frames.
    """

    order: tuple[int, ...]
    positions_mm: tuple[float, ...]
    spacing_mm: Spacing
    spacing_min_mm: Spacing
    spacing_max_mm: Spacing
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """A file whose header passed every check."""

    identity: Identity
    scan: ScanGeometry
    facts: Facts
    cautions: tuple[Caution, ...] = ()

    def file_ref(self, path: str, num_bytes: int, manifest: ManifestRow | None) -> FileRef:
        """The few hundred bytes that planning needs."""
        return FileRef(
            path=path,
            bytes=num_bytes,
            sop_instance_uid=self.identity.sop_instance_uid,
            participant_id=self.identity.participant_id,
            device=self.identity.device,
            laterality=self.identity.laterality,
            protocol=self.identity.protocol,
            manifest=manifest,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeRecord:
    """A volume on the target grid with all that its `meta.json` needs but for key, split and cohort.

    `volume` is uint8 or uint16 `[64, 384, 384]` (or the geometry's size). Seconds are per stage.
    """

    probed: Probed
    volume: Volume = field(repr=False)
    native_shape: Shape
    spacing_mm: Spacing
    geometry: str
    retina_center_mm: float
    content_box: Box
    content_tokens: int
    cropped_fraction: Spacing
    padded_fraction: Spacing
    num_frames_decoded: int
    intensity: IntensityStats
    cautions: tuple[Caution, ...]
    seconds: dict[str, float]

    @property
    def facts(self) -> Facts:
        return self.probed.facts

    @property
    def warnings(self) -> tuple[str, ...]:
        """The codes of the cautions, each once."""
        return tuple(dict.fromkeys(caution.reason.value for caution in self.cautions))

    def to_sample(self, *, key: str, split: Split, participant: Participant | None) -> Sample:
        """The sample as it is written; `participant` None leaves the cohort columns out."""
        identity, scan = self.probed.identity, self.probed.scan
        meta = SampleMeta(
            key=key,
            participant_id=identity.participant_id,
            device=identity.device,
            manufacturer_model=identity.manufacturer_model,
            protocol=identity.protocol,
            anatomic_region=identity.anatomic_region,
            laterality=identity.laterality,
            split=split,
            clinical_site=participant.clinical_site if participant else None,
            study_group=participant.study_group if participant else None,
            age=participant.age if participant else None,
            native_shape=self.native_shape,
            native_spacing_mm=scan.spacing_mm,
            native_spacing_min_mm=scan.spacing_min_mm,
            native_spacing_max_mm=scan.spacing_max_mm,
            bscan_positions_mm=scan.positions_mm,
            spacing_source=scan.source,
            spacing_mm=self.spacing_mm,
            geometry=self.geometry,
            retina_center_mm=self.retina_center_mm,
            content_box=self.content_box,
            content_tokens=self.content_tokens,
            cropped_fraction=self.cropped_fraction,
            padded_fraction=self.padded_fraction,
            num_frames_decoded=self.num_frames_decoded,
            intensity=self.intensity,
            warnings=self.warnings,
        )
        return Sample(meta=meta, volume=self.volume)
