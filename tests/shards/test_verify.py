import hashlib
import json
from pathlib import Path

import fsspec
import pytest

from manifests.rows import SOURCE_COLUMNS
from shards.errors import DatasetNotFoundError
from shards.reader import open_dataset
from shards.verify import verify

SMALL = (8, 32, 32)


@pytest.fixture(scope="module")
def samples(make_sample):
    return [make_sample(number, SMALL) for number in range(8)]


@pytest.fixture
def folder(make_dataset, samples, tmp_path):
    return Path(make_dataset(tmp_path / "dataset", samples))


def flip_byte(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def problems(folder):
    return [(problem.file, problem.what) for problem in verify(str(folder)).problems]


def test_a_dataset_as_committed_has_no_problems(folder):
    report = verify(str(folder))
    assert report.problems == ()
    assert (report.num_samples, report.num_shards) == (8, len(list(folder.glob("shards/*.tar"))))
    assert report.bytes == sum(path.stat().st_size for path in folder.glob("shards/*.tar"))


def test_any_changed_byte_of_a_shard_is_found(folder):
    """Every byte of the first sample's block and a stride over the rest: headers, payloads, padding, the end."""
    row = open_dataset(folder).samples[0]
    path = folder / "shards" / row.shard
    size = path.stat().st_size
    for offset in {*range(0, 600, 37), *range(0, size, 997), size - 1}:
        flip_byte(path, offset)
        ((file, what),) = problems(folder)
        assert file == f"shards/{row.shard}"
        inside = row.meta_offset <= offset < row.meta_offset + row.meta_bytes
        inside |= row.volume_offset <= offset < row.volume_offset + row.volume_bytes
        if inside:
            assert what == f"differs from what was committed; damaged samples: {row.key}"
        assert what.startswith("differs from what was committed")
        flip_byte(path, offset)
    assert problems(folder) == []


def test_damage_outside_samples_is_told_apart(folder):
    row = open_dataset(folder).samples[0]
    flip_byte(folder / "shards" / row.shard, 5)
    assert problems(folder) == [(f"shards/{row.shard}", "differs from what was committed; no sample is damaged")]


def test_a_truncated_shard(folder):
    row = open_dataset(folder).samples[0]
    path = folder / "shards" / row.shard
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: row.meta_offset + 10])
    what = f"has {row.meta_offset + 10} bytes, {size} were committed; damaged samples: {row.key}"
    assert problems(folder) == [(f"shards/{row.shard}", what)]


def test_a_grown_shard(folder):
    row = open_dataset(folder).samples[0]
    path = folder / "shards" / row.shard
    path.write_bytes(path.read_bytes() + b"\0")
    ((file, what),) = problems(folder)
    assert (file, what.endswith("no sample is damaged")) == (f"shards/{row.shard}", True)


def test_many_damaged_samples_are_counted(make_sample, make_dataset, tmp_path):
    samples = [
        make_sample(number, SMALL, key=f"1000-d-R-p-{number:010x}", split="train", device="topcon_triton")
        for number in range(5)
    ]
    folder = Path(make_dataset(tmp_path / "dataset", samples))
    (shard,) = folder.glob("shards/*.tar")
    shard.write_bytes(b"\0" * shard.stat().st_size)
    ((_, what),) = problems(folder)
    named = ", ".join(sample.key for sample in samples[:3])
    assert what == f"differs from what was committed; damaged samples: {named} and 2 more"


def test_missing_and_extra_shards(folder):
    first = min(folder.glob("shards/*.tar"))
    first.rename(folder / "shards/extra.tar")
    assert problems(folder) == [
        (f"shards/{first.name}", "is missing"),
        ("shards/extra.tar", "is not part of the dataset"),
    ]


@pytest.mark.parametrize("table", ["sources", "rejected", "samples", "shards"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_changed_manifest(folder, table, suffix):
    path = folder / f"manifests/{table}.{suffix}"
    flip_byte(path, path.stat().st_size - 3)
    assert (f"manifests/{table}.{suffix}", "differs from what was committed") in problems(folder)


def test_missing_and_extra_manifests(folder):
    (folder / "manifests/rejected.parquet").rename(folder / "manifests/notes.txt")
    assert problems(folder) == [
        ("manifests/rejected.parquet", "is missing"),
        ("manifests/notes.txt", "is not part of the dataset"),
    ]


def test_tables_that_cannot_be_read(folder):
    (folder / "manifests/samples.csv").write_text("key\r\n")
    found = problems(folder)
    assert ("manifests/samples.csv", "differs from what was committed") in found
    assert any(file == "manifests" and "No shard could be checked" in what for file, what in found)


@pytest.mark.parametrize("table", ["sources", "rejected", "samples", "shards"])
def test_any_changed_bit_of_a_table_is_told(folder, table):
    """A bit of every third byte of the header and of the first rows: a column may lose its name, a quote may open."""
    path = folder / f"manifests/{table}.csv"
    data = path.read_bytes()
    for place in range(0, min(len(data), 700), 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 7]) + data[place + 1 :])
        assert (f"manifests/{table}.csv", "differs from what was committed") in problems(folder)


