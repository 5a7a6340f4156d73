"""Time a training step of a recipe, and the share of it spent waiting for data.

    python benchmarks/train_step.py --recipe cpu-small --data DATASET [--steps 10] [--set a.b=c ...]
    python benchmarks/train_step.py --recipe vjepa-base --synthetic --set train.micro_batch=2

Without a dataset, `--synthetic` times the step alone, on one made-up batch without padding.
"""

import argparse
import json
import time
from collections.abc import Iterable

import numpy as np
import torch

from shards.reader import open_dataset
from train.config import Recipe
from train.device import Device, open_device
from train.encoder import num_parameters
from train.feed import Feed
from train.flops import volume_flops
from train.masks import plan_masks, stack_masks
from train.objective import Batch
from train.plan import plan_run
from train.recipe import load_recipe, resolve
from train.seeding import generator
from train.step import start_state, train_step

WARM_UP = 2  # steps: allocators and kernels settle


def main() -> None:
    """Run the steps and print one JSON object."""
    arguments = parse()
    recipe = load_recipe(arguments.recipe, [*arguments.set, "log.wandb=false"])
    device = open_device(recipe.train.device, recipe.train.precision)
    if arguments.synthetic:
        recipe = resolve(recipe, grid=recipe.grid, rows=())
        print(json.dumps(measure(recipe, device, None, arguments.steps), indent=2))
        return
    plan = plan_run(recipe, open_dataset(arguments.data))
    feed = Feed(plan.train, plan.recipe, device, step=0)
    print(json.dumps(measure(plan.recipe, device, feed, arguments.steps), indent=2))


def measure(recipe: Recipe, device: Device, feed: Feed | None, steps: int) -> dict[str, float | str]:
    """Seconds a step, volumes/s, share of waiting for data, peak memory, and the loss as a check that it computes."""
    state = start_state(recipe, device)
    fixed = synthetic_batches(recipe, device) if feed is None else []
    for _ in range(WARM_UP):
        train_step(state, batches(feed, fixed), recipe, device)
    waited_s, began = (feed.waited_s if feed else 0.0), time.perf_counter()
    for _ in range(steps):
        result = train_step(state, batches(feed, fixed), recipe, device)
    elapsed = time.perf_counter() - began
    assert result.applied
    volumes_per_s = steps * recipe.train.global_batch / elapsed
    return {
        "recipe": recipe.name,
        "device": device.kind,
        "precision": device.precision,
        "threads": torch.get_num_threads(),
        "encoder_parameters": num_parameters(state.networks.context),
        "predictor_parameters": num_parameters(state.networks.predictor),
        "step_s": elapsed / steps,
        "volumes_per_s": volumes_per_s,
        "tflops": volumes_per_s * volume_flops(recipe) / 1e12,
        "mfu": volumes_per_s * volume_flops(recipe) / device.peak_flops if device.peak_flops else "no peak is known",
        "data_wait": ((feed.waited_s if feed else 0.0) - waited_s) / elapsed,
        "peak_memory_gib": device.peak_memory_bytes() / 2**30,
        "loss": result.summary["loss"],
    }


def batches(feed: Feed | None, fixed: list[Batch]) -> Iterable[Batch]:
    """The micro-batches of one step."""
    return fixed if feed is None else feed.step_batches()


def synthetic_batches(recipe: Recipe, device: Device) -> list[Batch]:
    """One step's micro-batches of noise without padding, on the device."""
    sizes = recipe.train
    starts = range(0, sizes.global_batch, sizes.micro_batch)
    return [_synthetic(recipe, device, min(sizes.micro_batch, sizes.global_batch - start)) for start in starts]


def _synthetic(recipe: Recipe, device: Device, size: int) -> Batch:
    content = np.ones((size, recipe.num_tokens), dtype=bool)
    masks = [plan_masks(recipe, content[index], generator(0, "benchmark", index)) for index in range(size)]
    x_BDHW = torch.randn(size, *(extent // recipe.data.pool for extent in recipe.grid)).to(device.torch_device)
    return Batch.build(
        views=(x_BDHW, x_BDHW),
        content_BN=torch.from_numpy(content).to(device.torch_device),
        spacing_B3=torch.ones(size, 3, device=device.torch_device),
        masks=stack_masks(masks),
    )


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data")
    source.add_argument("--synthetic", action="store_true")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--set", action="append", default=[])
    return parser.parse_args()


if __name__ == "__main__":
    main()
