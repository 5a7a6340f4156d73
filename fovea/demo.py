"""`fovea demo`: the whole way, from synthetic DICOMs to a scored model, on a laptop."""

from pathlib import Path
from typing import Annotated

import typer


def command(out: Annotated[Path, typer.Option(help="x")] = Path("out/demo")) -> None:
    """Run everything."""
    raise SystemExit(1)
