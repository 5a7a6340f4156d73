"""What the commands print: tables on a terminal, plain lines otherwise, JSON when asked for."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

ERASE_LINE: Final = "\r\x1b[K"
"""What may stand before a line that takes the place of one being redrawn: no other control sequence is written."""


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
    erase = ERASE_LINE if line.startswith(ERASE_LINE) else ""
    sys.stdout.write(erase + inert(line.removeprefix(ERASE_LINE)) + "\n")
    sys.stdout.flush()


def note(line: str) -> None:
    """One plain line on standard error: what is going on, beside the result."""
    sys.stderr.write(inert(line) + "\n")
    sys.stderr.flush()
