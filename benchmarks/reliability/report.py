"""How a target reports: a table in Markdown, then its promises, each kept or broken."""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final, TypeVar

ROOT: Final = Path(__file__).parents[2]
OUT: Final = ROOT / "out/fuzz"

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """One line of what must hold, with what was found."""

    text: str
    found: str
    kept: bool


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def counted(name: str, counts: Mapping[str, int]) -> str:
    """A table of counts, the largest first."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return table((name, "files"), ordered)


def verdict(promises: Iterable[Promise]) -> tuple[str, int]:
    """The promises as a table, and the exit status: 1 when one is broken."""
    found = tuple(promises)
    rows = [(promise.text, promise.found, "yes" if promise.kept else "**no**") for promise in found]
    return table(("promise", "found", "kept"), rows), int(not all(promise.kept for promise in found))


def none_of(text: str, count: int) -> Promise:
    """A promise that something never happens."""
    return Promise(text=text, found=str(count), kept=count == 0)


def in_processes(
    work: Callable[[Task], Result], tasks: Sequence[Task], processes: int, *, tasks_each: int | None = None
) -> Iterator[Result]:
    """Results as they come, from processes that share nothing. One that dies ends the run with an error.

    Args:
        work: what to do; a function of a module.
        tasks: one for each result.
        processes: how many at a time.
        tasks_each: after so many a process is replaced.
    """
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), max_tasks_per_child=tasks_each) as pool:
        for future in as_completed([pool.submit(work, task) for task in tasks]):
            yield future.result()


def chunks(count: int, size: int) -> list[range]:
    """`range(count)` in pieces."""
    return [range(start, min(count, start + size)) for start in range(0, count, size)]


def run_each(targets: Iterable[str], options: argparse.Namespace) -> int:
    """Every target of the running script as it is by default, whatever became of the one before."""
    given = [f"--{name}={value}" for name, value in vars(options).items() if name in {"processes", "seed"}]
    status = 0
    for target in targets:
        print(f"## {target}\n", flush=True)
        started = time.monotonic()
        status |= subprocess.run([sys.executable, sys.argv[0], *given, target], check=False).returncode
        print(f"{time.monotonic() - started:.0f} s.\n", flush=True)
    return status
