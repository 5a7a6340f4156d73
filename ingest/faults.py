"""Of several faults of one file, the earliest code is its reason, whichever check finds it first."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ingest.errors import IngestError

Value = TypeVar("Value")


class Faults:
    """What was found by checks that do not stop one another."""

    def __init__(self, found: Iterable[IngestError] = ()) -> None:
        self._found = list(found)

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Keep the fault of the block: it may not hide what a later check finds."""
        try:
            yield
        except IngestError as fault:
            self._found.append(fault)

    def of(self, check: Callable[[], Value], otherwise: Value | None = None) -> Value | None:
        """What `check` returns; `otherwise` when it finds a fault, which is kept."""
        try:
            return check()
        except IngestError as fault:
            self._found.append(fault)
            return otherwise

    def raise_first(self) -> None:
        """Raise the fault with the earliest code, if there is any."""
        if self._found:
            raise min(self._found, key=lambda fault: fault.reason.precedence)
