"""Time training steps of a recipe, check what they compute, and compare them with others.

    PYTHONPATH=. python benchmarks/train_step.py --recipe vjepa-base --synthetic [--steps 10] [--set a.b=c ...]
        [--baseline full | eager | fp32] [--reference CHECKOUT]
    python benchmarks/train_step.py --recipe cpu-small --data DATASET

`--synthetic` times the step alone, on one made-up batch without padding, and needs PyTorch and numpy alone; with a
dataset the share of time spent waiting for data is measured too. In turn with ours `--baseline full` times a step in
which all tokens enter the context encoder (the objective `methods`), `eager` one without `train.compile`, `fp32` one in
float32, and `--reference` one of facebookresearch/vjepa2's own modules. Steps are timed to their end, one by one; of
several the median is given. Prints one JSON object; exit code 1: loss or gradients are not those of float32.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from plain_recipe import PlainRecipe, read_recipe
from step_check import check_step

from shards.errors import ShardError
from train.device import Device, open_device
from train.encoder import num_parameters
from train.errors import TrainError
from train.flops import volume_flops
from train.masks import plan_masks, stack_masks
from train.objective import Batch
from train.seeding import generator
from train.step import TrainState, start_state, train_step

WARM_UP = 2  # steps: allocators and kernels settle, blocks are compiled
BASELINES = {
    "full": ("full_tokens", ("objective.name=methods", "objective.num_visible=2")),  # the number plays no part in it
    "eager": ("eager", ("train.compile=false",)),
    "fp32": ("fp32", ("train.precision=fp32",)),
}


def main() -> int:
    """Run the steps and print one JSON object."""
    arguments = parse()
    recipe = read_recipe(arguments.recipe, arguments.set)
    device = open_device(recipe.train.device, recipe.train.precision)
    if arguments.data:
        recipe, feed = open_feed(recipe, device, arguments.data)
        found = measure_feed(recipe, device, feed, arguments.steps)
    else:
        found = measure(recipe, device, arguments)
    found["check"] = check_step(recipe, device, synthetic_batch(recipe, device, 1))
    print(json.dumps(found, indent=2))
    return 0 if found["check"]["passed"] else 1


def measure(recipe: Any, device: Device, arguments: argparse.Namespace) -> dict[str, Any]:
    """Steps on a made-up batch, in turn with those that they are compared with."""
    fixed = synthetic_batches(recipe, device)
    state = start_state(recipe, device)
    steps: dict[str, Callable[[], float]] = {"ours": lambda: our_step(state, fixed, recipe, device)}
    warm_up(steps["ours"], device)
    peak = device.peak_memory_bytes()  # before others take theirs
    if arguments.baseline:
        name, changes = BASELINES[arguments.baseline]
        other = read_recipe(arguments.recipe, [*arguments.set, *changes])
        place = open_device(other.train.device, other.train.precision)
        batches, others = synthetic_batches(other, place), start_state(other, place)
        steps[name] = lambda: our_step(others, batches, other, place)
    if arguments.reference:
        steps["reference"] = open_reference(arguments.reference, recipe, device, state, fixed)
    compared = [name for name in steps if name != "ours"]
    for name in compared:
        warm_up(steps[name], device)
    times, losses = take_turns(steps, device, arguments.steps)
    found = describe(recipe, device, state, statistics.median(times["ours"]))
    found |= {"data_wait": 0.0, "peak_memory_gib": peak / 2**30, "loss": losses["ours"]}
    for name in compared:
        found[f"{name}_step_s"] = statistics.median(times[name])
        found[f"speedup_over_{name}"] = statistics.median(np.divide(times[name], times["ours"]).tolist())
        found[f"{name}_loss"] = losses[name]
    return found


def measure_feed(recipe: Any, device: Device, feed: Any, count: int) -> dict[str, Any]:
    """Steps on a dataset, and the share of their time that is waiting for data."""
    state, waited_s = start_state(recipe, device), [0.0]

    def step() -> float:
        loss = our_step(state, feed.step_batches(), recipe, device)
        waited_s.append(feed.waited_s)
        return loss

    warm_up(step, device)
    times, losses = take_turns({"ours": step}, device, count)
    found = describe(recipe, device, state, statistics.median(times["ours"]))
    waiting = (waited_s[-1] - waited_s[WARM_UP]) / sum(times["ours"])
    return found | {
        "data_wait": waiting,
        "peak_memory_gib": device.peak_memory_bytes() / 2**30,
        "loss": losses["ours"],
    }


def describe(recipe: Any, device: Device, state: TrainState, step_s: float) -> dict[str, Any]:
    """What was run, and how fast that is."""
    volumes_per_s = recipe.train.global_batch / step_s
    flops_per_s = volumes_per_s * volume_flops(recipe)
    return {
        "recipe": recipe.name,
        "recipe_reader": "plain" if isinstance(recipe, PlainRecipe) else "pydantic",
        "device": device.kind,
        **(
            {"gpu": torch.cuda.get_device_name(), "cudnn": torch.backends.cudnn.version()}
            if device.kind == "cuda"
            else {}
        ),
        "precision": device.precision,
        "compiled": recipe.train.compile,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "tokens": [recipe.num_tokens, recipe.objective.num_visible, recipe.objective.num_targets],
        "encoder_parameters": num_parameters(state.networks.context),
        "predictor_parameters": num_parameters(state.networks.predictor),
        "step_s": step_s,
        "volumes_per_s": volumes_per_s,
        "tflops": flops_per_s / 1e12,
        "mfu": flops_per_s / device.peak_flops if device.peak_flops else "no peak is known",
    }


def take_turns(
    steps: dict[str, Callable[[], float]], device: Device, count: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each step, and the last losses: what slows the machine for a while slows all of them."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, float] = {}
    for _ in range(count):
        for name, step in steps.items():
            began = time.perf_counter()
            losses[name] = step()
            settle(device)
            times[name].append(time.perf_counter() - began)
    return times, losses


def warm_up(step: Callable[[], float], device: Device) -> None:
    """The first steps, which are not timed."""
    for _ in range(WARM_UP):
        step()
    settle(device)


def settle(device: Device) -> None:
    """Until all that was asked of the device is done."""
    device.send_off()
    if device.kind == "cuda":
        torch.cuda.synchronize()


def our_step(state: TrainState, batches: Iterable[Batch], recipe: Any, device: Device) -> float:
    """One update; its loss."""
    result = train_step(state, batches, recipe, device)
    assert result.applied
    return result.summary["loss"]


def open_reference(
    checkout: str, recipe: Any, device: Device, state: TrainState, batches: list[Batch]
) -> Callable[[], float]:
    """A step of the reference on the same volumes and masks, of networks with as many parameters."""
    from reference_step import ReferenceStep, check_equal

    reference = ReferenceStep(checkout, recipe, device)
    check_equal(reference, state)
    return lambda: reference.step(batches)


def open_feed(recipe: Any, device: Device, url: str) -> tuple[Any, Any]:
    """The recipe resolved against a dataset, and its batches; needs what `fovea pretrain` needs."""
    from shards.reader import open_dataset
    from train.feed import Feed
    from train.plan import plan_run

    plan = plan_run(recipe, open_dataset(url))
    return plan.recipe, Feed(plan.train, plan.recipe, device, step=0)


def synthetic_batches(recipe: Any, device: Device) -> list[Batch]:
    """One step's micro-batches of noise without padding, on the device."""
    sizes = recipe.train
    starts = range(0, sizes.global_batch, sizes.micro_batch)
    counts = [min(sizes.micro_batch, sizes.global_batch - start) for start in starts]
    of_size = {count: synthetic_batch(recipe, device, count) for count in set(counts)}  # as few at once as in a run
    return [of_size[count] for count in counts]


def synthetic_batch(recipe: Any, device: Device, size: int) -> Batch:
    """A micro-batch, the same each time."""
    content = np.ones((size, recipe.num_tokens), dtype=bool)
    masks = [plan_masks(recipe, content[index], generator(0, "benchmark", index)) for index in range(size)]
    noise = torch.Generator().manual_seed(0)
    x_BDHW = torch.randn(size, *(extent // recipe.data.pool for extent in recipe.grid), generator=noise)
    x_BDHW = x_BDHW.to(device.torch_device)
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
    parser.add_argument("--baseline", choices=list(BASELINES), help="with --synthetic")
    parser.add_argument("--reference", metavar="CHECKOUT", help="of facebookresearch/vjepa2; with --synthetic")
    arguments = parser.parse_args()
    if arguments.data and (arguments.baseline or arguments.reference):
        parser.error("--baseline and --reference are timed on the same made-up batch: give --synthetic, not --data.")
    return arguments


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (TrainError, ShardError) as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
