"""A slice of `benchmarks/scale.py`: rows are read as they come, and memory does not hold them as objects."""

import csv
import hashlib
import importlib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from beam_jobs.commit import commit_dataset
from beam_jobs.errors import JobError
from beam_jobs.options import IngestJob
from ingest.geometry import BLOCK6
from manifests.columns import CHUNK_ROWS
from manifests.rows import SourceRow
from shards.schema import SampleRow, ShardRow


def source(number: int, **changes: object) -> SourceRow:
    key = f"{number:06d}-topcon_triton-R-triton_macula_6x6_octa-0123456789"
    values = {"split": "train", "key": key, "shard": "train-topcon_triton-00000.tar", "detail": None}
    return SourceRow(
        path=f"retinal_oct/structural_oct/topcon_triton/{number:06d}/{key}.dcm",
        bytes=1000 + number,
        sha256=hashlib.sha256(key.encode()).hexdigest(),
        status="accepted",
        num_frames=128,
        rows=992,
        columns=512,
        spacing_d_mm=6 / 128,
        spacing_h_mm=0.0026,
        spacing_w_mm=6 / 512,
        **(values | changes),  # type: ignore[arg-type]
    )


def sample(number: int) -> SampleRow:
    row = source(number)
    return SampleRow(
        key=row.key or "", shard=row.shard or "", split="train", device="topcon_triton", protocol="p",
        anatomic_region="Macula", laterality="R", participant_id=f"{number:06d}", clinical_site=None, study_group=None,
        age=None, content_tokens=9000, spacing_d_mm=0.1, spacing_h_mm=0.1, spacing_w_mm=0.1, volume_offset=0,
        volume_bytes=1, meta_offset=0, meta_bytes=1, sha256=row.sha256 or "",
    )  # fmt: skip


def shard(num_samples: int) -> list[ShardRow]:
    name = "train-topcon_triton-00000.tar"
    return [ShardRow(shard=name, split="train", device="topcon_triton", num_samples=num_samples, bytes=1, sha256="")]


def job_at(folder: Path) -> IngestJob:
    (folder / "d").mkdir(parents=True)
    return IngestJob(source="/source", dataset=str(folder / "d"), geometry=BLOCK6, hash_key=b"0123456789abcdef")


def commit_many(folder: Path, count: int) -> int:
    """Commit so many rows, given one by one in an order that is not that of the tables; returns the peak in bytes."""

    def numbers() -> Iterator[int]:
        return (number * 7919 % count for number in range(count))

    job = job_at(folder)
    tracemalloc.start()
    try:
        commit_dataset(
            job,
            sources=(source(number) for number in numbers()),
            samples=(sample(number) for number in numbers()),
            shards=shard(count),
            other_files={},
        )
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_rows_are_never_all_held_as_objects(tmp_path: Path) -> None:
    """As objects a row takes over a kilobyte; columns are Arrow's, which are not traced here."""
    few, many = 2 * CHUNK_ROWS, 5 * CHUNK_ROWS
    first, second = commit_many(tmp_path / "few", few), commit_many(tmp_path / "many", many)
    assert second - first < 300 * (many - few), (first, second)


def test_a_table_of_several_chunks_is_whole_sorted_and_the_same_in_both_forms(tmp_path: Path) -> None:
    count = CHUNK_ROWS + 101
    commit_many(tmp_path, count)
    with (tmp_path / "d/manifests/sources.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [source(number).path for number in range(count)]
    assert [row["bytes"] for row in rows] == [str(1000 + number) for number in range(count)]
    typed = pq.read_table(tmp_path / "d/manifests/sources.parquet").to_pylist()
    assert [SourceRow(**row) for row in typed[::997]] == [source(number) for number in range(0, count, 997)]


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [([0, 1, 1], "1 inputs have two rows"), ([0, 1], "do not agree"), ([0, 1, 3], "do not agree")],
)
def test_rows_that_do_not_agree_are_never_committed(tmp_path: Path, numbers: list[int], sentence: str) -> None:
    job = job_at(tmp_path)
    samples = [sample(number) for number in (0, 1, 2)]
    with pytest.raises(JobError, match=sentence):
        commit_dataset(job, sources=map(source, numbers), samples=samples, shards=shard(3), other_files={})
    assert not (tmp_path / "d/_SUCCESS").exists()


def test_two_files_never_share_a_sample(tmp_path: Path) -> None:
    rows = [source(0), source(1, key=source(0).key)]
    with pytest.raises(JobError, match="1 samples have the key of another"):
        commit_dataset(job_at(tmp_path), sources=rows, samples=[sample(0)], shards=shard(2), other_files={})


def test_each_step_of_the_benchmark_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    scale = importlib.import_module("scale")
    table, broken = scale.run((240,), tuple(scale.STEPS))
    assert all(f"| {step} | 240 |" in table for step in scale.STEPS)
    assert broken == []
