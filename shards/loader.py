"""Samples as a torch `IterableDataset`; the only module of this room that knows torch."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.utils.data import IterableDataset, get_worker_info

from shards.reader import Dataset, Order, iterate
from shards.schema import Sample


class SampleStream(IterableDataset[Sample]):
    """Typed samples of a dataset in a seeded order, shared out over ranks and `DataLoader` workers.

    Volumes stay in stored units: the training loop normalises them on its device with `meta.intensity`.
    A `DataLoader` needs a `collate_fn` that says what becomes of the metadata, or `batch_size=None`.
    """

    def __init__(self, dataset: Dataset, order: Order) -> None:
        """Stream `dataset`; `order` gives seed, epoch, rank and world size, the loader its workers."""
        self.dataset = dataset
        self.order = order
        # Persistent workers keep a copy of this object; shared memory lets them see the next epoch.
        self._epoch = torch.tensor(order.epoch).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """The order of the next iteration, in this process and in persistent workers."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Sample]:
        order = replace(self.order, epoch=int(self._epoch))
        worker = get_worker_info()
        if worker is not None:
            order = replace(order, worker=worker.id, num_workers=worker.num_workers)
        return iterate(self.dataset, order)
