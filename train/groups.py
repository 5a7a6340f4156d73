"""Work on many volumes without gradients, as many at once as memory holds, while the next are being read."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from shards.reader import Dataset, iterate
from shards.schema import Sample
from train.device import Device
from train.errors import MemoryTooSmallError, TrainError
from train.signals import Stop

Result = TypeVar("Result")


def by_groups(
    dataset: Dataset, size: int, device: Device, work: Callable[[Sequence[Sample]], Result], stop: Stop | None = None
) -> list[Result]:
    """What `work` makes of each group of up to `size` samples of this rank's share, in order.

    Groups are halved where memory is too small.

    Raises:
        StopRequestedError: if one is asked to stop, before each group and while it is waited for.
        TrainError: if one volume does not fit.
        ShardError: if one cannot be read.
    """
    stop, share = stop or Stop(), device.ranks.share(len(dataset.samples))
    coming = iterate(replace(dataset, samples=dataset.samples[share.start : share.stop]))
    results: list[Result] = []
    waiting: list[Sample] = []
    while True:
        with stop.ending_waits():
            waiting += islice(coming, max(0, size - len(waiting)))
        if not waiting:
            return results
        try:
            with device.telling_memory():
                results.append(work(waiting[:size]))
        except MemoryTooSmallError as error:
            if min(size, len(waiting)) == 1:
                raise TrainError(
                    f"one volume does not fit into memory, without gradients ({error}): raise data.pool, choose a "
                    "smaller model.preset, or a larger device."
                ) from error
            size = min(size, len(waiting)) // 2
        else:
            del waiting[:size]
            continue
        device.free_memory()  # here nothing holds what the failed attempt had made
