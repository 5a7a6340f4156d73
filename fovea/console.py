"""What the commands print: tables on a terminal, plain lines otherwise, JSON when asked for."""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TextIO, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

ERASE_LINE: Final = "\r\x1b[K"
"""What may stand before a line that takes the place of one being redrawn: no other control sequence is written."""


T = TypeVar("T")


def is_terminal() -> bool:
    """Whether a person is looking: progress lines are drawn only then."""
    return sys.stderr.isatty()


def print_json(result: Mapping[str, Any]) -> None:
    """The machine-readable result, one object on standard output."""
    sys.stdout.write(json.dumps(result, indent=2, sort_keys=True) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table for people; numbers are written as they come, and no cell can be markup."""
    table = Table(title=Text(inert(title), style="table.title"), title_justify="left")
    for column in columns:
        table.add_column(Text(inert(column)))
    for row in rows:
        table.add_row(*(Text(inert(str(cell))) for cell in row))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def inert(text: str) -> str:
    """Text from files, which may hold a terminal's control sequences: what does not print is spelled."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def say(line: str) -> None:
    """One plain line on standard output."""
    _write(sys.stdout, line)


def note(line: str) -> None:
    """One plain line on standard error: what is going on, beside the result."""
    _write(sys.stderr, line)


def _write(stream: TextIO, line: str) -> None:
    erase = ERASE_LINE if line.startswith(ERASE_LINE) else ""
    stream.write(erase + inert(line.removeprefix(ERASE_LINE)) + "\n")
    stream.flush()


def lasting(speak: Callable[[T], None]) -> Callable[[T], None]:
    """The same, but when who listened has gone, the rest is said to nobody: work goes on.

    So it is at the end of a pipe, at a terminal that was closed, and on a disk for logs that is full.
    """

    def said(what: T) -> None:
        try:
            speak(what)
        except OSError:
            for stream in (sys.stdout, sys.stderr):
                if _is_stuck(stream):
                    _to_nowhere(stream)

    return said


def _is_stuck(stream: TextIO) -> bool:
    """Whether it still holds what it could not write."""
    try:
        stream.flush()
    except OSError:
        return True
    return False


def _to_nowhere(stream: TextIO) -> None:
    """Let it write to nowhere, also what it still holds."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
