"""Starts the command, does to it and to its store what the plan says, and starts it again until it is done."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Self

from reliability.report import ROOT

from faults.buckets import Bucket
from faults.plan import ENDING, Fault, How
from tests.stores.faults import Fault as Answer

ANSWERS: Final = {How.CUT_ANSWER: Answer.CUT, How.SHORT_ANSWER: Answer.SHORT, How.SILENT_ANSWER: Answer.STALL}
SILENCING: Final = frozenset({How.SILENT_BUCKET, How.IN_SILENCE})
LATEST_S: Final = {How.ANY_MOMENT: 0.1, How.IN_SILENCE: 1.0}
"""A SIGTERM comes within some steps; or when the run, whose readers are ahead of it, has come to wait or soon will."""

HUNG_S: Final = 300.0
"""Without a word for so long, a process is taken to hang."""


@dataclass(slots=True, kw_only=True)
class Found:
    """What became of a run: faults that came by how, how processes ended, and what should not have been."""

    came: Counter[How] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    stops_s: list[float] = field(default_factory=list)
    untidy: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervisor:
    """Runs one command with one run folder; each process with another bucket, and every other pair with readers."""

    faults: Sequence[Fault]
    buckets: Sequence[Bucket]
    recipe: Path
    out: Path
    found: Found = field(default_factory=Found)

    def run(self) -> Found:
        """Start it until it ends with 0.

        Raises:
            RuntimeError: if it is started more often than faults explain.
        """
        left = {fault.number: fault for fault in self.faults}
        with Processes() as processes:
            for number in range(len(self.faults) + 2):
                bucket = self.buckets[number % len(self.buckets)]
                self._start(processes, left, bucket, workers=2 * (number // len(self.buckets) % 2))
                if self._attend(processes, left, bucket) == 0:
                    return self.found
        raise RuntimeError(f"{self.out} is not done: {dict(self.found.ends)}")

    def _start(self, processes: "Processes", left: dict[int, Fault], bucket: Bucket, *, workers: int) -> None:
        arguments = ["--recipe", str(self.recipe), "--data", bucket.url, "--out", str(self.out)]
        arguments += ["--set", f"data.workers={workers}"]
        processes.start(
            {
                "faults": [asdict(fault) for fault in left.values()],
                "arguments": arguments,
                "said": str(self.out.with_name("said.txt")),
            }
        )

    def _attend(self, processes: "Processes", left: dict[int, Fault], bucket: Bucket) -> int:
        """Do what a process says is due, until it has ended, and mend what was done to the bucket; its status."""
        until = None
        while not (heard := processes.hear()).startswith("end"):
            fault = left.pop(int(heard))
            until = fault if fault.how in ENDING else until
            self._bring(fault, processes, bucket)
        self._judge(int(heard.split()[1]), processes.seconds_since_stop(), until)
        bucket.speak()
        if until and until.how is How.CUT_OBJECT:
            bucket.mend()
        bucket.hand_over(self.buckets)
        return int(heard.split()[1])

    def _bring(self, fault: Fault, processes: "Processes", bucket: Bucket) -> None:
        """What comes from outside, and the answer that lets the process go on."""
        self.found.came[fault.how] += 1
        if fault.how in ANSWERS:
            bucket.proxy.armed.append(ANSWERS[fault.how])
        if fault.how is How.CUT_OBJECT:
            bucket.cut(fault.draw)
        if fault.how in SILENCING:
            bucket.fall_silent()
        if fault.how is How.IN_VALIDATION:  # it waits for our answer there
            processes.terminate(0.0)
        processes.answer()
        if fault.how in LATEST_S:
            processes.terminate(fault.draw * LATEST_S[fault.how])

    def _judge(self, status: int, seconds: float | None, until: Fault | None) -> None:
        """Note how a process ended: with one sentence, and soon if it was to stop."""
        said = self.out.with_name("said.txt").read_text(errors="replace").splitlines()
        self.found.ends[f"{128 - status if status < 0 else status}"] += 1
        if seconds is not None:
            self.found.stops_s.append(seconds)
        sentences = [line for line in said if line.startswith("fovea: ")]
        if any("Traceback" in line for line in said) or len(sentences) != int(status != 0):
            self.found.untidy.append(f"{until.how if until else 'no fault'}: {status}: {' / '.join(said[-3:])}")


class Processes:
    """The commands' processes, one at a time; `faults.pretrain` says how they are spoken with."""

    def __init__(self) -> None:
        self._heard, tell = os.pipe()
        hear, self._answers = os.pipe()
        path = os.pathsep.join((str(ROOT / "benchmarks"), str(ROOT)))
        self._server = subprocess.Popen(
            [sys.executable, "-m", "faults.pretrain", str(tell), str(hear)],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            cwd=ROOT, pass_fds=(tell, hear), stdin=subprocess.PIPE, text=True,
        )  # fmt: skip
        os.close(tell)
        os.close(hear)
        self._process = 0
        self._stopped: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.kill()
        self._server.communicate()
        os.close(self._heard)
        os.close(self._answers)

    def start(self, command: object) -> None:
        assert self._server.stdin
        self._server.stdin.write(json.dumps(command) + "\n")
        self._server.stdin.flush()
        self._process, self._stopped = int(self.hear()), None
        self.answer()

    def hear(self) -> str:
        """What is told next; each waits for an answer, so there is never more than one.

        Raises:
            RuntimeError: if nothing is told for long.
        """
        if not select.select([self._heard], [], [], HUNG_S)[0]:
            os.kill(self._process, signal.SIGKILL)
            raise RuntimeError(f"nothing was heard for {HUNG_S:.0f} s.")
        return os.read(self._heard, 100).decode()

    def answer(self) -> None:
        os.write(self._answers, b".")

    def terminate(self, after_s: float) -> None:
        time.sleep(after_s)
        self._stopped = time.monotonic()
        os.kill(self._process, signal.SIGTERM)

    def seconds_since_stop(self) -> float | None:
        return time.monotonic() - self._stopped if self._stopped else None
