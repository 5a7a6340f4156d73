"""Samples of a training run, read ahead by worker processes; the only module of this room that knows torch."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Final

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from shards.errors import ReaderDiedError, ShardError
from shards.order import Place, RunOrder
from shards.reader import Dataset, read_sample
from shards.schema import Sample, SampleMeta

READ_AHEAD: Final = 2
"""Samples that each worker holds ready."""

LAST_WORDS_S: Final = 2.0
"""A connection may break before the kernel says that its other end is gone."""

Read = tuple[Place, SampleMeta, Tensor]


class Loader:
    """One rank's part of each batch of a run, in the run's order, for ever.

    The sequence does not depend on the number of workers. `state_dict` is a number, so a stopped run goes on anywhere
    in an epoch without reading what it has used, and it may be given to a run of other ranks and workers. Volumes stay
    in stored units: the training loop normalises them on its device. With workers, one loader a process: they are
    forked, and a fork must not hold another loader's.
    """

    def __init__(self, dataset: Dataset, order: RunOrder, *, workers: int = 0, start: int = 0) -> None:
        """Begin after `start` samples of the run, a whole number of batches; without workers it reads when asked."""
        self._dataset = dataset
        self._order = order
        self._workers = workers
        self._start = start
        self._ahead: Iterator[tuple[Place, Sample]] | None = None

    def batch(self) -> Iterator[tuple[Place, Sample]]:
        """Our part of the next batch. One that is left before its end comes again.

        Raises:
            ShardError: if a sample cannot be read, or its bytes are not those of the sample.
            RuntimeError: torch's, if a reader process dies; see `telling_of_readers`.
        """
        ahead = self._ahead or _read(self._dataset, self._order.places(self._start), self._workers)
        self._ahead = None
        for _ in self._order.slots:
            yield next(ahead)
        self._start += self._order.batch
        self._ahead = ahead

    def state_dict(self) -> dict[str, int]:
        """How many samples the run has used, over all ranks, in whole batches."""
        return {"samples": self._start}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self._start, self._ahead = state["samples"], None

    def close(self) -> None:
        """End the readers; the next batch starts new ones."""
        self._ahead = None


def _read(dataset: Dataset, places: Iterator[Place], workers: int) -> Iterator[tuple[Place, Sample]]:
    """Samples by their places. It holds no loader: what readers it has end with the last reference to it."""
    if workers == 0:
        for place in places:
            yield place, read_sample(dataset, place.row)
    for read in _read_ahead(dataset, places, workers):
        if isinstance(read, ShardError):
            raise read
        place, meta, volume = read
        yield place, Sample(meta=meta, volume=volume.numpy())


@contextmanager
def telling_of_readers() -> Iterator[None]:
    """A block in which a reader's death is told in one sentence. Torch raises it wherever the block just is.

    Raises:
        ReaderDiedError: if one dies, most often by the kernel's hand, because memory has run out.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise ReaderDiedError(_died(str(error))) from error


def _died(said: str) -> str:
    return (
        f"a reader process died ({said.rstrip('. ')}): give the machine or its /dev/shm more memory, or lower "
        "data.workers; the same command resumes."
    )


def _read_ahead(dataset: Dataset, places: Iterator[Place], workers: int) -> Iterator[Read | ShardError]:
    """What the readers read. They end when this does, or with the run's process, also in the middle of a read."""
    theirs, ours = multiprocessing.Pipe(duplex=False)
    loader = DataLoader(
        _Samples(dataset),
        batch_size=None,
        sampler=places,
        num_workers=workers,
        prefetch_factor=READ_AHEAD,
        collate_fn=_as_is,  # type: ignore[arg-type]  # of single samples, which its annotation does not say
        worker_init_fn=partial(_begin, theirs, ours),
    )
    with theirs, ours:
        ahead = iter(loader)  # a name of its own: torch joins the readers when it goes, which is after the pipe
        try:
            yield from ahead
        except (OSError, EOFError) as error:  # of the connection to a reader; what a read raises comes as a value
            time.sleep(LAST_WORDS_S)  # torch's own error, at SIGCHLD, says more, and must not come anywhere else
            raise ReaderDiedError(_died(str(error) or "its connection ended")) from error


class _Samples(TorchDataset[Read | ShardError]):
    """Samples by their places, as tensors: these cross to another process in shared memory, arrays through a pipe."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __getitem__(self, place: Place) -> Read | ShardError:
        try:
            sample = read_sample(self._dataset, place.row)
        except ShardError as error:
            return error  # raised as it is in the run's own process, where torch would put a traceback into its text
        return place, sample.meta, torch.from_numpy(sample.volume)


def _as_is(read: Read | ShardError) -> Read | ShardError:
    return read


def _begin(theirs: Connection, ours: Connection, _worker: int) -> None:
    _leave_signals()
    sys.excepthook = _tell
    ours.close()
    threading.Thread(target=_end_with_the_run, args=(theirs,), daemon=True).start()


def _end_with_the_run(pipe: Connection) -> None:
    """Nothing is ever sent: what ends the wait is that the other end is closed.

    Torch's own way waits up to 5 s for each reader that waits for a store.
    """
    pipe.poll(None)
    os._exit(0)


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Not that the run left while a thread of multiprocessing handed it a tensor: a stop does not wait for that."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _leave_signals() -> None:
    """What is sent to the run's group (Ctrl-C, torchrun's SIGTERM) is the run's to answer, which its readers outlive.

    One that is meant for a reader ends it, also where the run that it was forked from catches it.
    """
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
