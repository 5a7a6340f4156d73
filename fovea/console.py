"""What the commands print: tables on a terminal, plain lines otherwise, JSON when asked for."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def is_terminal() -> bool:
    """Whether a person is looking: progress lines are drawn only then."""
    return sys.stderr.isatty()


def print_json(result: Mapping[str, Any]) -> None:
    """The machine-readable result, one object on standard output."""
    sys.stdout.write(json.dumps(result, indent=2, sort_keys=True) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table for people; numbers are written as they come."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def say(line: str) -> None:
    """One plain line on standard output."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def note(line: str) -> None:
    """One plain line on standard error: what is going on, beside the result."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
