"""Where commands write: on this machine, except for datasets."""

import re
from pathlib import Path
from typing import Final

import typer

URL: Final = re.compile(r"[a-z][a-z0-9+.-]+:/+")
"""A path has lost one of the two slashes."""


def on_this_machine(path: Path | None) -> Path | None:
    """Refuse a URL, which as a path would be a new folder with an odd name."""
    if path is not None and URL.match(str(path)):
        raise typer.BadParameter(f"{path} is a URL: only `fovea ingest` writes to one; give a path of this machine.")
    return path
