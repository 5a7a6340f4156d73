"""Seeded mutations of small good files, each through `Guard.probe` and `Guard.convert`."""

import argparse
import dataclasses
import io
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Final

from ingest.convert import probe_file
from ingest.errors import GuardError
from ingest.geometry import METHODS, Geometry
from ingest.guard import Guard
from ingest.record import Facts, Probed, Rejection, VolumeRecord
from reliability.measure import MIB, memory_bytes, peak_children_bytes, timed
from reliability.mutation import Mutation, mutation
from reliability.report import OUT, Promise, chunks, counted, in_processes, none_of, table, verdict
from reliability.seeds import all_seeds

SLOW_S: Final = 10.0
PEAK_BYTES: Final = 2 * 2**30
TOLERANCE_MM: Final = 1e-6
CHUNK: Final = 250
SMALL: Final = Geometry(name="small", target_spacing_mm=(0.2, 0.08, 0.08), size=(16, 64, 64))
"""Resampling is no part of what is tried here; every tenth file goes through `methods` all the same."""

Result = Probed | VolumeRecord | Rejection


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What a range of mutations came to; `faults` are sentences that name the mutation."""

    files: int = 0
    deaths: int = 0
    slowest_s: float = 0.0
    slowest: str = ""
    peak_bytes: int = 0
    peak_child_bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    kinds: Counter[tuple[str, bool]] = field(default_factory=Counter)
    otherwise: Counter[str] = field(default_factory=Counter)
    faults: tuple[str, ...] = ()

    def __add__(self, other: "Tally") -> "Tally":
        slow = max(self, other, key=lambda tally: tally.slowest_s)
        return Tally(
            files=self.files + other.files,
            deaths=self.deaths + other.deaths,
            slowest_s=slow.slowest_s,
            slowest=slow.slowest,
            peak_bytes=max(self.peak_bytes, other.peak_bytes),
            peak_child_bytes=max(self.peak_child_bytes, other.peak_child_bytes),
            reasons=self.reasons + other.reasons,
            kinds=self.kinds + other.kinds,
            otherwise=self.otherwise + other.otherwise,
            faults=self.faults + other.faults,
        )


def outcome(result: Result) -> str:
    """`accepted`, or the reason."""
    return result.reason.value if isinstance(result, Rejection) else "accepted"


def judge(probed: object, converted: object) -> Iterator[str]:
    """What is wrong with a pair of results. A death in resampling would be UNKNOWN_ERROR."""
    if not isinstance(probed, Probed | Rejection) or not isinstance(converted, VolumeRecord | Rejection):
        yield "no result"
        return
    for step, result in (("probe", probed), ("convert", converted)):
        if outcome(result) == "UNKNOWN_ERROR":
            detail = result.detail if isinstance(result, Rejection) else ""
            yield f"{step}: UNKNOWN_ERROR ({detail})"
    if isinstance(probed, Rejection) and isinstance(converted, VolumeRecord):
        yield f"accepted, but its probe is {probed.reason}"


def run_range(numbers: range, campaign: int) -> Tally:
    """Mutations by number through a guard of their own."""
    total = Tally()
    with Guard() as guard:
        guard.convert(all_seeds()[0].data, all_seeds()[0].path, None, SMALL)  # starting the process is no file's time
        for number in numbers:
            total += run_one(mutation(number, campaign), guard)
    peaks = Tally(peak_bytes=memory_bytes("VmHWM"), peak_child_bytes=peak_children_bytes())
    return total + peaks


def run_one(found: Mutation, guard: Guard) -> Tally:
    """One mutation through probe and convert; a file that breaks a promise is kept in out/fuzz."""
    geometry = SMALL if found.number % 10 else METHODS
    path = found.seed.path
    try:
        probed, probing = timed(lambda: guard.probe(io.BytesIO(found.data), path, None))
        converted, converting = timed(lambda: guard.convert(found.data, path, None, geometry))
    except GuardError as error:
        return Tally(files=1, faults=(keep(found, f"GuardError: {error}"),))
    slowest = max(probing.seconds, converting.seconds)
    faults = [*judge(probed, converted), *([f"{slowest:.1f} s"] if slowest > SLOW_S else [])]
    return Tally(
        files=1,
        deaths=probing.died + converting.died,
        slowest_s=slowest,
        slowest=found.name,
        reasons=Counter([outcome(converted)]),
        otherwise=Counter(otherwise(found, converted)),
        kinds=Counter([(found.kind.split("+")[0], isinstance(converted, VolumeRecord))]),
        faults=tuple(keep(found, fault) for fault in faults),
    )


def otherwise(found: Mutation, converted: Result) -> list[str]:
    """What an accepted file says otherwise than its seed: values that were changed into others as plausible."""
    if isinstance(converted, Rejection):
        return []
    was = dataclasses.asdict(true_facts(found.number % len(all_seeds())))
    now = dataclasses.asdict(converted.facts)
    return [name for name in was if now[name] != was[name] and not _close(now[name], was[name])]


def _close(one: object, other: object) -> bool:
    return isinstance(one, float) and isinstance(other, float) and abs(one - other) < TOLERANCE_MM


@cache
def true_facts(index: int) -> Facts:
    """What a seed says."""
    seed = all_seeds()[index]
    probed = probe_file(io.BytesIO(seed.data), seed.path, None)
    return probed.facts


def keep(found: Mutation, fault: str) -> str:
    """Save the file, and say where."""
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{found.name}.dcm").write_bytes(found.data)
    return f"{found.name}: {fault} (path {found.seed.path})"


def promises(total: Tally, count: int) -> Iterator[Promise]:
    """What must hold of every file whatever."""
    mib = PEAK_BYTES / MIB
    unknown = sum("UNKNOWN_ERROR" in fault for fault in total.faults)
    yield Promise(
        text="one result each",
        found=f"{sum(total.reasons.values())} of {count}",
        kept=total.files == count == sum(total.reasons.values()),
    )
    yield Promise(
        text="no result after 10 s", found=f"{total.slowest_s:.2f} s, {total.slowest}", kept=total.slowest_s <= SLOW_S
    )
    yield none_of("UNKNOWN_ERROR", unknown)
    yield none_of("other faults", len(total.faults) - unknown)
    for name, peak in (("harness", total.peak_bytes), ("guarded process", total.peak_child_bytes)):
        yield Promise(text=f"peak RSS of the {name} under 2 GiB", found=f"{peak / MIB:.0f} MiB", kept=peak / MIB < mib)


def run(options: argparse.Namespace) -> int:
    """Run the numbered mutations and print what became of them."""
    started = time.perf_counter()
    numbers: Iterable[range] = chunks(options.count, CHUNK)
    if options.only is not None:
        numbers, options.count = [range(options.only, options.only + 1)], 1
    work = partial(run_range, campaign=options.seed)
    total = sum(in_processes(work, list(numbers), options.processes), Tally())
    kinds = sorted({kind for kind, _ in total.kinds})
    print(f"{options.count} mutations of {len(all_seeds())} seeds, campaign {options.seed}.\n")
    print(counted("outcome", total.reasons))
    rows = [(kind, sum(total.kinds[kind, done] for done in (True, False)), total.kinds[kind, True]) for kind in kinds]
    print(table(("damage", "files", "accepted"), rows))
    print(counted("accepted, but says otherwise", total.otherwise))
    text, status = verdict(promises(total, options.count))
    print(text)
    print(f"Deaths of the guarded process, each one row: {total.deaths}. {time.perf_counter() - started:.0f} s in all.")
    print("".join(f"\n{fault}" for fault in total.faults))
    return status
