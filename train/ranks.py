"""The processes that train one run together, each with its part of every batch; one process alone is a rank too.

They are started by torchrun (PyTorch documentation, `torch.distributed.run`), which says in the environment who is who.
Gradients are summed once a step, after the last micro-batch, in one collective: what DistributedDataParallel does,
without its overlap, and the same on every kind of device.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, Final, Self

import torch
from torch import Tensor, distributed

from train.errors import DeviceError, RankError

SILENCE: Final = timedelta(minutes=15)
"""A rank that does not come to a sum for so long is taken for dead, and the run ends. A validation in between takes
minutes at most."""

PATIENCE: Final = timedelta(hours=6)
"""So long all wait for the first where it reads or writes checkpoints in a bucket, which may be slow and still work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Which of how many processes this one is."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> Self:
        """As torchrun says.

        Raises:
            DeviceError: if what it says makes no sense.
        """
        words = [os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")]
        if not all(word.isdecimal() for word in words) or not int(words[0]) < int(words[1]):
            raise DeviceError(f"RANK={words[0]} with WORLD_SIZE={words[1]} does not exist: start ranks with torchrun.")
        return cls(rank=int(words[0]), world_size=int(words[1]))

    @property
    def is_first(self) -> bool:
        """The one that writes and speaks."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.world_size == 1

    def join(self, backend: str) -> None:
        """Meet the others, once a process."""
        if not self.is_alone and not distributed.is_initialized():
            distributed.init_process_group(backend, timeout=SILENCE)
            _patient_group()

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one type by their sums over ranks, the same bits on each."""
        if self.is_alone or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        if distributed.get_backend() == "nccl":
            flat = flat.cuda()
        with _telling_of_others():
            distributed.all_reduce(flat)
        for tensor, total in zip(tensors, torch.split(flat, [one.numel() for one in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def gather(self, rows_VC: Tensor, total: int) -> Tensor:
        """The rows of all ranks, of which each has its `share` of `total`: `[total, C]`, on every rank."""
        if self.is_alone:
            return rows_VC
        gathered = rows_VC.new_zeros(total, rows_VC.shape[1])
        ours = self.share(total)
        gathered[ours.start : ours.stop] = rows_VC
        self.add_up([gathered])
        return gathered

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return self.any_of(flag)[0]

    def any_of(self, *flags: bool) -> list[bool]:
        """Of each, whether it is so on any rank."""
        votes = torch.tensor([float(flag) for flag in flags])
        self.add_up([votes])
        return [bool(vote) for vote in votes]

    def agree(self, *numbers: float) -> bool:
        """Whether every rank has the same whole numbers below 2**32; all are told the same."""
        ours = torch.tensor(numbers, dtype=torch.float64)
        total = ours.clone()
        self.add_up([total])
        return not self.any(not torch.equal(total, ours * self.world_size))

    def wait(self) -> None:
        """Until every rank is here, also one that waits for a bucket."""
        if not self.is_alone:
            with _telling_of_others():
                distributed.barrier(_patient_group())

    def share(self, count: int) -> range:
        """Our part of so many things, as even as they divide; `shards.order` cuts batches in the same way."""
        first, last = (count * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return range(first, last)

    def leave(self) -> None:
        """Part from the others, when all have come: one that ends early would break the last sum of another."""
        if not self.is_alone:
            self.wait()
            distributed.destroy_process_group()
            _patient_group.cache_clear()


@cache
def _patient_group() -> distributed.ProcessGroup:
    """All ranks, once more, with another patience; made by all of them when they meet."""
    group: distributed.ProcessGroup = distributed.new_group(backend="gloo", timeout=PATIENCE)
    return group


@contextmanager
def _telling_of_others() -> Iterator[None]:
    """Where ranks meet: what gloo and NCCL raise when one is gone quotes their sources, and names no cause.

    Raises:
        RankError: in its place.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RankError(
            "another rank of this run has ended or fallen silent: see what it said; the same command resumes."
        ) from error


class _SumOverRanks(torch.autograd.Function):
    """A sum whose gradient is a sum: what any rank's loss owes to a rank's part goes back to that rank."""

    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        total = x.clone()
        with _telling_of_others():
            distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        with _telling_of_others():
            distributed.all_reduce(total)
        return total


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of a tensor over ranks, with a gradient; every rank must come here as often."""
    if not distributed.is_initialized():
        return x
    total: Tensor = _SumOverRanks.apply(x)  # type: ignore[no-untyped-call]
    return total
