"""Reading ahead: what was written comes in the run's order, whatever the workers and wherever it was stopped."""

import multiprocessing
import random
import signal
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from shards.errors import DatasetCorruptError, ReaderDiedError
from shards.loader import Loader
from shards.order import RunOrder
from shards.reader import Dataset, open_dataset, read_sample
from shards.schema import Sample, SampleRow
from tests.shards.test_order import make_rows

SMALL = (8, 32, 32)
BATCH = 6


@pytest.fixture(scope="module")
def dataset(make_sample, make_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loader") / "dataset"
    return open_dataset(make_dataset(folder, [make_sample(number, SMALL) for number in range(13)]))


def order_of(dataset: Dataset, rank: int = 0, world: int = 1) -> RunOrder:
    return RunOrder(rows=dataset.samples, seed=3, batch=BATCH, rank=rank, world_size=world)


def take(loader: Loader, batches: int) -> list[str]:
    return [sample.key for _ in range(batches) for _, sample in loader.batch()]


def run_ranks(dataset: Dataset, world: int, workers: int, start: int, batches: int) -> list[str]:
    """The keys of all ranks, in the order of the run; a rank is its process's only one, so they read in turn."""
    parts = []
    for rank in range(world):
        loader = Loader(dataset, order_of(dataset, rank, world), workers=workers)
        loader.load_state_dict({"samples": start})
        parts.append([[sample.key for _, sample in loader.batch()] for _ in range(batches)])
        loader.close()
    return [key for batch in zip(*parts, strict=True) for part in batch for key in part]


def test_stops_anywhere_and_other_ranks_and_workers_leave_the_sequence(dataset: Dataset) -> None:
    """A hundred stops: each time another number of ranks and workers goes on, in the middle of an epoch."""
    rng = random.Random(1)
    batches = 130
    expected = [place.row.key for place in islice(order_of(dataset).places(0), batches * BATCH)]
    stops = sorted(rng.sample(range(1, batches), 100))
    seen: list[str] = []
    for number, (start, stop) in enumerate(zip([0, *stops], [*stops, batches], strict=True)):
        world, workers = rng.randint(1, 4), 2 if number % 12 == 0 else 0
        seen += run_ranks(dataset, world, workers, start * BATCH, stop - start)
    assert seen == expected
    for epoch in range(len(seen) // 13):
        assert Counter(seen[epoch * 13 : (epoch + 1) * 13]) == Counter(row.key for row in dataset.samples)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_and_workers_give_one_sequence(dataset: Dataset, world: int, workers: int) -> None:
    expected = [place.row.key for place in islice(order_of(dataset).places(BATCH), 5 * BATCH)]
    assert run_ranks(dataset, world, workers, BATCH, 5) == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_the_state_counts_whole_batches_and_a_batch_that_was_left_comes_again(dataset: Dataset, workers: int) -> None:
    loader = Loader(dataset, order_of(dataset), workers=workers)
    first = take(loader, 1)
    assert loader.state_dict() == {"samples": BATCH}
    second = [sample.key for _, sample in islice(loader.batch(), 4)]
    assert loader.state_dict() == {"samples": BATCH}
    again = take(loader, 1)
    assert again[:4] == second
    assert first + again == take(Loader(dataset, order_of(dataset)), 2)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_loaded_samples_are_those_that_were_written(make_sample, make_dataset, tmp_path, workers, dtype):
    written = {}
    for number in range(5):
        sample = make_sample(number, SMALL)
        written[sample.key] = Sample(meta=sample.meta, volume=sample.volume.astype(dtype) * 200)
    dataset = open_dataset(make_dataset(tmp_path / "typed", written.values()))
    loader = Loader(dataset, RunOrder(rows=dataset.samples, seed=1, batch=5), workers=workers)
    read = [sample for _, sample in loader.batch()]
    assert sorted(sample.key for sample in read) == sorted(written)
    for sample in read:
        assert sample.meta == written[sample.key].meta
        assert sample.volume.dtype == dtype
        assert sample.volume.flags.writeable
        np.testing.assert_array_equal(sample.volume, written[sample.key].volume)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_is_named_in_one_sentence(make_sample, make_dataset, tmp_path: Path, workers: int) -> None:
    dataset = open_dataset(make_dataset(tmp_path / "d", [make_sample(number, SMALL) for number in range(3)]))
    for shard in dataset.shards:
        path = tmp_path / "d" / "shards" / shard.shard
        path.write_bytes(path.read_bytes()[:600])
    loader = Loader(dataset, RunOrder(rows=dataset.samples, seed=1, batch=3), workers=workers)
    with pytest.raises(DatasetCorruptError, match=r"^train-.*ends .* bytes too early; `fovea verify .*`"):
        take(loader, 1)


def test_readers_in_the_middle_of_a_read_end_at_once(monkeypatch: pytest.MonkeyPatch, dataset: Dataset) -> None:
    """Torch alone would wait 5 s for each of them, and then kill it, which the exit code shows."""
    forever = [place.row.key for place in islice(order_of(dataset).places(BATCH), BATCH)]

    def read_row(of: Dataset, row: SampleRow) -> Sample:
        if row.key in forever:
            time.sleep(60)
        return read_sample(of, row)

    monkeypatch.setattr("shards.loader.read_sample", read_row)
    loader = Loader(dataset, order_of(dataset), workers=2)
    take(loader, 1)
    readers = multiprocessing.active_children()
    loader.close()
    assert [reader.exitcode for reader in readers] == [0, 0]


class _StopError(BaseException):
    pass


def _stop(*_: object) -> None:
    raise _StopError


# An interrupt may fall between the making of the socket and its first use, in the standard library: it is closed later.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning")
def test_readers_say_nothing_when_the_run_leaves_in_the_middle_of_a_batch(
    dataset: Dataset, capfd: pytest.CaptureFixture[str]
) -> None:
    """At random moments, many of them while a reader hands over a tensor, which a thread of its own does."""
    rng, before = random.Random(1), signal.signal(signal.SIGALRM, _stop)
    for _ in range(12):
        loader = Loader(dataset, order_of(dataset), workers=1)
        take(loader, 1)
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.001, 0.01))
        with pytest.raises(_StopError):
            take(loader, 10_000)
        loader.close()
    signal.signal(signal.SIGALRM, before)
    assert capfd.readouterr().err == ""


def test_nothing_is_read_to_go_on_in_the_middle_of_an_epoch(monkeypatch: pytest.MonkeyPatch, dataset: Dataset) -> None:
    """Of ten thousand simulated samples: the first that is read is the first that is needed, well within a second."""
    read: list[str] = []

    def read_row(_dataset: Dataset, row: SampleRow) -> None:
        read.append(row.key)

    monkeypatch.setattr("shards.loader.read_sample", read_row)
    order = RunOrder(rows=make_rows(10_000, shards=300), seed=1, batch=8)
    loader = Loader(dataset, order, start=8 * 700)
    began = time.thread_time()
    next(loader.batch())
    assert time.thread_time() - began < 1
    assert read == [order.at(8 * 700).row.key]


def test_a_connection_that_ends_without_a_word_is_a_reader_that_died(
    monkeypatch: pytest.MonkeyPatch, dataset: Dataset
) -> None:
    def ended(*_: object) -> None:
        raise EOFError

    monkeypatch.setattr("shards.loader.LAST_WORDS_S", 0)
    monkeypatch.setattr("torch.utils.data.dataloader._MultiProcessingDataLoaderIter.__next__", ended)
    with pytest.raises(ReaderDiedError, match=r"a reader process died \(its connection ended\)"):
        take(Loader(dataset, order_of(dataset), workers=1), 1)
