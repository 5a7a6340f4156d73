"""Small cohorts for the loops, jobs on them, and what a dataset is as bytes."""

import hashlib
import shutil
from pathlib import Path
from typing import Final

from reliability.report import ROOT

OUT: Final = ROOT / "out/soak"
GRID: Final = "target_spacing_mm: [0.2, 0.08, 0.08]\nsize: [16, 96, 96]\n"
"""A small grid: what is tried here is the bookkeeping. Samples have 150 kB, shards 1 MiB."""
SHARD_BYTES: Final = 2**20


def fresh(name: str) -> Path:
    """An empty folder under `out/soak`."""
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def geometry_file() -> Path:
    """The small grid as a file."""
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / "grid.yaml"
    if not file.exists() or file.read_text(encoding="utf-8") != GRID:
        file.write_text(GRID, encoding="utf-8")
    return file


def make_cohort(folder: Path, *, participants: int = 2, volumes: int = 8, corrupt: float = 0.2, seed: int = 11) -> Path:
    """A small cohort with some damage; made once."""
    from ingest.phantom.cohort import write_cohort
    from ingest.phantom.plan import CohortSpec

    shutil.rmtree(folder, ignore_errors=True)
    spec = CohortSpec(
        participants=participants, volumes_per_participant=volumes, corrupt=corrupt, small=True, seed=seed
    )
    write_cohort(folder, spec)
    return folder


def digest(dataset: Path) -> dict[str, str]:
    """Every file of a dataset by its name in it -> sha256."""
    files = sorted(path for path in dataset.rglob("*") if path.is_file())
    return {str(path.relative_to(dataset)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
