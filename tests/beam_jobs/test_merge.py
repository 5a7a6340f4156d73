"""What becomes of rows and shards when a retry is merged into a dataset, without a job around it."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from beam_jobs.merge import come, settle_twins
from beam_jobs.retry import count_changes, next_numbers, scope_of
from beam_jobs.rewrite import rewrite_shards
from manifests.committed import Tables
from manifests.reasons import Reason
from manifests.rows import SourceRow
from manifests.store import commit
from shards.codec import ShardWriter
from shards.schema import SCHEMA_VERSION, Sample, ShardRow, shard_name


def row(path: str, reason: Reason | None = None, **columns: Any) -> SourceRow:
    status = "rejected" if reason else "accepted"
    return SourceRow(path=path, status=status, reason=reason.value if reason else None, **columns)


def test_duplicates_of_a_sample_that_leaves_are_in_conflict_too() -> None:
    there = [
        row("a.dcm", sop_instance_uid="1.2", sha256="x", key="k", shard="s", split="train"),
        replace(row("b.dcm", Reason.DUP_SOP_UID_IDENTICAL, sop_instance_uid="1.2", sha256="x"), status="duplicate"),
        row("c.dcm", Reason.ALL_ZERO, sop_instance_uid="1.2", sha256="z"),
    ]
    settled = settle_twins(there, [row("d.dcm", sop_instance_uid="1.2", sha256="y", key="k", shard="twin")])
    assert settled.keys() == {"a.dcm", "b.dcm", "d.dcm"}
    outcomes = {(found.status, found.reason, found.key) for found in settled.values()}
    assert outcomes == {("rejected", "DUP_SOP_UID_CONFLICT", None)}
    later = settle_twins(list(settled.values()), [row("e.dcm", sop_instance_uid="1.2", sha256="x", key="k")])
    assert {path: found.reason for path, found in later.items()} == {"e.dcm": "DUP_SOP_UID_CONFLICT"}


def test_an_invalid_twin_and_another_uid_change_nothing() -> None:
    there = [row("a.dcm", sop_instance_uid="1.2", sha256="x", key="k")]
    invalid = row("b.dcm", Reason.ALL_ZERO, sop_instance_uid="1.2", sha256="y")
    assert settle_twins(there, [invalid, row("c.dcm", sop_instance_uid="1.3", sha256="z", key="l")]) == {}


def test_a_missing_file_may_come_under_the_path_that_the_cohort_root_gives_it() -> None:
    """SOURCE is `retinal_oct` itself: manifest.tsv lists files from its parent."""
    there = [row("retinal_oct/x/1.dcm", Reason.FILE_MISSING), row("x/2.dcm", bytes=5), row("m.zip", bytes=9)]
    scope = scope_of(there)
    assert scope.holds("x/1.dcm")
    assert not scope.holds("x/2.dcm")
    assert not scope.holds("y/1.dcm")
    listing = {"x/1.dcm": 7, "x/2.dcm": 5, "m.zip": 9, "notes.txt": 1}
    assert count_changes(there, listing, scope) == (0, 0)
    assert count_changes(there, listing | {"y/3.dcm": 1}, scope) == (0, 1)
    assert count_changes(there, listing | {"x/2.dcm": 6}, scope) == (1, 0)
    assert come(there, {"x/1.dcm"}) == {"retinal_oct/x/1.dcm"}
    assert come(there, {"n.zip!deep/1.dcm"}) == {"retinal_oct/x/1.dcm"}
    assert come(there, {"y/2.dcm"}) == set()


def test_a_shard_name_never_comes_back() -> None:
    names = ["train-zeiss_cirrus-00002.tar", "train-zeiss_cirrus-00000.tar", "val-topcon_triton-00010.tar"]
    assert next_numbers(names) == {"train-zeiss_cirrus": 3, "val-topcon_triton": 11}


def test_shards_of_one_shelf_that_lose_samples_get_a_number_each(
    tmp_path: Path, make_sample: Callable[..., Sample]
) -> None:
    choices = {"shape": (4, 16, 16), "split": "train", "device": "zeiss_cirrus"}
    samples = sorted((make_sample(number, **choices) for number in range(4)), key=lambda sample: sample.key)
    (tmp_path / "d/shards").mkdir(parents=True)
    rows_of, shards = [], []
    for number in range(2):
        path = tmp_path / "d/shards" / shard_name("train", "zeiss_cirrus", number)
        with path.open("wb") as file, ShardWriter(file, path.name) as writer:
            rows_of.append([writer.add(sample) for sample in samples[2 * number :][:2]])
        size, sha256 = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
        shards.append(
            ShardRow(shard=path.name, split="train", device="zeiss_cirrus", num_samples=2, bytes=size, sha256=sha256)
        )
    every = [sample for found in rows_of for sample in found]
    commit(str(tmp_path / "d"), sources=[], samples=every, shards=shards, header={"schema_version": SCHEMA_VERSION})
    left = Tables(sources=(), samples=(rows_of[0][0], rows_of[1][1]), shards=tuple(shards))
    new = rewrite_shards(str(tmp_path / "d"), str(tmp_path / "new"), left, [])
    assert [found.shard[-9:-4] for found in new.shards] == ["00002", "00003"]
    assert [found.shard[-9:-4] for found in new.samples] == ["00002", "00003"]
    assert [found.sha256 for found in new.samples] == [found.sha256 for found in left.samples]
    for found in new.shards:
        assert hashlib.sha256((tmp_path / "new" / found.shard).read_bytes()).hexdigest() == found.sha256
