"""SIGTERM as a request: the loop sees it between steps and while it waits for data, saves, and ends with code 143."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from train.ranks import Ranks


class StopRequestedError(BaseException):
    """SIGTERM has come: the loop saves and ends. No Exception, so that nobody takes it for a read that failed."""


class Stop:
    """Whether this process is to stop. No `threading.Event`: its lock may be held where a signal's handler runs."""

    def __init__(self) -> None:
        self._is_set = self._may_end = False

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True

    def ask(self, *_: object) -> None:
        """A signal's handler; the first request ends a wait, if there is one."""
        is_first = not self.is_set()
        self.set()
        if is_first and self._may_end:
            raise StopRequestedError

    @contextmanager
    def ending_waits(self) -> Iterator[None]:
        """A block that reads and changes nothing: a store that is silent may hold it up for minutes.

        Raises:
            StopRequestedError: at once when a request comes in the block, or has come before.
        """
        self._may_end = True
        try:
            if self.is_set():
                raise StopRequestedError
            yield
        finally:
            self._may_end = False

    @contextmanager
    def agreed(self, ranks: Ranks) -> Iterator[None]:
        """A block without sums over ranks: if a request ends it on one rank, it has ended on all of them."""
        ended = False
        try:
            yield
        except StopRequestedError:
            ended = True
        if ranks.any(ended):
            raise StopRequestedError


@contextmanager
def stop_requested() -> Iterator[Stop]:
    """What SIGTERM asks, while the block runs. Outside the main thread signals cannot be caught."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.signal(signal.SIGTERM, stop.ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)
