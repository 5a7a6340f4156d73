"""SIGTERM as a request: the loop sees it between steps, saves, and ends with exit code 143."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, while the block runs. Outside the main thread signals cannot be caught."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def request(_number: int, _frame: FrameType | None) -> None:
        event.set()

    previous = signal.signal(signal.SIGTERM, request)
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, previous)