@pytest.mark.parametrize("table", ["sources", "rejected", "samples", "shards"])
def test_a_quote_that_opens_before_much_text(folder, table):
    """Python's reader takes cells of up to 131,072 characters."""
    path = folder / f"manifests/{table}.csv"
    path.write_bytes(path.read_bytes() + b'"' + b"x" * 140_000)
    found = problems(folder)
    assert ("manifests", f"{table}.csv") in [(file, what[: len(table) + 4]) for file, what in found]
    assert (f"manifests/{table}.csv", "differs from what was committed") in found


def test_a_manifest_that_lies_about_a_sample(folder):
    path = folder / "manifests/samples.csv"
    row = open_dataset(folder).samples[0]
    path.write_bytes(path.read_bytes().replace(f",{row.volume_bytes},".encode(), b",99999999999999999999,", 1))
    assert (f"shards/{row.shard}", f"is as committed, but samples.csv says otherwise of {row.key}") in problems(folder)


def test_a_missing_success(folder):
    (folder / "_SUCCESS").unlink()
    ((file, what),) = problems(folder)
    assert (file, "run the same `fovea ingest` again" in what) == ("_SUCCESS", True)


@pytest.mark.parametrize("content", [b"", b"{}", b"no json"])
def test_a_changed_description(folder, content):
    (folder / "dataset.json").write_bytes(content)
    found = problems(folder)
    assert found[0] == ("dataset.json", "is not the one that _SUCCESS was written for")
    assert {file for file, _ in found} == {"dataset.json"}


def test_a_missing_description(folder):
    (folder / "dataset.json").unlink()
    assert ("dataset.json", "is missing") in problems(folder)


@pytest.mark.parametrize("name", ["inputs", "accepted", "rejected", "duplicate", "excluded", "samples", "shards"])
def test_accounts_that_do_not_add_up(folder, name):
    path = folder / "dataset.json"
    info = json.loads(path.read_bytes())
    info["counts"][name] += 1
    path.write_text(json.dumps(info))
    value = info["counts"][name]
    assert ("dataset.json", f"counts {name} as {value}, the manifests as {value - 1}") in problems(folder)


def test_tables_that_disagree_with_each_other(folder):
    """Rows cut from one table: what a writer with a bug would commit, hashes and all."""
    for name in ("sources", "rejected", "shards"):
        path = folder / f"manifests/{name}.csv"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    found = dict(item for item in problems(folder) if not item[1].startswith("differs"))
    assert "does not hold exactly the accepted files" in found["manifests/samples.csv"]
    assert "on the number of samples" in found["manifests/shards.csv"]
    assert "not accepted" in found["manifests/rejected.csv"]


def test_a_status_that_does_not_exist(folder):
    path = folder / "manifests/sources.csv"
    path.write_bytes(path.read_bytes().replace(b",accepted,", b",forgotten,", 1))
    assert "status other than accepted" in dict(problems(folder)[1:])["manifests/sources.csv"]


def recommit(folder, change):
    """Rewrite sources.csv with every hash in order, as a writer of those rows would have."""
    table, head = folder / "manifests/sources.csv", folder / "dataset.json"
    info = json.loads(head.read_bytes())
    data = change(table.read_bytes(), info)
    table.write_bytes(data)
    info["manifests"]["sources.csv"] = hashlib.sha256(data).hexdigest()
    body = json.dumps(info).encode()
    head.write_bytes(body)
    (folder / "_SUCCESS").write_text(hashlib.sha256(body).hexdigest() + "\n")


def test_an_accepted_file_without_a_sample_is_a_problem(folder):
    def add_row(data, info):
        info["counts"]["inputs"] += 1
        info["counts"]["accepted"] += 1
        return data + b"a.zip,100,,accepted" + b"," * (len(SOURCE_COLUMNS) - 4) + b"\r\n"

    recommit(folder, add_row)
    assert problems(folder) != []


def test_nothing_there(tmp_path):
    with pytest.raises(DatasetNotFoundError):
        verify(str(tmp_path / "absent"))


def test_progress_sees_every_shard(folder):
    seen = []
    verify(str(folder), on_shard=lambda row: seen.append(row.shard))
    assert sorted(seen) == sorted(path.name for path in folder.glob("shards/*.tar"))


def test_a_shard_that_refuses_is_a_problem(folder, refusing):
    found = verify(refusing(str(folder), "triton-00000.tar")).problems
    assert {problem.file for problem in found} == {f"shards/{path.name}" for path in folder.glob("shards/*triton*.tar")}
    assert all("cannot be read" in problem.what for problem in found)


def test_a_dataset_in_a_bucket(folder):
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket/verified", recursive=True)
    try:
        assert verify("memory://bucket/verified").problems == ()
        memory.rm("/bucket/verified/_SUCCESS")
        assert [problem.file for problem in verify("memory://bucket/verified").problems] == ["_SUCCESS"]
    finally:
        memory.rm("/bucket", recursive=True)
