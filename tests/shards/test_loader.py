import numpy as np
import pytest
from torch.utils.data import DataLoader

from shards.loader import SampleStream, load
from shards.reader import Order, open_dataset, order_rows
from shards.schema import Sample

SMALL = (8, 32, 32)


@pytest.fixture
def dataset(make_sample, make_dataset, tmp_path):
    return open_dataset(make_dataset(tmp_path / "dataset", [make_sample(number, SMALL) for number in range(9)]))


def loader(stream, num_workers, **kwargs):
    return DataLoader(stream, batch_size=None, num_workers=num_workers, **kwargs)


def test_samples_are_typed_and_in_order(dataset):
    order = Order(seed=3)
    samples = list(loader(SampleStream(dataset, order), num_workers=0))
    assert [sample.key for sample in samples] == [row.key for row in order_rows(dataset.samples, order)]
    assert all(isinstance(sample, Sample) and sample.volume.dtype == np.uint8 for sample in samples)


def test_ranks_and_workers_read_every_sample_once(dataset):
    keys = [
        sample.key
        for rank in range(2)
        for sample in loader(SampleStream(dataset, Order(seed=3, rank=rank, world_size=2)), num_workers=2)
    ]
    assert sorted(keys) == [row.key for row in dataset.samples]


def test_persistent_workers_see_the_next_epoch(dataset):
    stream = SampleStream(dataset, Order(seed=3))
    batches = loader(stream, num_workers=1, persistent_workers=True)
    for epoch in (0, 1, 5):
        stream.set_epoch(epoch)
        expected = order_rows(dataset.samples, Order(seed=3, epoch=epoch))
        assert [sample.key for sample in batches] == [row.key for row in expected]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_loaded_samples_are_those_that_were_written(make_sample, make_dataset, tmp_path, num_workers, dtype):
    written = {}
    for number in range(5):
        sample = make_sample(number, SMALL)
        written[sample.key] = Sample(meta=sample.meta, volume=sample.volume.astype(dtype) * 200)
    dataset = open_dataset(make_dataset(tmp_path / "typed", written.values()))
    read = list(load(SampleStream(dataset, Order(seed=1)), num_workers=num_workers))
    assert sorted(sample.key for sample in read) == sorted(written)
    for sample in read:
        assert sample.meta == written[sample.key].meta
        assert sample.volume.dtype == dtype
        np.testing.assert_array_equal(sample.volume, written[sample.key].volume)
