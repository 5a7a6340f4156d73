"""What W&B leaves on the disk: its own process writes it, and may do so after `finish` has returned."""

import time
from pathlib import Path


def recorded(folder: Path, run: str, word: bytes) -> bytes:
    """The one log of a W&B run (`*`: of any) below a run folder, once a word is in it.

    Raises:
        AssertionError: if there is not one within 30 s.
    """
    for _ in range(300):
        logs = list(folder.glob(f"wandb/offline-run-*/run-{run}.wandb"))
        if len(logs) == 1 and word in (data := logs[0].read_bytes()):
            return data
        time.sleep(0.1)
    raise AssertionError(f"{word!r} was not written to one log of {run} within 30 s: {logs}")
