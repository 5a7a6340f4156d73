"""A slice of `benchmarks/training_faults.py`, and that its promises can be broken."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shards.schema import Sample

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts of `benchmarks/` are no package of ours: they are found as when one of them is run."""
    monkeypatch.setattr("train.recorder.save_masks", lambda path, *_, **__: path.write_bytes(b""))
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def test_three_faults_of_each_kind_leave_no_trace() -> None:
    import training_faults

    report, status = training_faults.run(15, seed=1, protocols=("gs",))
    assert status == 0, report


def test_an_update_that_is_lost_or_made_otherwise_would_be_noticed(
    make_dataset: Callable[..., str], make_sample: Callable[..., Sample], tmp_path: Path
) -> None:
    import training_faults as faults

    dataset = Path(make_dataset(tmp_path / "d", [make_sample(number, faults.SHAPE) for number in range(20)]))
    whole, cut, again = (
        faults.run_quietly(dataset, tmp_path / name, 10, micro_batches)
        for name, micro_batches in (("whole", {}), ("cut", {4: 2}), ("again", {4: 2}))
    )
    assert [one.kept for one in faults.compare(again, cut, whole, 10)] == [True] * 6
    otherwise = [one.text[:5] for one in faults.compare(whole, cut, whole, 10) if not one.kept]
    assert otherwise == ["files", "rows "]
    lines = again.metrics.read_text().splitlines(keepends=True)
    again.metrics.write_text("".join(line for line in lines if '"step": 10,' not in line))
    assert [one.text[:5] for one in faults.compare(again, cut, whole, 10) if not one.kept] == ["each ", "rows "]
