"""The sequence of a run: every sample once an epoch, mixed, and the same for any ranks from any place on."""

import time
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import UnknownSelectionError
from shards.order import RunOrder
from shards.schema import SampleRow

KEYS = ["00003", "00002", "00001", "00000", "00005", "00004", "00006", "00001", "00002"]
DEVICES = ("heidelberg_spectralis", "topcon_maestro2", "topcon_triton", "zeiss_cirrus")


def make_rows(count: int, shards: int = 4) -> list[SampleRow]:
    """Rows of a simulated dataset: `count` samples in `shards` shards, one device each."""
    return [
        SampleRow(
            key=f"{number:05d}", shard=f"train-{DEVICES[number % shards % 4]}-{number % shards:05d}.tar", split="train",
            device=DEVICES[number % shards % 4], protocol="p", anatomic_region="Macula", laterality="R",
            participant_id=str(number), clinical_site=None, study_group=None, age=None, content_tokens=1,
            spacing_d_mm=1.0, spacing_h_mm=1.0, spacing_w_mm=1.0, volume_offset=0, volume_bytes=1, meta_offset=1,
            meta_bytes=1, sha256="",
        )
        for number in range(count)
    ]  # fmt: skip


def keys(order: RunOrder, start: int, batches: int) -> list[str]:
    return [place.row.key for place in islice(order.places(start), batches * len(order.slots))]


def merged(order: RunOrder, world: int, start: int, batches: int) -> list[str]:
    """What all ranks of a run take, batch by batch in the order of their slots."""
    ranks = [order if world == 1 else replace(order, rank=rank, world_size=world) for rank in range(world)]
    parts = [order_of.places(start) for order_of in ranks]
    return [
        place.row.key
        for _ in range(batches)
        for part, of in zip(parts, ranks, strict=True)
        for place in islice(part, len(of.slots))
    ]


@settings(deadline=None)
@given(
    count=st.integers(1, 60),
    shards=st.integers(1, 9),
    batch=st.integers(1, 17),
    seed=st.integers(0, 2**40),
    data=st.data(),
)
def test_every_epoch_has_every_sample_once_whatever_the_ranks(
    count: int, shards: int, batch: int, seed: int, data: st.DataObject
) -> None:
    order = RunOrder(rows=make_rows(count, shards), seed=seed, batch=batch)
    batches = 3 * count // batch + 2
    whole = keys(order, 0, batches)
    for epoch in range(len(whole) // count):
        assert sorted(whole[epoch * count : (epoch + 1) * count]) == [row.key for row in order.rows]
    world = data.draw(st.integers(1, batch))
    stop = data.draw(st.integers(0, batches))
    assert merged(order, world, 0, stop) + merged(order, 1, stop * batch, batches - stop) == whole


@settings(deadline=None)
@given(st.permutations(make_rows(13, 3)))
def test_the_order_of_the_rows_does_not_matter(rows: list[SampleRow]) -> None:
    first = RunOrder(rows=make_rows(13, 3), seed=5, batch=4)
    assert keys(RunOrder(rows=rows, seed=5, batch=4), 0, 8) == keys(first, 0, 8)


def test_epochs_and_seeds_differ() -> None:
    order = RunOrder(rows=make_rows(40), seed=1, batch=8)
    first, second = order.epoch_rows(0), order.epoch_rows(1)
    assert first != second
    assert first != replace(order, seed=2).epoch_rows(0)
    assert first == replace(order, seed=1).epoch_rows(0)


def test_the_sequence_is_a_contract() -> None:
    """A run that is resumed by a later version must go on in the same order."""
    assert keys(RunOrder(rows=make_rows(7, 3), seed=0, batch=3), 0, 3) == KEYS


def test_batches_mix_devices() -> None:
    order = RunOrder(rows=make_rows(400, shards=20), seed=3, batch=16)
    batches = [order.epoch_rows(0)[start : start + 16] for start in range(0, 400, 16)]
    assert all(len({row.device for row in rows}) >= 3 for rows in batches)
    largest = [max(Counter(row.device for row in rows).values()) for rows in batches]
    assert sum(largest) / len(largest) < 9


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_read_different_shards_but_for_those_at_their_cuts(world: int) -> None:
    order = RunOrder(rows=make_rows(600, shards=30), seed=3, batch=30)
    readers: dict[str, set[int]] = defaultdict(set)
    for rank in range(world):
        own = replace(order, rank=rank, world_size=world)
        for place in islice(own.places(0), 20 * len(own.slots)):
            readers[place.row.shard].add(rank)
    assert len(readers) == 30
    assert sum(len(ranks) > 1 for ranks in readers.values()) <= world - 1


def test_ten_ranks_share_seven_shards_and_make_the_same_number_of_steps() -> None:
    order = RunOrder(rows=make_rows(73, shards=7), seed=1, batch=25)
    ranks = [replace(order, rank=rank, world_size=10) for rank in range(10)]
    assert sorted(len(one.slots) for one in ranks) == [2] * 5 + [3] * 5
    assert Counter(merged(order, 10, 0, 73)) == Counter({row.key: 25 for row in order.rows})


def test_a_place_in_a_long_epoch_is_found_at_once() -> None:
    order = RunOrder(rows=make_rows(10_000, shards=300), seed=1, batch=64)
    began = time.thread_time()
    assert next(order.places(64 * 100)).position == 6400
    assert time.thread_time() - began < 0.5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": []}, "no sample"),
        ({"world_size": 5}, "5 ranks cannot share batches of 4"),
        ({"rank": 2, "world_size": 2}, "rank 2 of 2 does not exist"),
    ],
)
def test_impossible_orders_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(UnknownSelectionError, match=said):
        RunOrder(**({"rows": make_rows(4), "seed": 0, "batch": 4} | change))


def test_only_whole_batches_can_be_gone_on_from() -> None:
    with pytest.raises(ValueError, match="5 samples are no whole number of batches of 4"):
        next(RunOrder(rows=make_rows(9), seed=0, batch=4).places(5))
    with pytest.raises(ValueError, match="-4 samples are no whole number of batches of 4"):
        next(RunOrder(rows=make_rows(9), seed=0, batch=4).places(-4))
