"""What a result cost: seconds, memory of this process and of the guarded one, and whether that one died."""

import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

Result = TypeVar("Result")
MIB: Final = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One result's cost; `died` when a child process ended on the way."""

    seconds: float
    died: bool


def timed(work: Callable[[], Result]) -> tuple[Result, Cost]:
    """Do it, and say what it cost."""
    before, started = children(), time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    return result, Cost(seconds=seconds, died=not before <= children())


def children() -> frozenset[int]:
    """The living child processes of this one."""
    folders = Path("/proc").glob("[0-9]*")
    return frozenset(int(folder.name) for folder in folders if _parent(folder) == os.getpid())


def _parent(folder: Path) -> int | None:
    """The parent of a process that runs; None for one that has ended."""
    try:
        state, parent = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def memory_bytes(name: str, process: int | str = "self") -> int:
    """`VmHWM` (the most so far) or `VmRSS` (now) of a process."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def peak_children_bytes() -> int:
    """The most that any child process took that has ended and been waited for."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def forget_peak(process: int) -> None:
    """Let the high-water mark of a process begin again from now (proc(5), clear_refs)."""
    Path(f"/proc/{process}/clear_refs").write_text("5", encoding="utf-8")
