"""Ctrl-C and SIGTERM for commands that start other processes: all of them end, and one sentence says what to do."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stoppable(what_next: str) -> Iterator[None]:
    """End this process and every process below it at a signal, with exit code 128 + its number.

    Engines wait for their workers in places that no exception of Python reaches, so a thread of its own acts.

    Args:
        what_next: the sentence's end, after `stopped by SIGINT: `.
    """
    caught = [one for one in SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
    heard, heard_from = socket.socketpair()
    heard_from.setblocking(False)
    before = {one: signal.signal(one, _leave_it_to_the_watcher) for one in caught}
    fd_before = signal.set_wakeup_fd(heard_from.fileno())
    watcher = threading.Thread(target=_watch, args=(heard, caught, what_next), daemon=True)
    watcher.start()
    try:
        with nullcontext() if "--debug" in sys.argv else _silent_children():
            yield
    finally:
        signal.set_wakeup_fd(fd_before)
        heard_from.close()
        watcher.join()
        heard.close()
        for one, handler in before.items():
            signal.signal(one, handler)


@contextmanager
def _silent_children() -> Iterator[None]:
    """Processes started meanwhile have no standard error; this one keeps its own.

    A terminal sends Ctrl-C to all of them, and each would print a traceback. Libraries may also quote a header.
    """
    own, stream = os.dup(2), sys.stderr
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device, not a file
        os.dup2(nowhere.fileno(), 2)
    if stream is sys.__stderr__:
        sys.stderr = open(own, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    try:
        yield
    finally:
        sys.stderr = stream
        os.dup2(own, 2)
        os.close(own)


def _leave_it_to_the_watcher(*_: object) -> None:
    """A handler must be there for the wakeup descriptor to be written."""


def _watch(heard: socket.socket, caught: Sequence[signal.Signals], what_next: str) -> None:
    """Wait for a signal's number; the other end is closed when there is nothing to stop any more."""
    while number := heard.recv(1):
        if number[0] in caught:
            _end(signal.Signals(number[0]), what_next)


def _end(received: signal.Signals, what_next: str) -> None:
    threading.excepthook = _say_nothing
    with suppress(OSError, ValueError):  # who listened may have gone, and that must not keep this from ending
        sys.stderr.write(f"fovea: stopped by {received.name}: {what_next}\n")
        sys.stderr.flush()
    for process in descendants(os.getpid()):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    os._exit(128 + received)


def _say_nothing(_: object) -> None:
    """Threads that wait for a worker would print that it died."""


def descendants(process: int) -> list[int]:
    """The processes that this one started, those that they started, and so on."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found: list[int] = []
    waiting = [process]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _parents() -> Iterator[tuple[int, int]]:
    """Every process with its parent; images of containers often have no `ps`."""
    proc = Path("/proc")
    if not (proc / "self/stat").exists():
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)  # noqa: S607
        yield from ((int(pid), int(parent)) for pid, parent in map(str.split, listing.stdout.splitlines()))
        return
    for stat in proc.glob("[0-9]*/stat"):
        try:
            # The name, in brackets, may hold anything; after it come the state and the parent.
            yield int(stat.parent.name), int(stat.read_text("utf-8", "replace").rpartition(")")[2].split()[1])
        except OSError:
            continue
