"""The order of a training run: which sample is used when, and by which rank. Nothing here reads a byte of a shard.

A run is one endless sequence of samples, cut into global batches. The sequence depends on the seed, the samples and the
size of the batch alone, so a position in it is all that a stopped run must remember, and any number of ranks and
reader processes may go on from there: each takes its part of every batch, and all take the same number of batches.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from shards.errors import UnknownSelectionError
from shards.schema import SampleRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A sample in a run: `position` counts samples from 0, over all epochs."""

    position: int
    epoch: int
    row: SampleRow


@dataclass(frozen=True, eq=False, kw_only=True)
class RunOrder:
    """The sequence of a run, and the part of it that is one rank's.

    Every epoch has each sample once. Its shards are shuffled and laid end to end, and cut into as many runs as a
    global batch has slots; within its run a slot takes samples at random. So a batch has samples from all over the
    dataset, and neighbouring slots, which are a rank's, read the same shards: two ranks share at most the one shard
    that the cut between them falls into. A batch across the end of an epoch takes its last samples from the next.

    Args:
        rows: the samples, in any order.
        seed: of the run.
        batch: samples of a global batch.
        rank, world_size: which part of each batch is ours: slots `[batch * rank / world, batch * (rank + 1) / world)`.

    Raises:
        UnknownSelectionError: without a sample, or if a rank would get no sample of a batch.
    """

    rows: Sequence[SampleRow]
    seed: int
    batch: int
    rank: int = 0
    world_size: int = 1
    _kept: dict[int, tuple[SampleRow, ...]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rows:
            raise UnknownSelectionError("there is no sample to put in order.")
        if not 0 <= self.rank < self.world_size:
            raise UnknownSelectionError(f"rank {self.rank} of {self.world_size} does not exist.")
        if self.world_size > self.batch:
            raise UnknownSelectionError(
                f"{self.world_size} ranks cannot share batches of {self.batch} samples: start fewer ranks."
            )

    @property
    def slots(self) -> range:
        """Our places in a batch."""
        first, last = (self.batch * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return range(first, last)

    def places(self, start: int) -> Iterator[Place]:
        """Our samples from a position on, for ever.

        Args:
            start: samples that the run has used, over all ranks: a whole number of batches.
        """
        if start < 0 or start % self.batch:
            raise ValueError(f"{start} samples are no whole number of batches of {self.batch}.")
        for first in itertools.count(start, self.batch):
            for slot in self.slots:
                yield self.at(first + slot)

    def at(self, position: int) -> Place:
        """The sample at a position."""
        epoch, index = divmod(position, len(self.rows))
        return Place(position=position, epoch=epoch, row=self.epoch_rows(epoch)[index])

    def epoch_rows(self, epoch: int) -> tuple[SampleRow, ...]:
        """The samples of an epoch in their order, every one once; that of the latest epoch is kept."""
        if epoch not in self._kept:
            self._kept.clear()
            self._kept[epoch] = self._shuffled(epoch)
        return self._kept[epoch]

    def _shuffled(self, epoch: int) -> tuple[SampleRow, ...]:
        first = epoch * len(self.rows)
        slots = [(first + index) % self.batch for index in range(len(self.rows))]
        sizes = Counter(slots)
        runs = self._runs(epoch, [sizes[slot] for slot in range(self.batch)])
        return tuple(next(runs[slot]) for slot in slots)

    def _runs(self, epoch: int, sizes: Sequence[int]) -> list[Iterator[SampleRow]]:
        """Shuffled shards laid end to end, cut into runs of these sizes, each shuffled once more."""
        ranks = {shard: self._draw(epoch, shard) for shard in {row.shard for row in self.rows}}
        laid = iter(sorted(self.rows, key=lambda row: (ranks[row.shard], row.key)))
        return [
            iter(sorted(itertools.islice(laid, size), key=lambda row: self._draw(epoch, row.key))) for size in sizes
        ]

    def _draw(self, epoch: int, name: str) -> bytes:
        """A random number that needs no generator, whose stream may change with a library's version."""
        return hashlib.sha256(f"{self.seed}:{epoch}:{name}".encode()).digest()
