"""A line on the terminal while the job runs: what is committed so far, read from the records that workers leave."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from beam_jobs.options import IngestJob
from shards.storage import names_below

INTERVAL_S: Final = 1.0


@contextmanager
def progress_line(job: IngestJob) -> Iterator[None]:
    """Draw and redraw one line on standard error until the block ends."""
    stop = threading.Event()
    thread = threading.Thread(target=_draw, args=(job, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def _draw(job: IngestJob, stop: threading.Event) -> None:
    started = time.monotonic()
    while not stop.wait(INTERVAL_S):
        shards, size = shards_so_far(job)
        elapsed = time.monotonic() - started
        sys.stderr.write(f"\r\x1b[Kingest: {elapsed:.0f} s, {shards} shards, {size / 1e6:.0f} MB written")
        sys.stderr.flush()


def shards_so_far(job: IngestJob) -> tuple[int, int]:
    """Number and bytes of the shards that are in place."""
    try:
        found = [size for name, size in names_below(f"{job.dataset}/shards").items() if name.endswith(".tar")]
    except OSError:  # a line less, and no failure
        return 0, 0
    return len(found), sum(found)
