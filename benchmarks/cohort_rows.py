"""A cohort of any number of files as rows only: what a listing, the probe and the packing would give of it."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Final

import fsspec
from fsspec.spec import AbstractFileSystem

from manifests.cohort import STUDY_GROUPS, Participant
from manifests.keys import sample_key
from manifests.plan import FileRef, ManifestRow
from manifests.reasons import Reason
from manifests.rows import SourceRow
from shards.schema import Device, Laterality, SampleRow, ShardRow, Split

FILES_EACH: Final = 24
"""Files of a participant: about as many as the cohort has, both eyes on four devices."""
REJECTED_EVERY: Final = 33
TWIN_EVERY: Final = 200
ABSENT_EVERY: Final = 500
SAMPLES_PER_SHARD: Final = 28
SAMPLE_BYTES: Final = 9_437_312

PROTOCOLS: Final[tuple[tuple[Device, str, str, str], ...]] = (
    ("heidelberg_spectralis", "spectralis_ppol_mac_hr_oct", "Macula", "Spectralis"),
    ("topcon_maestro2", "maestro2_3d_macula_oct", "Macula", "3DOCT-1Maestro2"),
    ("topcon_triton", "triton_macula_12x12_octa", "Macula, 12 x 12", "Triton plus"),
    ("zeiss_cirrus", "cirrus_disc_oct", "Optic Disc", "CIRRUS HD-OCT 6000"),
    ("topcon_maestro2", "maestro2_macula_6x6_octa", "Macula, 6 x 6", "3DOCT-1Maestro2"),
    ("zeiss_cirrus", "cirrus_mac_oct", "Macula", "CIRRUS HD-OCT 6000"),
)
SITES: Final = (("1", "UW"), ("4", "UCSD"), ("7", "UAB"))
SPLITS: Final[tuple[Split, ...]] = ("train", "train", "train", "val", "train", "test")
MANIFEST: Final = "retinal_oct/manifest.tsv"
COLUMNS: Final = (
    "person_id", "manufacturer", "manufacturers_model_name", "anatomic_region", "imaging", "laterality", "height",
    "width", "number_of_frames", "pixel_spacing", "slice_thickness", "sop_instance_uid", "filepath",
    "reference_instance_uid", "reference_filepath",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of the cohort."""

    number: int
    path: str
    participant_id: str
    device: Device
    protocol: str
    region: str
    model: str
    laterality: Laterality
    sop_instance_uid: str

    @property
    def bytes(self) -> int:
        return 20_000_000 + self.number % 97 * 1_000_003

    @property
    def rejected(self) -> bool:
        return self.number % REJECTED_EVERY == 7

    @property
    def twin(self) -> bool:
        """Whether it has the SOP Instance UID, and the bytes, of the file before it but one round."""
        return self.number % TWIN_EVERY == TWIN_EVERY - 1

    @property
    def key(self) -> str:
        return sample_key(
            participant_id=self.participant_id,
            device=self.device,
            laterality=self.laterality,
            protocol=self.protocol,
            sop_instance_uid=self.sop_instance_uid,
            hash_key=b"scale",
        )


