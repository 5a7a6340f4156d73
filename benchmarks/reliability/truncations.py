"""Files that end too early, in every transfer syntax and at every place; frames that do, also those nobody needs."""

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
from pydicom.uid import UID

from ingest.convert import convert_file
from ingest.geometry import METHODS
from ingest.guard import Guard
from ingest.record import VolumeRecord
from reliability.anatomy import Anatomy
from reliability.mutate_frames import values_of, with_fragments
from reliability.mutations import outcome
from reliability.report import Promise, in_processes, none_of, table, verdict
from reliability.seeds import SYNTAXES, Seed, make_seed, rasters, reduced
from shards.schema import DEVICES

TAIL_BYTES: Final = 4096
OTHER_PLACES: Final = 2000
END_MARKER: Final = b"\xff\xd9"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What became of one transfer syntax's cuts."""

    syntax: UID
    size: int
    cuts: int
    accepted: tuple[str, ...]
    frames: int
    unneeded: int
    frame_reasons: Counter[str] = field(default_factory=Counter)
    marked_reasons: Counter[str] = field(default_factory=Counter)


def phantom(number: int) -> Seed:
    """A small file that ends with its pixels, on each device in turn; `methods` needs 6 of its 10 B-scans."""
    device = DEVICES[number % len(DEVICES)]
    return make_seed(reduced(rasters(device)[0]), SYNTAXES[number], number)


def places(size: int, tail: int, others: int) -> list[int]:
    """Lengths to cut a file to: every one in its tail, and others over the rest of it."""
    last = range(max(0, size - tail), size)
    rng = np.random.default_rng(size)
    rest = rng.permutation(last.start)[:others]
    return sorted({0, *map(int, rest), *last})


def halved(seed: Seed, number: int, *, marked: bool) -> bytes:
    """The file with half of one frame, all lengths being right; `marked` gives the half an end marker."""
    anatomy = Anatomy(seed)
    if anatomy.fragments:
        values = values_of(anatomy)
        half = values[number][: len(values[number]) // 2].rstrip(END_MARKER)
        values[number] = half + END_MARKER if marked else half
        return seed.assemble(*with_fragments(anatomy, values))
    part = next(part for part in anatomy.top if part.start == anatomy.pixels)
    frame = (part.end - part.value) // 10
    start = part.value + number * frame + frame // 2
    body = seed.body[:start] + seed.body[start + frame // 2 :]
    length = anatomy.encoding.length(part.end - part.value - frame // 2, part)
    return seed.assemble(seed.meta, body[: part.length_at] + length + body[part.value :])


def cut_one(number: int, tail: int, others: int) -> Found:
    """All cuts of one transfer syntax; whole frames go to the decoders, so halves go through the guard."""
    seed = phantom(number)
    data = seed.data
    whole = convert_file(data, seed.path, None, METHODS)
    assert isinstance(whole, VolumeRecord), whole
    lengths = places(len(data), tail, others)
    results = {length: outcome(convert_file(memoryview(data)[:length], seed.path, None, METHODS)) for length in lengths}
    with Guard() as guard:
        reasons = [
            Counter(
                outcome(guard.convert(halved(seed, frame, marked=marked), seed.path, None, METHODS))
                for frame in range(10)
            )
            for marked in (False, True)
        ]
    return Found(
        syntax=seed.syntax,
        size=len(data),
        cuts=len(lengths),
        accepted=tuple(
            f"{seed.name} at {length}" for length, found in results.items() if found in {"accepted", "UNKNOWN_ERROR"}
        ),
        frames=whole.native_shape[0],
        unneeded=whole.native_shape[0] - whole.num_frames_decoded,
        frame_reasons=reasons[0],
        marked_reasons=reasons[1],
    )


def _row(found: Found) -> Iterator[object]:
    yield found.syntax.keyword
    yield found.size
    yield found.cuts
    yield len(found.accepted)
    yield f"{found.frames - found.frame_reasons['accepted']} of {found.frames}"
    yield found.unneeded
    yield ", ".join(f"{reason} {count}" for reason, count in found.frame_reasons.items())
    yield f"{found.frames - found.marked_reasons['accepted']} of {found.frames}"


def promises(results: list[Found]) -> Iterator[Promise]:
    """What must hold of every cut."""
    yield none_of("truncated files accepted, or UNKNOWN_ERROR", sum(len(found.accepted) for found in results))
    yield none_of("halved frames accepted", sum(found.frame_reasons["accepted"] for found in results))
    unknown = sum((found.frame_reasons + found.marked_reasons)["UNKNOWN_ERROR"] for found in results)
    yield none_of("UNKNOWN_ERROR of a frame", unknown)
    needless = min(found.unneeded for found in results)
    yield Promise(
        text="frames that the crop does not need are among them", found=f"at least {needless} a file", kept=needless > 0
    )


def run(options: argparse.Namespace) -> int:
    """Cut one file a transfer syntax, at the places asked for."""
    started = time.perf_counter()
    work = partial(cut_one, tail=options.tail, others=options.others)
    results = list(in_processes(work, range(len(SYNTAXES)), options.processes))
    results.sort(key=lambda found: SYNTAXES.index(found.syntax))
    head = (
        "transfer syntax",
        "bytes",
        "cuts",
        "accepted",
        "halved frames refused",
        "of them not needed",
        "as",
        "halved, with an end marker: refused",
    )
    print(table(head, [list(_row(found)) for found in results]))
    text, status = verdict(promises(results))
    print(text)
    print(f"{sum(found.cuts for found in results)} cuts, {time.perf_counter() - started:.0f} s in all.")
    print("".join(f"\naccepted: {name}" for found in results for name in found.accepted))
    return status
