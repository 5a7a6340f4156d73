"""A fixed slice of `benchmarks/checkpoints.py`, and that its promises can be broken."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from train.errors import CheckpointError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _scripts() -> Iterator[None]:
    """The scripts of `benchmarks/` are no package of ours: they are found as when one of them is run."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def test_kills_lose_no_save_and_damage_is_named() -> None:
    import checkpoints

    assert checkpoints.run(kills=12, damaged=25, seed=3) == 0


def test_a_save_under_its_final_name_from_the_start_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import checkpoints

    import train.snapshot

    def careless(folder: Path, snapshot: train.snapshot.Snapshot, *, keep: int | None = None) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        train.snapshot._write_files(folder / f"step-{snapshot.step:08d}", snapshot)
        return folder / f"step-{snapshot.step:08d}"

    monkeypatch.setattr(checkpoints, "publish_snapshot", careless)
    monkeypatch.setattr(checkpoints, "bring_newest", lambda *_: [])
    monkeypatch.setattr(checkpoints, "run_damages", lambda *_: [])
    with pytest.raises(CheckpointError, match="none of the"):
        checkpoints.run(kills=25, damaged=0, seed=3)
