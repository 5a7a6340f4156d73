"""Shards are immutable: one that must lose a sample is written anew, under a number that none had."""

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Sequence
from typing import BinaryIO, cast

from beam_jobs.errors import JobError
from beam_jobs.merge import in_order
from beam_jobs.retry import next_numbers
from manifests.committed import Tables
from shards.codec import ShardWriter
from shards.publish import publish
from shards.reader import Dataset, open_dataset, read_sample
from shards.schema import SampleRow, ShardRow, shard_name


def rewrite_shards(url: str, place: str, tables: Tables, used: Sequence[str]) -> Tables:
    """Replace every shard that has more samples than rows; their bytes stay the same, each in its new place.

    Args:
        url: the dataset as it is, complete.
        place: the folder for the new shards.
        tables: the rows as they will be, but for the shards to replace.
        used: names of shards that were used before.
    """
    num_rows = Counter(row.shard for row in tables.samples)
    stale = [row for row in tables.shards if num_rows[row.shard] != row.num_samples]
    if not stale:
        return tables
    dataset = open_dataset(url)
    numbers = next_numbers([*used, *(row.shard for row in tables.shards)])
    shards = [row for row in tables.shards if row not in stale]
    samples = {row.key: row for row in tables.samples}
    for old in stale:
        rows = [row for row in tables.samples if row.shard == old.shard]
        shelf = f"{old.split}-{old.device}"
        if rows:
            name = shard_name(old.split, old.device, numbers[shelf])
            numbers[shelf] += 1
            shard, moved = _write_anew(dataset, dataclasses.replace(old, shard=name), rows, place)
            shards.append(shard)
            samples |= {row.key: row for row in moved}
    sources = (dataclasses.replace(row, shard=samples[row.key].shard) if row.key else row for row in tables.sources)
    return in_order(sources, samples.values(), shards)


def _write_anew(
    dataset: Dataset, row: ShardRow, samples: Sequence[SampleRow], place: str
) -> tuple[ShardRow, list[SampleRow]]:
    with tempfile.TemporaryFile() as file:
        with ShardWriter(cast("BinaryIO", file), row.shard) as writer:
            moved = [writer.add(read_sample(dataset, sample)) for sample in samples]
        if [sample.sha256 for sample in moved] != [sample.sha256 for sample in samples]:
            raise JobError(f"{row.shard}: a sample changed while it was moved. This is a defect of fovea.")
        done = publish(f"{place}/{row.shard}", cast("BinaryIO", file), replace=True)
    return dataclasses.replace(row, num_samples=len(moved), bytes=done.bytes, sha256=done.sha256), moved
