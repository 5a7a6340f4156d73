"""Files that others made: the DICOMs of pydicom's wheel, and any folder, each through a whole job."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pydicom

from ingest.source import is_candidate
from reliability.job import ingest_tree
from reliability.report import Promise, verdict
from reliability.seeds import PREAMBLE_BYTES

WHEEL = Path(pydicom.__file__).parent / "data/test_files"


def overlooked(folder: Path) -> list[str]:
    """Files with a DICM marker whose names discovery does not take for a DICOM's."""
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not is_candidate(path.name) and _has_marker(path)
    ]


def _has_marker(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(PREAMBLE_BYTES).endswith(b"DICM")


def promises(folder: Path) -> Iterator[Promise]:
    """What holds of the folder itself."""
    missed = overlooked(folder)
    yield Promise(text="every file with a DICM marker is an input", found=", ".join(missed) or "all", kept=not missed)


def run(options: argparse.Namespace) -> int:
    """One job a folder."""
    status = 0
    for number, folder in enumerate((WHEEL, *options.folder)):
        accounts = ingest_tree(folder, f"corpus-{number}", options.processes)
        print("pydicom's wheel (pydicom/data/test_files)" if folder == WHEEL else folder.name, end=":\n\n")
        text, missed = verdict(promises(folder))
        status |= accounts.print() | missed
        print(text)
    return status
