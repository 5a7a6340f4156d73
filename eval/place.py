"""Whether a result can be written where it was asked for, known before the work and not after it."""

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from eval.errors import PlaceError


def check_writable(out: Path, *, beside: bool = False) -> None:
    """Try it with a file that leaves nothing: permissions alone do not tell of a file system that takes no file.

    Args:
        out: a folder to write into, which may not exist yet.
        beside: `out` is replaced as a whole, from beside it.

    Raises:
        PlaceError: if no file can be made there.
    """
    try:
        with suppress(FileNotFoundError):
            out.stat()  # a file among the folders above it, a name too long, links in a circle
        real = out.resolve()
        nearest = next(place for place in (real, *real.parents) if place.exists())
        with TemporaryFile(dir=real.parent if beside and nearest == real else nearest):
            pass
    except OSError as error:
        raise PlaceError(f"{out} cannot be written ({error.strerror}): choose another --out.") from error
