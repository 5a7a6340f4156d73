"""The process in which files are parsed and decoded: `python -m ingest.isolated SOCKET INBOX OUTBOX`.

A damaged file can make a codec crash, loop or ask for all memory. Here that ends this process and nothing else;
`ingest.guard` starts the next one. Each stage, and each frame, has an allowance of CPU seconds, which the kernel
enforces inside of C code too: ITIMER_PROF counts the time that is spent, not the time that passes, so that a busy
machine rejects no good file.
"""

import resource
import signal
import sys
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Final

import numpy as np

from ingest.convert import convert_file, probe_head
from ingest.errors import IngestError
from ingest.exchange import Exchange
from ingest.messages import Answer, Ask, Milestone, VolumeInOutbox
from ingest.record import Facts, Probed, Rejection, VolumeRecord
from ingest.watch import Stage, Watch
from manifests.reasons import Reason

STAGE_CPU_S: Final[dict[Stage, float]] = {"parse": 4.0, "frames": 4.0, "resample": 60.0}
"""A header of 512 B-scans takes a third of a second, the largest volume about two to resample."""

FRAME_CPU_S: Final = 2.0
FRAME_VOXELS_PER_CPU_S: Final = 200_000
"""OpenJPEG, the slowest codec, decodes 10 million voxels a second: this is fifty times slower."""

FILE_CPU_S: Final = 900.0
"""The largest scan of the cohort, 512 x 992 x 512 in JPEG 2000, decodes in about 30 s."""

TELL_S: Final = 0.5
"""Often enough for a guard that waits a minute, and not for each of a thousand frames."""

MEMORY_BYTES: Final = 5 * 2**29
"""Above what the interpreter itself takes. 512 x 992 x 512 voxels of 16 bits, uncompressed, take 1.9 GiB onto `fit`."""


class Deadline(Watch):
    """Sets the CPU allowance of what comes next, and tells the guard that there is progress."""

    def __init__(self, guard: Connection) -> None:
        self._guard = guard
        self._started = time.process_time()
        self._told = time.monotonic()

    def begin(self, stage: Stage, facts: Facts) -> None:
        allow_cpu(STAGE_CPU_S[stage])
        self._tell(Milestone(stage=stage, facts=facts))

    def frame(self, num_voxels: int) -> None:
        if time.process_time() - self._started > FILE_CPU_S:
            raise IngestError(Reason.FRAME_UNDECODABLE, f"decoding took over {FILE_CPU_S:g} s.")
        allow_cpu(FRAME_CPU_S + num_voxels / FRAME_VOXELS_PER_CPU_S)
        if time.monotonic() - self._told > TELL_S:
            self._tell(None)

    def _tell(self, news: Milestone | None) -> None:
        self._guard.send(news)
        self._told = time.monotonic()


def allow_cpu(cpu_s: float) -> None:
    """The kernel ends this process (SIGPROF) when it has used so much more CPU time; 0 for no end."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)


def serve(guard: Connection, inbox: Exchange, outbox: Exchange) -> None:
    """Answer until the guard hangs up."""
    guard.send_bytes(b"ready")
    while True:
        try:
            ask: Ask = guard.recv()
        except EOFError:
            return
        inbox.attach(ask.inbox_size)
        outbox.attach(ask.outbox_size)
        result = _answer(ask, inbox.view(ask.num_bytes), Deadline(guard))
        allow_cpu(0)
        guard.send(_hand_over(result, outbox))


def _answer(ask: Ask, data: memoryview, watch: Watch) -> Probed | VolumeRecord | Rejection | None:
    if ask.geometry is None:
        allow_cpu(STAGE_CPU_S["parse"])
        return probe_head(data, ask.complete, ask.path, ask.manifest, ask.limits)
    return convert_file(data, ask.path, ask.manifest, ask.geometry, ask.limits, watch)


def _hand_over(result: Probed | VolumeRecord | Rejection | None, outbox: Exchange) -> Answer:
    """The answer; a volume goes by way of the outbox."""
    if not isinstance(result, VolumeRecord):
        return Answer(result=result)
    volume = result.volume
    np.frombuffer(outbox.view(volume.nbytes), volume.dtype).reshape(volume.shape)[...] = volume
    place = VolumeInOutbox(shape=result.volume.shape, dtype=str(volume.dtype))
    return Answer(result=replace(result, volume=volume[:0]), volume=place)


def limit_memory() -> None:
    """Allocation over the limit fails in here instead of taking the machine's memory. Only Linux can do it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - a kernel interface, not a file
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))


def main() -> None:
    """Run until the guard's end of the socket closes."""
    socket, inbox, outbox = (int(word) for word in sys.argv[1:4])
    limit_memory()
    with Connection(socket) as guard:
        serve(guard, Exchange(inbox), Exchange(outbox))


if __name__ == "__main__":
    main()
