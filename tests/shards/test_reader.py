import hashlib
import json
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest

import shards.reader
from shards.errors import (
    AddressError,
    DatasetCorruptError,
    DatasetIncompleteError,
    DatasetNotFoundError,
    DatasetUnreadableError,
    SchemaError,
    UnknownKeyError,
    UnknownSelectionError,
)
from shards.loader import Loader
from shards.order import RunOrder
from shards.reader import AHEAD, iterate, open_dataset, read_meta, read_sample
from shards.schema import SampleRow
from shards.tables import parse_rows

SMALL = (8, 32, 32)


@pytest.fixture
def samples(make_sample):
    return [make_sample(number, SMALL) for number in range(8)]


@pytest.fixture
def dataset_url(make_dataset, samples, tmp_path):
    return make_dataset(tmp_path / "dataset", samples)


def flip_byte(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def recommit_info(url, **changes):
    """Change dataset.json and make `_SUCCESS` agree, as a writer of that dataset would have."""
    info = Path(url) / "dataset.json"
    body = json.dumps({**json.loads(info.read_bytes()), **changes}).encode()
    info.write_bytes(body)
    (Path(url) / "_SUCCESS").write_text(hashlib.sha256(body).hexdigest() + "\n")


def test_samples_come_back_as_written(dataset_url, samples):
    dataset = open_dataset(dataset_url)
    assert [row.key for row in dataset.samples] == sorted(sample.key for sample in samples)
    for sample in samples:
        row = dataset.find(sample.key)
        read = read_sample(dataset, row)
        assert read.meta == sample.meta == read_meta(dataset, row)
        np.testing.assert_array_equal(read.volume, sample.volume)
        assert read.volume.flags.writeable, "torch.from_numpy warns about memory that it may not write"


def test_rows_are_typed(dataset_url):
    row = open_dataset(dataset_url).samples[0]
    assert (type(row.age), type(row.content_tokens), type(row.spacing_h_mm)) == (float, int, float)


def test_a_path_object_and_a_trailing_slash_are_addresses_too(dataset_url):
    assert open_dataset(Path(dataset_url)).samples == open_dataset(dataset_url + "/").samples


def test_nothing_there(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="there is no dataset at") as caught:
        open_dataset(tmp_path / "absent")
    assert caught.value.exit_code == 2


def test_an_address_of_an_unknown_kind():
    with pytest.raises(AddressError, match="nonsense://dataset cannot be opened: Protocol not known") as caught:
        open_dataset("nonsense://dataset")
    assert caught.value.exit_code == 2


def test_training_refuses_a_dataset_without_success(dataset_url):
    (Path(dataset_url) / "_SUCCESS").unlink()
    with pytest.raises(DatasetIncompleteError, match="was not finished; run the same `fovea ingest` again"):
        open_dataset(dataset_url)


def test_a_dataset_without_its_description_is_refused(dataset_url):
    (Path(dataset_url) / "dataset.json").unlink()
    with pytest.raises(DatasetIncompleteError, match=r"has no dataset\.json"):
        open_dataset(dataset_url)


@pytest.mark.parametrize("name", ["dataset.json", "manifests/samples.csv", "manifests/sources.parquet"])
def test_a_changed_file_is_named(dataset_url, name):
    flip_byte(Path(dataset_url) / name, 40)
    with pytest.raises(DatasetIncompleteError, match=f"{re.escape(name)} is not the one .* `fovea verify"):
        open_dataset(dataset_url)


def test_a_missing_manifest_is_named(dataset_url):
    (Path(dataset_url) / "manifests/shards.csv").unlink()
    with pytest.raises(DatasetIncompleteError, match=r"manifests/shards\.csv"):
        open_dataset(dataset_url)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"schema_version": 7}, "schema version 7, this code reads 1; use the fovea-oct that wrote it"),
        ({"manifests": {}}, r"must list the manifests samples\.csv"),
        ({"manifests": []}, r"must list the manifests samples\.csv"),
    ],
)
def test_a_dataset_of_another_schema_is_refused(dataset_url, changes, sentence):
    recommit_info(dataset_url, **changes)
    with pytest.raises(SchemaError, match=sentence):
        open_dataset(dataset_url)


def test_a_place_that_refuses_is_named(dataset_url, refusing):
    with pytest.raises(DatasetUnreadableError, match=r"_SUCCESS cannot be read .*check permissions"):
        open_dataset(refusing(dataset_url, "_SUCCESS"))


