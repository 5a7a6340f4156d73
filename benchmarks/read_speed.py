"""MB/s at which a rank's loader gives samples: `python benchmarks/read_speed.py --write` (docs/training.md).

The trainer's own loader, hashes compared, on full-size samples: from a disk, and from emulators of both kinds of bucket
on this machine, which share its cores. Beside it stands what an accelerator would ask for, by arithmetic.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Final

from faults.buckets import buckets
from figures import ROOT, machine, put, table

from shards.loader import Loader
from shards.order import RunOrder
from shards.reader import open_dataset
from tests.conftest import build_sample, commit_dataset
from train.flops import volume_flops
from train.recipe import load_recipe, resolve

SAMPLES: Final = 40
BATCH: Final = 4
PROTOCOLS: Final = ("gs", "s3")
READERS: Final = (0, 1, 2)
NEEDED: Final = {"an H200 at 45% of 989 TFLOP/s": 0.45 * 989e12, "a v4 chip at 45% of 275 TFLOP/s": 0.45 * 275e12}


def speed(url: str, readers: int) -> float:
    """MB a second from the second batch to the end of an epoch: the first is that of a start."""
    dataset = open_dataset(url)
    loader = Loader(dataset, RunOrder(rows=dataset.samples, seed=0, batch=BATCH), workers=readers)
    list(loader.batch())
    began, volume_bytes = time.perf_counter(), 0
    for _ in range(len(dataset.samples) // BATCH - 1):
        volume_bytes += sum(sample.volume.nbytes for _, sample in loader.batch())
    seconds = time.perf_counter() - began
    loader.close()
    return volume_bytes / 1e6 / seconds


def needed() -> str:
    """What a step of `vjepa-base` asks for, at the utilisation that is the goal."""
    recipe = load_recipe("vjepa-base")
    resolved = resolve(recipe, grid=recipe.grid, rows=())
    volume_mb = recipe.grid[0] * recipe.grid[1] * recipe.grid[2] / 1e6
    rows = [(name, f"{flops / volume_flops(resolved) * volume_mb:.0f}") for name, flops in NEEDED.items()]
    return table(("for `vjepa-base`", "MB/s"), rows)


def measure(folder: Path) -> str:
    """A row for each place, a column for each number of readers: the better of two rounds."""
    dataset = folder / "dataset"
    commit_dataset(dataset, (build_sample(number) for number in range(SAMPLES)))
    rows = []
    with buckets(PROTOCOLS, dataset) as stores:
        for name, url in {"disk": str(dataset), **{f"{s.url[:2]}:// emulator": s.url for s in stores}}.items():
            best = [max(speed(url, readers) for _ in range(2)) for readers in READERS]
            rows.append((name, *(f"{value:.0f}" for value in best)))
            print(rows[-1])
    return table(("MB/s of a rank from", "no reader process", *(f"{readers}" for readers in READERS[1:])), rows)


def main() -> None:
    """Measure, print, and with --write put it into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/training.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        text = f"{measure(Path(name))}\n{machine()}.\n\n{needed()}"
    print(text)
    if options.write:
        put("read speed", text, ROOT / "docs/training.md")


if __name__ == "__main__":
    main()
