"""A fixed slice of `make soak`, and that its promises can be broken."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def durability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts of `benchmarks/` are no package of ours: they are found as when one of them is run."""
    sys.path.insert(0, str(BENCHMARKS))
    from durability import cohorts

    monkeypatch.setattr(cohorts, "OUT", tmp_path / "soak")
    yield
    sys.path.remove(str(BENCHMARKS))


def options(**values: int) -> argparse.Namespace:
    return argparse.Namespace(seed=3, processes=1, **values)


def test_runner_workers_listing_and_hash_seed_change_no_byte() -> None:
    from durability import determinism

    assert determinism.run_target(options(count=3)) == 0


def test_a_killed_job_that_is_run_again_gives_the_same_bytes() -> None:
    from durability import kills

    assert kills.run_target(options(count=3)) == 0


def test_bundles_done_twice_and_two_jobs_on_one_dataset() -> None:
    from durability import races

    assert races.run_target(options(count=1)) == 0


def test_verify_finds_and_names_all_damage() -> None:
    from durability import flips

    assert flips.run_target(options(flips=30, cuts=15)) == 0


def test_a_dataset_that_grows_keeps_every_shard() -> None:
    from durability import growth

    assert growth.run_target(options(participants=2)) == 0


def test_a_reader_that_sees_a_dataset_too_early_would_be_noticed(tmp_path: Path) -> None:
    from durability.kills import _opens

    (tmp_path / "dataset.json").write_bytes(b"{}")
    assert not _opens(tmp_path)
