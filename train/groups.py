"""Work on many volumes without gradients, as many at once as memory holds."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from shards.schema import SampleRow
from train.device import Device
from train.errors import TrainError

Result = TypeVar("Result")


def by_groups(
    rows: Sequence[SampleRow], size: int, device: Device, work: Callable[[Sequence[SampleRow]], Result]
) -> list[Result]:
    """What `work` makes of each group of up to `size` rows, in order; groups are halved where memory is too small.

    Raises:
        TrainError: if one volume does not fit.
    """
    results: list[Result] = []
    start = 0
    while start < len(rows):
        group = rows[start : start + size]
        try:
            results.append(work(group))
        except device.out_of_memory as error:
            if len(group) == 1:
                raise TrainError(
                    f"one volume does not fit into memory, without gradients ({error}): raise data.pool, choose a "
                    "smaller model.preset, or a larger device."
                ) from error
            size = len(group) // 2
        else:
            start += len(group)
            continue
        device.free_memory()  # here nothing holds what the failed attempt had made
    return results
