"""How long a training loop is held by saves: `python benchmarks/save_wait.py --recipe cpu-small` (docs/training.md).

The same steps on one made-up batch, first without saves, then with saves in the loop's time, then beside it. `held_s`
is what the loop waits for saves; `lost_s` what its steps took more than without them, which is all that saves cost, on
a machine that does nothing else.
"""

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path

from train_step import synthetic_batches

from train.config import Recipe
from train.device import open_device
from train.recipe import load_recipe, resolve
from train.saver import Saver
from train.signals import Stop
from train.snapshot import publish_snapshot, take_snapshot
from train.step import start_state, train_step

WARM_UP = 2


def measure(recipe: Recipe, steps: int, every: int, background: bool | None) -> dict[str, float]:
    """Seconds of the steps, and of the waiting for saves among them; the last save is waited for."""
    device = open_device(recipe.train.device, recipe.train.precision)
    state, batches = start_state(recipe, device), synthetic_batches(recipe, device)
    for _ in range(WARM_UP):
        train_step(state, batches, recipe, device)
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(
            take=lambda spare: take_snapshot(state, recipe, dataset_sha256="", reuse=spare),
            publish=partial(publish_snapshot, Path(folder), keep=2),
            background=bool(background),
        )
        began = time.perf_counter()
        with saver.running(Stop()):
            for number in range(1, steps + 1):
                train_step(state, batches, recipe, device)
                if background is not None and number % every == 1:
                    saver.save()
        elapsed = time.perf_counter() - began
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {"seconds": elapsed, "held_s": saver.held_s, "bytes": size}


def main() -> None:
    """Measure the three, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=4, help="steps from one save to the next, 2 or more")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, options.set)
    recipe = resolve(recipe, grid=recipe.grid, rows=())
    ways = {"without": None, "in the loop": False, "beside the loop": True}
    found = {name: measure(recipe, options.steps, options.every, way) for name, way in ways.items()}
    saves = 1 + (options.steps - 1) // options.every
    print(
        json.dumps(
            {
                "recipe": recipe.name,
                "checkpoint_mb": found["in the loop"]["bytes"] / min(2, saves) / 1e6,
                "step_s": found["without"]["seconds"] / options.steps,
                **{
                    name: {
                        "held_s_a_save": one["held_s"] / saves,
                        "lost_s_a_save": (one["seconds"] - found["without"]["seconds"]) / saves,
                    }
                    for name, one in found.items()
                    if name != "without"
                },
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
