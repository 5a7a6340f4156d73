"""How a benchmark puts its figures into a page of docs/, and what it reads of a process."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs/performance.md"
MIB: Final = 2**20


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def put(name: str, text: str, page: Path = PAGE) -> None:
    """Replace what stands between the markers of these figures."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page.name} has no markers {begin.strip()} and {end}.")
    page.write_text(before + begin + text + end + after, encoding="utf-8")


def peak_bytes(process: int | str = "self") -> int:
    """The most memory that a process ever took (proc(5), VmHWM): `ru_maxrss` would start from the parent's."""
    return _status(process, "VmHWM")


def resident_bytes(process: int | str = "self") -> int:
    """What a process takes now; 0 of one that has ended."""
    try:
        return _status(process, "VmRSS")
    except (FileNotFoundError, ProcessLookupError, StopIteration):
        return 0


def _status(process: int | str, name: str) -> int:
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def machine() -> str:
    """The machine in a few words."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next((line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    return f"{os.cpu_count()} cores ({model})"
