"""Files are parsed and decoded in a process of their own: one that takes it down costs that file and nothing else.

The guard is the near side: it hands bytes over in shared memory, waits, and turns the death of the other side into the
file's `Rejection`. What the other side may spend is in `ingest.isolated`.
"""

import math
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from types import TracebackType
from typing import BinaryIO, Final, Self, TypeVar

import numpy as np

from ingest.convert import DEFAULT_LIMITS, probe_growing
from ingest.errors import GuardError
from ingest.exchange import Exchange
from ingest.facts import path_facts
from ingest.geometry import Geometry
from ingest.messages import Answer, Ask, Milestone
from ingest.record import Facts, Limits, Probed, Rejection, VolumeRecord
from ingest.watch import Stage
from manifests.plan import ManifestRow
from manifests.reasons import Reason

STALL_S: Final = 60.0
"""Without any progress for so long the process is stuck without spending CPU time, which has limits of its own."""
START_S: Final = 120.0
"""Importing the codecs takes a second; on a machine that is starting many workers, longer."""

OUTSIDERS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Signals that somebody sends; no file can."""

WIDEST_VOXEL: Final = 2
"""Bytes of a uint16."""

ONE_THREAD: Final = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""The cores belong to the workers; idle thread pools would also count against the memory limit."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """The other side ended while it worked: its return code, and the last stage that it reported."""

    returncode: int
    stalled: bool
    stage: Stage
    facts: Facts

    @property
    def out_of_time(self) -> bool:
        return self.stalled or self.returncode == -signal.SIGPROF

    def rejection(self) -> Rejection:
        """The file's row: a header that kills is the parser's crash, a frame that kills cannot be decoded."""
        how = "ran out of its time" if self.out_of_time else f"ended with {_name(self.returncode)}"
        if self.stage == "frames":
            reason, what = Reason.FRAME_UNDECODABLE, "the decoder"
        elif self.stage == "resample":
            reason, what = Reason.UNKNOWN_ERROR, "resampling"
        else:
            reason = Reason.PARSE_LIMIT_EXCEEDED if self.out_of_time else Reason.PARSER_CRASH
            what = "the parser"
        return Rejection(reason=reason, detail=f"{what} {how}.", facts=self.facts)


def _name(returncode: int) -> str:
    return signal.Signals(-returncode).name if returncode < 0 else f"exit code {returncode}"


class Guard:
    """Probes and converts files in another process, which it starts when it is first needed and after each death.

    Not for several threads at once: each has its own.

    Args:
        stall_s: seconds without any progress, whatever the CPU time, after which the other process is ended.
    """

    def __init__(self, *, stall_s: float = STALL_S) -> None:
        self._stall_s = stall_s
        self._inbox = Exchange()
        self._outbox = Exchange()
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the other process now, so that the first file does not wait for it; raises like `probe`."""
        self._connect()

    def close(self) -> None:
        """End the other process and give its memory back."""
        self._stop()
        self._inbox.close()
        self._outbox.close()

    def _stop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def probe(
        self, stream: BinaryIO, path: str, manifest: ManifestRow | None, limits: Limits = DEFAULT_LIMITS
    ) -> Probed | Rejection:
        """As `ingest.convert.probe_file`; `stream` is read here, its bytes are parsed there.

        Raises:
            GuardError: if the other process was ended from outside, or cannot be started.
        """

        def judge(head: bytes, complete: bool) -> Probed | Rejection | None:
            result = self._result(self._ask(head, path, manifest, limits, complete=complete), head)
            if isinstance(result, VolumeRecord):
                raise GuardError("a probe was answered with a volume.")
            return result

        return probe_growing(stream, judge)

    def convert(
        self,
        data: bytes,
        path: str,
        manifest: ManifestRow | None,
        geometry: Geometry,
        limits: Limits = DEFAULT_LIMITS,
    ) -> VolumeRecord | Rejection:
        """As `ingest.convert.convert_file`; raises like `probe`."""
        result = self._result(self._ask(data, path, manifest, limits, geometry=geometry), data)
        if result is None or isinstance(result, Probed):
            raise GuardError("a conversion was answered with a probe.")
        return result

    def _ask(
        self,
        data: bytes,
        path: str,
        manifest: ManifestRow | None,
        limits: Limits,
        *,
        geometry: Geometry | None = None,
        complete: bool = True,
    ) -> Ask:
        """Make room on both sides, and say how much there is."""
        self._inbox.reserve(len(data))
        self._outbox.reserve(math.prod(geometry.size) * WIDEST_VOXEL if geometry else 0)
        return Ask(
            num_bytes=len(data),
            inbox_size=self._inbox.size,
            outbox_size=self._outbox.size,
            path=path,
            manifest=manifest,
            limits=limits,
            geometry=geometry,
            complete=complete,
        )

    def _result(self, ask: Ask, data: bytes) -> Probed | VolumeRecord | Rejection | None:
        outcome = self._attempt(ask, data)
        if isinstance(outcome, Death) and outcome.returncode == -signal.SIGKILL and not outcome.stalled:
            # Perhaps the kernel needed memory, and took this process of all: only a second time it is the file.
            outcome = self._attempt(ask, data)
        return outcome.rejection() if isinstance(outcome, Death) else self._received(outcome)

    def _received(self, answer: Answer) -> Probed | VolumeRecord | Rejection | None:
        """The result, with its volume copied out of the outbox."""
        if answer.volume is None or not isinstance(answer.result, VolumeRecord):
            return answer.result
        dtype, shape = np.dtype(answer.volume.dtype), answer.volume.shape
        data = self._outbox.view(math.prod(shape) * dtype.itemsize)
        return replace(answer.result, volume=np.frombuffer(data, dtype).reshape(shape).copy())

    def _attempt(self, ask: Ask, data: bytes) -> Answer | Death:
        connection = self._connect()
        if data:
            self._inbox.view(len(data))[:] = data
        last = Milestone(stage="parse", facts=path_facts(ask.path))
        try:
            connection.send(ask)
            while connection.poll(self._stall_s):
                message = connection.recv()
                if isinstance(message, Answer):
                    return message
                last = message or last
        except (EOFError, ConnectionError):
            return self._bury(last, stalled=False)
        return self._bury(last, stalled=True)

    def _bury(self, last: Milestone, *, stalled: bool) -> Death:
        child = self._child
        if child is None:
            raise GuardError("the decoding process was never started.")
        if stalled:
            child.kill()
        returncode = child.wait()
        self._stop()
        if -returncode in OUTSIDERS:
            raise GuardError(f"the decoding process was ended from outside ({_name(returncode)}).")
        return Death(returncode=returncode, stalled=stalled, stage=last.stage, facts=last.facts)

    def _connect(self) -> Connection:
        if self._connection is not None:
            return self._connection
        near, far = socket.socketpair()
        for end in (near, far):
            end.setblocking(True)  # a process-wide default timeout, which Beam sets for Google's services, would not be
        descriptors = (far.fileno(), self._inbox.descriptor, self._outbox.descriptor)
        with far:
            self._child = subprocess.Popen(  # noqa: S603 - our own module under our own interpreter
                [sys.executable, "-P", "-m", "ingest.isolated", *map(str, descriptors)],
                pass_fds=descriptors,
                env=os.environ | ONE_THREAD,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # Libraries may quote a header in what they print; how the process ended is said by its return code.
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._connection = Connection(near.detach())
        self._await_start(self._connection)
        return self._connection

    def _await_start(self, connection: Connection) -> None:
        """A process that cannot start is no file's fault."""
        try:
            ready = connection.poll(START_S) and connection.recv_bytes() == b"ready"
        except (EOFError, ConnectionError):
            ready = False
        if not ready:
            code = self._child.poll() if self._child else None
            self._stop()
            raise GuardError(f"the decoding process did not start (exit code {code}): is the installation complete?")
