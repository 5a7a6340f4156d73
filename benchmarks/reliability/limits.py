"""Files made to exhaust a reader: what each costs the guarded process, and that it is refused."""

import argparse
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from ingest.geometry import METHODS
from ingest.guard import Guard
from reliability import exhausting as made
from reliability.measure import MIB, Cost, children, forget_peak, memory_bytes, peak_children_bytes, timed
from reliability.mutations import Result, outcome
from reliability.report import Promise, in_processes, table, verdict
from reliability.seeds import all_seeds


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A file to make, and what it may cost; `reason` is the one that it must get, `refused` that it must get any."""

    name: str
    make: Callable[[], bytes]
    seconds: float = 10.0
    mib: float = 2048.0
    reason: str = ""
    refused: bool = True


def _bomb(name: str, make: Callable[[], bytes]) -> Case:
    return Case(name=f"deflate bomb {name}", make=make, seconds=1.0, mib=256.0, reason="PARSE_LIMIT_EXCEEDED")


def _unallocated(name: str, make: Callable[[], bytes], reason: str) -> Case:
    """Refused by what the header says: memory for the pixels is never asked for."""
    return Case(name=name, make=make, seconds=2.0, mib=64.0, reason=reason)


CASES: Final = (
    _bomb("in the header", made.bomb_in_the_header),
    _bomb("in the pixels", made.bomb_in_the_pixels),
    _bomb("behind the pixels", made.bomb_behind_the_pixels),
    _bomb("in pixels that are declared", made.bomb_that_is_declared),
    _unallocated("500 nested sequences", partial(made.nested, 500), "PARSE_LIMIT_EXCEEDED"),
    Case(name="100,000 nested sequences", make=partial(made.nested, 100_000), reason="PARSE_LIMIT_EXCEEDED"),
    _unallocated("10^6 declared frames", partial(made.declared_frames, 10**6), "PARSE_LIMIT_EXCEEDED"),
    _unallocated("10^11 declared frames", partial(made.declared_frames, 10**11), "PARSE_LIMIT_EXCEEDED"),
    _unallocated("65535 x 65535 declared, native", made.declared_edges, "PARSE_LIMIT_EXCEEDED"),
    _unallocated("65535 x 65535 declared, JPEG 2000", made.declared_edges_j2k, "PARSE_LIMIT_EXCEEDED"),
    _unallocated("65535 x 65535 in the codestream only", made.codestream_edges, "FRAME_UNDECODABLE"),
    Case(name="8000 x 8000 x 8, codestreams without data", make=made.largest_codestreams),
    Case(name="8000 x 8000 x 8 of one grey level, JPEG-LS", make=made.empty_jpeg_ls),
    _unallocated("private element of 2 GiB that is not there", made.length_of_2_gib, "TRUNCATED_DATASET"),
    _unallocated("pixel data of 2 GiB that are not there", made.pixels_of_2_gib, "PIXELDATA_LENGTH_MISMATCH"),
    Case(name="PixelSpacing of 20 MB", make=made.long_spacing),
    Case(name="10^6 empty private elements", make=made.many_elements, refused=False),
    Case(name="sequence of 10^6 empty items", make=made.many_items, refused=False),
    Case(name="10^6 per-frame groups", make=made.many_groups),
    Case(name="10^6 empty fragments", make=made.many_fragments),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What became of a case: the outcomes of probe and conversion, and the dearer cost of the two."""

    case: Case
    num_bytes: int
    outcomes: tuple[str, str]
    seconds: tuple[float, float]
    mib: float
    died: bool

    def faults(self) -> Iterator[str]:
        if self.case.refused and self.outcomes[1] == "accepted":
            yield "accepted"
        if self.case.reason and self.outcomes[1] != self.case.reason:
            yield f"not {self.case.reason}"
        if "UNKNOWN_ERROR" in self.outcomes:
            yield "UNKNOWN_ERROR"
        if max(self.seconds) > self.case.seconds:
            yield f"over {self.case.seconds:g} s"
        if self.mib > self.case.mib:
            yield f"over {self.case.mib:g} MiB"


def measure(number: int) -> Found:
    """Probe and convert one file in a guarded process that has done nothing but warm up."""
    case = CASES[number]
    data = case.make()
    path = made.phantom().path
    others = children()
    with Guard() as guard:
        probed, probing, first = _grown(guard, others, lambda: guard.probe(io.BytesIO(data), path, None))
        converted, converting, second = _grown(guard, others, lambda: guard.convert(data, path, None, METHODS))
    return Found(
        case=case,
        num_bytes=len(data),
        outcomes=(outcome(probed), outcome(converted)),
        seconds=(probing.seconds, converting.seconds),
        mib=max(first, second) / MIB,
        died=probing.died or converting.died,
    )


def _grown(guard: Guard, others: frozenset[int], work: Callable[[], Result]) -> tuple[Result, Cost, int]:
    """The result, its cost, and by how many bytes the peak of the guarded process exceeded its size at rest."""
    seed = all_seeds()[0]
    guard.convert(seed.data, seed.path, None, METHODS)
    (child,) = children() - others
    forget_peak(child)
    rest = memory_bytes("VmRSS", child)
    result, cost = timed(work)
    peak = peak_children_bytes() if cost.died else memory_bytes("VmHWM", child)
    return result, cost, peak - rest


def _row(found: Found) -> tuple[object, ...]:
    faults = ", ".join(found.faults())
    return (
        found.case.name,
        found.num_bytes,
        *found.outcomes,
        f"{found.seconds[0]:.2f}",
        f"{found.seconds[1]:.2f}",
        f"{found.mib:.0f}",
        "yes" if found.died else "no",
        f"{found.case.seconds:g} s, {found.case.mib:g} MiB",
        f"**{faults}**" if faults else "kept",
    )


def run(options: argparse.Namespace) -> int:
    """Every case, one after the other, so that none waits for another."""
    del options
    results = list(in_processes(measure, range(len(CASES)), 1, tasks_each=1))
    names = [case.name for case in CASES]
    results.sort(key=lambda found: names.index(found.case.name))
    head = (
        "file",
        "bytes",
        "probe",
        "conversion",
        "probe s",
        "conversion s",
        "peak growth MiB",
        "guarded process ended",
        "allowed",
        "found",
    )
    print(table(head, [_row(found) for found in results]))
    broken = [found.case.name for found in results if any(found.faults())]
    text, status = verdict(
        [Promise(text="every file within its allowance", found=", ".join(broken) or "all", kept=not broken)]
    )
    print(text)
    return status