def test_a_shard_that_refuses_is_named(dataset_url, refusing):
    dataset = open_dataset(refusing(dataset_url, ".tar"))
    row = dataset.samples[0]
    for read in (read_sample, read_meta):
        with pytest.raises(DatasetUnreadableError, match=f"{row.shard} cannot be read"):
            read(dataset, row)


def test_object_stores_are_read_like_disks(dataset_url):
    memory = fsspec.filesystem("memory")
    memory.put(dataset_url, "/bucket/dataset", recursive=True)
    try:
        remote, local = open_dataset("memory://bucket/dataset"), open_dataset(dataset_url)
        assert remote.samples == local.samples
        for row in local.samples:
            ours, theirs = read_sample(local, row), read_sample(remote, row)
            assert ours.meta == theirs.meta
            np.testing.assert_array_equal(ours.volume, theirs.volume)
            assert theirs.volume.flags.writeable
    finally:
        memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("member", ["meta", "volume"])
def test_a_changed_byte_of_a_sample_is_noticed_and_named(dataset_url, member):
    dataset = open_dataset(dataset_url)
    row = dataset.samples[3]
    offset, size = getattr(row, f"{member}_offset"), getattr(row, f"{member}_bytes")
    flip_byte(Path(dataset_url) / "shards" / row.shard, offset + size - 2)
    with pytest.raises(DatasetCorruptError, match=f"{row.shard}: sample {row.key}: its sha256"):
        read_sample(dataset, row)


def test_a_changed_bit_is_noticed_by_whoever_reads_on(dataset_url):
    """Validation, probes and `fovea embed` iterate; training has its loader, with readers and without."""
    dataset = open_dataset(dataset_url)
    row = dataset.samples[0]
    flip_byte(Path(dataset_url) / "shards" / row.shard, row.volume_offset + row.volume_bytes - 1)
    order = RunOrder(rows=dataset.samples, seed=0, batch=len(dataset.samples), rank=0, world_size=1)
    for samples in (iterate(dataset), Loader(dataset, order).batch(), Loader(dataset, order, workers=1).batch()):
        with pytest.raises(DatasetCorruptError, match=f"{row.shard}: sample {row.key}: its sha256"):
            list(samples)


def test_metadata_alone_must_agree_with_its_row(dataset_url):
    dataset = open_dataset(dataset_url)
    row = dataset.samples[0]
    for changed in (
        replace(row, split="test" if row.split != "test" else "val"),
        replace(row, content_tokens=row.content_tokens + 1),
        replace(row, spacing_h_mm=row.spacing_h_mm * 2),
    ):
        with pytest.raises(DatasetCorruptError, match=f"sample {row.key}: the metadata there is not that of samples"):
            read_meta(dataset, changed)


def test_metadata_whose_box_lost_a_comma_is_named(dataset_url):
    """One bit: ',' is 0x2c and '.' is 0x2e."""
    dataset = open_dataset(dataset_url)
    row = dataset.samples[0]
    path = Path(dataset_url) / "shards" / row.shard
    data = bytearray(path.read_bytes())
    box = data.index(b'"content_box":[[', row.meta_offset)
    data[data.index(b",", box)] ^= 2
    path.write_bytes(data)
    with pytest.raises(DatasetCorruptError, match=f"{row.shard}: sample {row.key}: .*a start and a stop of each"):
        read_meta(dataset, row)


def test_metadata_of_another_sample_is_noticed(dataset_url):
    dataset = open_dataset(dataset_url)
    row = replace(dataset.samples[0], key=dataset.samples[1].key)
    for read in (read_sample, read_meta):
        with pytest.raises(DatasetCorruptError, match="the metadata there is of sample"):
            read(dataset, row)


def test_a_truncated_shard_is_noticed(dataset_url):
    dataset = open_dataset(dataset_url)
    row = dataset.samples[0]
    path = Path(dataset_url) / "shards" / row.shard
    path.write_bytes(path.read_bytes()[: row.volume_offset + 100])
    with pytest.raises(DatasetCorruptError, match=f"the shard ends {row.volume_bytes - 100} bytes too early"):
        read_sample(dataset, row)


def test_a_missing_shard_is_named(dataset_url):
    dataset = open_dataset(dataset_url)
    shutil.rmtree(Path(dataset_url) / "shards")
    with pytest.raises(DatasetCorruptError, match=f"{dataset.samples[0].shard}.*the shard is missing"):
        read_sample(dataset, dataset.samples[0])


