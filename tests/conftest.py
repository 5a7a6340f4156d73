"""Datasets for every room's tests: real shards, real manifests, made by the code that makes them for users.

`make_sample(number, ...)` builds one sample, `make_dataset(folder, samples)` commits a dataset, and
`small_dataset` is the address of one with full-size volumes that tests read and never change.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.reasons import Reason
from manifests.rows import SourceRow
from manifests.store import commit
from shards.codec import ShardWriter
from shards.schema import (
    DEVICES,
    GRID_SHAPE,
    SCHEMA_VERSION,
    IntensityStats,
    Sample,
    SampleMeta,
    SampleRow,
    ShardRow,
    content_token_mask,
    shard_name,
)

pytest_plugins = ["tests.stores.fixtures"]

PROTOCOLS = {
    "heidelberg_spectralis": ("spectralis_ppol_mac_hr_oct", "Macula", "Spectralis", (61, 496, 768)),
    "topcon_maestro2": ("maestro2_3d_macula_oct", "Macula", "3DOCT-1Maestro2", (128, 885, 512)),
    "topcon_triton": ("triton_3d_radial_oct", "Optic Disc", "Triton plus", (256, 992, 512)),
    "zeiss_cirrus": ("cirrus_disc_oct", "Optic Disc", "CIRRUS HD-OCT 6000", (200, 1024, 200)),
}
STUDY_GROUPS = (
    "healthy",
    "pre_diabetes_lifestyle_controlled",
    "oral_medication_and_or_non_insulin_injectable_medication_controlled",
    "insulin_dependent",
)
SITES = (("1", "UW"), ("4", "UCSD"), ("7", "UAB"))
SPACING_MM = (6 / 64, 2.3 / 384, 6 / 384)


def build_sample(number: int, shape: tuple[int, int, int] = GRID_SHAPE, **changes: Any) -> Sample:
    """Eye `number` of an imaginary cohort: a noisy layered volume with a padded rim.

    Two numbers make a participant. Site, study group, split and device follow from the number, with different
    periods; the layers are thicker from one study group to the next. `changes` override fields of the metadata.
    """
    group = number // 2 % len(STUDY_GROUPS)
    box = ((shape[0] // 16, shape[0]), (0, shape[1]), (0, shape[2] - shape[2] // 16))
    content = tuple(slice(*extent) for extent in box)
    volume = np.zeros(shape, np.uint8)
    volume[content] = _layered(number, volume[content].shape, thickness=0.20 + 0.05 * group)
    values = {**_identity(number), **_geometry(shape, box), "intensity": _stats(volume[content])}
    return Sample(meta=SampleMeta(**{**values, **changes}), volume=volume)


def _identity(number: int) -> dict[str, Any]:
    participant = number // 2
    digit, site = SITES[participant % len(SITES)]
    device = DEVICES[(number + number // 8) % len(DEVICES)]
    protocol, region, model, native_shape = PROTOCOLS[device]
    participant_id = f"{digit}{participant:03d}"
    laterality = "RL"[number % 2]
    digits = hashlib.sha256(str(number).encode()).hexdigest()[:10]
    return {
        "key": f"{participant_id}-{device}-{laterality}-{protocol}-{digits}",
        "participant_id": participant_id,
        "device": device,
        "manufacturer_model": model,
        "protocol": protocol,
        "anatomic_region": region,
        "laterality": laterality,
        "split": ("train", "train", "val", "test", "train")[participant % 5],
        "clinical_site": site,
        "study_group": STUDY_GROUPS[participant % len(STUDY_GROUPS)],
        "age": 45.0 + participant,
        "native_shape": native_shape,
        "num_frames_decoded": native_shape[0],
    }


def _geometry(shape: tuple[int, int, int], box: Any) -> dict[str, Any]:
    native = (6 / 128, 0.0026, 6 / 512)
    patch = (min(4, shape[0]), min(16, shape[1]), min(16, shape[2]))
    return {
        "native_spacing_mm": native,
        "native_spacing_min_mm": native,
        "native_spacing_max_mm": native,
        "bscan_positions_mm": tuple(round(index * native[0], 6) for index in range(8)),
        "spacing_source": "plane_positions",
        "spacing_mm": SPACING_MM,
        "geometry": "block6",
        "retina_center_mm": 1.15,
        "content_box": box,
        "content_tokens": int(content_token_mask(box, shape, patch).sum()),
        "cropped_fraction": (0.0, 0.1, 0.0),
        "padded_fraction": (1 / 16, 0.0, 1 / 16),
    }


def _layered(number: int, shape: tuple[int, ...], thickness: float) -> Any:
    """Bright layers between two surfaces that curve over the scan, in multiplicative noise."""
    d, h, w = (np.linspace(-1, 1, size, dtype=np.float32) for size in shape)
    top = 0.10 * (d[:, None, None] ** 2 + w[None, None, :] ** 2) - thickness
    depth = h[None, :, None] - top
    grey = np.where((depth > 0) & (depth < 2 * thickness), np.uint16(120), np.uint16(25))
    noise = np.random.default_rng(number).integers(128, 256, size=shape, dtype=np.uint8)
    return (grey * noise // 256).astype(np.uint8)


def _stats(content: Any) -> IntensityStats:
    counts = np.bincount(content.ravel(), minlength=256)
    share = np.cumsum(counts) / counts.sum()
    mean = float(counts @ np.arange(256) / counts.sum())
    return IntensityStats(
        mean=mean,
        std=float(np.sqrt(counts @ (np.arange(256) - mean) ** 2 / counts.sum())),
        min=float(content.min()),
        max=float(content.max()),
        p01=float(np.searchsorted(share, 0.01)),
        p99=float(np.searchsorted(share, 0.99)),
    )


def commit_dataset(folder: Path, samples: Iterable[Sample]) -> str:
    """Write and commit a dataset of these samples at `folder`, one shard per split and device; returns its address."""
    (folder / "shards").mkdir(parents=True)
    ordered = sorted(samples, key=lambda sample: (sample.meta.split, sample.meta.device, sample.key))
    sample_rows: list[SampleRow] = []
    shard_rows: list[ShardRow] = []
    for (split, device), group in groupby(ordered, key=lambda sample: (sample.meta.split, sample.meta.device)):
        path = folder / "shards" / shard_name(split, device, 0)
        with path.open("wb") as file, ShardWriter(file, path.name) as writer:
            rows = [writer.add(sample) for sample in group]
        sample_rows += rows
        shard_rows.append(_shard_row(path, split, device, len(rows)))
    sources = [_source_row(row) for row in sample_rows] + [_rejected_row()]
    header = _header(sources, shard_rows, ordered[0].volume.shape if ordered else GRID_SHAPE)
    commit(str(folder), sources=sources, samples=sample_rows, shards=shard_rows, header=header)
    return str(folder)


def _shard_row(path: Path, split: str, device: str, num_samples: int) -> ShardRow:
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return ShardRow(
        shard=path.name, split=split, device=device, num_samples=num_samples, bytes=len(data), sha256=digest
    )


def _source_row(row: SampleRow) -> SourceRow:
    return SourceRow(
        path=f"retinal_oct/{row.device}/{row.participant_id}/{row.key}.dcm",
        bytes=1000,
        sha256=hashlib.sha256(row.key.encode()).hexdigest(),
        status="accepted",
        participant_id=row.participant_id,
        device=row.device,
        protocol=row.protocol,
        anatomic_region=row.anatomic_region,
        laterality=row.laterality,
        split=row.split,
        key=row.key,
        shard=row.shard,
    )


def _rejected_row() -> SourceRow:
    reason = Reason.EMPTY_FILE
    return SourceRow(
        path="retinal_oct/empty.dcm",
        bytes=0,
        sha256=hashlib.sha256(b"").hexdigest(),
        status="rejected",
        reason=reason,
        severity=reason.info.severity,
        stage=reason.info.stage,
    )


def _header(sources: Sequence[SourceRow], shards: Sequence[ShardRow], size: tuple[int, int, int]) -> dict[str, Any]:
    accepted = sum(row.status == "accepted" for row in sources)
    config = {"geometry": "block6"}
    return {
        "schema_version": SCHEMA_VERSION,
        "code_version": "0.1.0",
        "geometry": {"name": "block6", "target_spacing_mm": SPACING_MM, "size": size, "anchor": "retina"},
        "config": config,
        "config_sha256": hashlib.sha256(repr(config).encode()).hexdigest(),
        "counts": {
            "inputs": len(sources),
            "accepted": accepted,
            "rejected": len(sources) - accepted,
            "duplicate": 0,
            "excluded": 0,
            "samples": accepted,
            "shards": len(shards),
            "by_reason": {"EMPTY_FILE": len(sources) - accepted},
            "by_device": {
                device: sum(row.device == device for row in sources)
                for device in sorted({row.device for row in shards})
            },
        },
        "other_files": {"tsv": 2},
    }


@pytest.fixture(scope="session")
def make_sample() -> Callable[..., Sample]:
    """`make_sample(number, shape=(64, 384, 384), **meta_changes)`."""
    return build_sample


@pytest.fixture(scope="session")
def make_dataset() -> Callable[[Path, Iterable[Sample]], str]:
    """`make_dataset(folder, samples)` -> the address of a committed dataset."""
    return commit_dataset


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ten full-size samples (94 MB): 6 train, 2 val, 2 test, of five participants; four devices, three sites.

    Read only: a test that changes a dataset makes its own from samples with a small `shape`.
    """
    return commit_dataset(tmp_path_factory.mktemp("small") / "dataset", (build_sample(number) for number in range(10)))


@pytest.fixture(autouse=True, scope="session")
def short_delays() -> Iterator[None]:
    """Between attempts at a store: tests that look at the delays themselves say so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shards.retries.FIRST_DELAY_S", 0.01)
        patch.setattr("shards.retries.MAX_DELAY_S", 0.1)
        yield
