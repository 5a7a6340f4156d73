"""Samples as a torch `IterableDataset`; the only module of this room that knows torch."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from shards.reader import Dataset, Order, iterate
from shards.schema import Sample, SampleMeta


class SampleStream(IterableDataset[Sample]):
    """Typed samples of a dataset in a seeded order, shared out over ranks and `DataLoader` workers.

    Volumes stay in stored units: the training loop normalises them on its device with `meta.intensity`.
    `load` reads it with worker processes; a `DataLoader` of one's own needs `batch_size=None`, or a `collate_fn`
    that says what becomes of the metadata.
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


def load(stream: SampleStream, *, num_workers: int = 0) -> Iterator[Sample]:
    """Read one epoch with worker processes; 0 reads in this one.

    Volumes cross over in shared memory: as arrays they would go through a pipe, which takes 2.5 times as long.
    """
    if num_workers == 0:
        yield from stream
        return
    # Without a batch size collate_fn takes single samples, which its annotation does not say.
    loader = DataLoader(stream, batch_size=None, num_workers=num_workers, collate_fn=_to_share)  # type: ignore[arg-type]
    for meta, volume in loader:
        yield Sample(meta=meta, volume=volume.numpy())


def _to_share(sample: Sample) -> tuple[SampleMeta, Tensor]:
    return sample.meta, torch.from_numpy(sample.volume)
