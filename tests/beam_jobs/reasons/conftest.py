"""Small cohorts for whole jobs: files of ten B-scans of 64 x 64, a grid of a few voxels, rows by path."""

import csv
import dataclasses
import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from beam_jobs.launch import run_ingest
from beam_jobs.options import beam_options, make_job
from ingest.phantom.dicom import build_dataset, encode_dicom
from ingest.phantom.header import HeaderSpec, Subject, Uids, protocol_header
from ingest.phantom.pixels import Volume8
from ingest.phantom.protocols import EXPLICIT_LE, PROTOCOLS, Protocol

SIDE: Final = 64
NUM_FRAMES: Final = 10
GRID: Final = "target_spacing_mm: null\nsize: [4, 16, 16]\nanchor: center\n"
MODELS: Final = {"zeiss_cirrus": "Cirrus", "topcon_triton": "Triton", "topcon_maestro2": "Maestro2"}

Rows = dict[str, dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallFile:
    """A good file of a scan: its number makes participant, SOP Instance UID and grain."""

    number: int = 0
    name: str = "maestro2_3d_macula_oct"
    syntax: str = EXPLICIT_LE

    @property
    def protocol(self) -> Protocol:
        full = PROTOCOLS[self.name]
        axial = full.rows * full.axial_spacing_mm / SIDE
        return dataclasses.replace(
            full, num_frames=NUM_FRAMES, rows=SIDE, columns=SIDE, axial_spacing_mm=axial, spans_ends=False
        )

    @property
    def participant(self) -> str:
        return str(4000 + self.number)

    @property
    def header(self) -> HeaderSpec:
        subject = Subject(
            participant_id=self.participant,
            laterality="L",
            model=MODELS.get(self.protocol.device, "Spectralis"),
            uids=Uids.from_entropy("job", str(self.number)),
            acquired=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
        )
        return protocol_header(self.protocol, subject, self.syntax)

    @property
    def folder(self) -> str:
        return f"retinal_oct/structural_oct/{self.protocol.device}/{self.participant}"

    @property
    def path(self) -> str:
        return f"{self.folder}/{self.participant}_{self.name}_l_{self.header.uids.sop_instance}.dcm"

    @property
    def volume(self) -> Volume8:
        return tissue(self.number)

    def encode(self, volume: Volume8 | None = None, **header: Any) -> bytes:
        return encode_dicom(self.volume if volume is None else volume, dataclasses.replace(self.header, **header))

    def dataset(self) -> Any:
        """The header without pixels."""
        return build_dataset(self.volume, self.header)


@cache
def tissue(number: int) -> Volume8:
    """A bright band with grain."""
    depth = np.exp(-(((np.arange(SIDE) - SIDE / 2) / (SIDE / 8)) ** 2))
    grain = np.random.default_rng(number).normal(0, 12, (NUM_FRAMES, SIDE, SIDE))
    return np.clip(20 + 150 * depth[None, :, None] + grain, 1, 250).astype(np.uint8)


def write_files(root: Path, files: Mapping[str, bytes]) -> None:
    for path, data in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def run_small(source: Path | str, out: Path, **choices: Any) -> Rows:
    """Run the job in this process, and read `sources.csv`: one row a path."""
    grid = out.parent / "grid.yaml"
    grid.write_text(GRID)
    run_ingest(make_job(str(source), str(out), geometry=str(grid), **choices), beam_options([], num_workers=1))
    with (out / "manifests/sources.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = {row["path"].removeprefix("'"): row for row in rows}
    assert len(found) == len(rows), "a path has two rows"
    return found


@pytest.fixture(scope="session")
def small_file() -> type[SmallFile]:
    return SmallFile


@pytest.fixture(scope="session")
def write() -> Callable[[Path, Mapping[str, bytes]], None]:
    return write_files


@pytest.fixture(scope="session")
def run_job() -> Callable[..., Rows]:
    return run_small
