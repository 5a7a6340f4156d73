"""Python runs this at the start of every process of a job, workers too; the environment says what to change."""

import os
import random
from typing import Any


def shuffle_listings(seed: str) -> None:
    """Local folders list their files in another order than they lie in."""
    from fsspec.implementations.local import LocalFileSystem

    find = LocalFileSystem.find

    def shuffled(self: LocalFileSystem, *args: Any, **choices: Any) -> Any:
        found = find(self, *args, **choices)
        names = sorted(found)
        random.Random(f"{seed}:{len(names)}").shuffle(names)
        return {name: found[name] for name in names} if isinstance(found, dict) else names

    LocalFileSystem.find = shuffled


if os.environ.get("SOAK_SHUFFLE"):
    shuffle_listings(os.environ["SOAK_SHUFFLE"])