def file_of(number: int) -> File:
    """File `number`; a twin is a copy, in another folder, of one of the same participant."""
    twin = number % TWIN_EVERY == TWIN_EVERY - 1
    original = number - 1 if twin else number
    person = original // FILES_EACH
    device, protocol, region, model = PROTOCOLS[original % len(PROTOCOLS)]
    participant_id = f"{SITES[person % 3][0]}{person:06d}"
    side: Laterality = "RL"[original // len(PROTOCOLS) % 2]  # type: ignore[assignment]
    digits = int.from_bytes(hashlib.sha256(str(original).encode()).digest()[:14])
    uid = f"1.2.826.0.1.3680043.8.498.{digits}"
    folder = f"copies/{participant_id}" if twin else participant_id
    path = f"retinal_oct/structural_oct/{device}/{folder}/{participant_id}_{protocol}_{side.lower()}_{uid}.dcm"
    return File(
        number=number,
        path=path,
        participant_id=participant_id,
        device=device,
        protocol=protocol,
        region=region,
        model=model,
        laterality=side,
        sop_instance_uid=uid,
    )


def entries(num_files: int) -> Iterator[File]:
    """Every file that lies in SOURCE."""
    return (file_of(number) for number in range(num_files))


def participants(num_files: int) -> dict[str, Participant]:
    """The participants' table."""
    people = (_participant(number) for number in range(-(-num_files // FILES_EACH)))
    return {person.participant_id: person for person in people}


def _participant(number: int) -> Participant:
    digit, site = SITES[number % 3]
    return Participant(
        participant_id=f"{digit}{number:06d}",
        clinical_site=site,
        study_group=STUDY_GROUPS[number % 4],
        age=40.0 + number % 50,
        recommended_split=SPLITS[number % 6] if number % 5 else None,
    )


def refs(num_files: int) -> Iterator[FileRef]:
    """What the probe hands on, each with texts of its own, as they come out of a shuffle."""
    for file in entries(num_files):
        if not file.rejected:
            yield FileRef(
                path=file.path,
                bytes=file.bytes,
                sop_instance_uid=file.sop_instance_uid,
                participant_id=file.participant_id,
                device=file.device,
                laterality=file.laterality,
                protocol=file.protocol,
                manifest=ManifestRow(
                    pixel_spacing=f"[0.003872, {0.01 + file.number % 7 / 1000}]",
                    slice_thickness="Not reported",
                    anatomic_region=file.region,
                ),
            )


def source_rows(num_files: int) -> Iterator[SourceRow]:
    """One row for every file."""
    return (_source_row(file) for file in entries(num_files))


def _source_row(file: File) -> SourceRow:
    reason = Reason.SPACING_MISSING if file.rejected else Reason.DUP_SOP_UID_IDENTICAL if file.twin else None
    return SourceRow(
        path=file.path,
        bytes=file.bytes,
        sha256=hashlib.sha256(file.path.encode()).hexdigest(),
        status="accepted" if reason is None else "duplicate" if file.twin and not file.rejected else "rejected",
        reason=reason.value if reason else None,
        severity=reason.info.severity if reason else None,
        stage=reason.info.stage if reason else None,
        detail="2 valid files share its SOP Instance UID." if reason else None,
        participant_id=file.participant_id,
        device=file.device,
        manufacturer_model=file.model,
        protocol=file.protocol,
        anatomic_region=file.region,
        laterality=file.laterality,
        num_frames=128,
        rows=885,
        columns=512,
        transfer_syntax_uid="1.2.840.10008.1.2.4.90",
        spacing_d_mm=6 / 127,
        spacing_h_mm=0.003872 + file.number % 7 / 1e6,
        spacing_w_mm=6 / 512,
        spacing_source="plane_positions",
        sop_instance_uid=file.sop_instance_uid,
        split=None if reason else SPLITS[file.number // FILES_EACH % 6],
        key=None if reason else file.key,
        shard=None if reason else _shard(file),
    )


def _shard(file: File) -> str:
    place = file.number // SAMPLES_PER_SHARD
    return f"{SPLITS[file.number // FILES_EACH % 6]}-{file.device}-{place:05d}.tar"


def sample_rows(num_files: int) -> Iterator[SampleRow]:
    """One row for every accepted file."""
    return (_sample_row(file) for file in entries(num_files) if not (file.rejected or file.twin))


def _sample_row(file: File) -> SampleRow:
    number = file.number // FILES_EACH
    offset = file.number % SAMPLES_PER_SHARD * (SAMPLE_BYTES + 4096)
    return SampleRow(
        key=file.key,
        shard=_shard(file),
        split=SPLITS[number % 6],
        device=file.device,
        protocol=file.protocol,
        anatomic_region=file.region,
        laterality=file.laterality,
        participant_id=file.participant_id,
        clinical_site=SITES[number % 3][1],
        study_group=STUDY_GROUPS[number % 4],
        age=40.0 + number % 50,
        content_tokens=9000,
        spacing_d_mm=6 / 64,
        spacing_h_mm=2.3 / 384,
        spacing_w_mm=6 / 384,
        volume_offset=offset + 4096,
        volume_bytes=SAMPLE_BYTES,
        meta_offset=offset + 512,
        meta_bytes=3000,
        sha256=hashlib.sha256(file.key.encode()).hexdigest(),
    )


def shard_rows(num_files: int) -> Iterator[ShardRow]:
    """One row for every shard that the samples name."""
    counts: dict[str, File] = {}
    samples: dict[str, int] = {}
    for file in entries(num_files):
        if not (file.rejected or file.twin):
            counts[_shard(file)] = file
            samples[_shard(file)] = samples.get(_shard(file), 0) + 1
    for shard, file in counts.items():
        yield ShardRow(
            shard=shard,
            split=shard.partition("-")[0],
            device=file.device,
            num_samples=samples[shard],
            bytes=samples[shard] * (SAMPLE_BYTES + 4096) + 10240,
            sha256=hashlib.sha256(shard.encode()).hexdigest(),
        )


def manifest_lines(num_files: int) -> Iterator[bytes]:
    """`manifest.tsv`; some of its files do not exist."""
    yield "\t".join(COLUMNS).encode() + b"\n"
    for file in entries(num_files):
        path = f"/{file.path}.gone.dcm" if file.number % ABSENT_EVERY == 3 else f"/{file.path}"
        cells = (
            file.participant_id, "Topcon", file.model, file.region, "OCT", file.laterality, "885", "512", "128",
            "[0.003872, 0.01171875]", "Not reported", file.sop_instance_uid, path, file.sop_instance_uid + ".1",
            f"/retinal_photography/ir/{file.device}/{file.participant_id}/{file.sop_instance_uid}.1.dcm",
        )  # fmt: skip
        yield "\t".join(cells).encode() + b"\n"


class Listing(AbstractFileSystem):
    """A store that holds the cohort's listing, and on disk the bytes of its `manifest.tsv`."""

    protocol = "rows"
    cachable = False
    manifests: ClassVar[dict[str, BinaryIO]] = {}

    @classmethod
    def url(cls, num_files: int) -> str:
        """The address of a cohort of so many files, whose manifest is written."""
        fsspec.register_implementation("rows", cls, clobber=True)
        cls()._manifest(str(num_files))
        return f"rows://{num_files}"

    def isdir(self, path: str) -> bool:
        """The root is the only folder that anybody asks for."""
        return "/" not in path.strip("/")

    def find(self, path: str, **_: Any) -> dict[str, dict[str, Any]]:
        """The whole listing, as clients of stores give it."""
        root = path.strip("/")
        listing = {f"{root}/{file.path}": _info(f"{root}/{file.path}", file.bytes) for file in entries(int(root))}
        return listing | {f"{root}/{MANIFEST}": self.info(f"{root}/{MANIFEST}")}

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Of the manifest, the one file that anybody opens."""
        return _info(path, os.fstat(self._manifest(path).fileno()).st_size)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Bytes of the manifest."""
        file = self._manifest(path)
        return os.pread(file.fileno(), (end or 0) - (start or 0), start or 0)

    def _manifest(self, path: str) -> BinaryIO:
        root = path.strip("/").partition("/")[0]
        if root not in self.manifests:
            file = self.manifests[root] = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process is
            file.writelines(manifest_lines(int(root)))
            file.flush()
        return self.manifests[root]


def _info(name: str, size: int) -> dict[str, Any]:
    return {"name": name, "size": size, "type": "file"}


def make_tree(folder: Path, num_files: int) -> None:
    """The same cohort as empty files on disk."""
    for file in entries(num_files):
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
