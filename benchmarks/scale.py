"""Listing, planning and committing 10^4, 10^5 and 10^6 files: `make scale` writes the table of docs/performance.md.

The files exist as rows only, made up like a cohort: participants, devices, protocols, both eyes, SOP Instance UIDs
that two files share, files that are rejected, and files that only `manifest.tsv` lists. Each step runs in a process of
its own, so that its peak is its own. Exit status 1: a peak over 2 GiB, or a step whose time grows much faster than
the number of files.
"""

import argparse
import gc
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from cohort_rows import Listing, entries, make_tree, participants, refs, sample_rows, shard_rows, source_rows
from figures import MIB, machine, peak_bytes, put, table

from fovea.leave import leave_after

SIZES: Final = (10_000, 100_000, 1_000_000)
LIMIT_BYTES: Final = 2 * 2**30
MAX_GROWTH: Final = 15
"""Ten times the files may take so many times the time: sorting is not quite linear, and small sizes fit into caches."""
SAMPLES_PER_SHARD: Final = 28
TREE_MAX: Final = 100_000
HASH_KEY: Final = b"scale"

Work = Callable[[], object]
T = TypeVar("T")


def list_store(num_files: int) -> Work:
    """What `find` of a store's client gives -> paths and sizes."""
    from ingest.source import list_files

    source = Listing.url(num_files)
    return lambda: list_files(source)


def list_tree(num_files: int) -> Work:
    """The same in a real tree of folders with empty files."""
    from ingest.source import list_files

    folder = tempfile.TemporaryDirectory()
    make_tree(Path(folder.name), num_files)
    return lambda: (list_files(folder.name), folder)


def discover_store(num_files: int) -> Work:
    """The listing, joined with a `manifest.tsv` of as many lines."""
    from ingest.source import discover

    source = Listing.url(num_files)
    return lambda: discover(source)


def plan_files(num_files: int) -> Work:
    """Files that passed the probe -> shards."""
    from manifests.plan import plan

    files, people = list(refs(num_files)), participants(num_files)
    return lambda: plan(files, people, hash_key=HASH_KEY, samples_per_shard=SAMPLES_PER_SHARD)


def commit_rows(num_files: int) -> Work:
    """All rows, one by one, as the committing worker gets them -> the manifests, CSV and Parquet, on disk."""
    from beam_jobs.commit import commit_dataset
    from beam_jobs.options import IngestJob
    from ingest.geometry import BLOCK6

    folder = tempfile.TemporaryDirectory()
    job = IngestJob(source="/source", dataset=f"{folder.name}/dataset", geometry=BLOCK6, hash_key=HASH_KEY)
    Path(job.dataset).mkdir()
    made = Made()

    def work() -> Made:
        with folder:
            commit_dataset(
                job,
                sources=made.of(source_rows(num_files)),
                samples=made.of(sample_rows(num_files)),
                shards=made.of(shard_rows(num_files)),
                other_files={},
            )
        return made

    return work


def slowest_rows(num_files: int) -> Work:
    """The rows of the slowest files, looked up in the table that was committed."""
    from beam_jobs.metrics import row_numbers
    from manifests.columns import to_table
    from manifests.rows import SourceRow
    from manifests.store import write_parquet

    folder = tempfile.TemporaryDirectory()
    place = Path(folder.name) / "manifests"
    place.mkdir()
    with (place / "sources.parquet").open("wb") as file:
        write_parquet(to_table(SourceRow, source_rows(num_files), "path"), file)
    paths = [entry.path for entry in entries(num_files)][:: num_files // 10]
    gc.collect()
    return lambda: (row_numbers(folder.name, paths), folder)


class Made:
    """Counts the seconds in which rows are made up, which are no part of a step that reads them as it goes."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def of(self, rows: Iterator[T]) -> Iterator[T]:
        """The same rows."""
        while True:
            started = time.process_time()
            chunk = list(itertools.islice(rows, 1000))
            self.seconds += time.process_time() - started
            if not chunk:
                return
            yield from chunk


STEPS: Final[dict[str, Callable[[int], Work]]] = {
    "list (a store's listing)": list_store,
    "list (a folder tree)": list_tree,
    "list and join manifest.tsv": discover_store,
    "plan": plan_files,
    "commit": commit_rows,
    "rows of the slowest files": slowest_rows,
}


def measure(step: str, num_files: int) -> dict[str, float]:
    """One step in this process."""
    started = time.process_time()
    work = STEPS[step](num_files)
    ready, before = time.process_time(), peak_bytes()
    kept = work()
    seconds = time.process_time() - ready - (kept.seconds if isinstance(kept, Made) else 0)
    return {"prepare_s": ready - started, "seconds": seconds, "input_bytes": before, "peak_bytes": peak_bytes()}


def in_own_process(step: str, num_files: int) -> dict[str, float]:
    """The same in a process that does nothing else."""
    words = [sys.executable, __file__, "--one", step, str(num_files)]
    found = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    result: dict[str, float] = json.loads(found.stdout)
    print(f"{step}, {num_files}: {result}", file=sys.stderr)
    return result


def run(sizes: tuple[int, ...], steps: tuple[str, ...]) -> tuple[str, list[str]]:
    """The table, and the promises that are broken."""
    rows, broken = [], []
    for step in steps:
        last: tuple[int, float] | None = None
        for size in sizes:
            if step == "list (a folder tree)" and size > TREE_MAX:
                continue
            found = in_own_process(step, size)
            rows.append(_row(step, size, found))
            if found["peak_bytes"] > LIMIT_BYTES:
                broken.append(f"{step}, {size} files: {found['peak_bytes'] / MIB:.0f} MiB.")
            if last and found["seconds"] > 1 and found["seconds"] / last[1] > MAX_GROWTH * size / last[0] / 10:
                broken.append(f"{step}: {size} files take {found['seconds'] / last[1]:.0f} times as long as {last[0]}.")
            last = size, found["seconds"]
    head = ("step", "files", "CPU seconds", "microseconds a file", "peak MiB", "of them before the step")
    return table(head, rows), broken


def _row(step: str, size: int, found: dict[str, float]) -> tuple[object, ...]:
    each, seconds = found["seconds"] / size * 1e6, found["seconds"]
    peak, before = (f"{found[name] / MIB:.0f}" for name in ("peak_bytes", "input_bytes"))
    return step, f"{size:,}", f"{seconds:.2f}", f"{each:.1f}", peak, before


def main() -> int:
    """Measure and print, and write the page when all steps were run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, metavar=("STEP", "FILES"))
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    parser.add_argument("--steps", nargs="*", choices=list(STEPS), default=list(STEPS))
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]))))
        return 0
    text, broken = run(tuple(options.sizes), tuple(options.steps))
    print(text)
    print("\n".join(broken) or "Every peak is under 2 GiB, and every step's time grows with the number of files.")
    if tuple(options.sizes) == SIZES and list(options.steps) == list(STEPS):
        put("scale", f"{text}\n{machine()}, Python {sys.version.split()[0]}.\n")
    return int(bool(broken))


if __name__ == "__main__":
    leave_after(lambda: sys.exit(main()))
