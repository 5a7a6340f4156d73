"""What the size of a shard decides: reading speed, the cost of doing one again, and the number of objects (ADR 0012).

Reads 512 MiB in shards of each size, one after the other: from a disk whose cache was emptied of them, and from an HTTP
server on this machine that waits before the first byte of each answer, as a bucket does, and then sends as it can.
"""

import functools
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import fsspec
from figures import MIB, ROOT, machine, put, table

SIZES_MIB: Final = (16, 64, 256, 512)
TOTAL_MIB: Final = 512
BLOCK_BYTES: Final = 8 * MIB
SAMPLE_BYTES: Final = 64 * 384 * 384
VOLUME_S: Final = 6.5
"""A 128-frame volume in JPEG 2000, from its bytes to its place in the shard, on one core."""
FIRST_BYTE_S: Final = 0.1
STREAM_MIB_S: Final = 100
"""A request to a bucket in the same region, and one stream of it, in round numbers: nothing here measures them."""


class Slow(SimpleHTTPRequestHandler):
    """Files of a folder, each after a wait."""

    def do_GET(self) -> None:
        """Wait as long as a bucket does, then send."""
        time.sleep(FIRST_BYTE_S)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def server(folder: str) -> Iterator[str]:
    """The address of a server of this folder."""
    with ThreadingHTTPServer(("localhost", 0), functools.partial(Slow, directory=folder)) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://localhost:{found.server_port}"
        found.shutdown()


def read_blocks(path: str) -> None:
    """A file in blocks, one after the other, from the disk itself."""
    with Path(path).open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(BLOCK_BYTES):
            pass


def measure(folder: str, address: str, shard_mib: int) -> tuple[float, float]:
    """MiB a second from disk and from the server, with shards of this size: the better of two rounds each."""
    data, names = os.urandom(shard_mib * MIB), [f"{number}.tar" for number in range(TOTAL_MIB // shard_mib)]
    for name in names:
        (Path(folder) / name).write_bytes(data)
    os.sync()
    store = fsspec.filesystem("http")
    disk = min(_seconds(read_blocks, [f"{folder}/{name}" for name in names]) for _ in range(2))
    sent = min(_seconds(store.cat_file, [f"{address}/{name}" for name in names]) for _ in range(2))
    for name in names:
        (Path(folder) / name).unlink()
    return TOTAL_MIB / disk, TOTAL_MIB / sent


def _seconds(read: Callable[[str], object], paths: list[str]) -> float:
    started = time.perf_counter()
    for path in paths:
        read(path)
    return time.perf_counter() - started


def row(shard_mib: int, disk: float, store: float) -> tuple[object, ...]:
    """What was measured of one size, and what follows from it."""
    samples = max(1, shard_mib * MIB // SAMPLE_BYTES)
    waiting = FIRST_BYTE_S / (FIRST_BYTE_S + shard_mib / STREAM_MIB_S)
    return (
        shard_mib,
        samples,
        f"{disk:.0f}",
        f"{store:.0f}",
        f"{waiting:.0%}",
        f"{samples * VOLUME_S / 60:.1f}",
        f"{-(-1_000_000 // samples):,}",
    )


def main() -> int:
    """Measure, print, and write the page."""
    rows = []
    with tempfile.TemporaryDirectory(dir=ROOT / "out") as folder, server(folder) as address:
        for size in SIZES_MIB:
            rows.append(row(size, *measure(folder, address, size)))
            print(rows[-1], file=sys.stderr)
    head = (
        "shard MiB", "samples", "disk MiB/s", "server MiB/s", "waiting, of a bucket's stream",
        "minutes to do one again", "objects for 10^6 volumes",
    )  # fmt: skip
    text = table(head, rows)
    print(text)
    put("shard size", f"{text}\n{machine()}.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