def test_selections(dataset_url):
    dataset = open_dataset(dataset_url)
    chosen = dataset.select(splits=["train"], devices=["topcon_triton", "zeiss_cirrus"], regions=["Optic Disc"])
    assert {(row.split, row.device) for row in chosen.samples} == {
        ("train", "topcon_triton"),
        ("train", "zeiss_cirrus"),
    }
    assert {row.shard for row in chosen.samples} == {row.shard for row in chosen.shards}
    assert dataset.select(protocols=["cirrus_disc_oct"]).samples == dataset.select(devices=["zeiss_cirrus"]).samples
    assert dataset.select().samples == dataset.samples
    assert chosen.select(splits=["test"]).samples == ()


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({"splits": ["valid"]}, "no sample has split 'valid'; there is train, val, test"),
        ({"devices": ["triton"]}, "no sample has device 'triton'; there is heidelberg_spectralis"),
        ({"protocols": ["mac"]}, "no sample has protocol 'mac'; there is cirrus_disc_oct"),
        ({"splits": "train"}, "expected a list of names"),
    ],
)
def test_a_misspelt_selection_is_an_error_not_an_empty_dataset(dataset_url, wanted, sentence):
    with pytest.raises(UnknownSelectionError, match=sentence):
        open_dataset(dataset_url).select(**wanted)


def test_an_unknown_key_names_the_nearest(dataset_url):
    dataset = open_dataset(dataset_url)
    key = dataset.samples[2].key
    with pytest.raises(UnknownKeyError, match=f"the nearest keys are .*{key}") as caught:
        dataset.find(key[:-1] + "z")
    assert caught.value.exit_code == 2


def test_samples_come_in_key_order(dataset_url):
    dataset = open_dataset(dataset_url)
    keys = [sample.key for sample in iterate(dataset)]
    assert keys == sorted(keys) == [row.key for row in dataset.samples]
    assert len(keys) > 1


def test_several_samples_are_read_at_once_and_one_that_fails_is_raised_at_its_turn(dataset_url, monkeypatch):
    dataset = open_dataset(dataset_url)
    rows = (dataset.samples * AHEAD)[: 2 * AHEAD]
    meeting, lock, asked = threading.Barrier(AHEAD), threading.Lock(), 0
    real_read = shards.reader.read_sample

    def read(dataset, row):
        nonlocal asked
        with lock:
            asked += 1
            place = asked
        if place <= AHEAD:
            meeting.wait(timeout=30)  # one alone would wait in vain
        return real_read(dataset, row)

    monkeypatch.setattr(shards.reader, "read_sample", read)
    coming = iterate(replace(dataset, samples=rows))
    assert next(coming).key == rows[0].key
    assert asked == AHEAD  # and no more, however long the dataset
    assert [sample.key for sample in coming] == [row.key for row in rows[1:]]
    lost = replace(rows[1], shard="0099.tar")
    coming = iterate(replace(dataset, samples=(rows[0], lost, rows[2])))
    assert next(coming).key == rows[0].key
    with pytest.raises(DatasetCorruptError, match=r"0099\.tar: sample .*: the shard is missing"):
        next(coming)


def test_a_table_with_other_columns_or_values_is_refused(dataset_url):
    data = (Path(dataset_url) / "manifests/samples.csv").read_bytes()
    with pytest.raises(SchemaError, match=r"samples\.csv has the columns name"):
        parse_rows("samples.csv", data.replace(b"key,", b"name,", 1), SampleRow)
    with pytest.raises(SchemaError, match=r"samples\.csv line 2: .*'abc'"):
        parse_rows("samples.csv", data.replace(b",45.0,", b",abc,", 1), SampleRow)
    with pytest.raises(SchemaError, match="line 2 has 19 cells, expected 20"):
        parse_rows("samples.csv", data.replace(b",45.0,", b",", 1), SampleRow)


def test_cells_made_inert_for_spreadsheets_are_read_as_they_were(make_sample, make_dataset, tmp_path):
    site, region = "'s-Hertogenbosch", " -x"
    sample = make_sample(0, SMALL, study_group="=healthy", clinical_site=site, age=None, anatomic_region=region)
    dataset = open_dataset(make_dataset(tmp_path / "dataset", [sample]))
    (row,) = dataset.samples
    assert (row.study_group, row.clinical_site, row.age) == ("=healthy", site, None)
    assert dataset.select(regions=[region]).samples == (row,)
    assert b",'=healthy," in (tmp_path / "dataset/manifests/samples.csv").read_bytes()
