"""The training loop, from an opened dataset to a finished run folder."""

from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from shards.errors import ShardError
from shards.loader import telling_of_readers
from shards.reader import Dataset
from train.attempts import Stepper
from train.config import Recipe
from train.copies import lacks_copy
from train.device import Device, open_device
from train.encoder import num_parameters
from train.errors import (
    DeviceError,
    NonFiniteError,
    RecipeError,
    RunFolderError,
    TrainError,
    TrainingStoppedError,
    ValidationError,
)
from train.feed import Feed
from train.plan import Plan, plan_run, resume
from train.probe import Labels
from train.ranks import Ranks
from train.recipe import shared_sha256
from train.recorder import Listener, Recorder
from train.run_folder import RunFolder, claimed, lines_sha256, open_run
from train.sharding import check_sharding
from train.signals import Stop, StopRequestedError, stop_requested
from train.step import TrainState, meets_in_a_pass, start_state


def pretrain(
    recipe: Recipe, dataset: Dataset, out: Path, listener: Listener | None = None, *, labels: Labels | None = None
) -> dict[str, Any]:
    """Train, or resume, the run in `out`; returns its summary, which is also in `summary.json`.

    Args:
        recipe: what to do.
        dataset: with all its splits.
        out: the run folder.
        listener: who hears what happens.
        labels: class of each volume by key, for a probe at each validation; they never reach the networks.

    Raises:
        TrainError: see `train.errors`; `TrainingStoppedError` after SIGTERM, with a checkpoint saved.
    """
    device = open_device(recipe.train.device, recipe.train.precision)
    ranks = device.ranks
    listener = (listener if ranks.is_first else None) or Listener()
    plan = plan_run(recipe, dataset, labels)
    check_ranks(plan.recipe, ranks)
    check_parts(plan.recipe, device)
    check_sharding(plan.recipe, device)
    check_alike(plan, ranks)
    with claimed(open_run(out, plan.recipe), plan.recipe) if ranks.is_first else nullcontext():
        ranks.wait()
        return _pretrain(plan, RunFolder(path=out), device, listener)


def _pretrain(plan: Plan, run: RunFolder, device: Device, listener: Listener) -> dict[str, Any]:
    """The run in a folder that is this process's own."""
    ranks, say = device.ranks, listener.say
    state = start_state(plan.recipe, device)
    for sentence in (*resume(run, state, plan, device), *describe(plan, state, device)):
        say(sentence)
    check_together(state, ranks)
    finished = run.read_summary()
    is_over = is_last(state, plan.recipe) and not ranks.any(ranks.is_first and lacks_copy(plan.recipe, state.step))
    if is_over and finished and finished["status"] == "finished":
        say(f"{run.path} is finished: nothing to do.")
        ranks.leave()
        return finished
    recorder = Recorder(plan, run, state, device, listener)
    try:
        train(plan, state, device, recorder)
    except TrainingStoppedError:
        _close(recorder, "stopped", say)
        ranks.leave()  # a rank that ends has torchrun end the others: not before the first has written all
        raise
    except (TrainError, ShardError, OSError) as error:
        _close(recorder, "failed", say)
        if isinstance(error, NonFiniteError | ValidationError):
            ranks.leave()  # every rank has it
        raise
    summary = recorder.close("finished")
    ranks.leave()
    return summary


def _close(recorder: Recorder, status: str, say: Callable[[str], None]) -> None:
    """After what ended the run early, and is raised: what goes wrong here is only said."""
    try:
        recorder.close(status, failed=status == "failed")
    except (OSError, TrainError) as error:
        say(f"summary.json says nothing of this end ({error}).")


def train(plan: Plan, state: TrainState, device: Device, recorder: Recorder) -> None:
    """Step until `train.max_steps`; on the way log, validate, draw and save when each is due.

    Raises:
        TrainingStoppedError: after SIGTERM, with the state saved.
        NonFiniteError: after too many updates in a row that are not finite.
        ValidationError: if the validation loss measures nothing.
        CheckpointError: if a checkpoint could not be saved, or the last one not be copied.
        ShardError: if the dataset cannot be read.
    """
    with (
        telling_of_readers(),
        stop_requested() as stop,
        closing(open_feed(plan, state, device, stop)) as feed,
        recorder.saving(stop),
    ):
        try:
            step_to_the_end(plan.recipe, state, feed, device, recorder, stop)
        except StopRequestedError:
            stop.set()  # on every rank, and for the save
            recorder.save()
            raise TrainingStoppedError(
                f"stopped by SIGTERM at step {state.step}, saved; the same command resumes."
            ) from None


def open_feed(plan: Plan, state: TrainState, device: Device, stop: Stop) -> Feed:
    """The batches that follow. A stop ends the wait for data, but where ranks wait for each other in a pass, too."""
    ends_waits = not meets_in_a_pass(plan.recipe, device)
    return Feed(plan.train, plan.recipe, device, step=state.step, stop=stop if ends_waits else None)


def step_to_the_end(
    recipe: Recipe, state: TrainState, feed: Feed, device: Device, recorder: Recorder, stop: Stop
) -> None:
    """The loop itself.

    Raises:
        StopRequestedError: on all ranks after SIGTERM, between two steps or while it waited for data.
        NonFiniteError: if no update could be made.
    """
    gave_up = 0
    stepper = Stepper(state=state, feed=feed, recipe=recipe, device=device, say=recorder.say)
    report(state, recipe, recorder, stop, missing=True)
    if is_last(state, recipe):
        recorder.save()  # the run ended without its last checkpoint being everywhere where it should
    while state.step < recipe.train.max_steps:
        try:
            result = stepper.step()
        except NonFiniteError as error:
            gave_up = go_back_once(error, gave_up, state, feed, recorder)
            continue
        if due(state, recipe, recipe.log.every_steps) or state.step == 1:
            recorder.log(result, feed)
        report(state, recipe, recorder, stop)
        stopped = device.ranks.any(stop.is_set()) and not is_last(state, recipe)
        is_good = state.skipped_in_a_row == 0
        wanted = due(state, recipe, recipe.checkpoint.every_steps) or recorder.is_best()
        if (wanted and is_good and not stopped) or is_last(state, recipe):
            recorder.save()
        if stopped:
            raise StopRequestedError
    if state.skipped == state.step:
        raise NonFiniteError("every update was left out, none was finite: these are the weights that it began with.")


def report(state: TrainState, recipe: Recipe, recorder: Recorder, stop: Stop, *, missing: bool = False) -> None:
    """Validate and draw, when each is due; with `missing` only if a stop came before it, or nothing did."""
    if due(state, recipe, recipe.validation.every_steps) and not (missing and recorder.has_validated()):
        recorder.validate(stop)
    if due(state, recipe, recipe.log.images_every_steps) and not (missing and recorder.has_drawn()):
        recorder.draw(stop)


def go_back_once(error: NonFiniteError, gave_up: int, state: TrainState, feed: Feed, recorder: Recorder) -> int:
    """Go back to the last good checkpoint, unless the run got no further since it last did; the step that failed.

    Raises:
        NonFiniteError: that one, if it did not, or nothing good was saved.
    """
    failed = state.step
    if failed <= gave_up or not recorder.go_back(feed):
        raise NonFiniteError(
            f"{error} Start a new run in another folder, with a lower optim.lr or optim.grad_clip, or with "
            "train.precision=fp32."
        ) from error
    recorder.say(f"{error} Going back to step {state.step}, once.")
    feed.go_to(state.step)
    return failed


def check_ranks(recipe: Recipe, ranks: Ranks) -> None:
    """Whether the ranks can share the recipe's batches.

    Raises:
        DeviceError: if there are too many, or `methods`, whose BatchNorm meets once a micro-batch, would hang.
    """
    batch, world = recipe.train.global_batch, ranks.world_size
    if world > batch:
        raise DeviceError(f"{world} ranks cannot share a train.global_batch of {batch}: start fewer, or raise it.")
    if recipe.objective.name == "methods" and batch % world:
        raise DeviceError(f"`methods` needs as many volumes on each rank: {batch} do not divide by {world} ranks.")


def check_parts(recipe: Recipe, device: Device) -> None:
    """Whether a device of several parts can cut every micro-batch evenly; their shapes never change.

    Raises:
        DeviceError: if not.
    """
    micro, batch, parts = recipe.train.micro_batch, recipe.train.global_batch, device.parts
    if micro % parts or batch % micro % parts:
        raise DeviceError(
            f"{parts} XLA devices cannot share micro-batches of {micro} volumes of {batch}: set train.micro_batch and "
            f"train.global_batch to multiples of {parts}."
        )


def check_alike(plan: Plan, ranks: Ranks) -> None:
    """Whether all ranks are asked to do the same, on the same samples.

    Raises:
        RecipeError: if not, on all of them.
    """
    digest = lines_sha256([shared_sha256(plan.recipe), plan.dataset_sha256])
    if not ranks.agree(*(int(digest[place : place + 8], 16) for place in range(0, 64, 8))):
        raise RecipeError("ranks were given different recipes or datasets: start all of them by one command.")


def check_together(state: TrainState, ranks: Ranks) -> None:
    """Whether all ranks go on from the same step.

    Raises:
        RunFolderError: if they do not see one run folder.
    """
    if not ranks.agree(state.step):
        raise RunFolderError(
            f"rank {ranks.rank} would go on from step {state.step}, others from elsewhere: share --out."
        )


def due(state: TrainState, recipe: Recipe, every_steps: int) -> bool:
    """Every so many steps, and at the last."""
    return state.step % every_steps == 0 or is_last(state, recipe)


def is_last(state: TrainState, recipe: Recipe) -> bool:
    """Whether the run is over."""
    return state.step == recipe.train.max_steps


def describe(plan: Plan, state: TrainState, device: Device) -> Iterator[str]:
    """What a person should know before the run starts."""
    recipe, networks = plan.recipe, state.networks
    budget = recipe.objective
    yield (
        f"{recipe.name}: {budget.name} on {len(plan.train.samples)} volumes, {recipe.num_tokens} tokens each, "
        f"{budget.num_visible} visible and {budget.num_targets} predicted; "
        f"encoder {num_parameters(networks.context) / 1e6:.1f}M parameters, "
        f"predictor {num_parameters(networks.predictor) / 1e6:.1f}M; {device.kind} in {device.precision}"
    )
    if plan.dropped:
        yield f"left out, with too little content for the budgets: {', '.join(plan.dropped)}"
    if not plan.val.samples:
        yield (
            "NO VALIDATION: the dataset has no volume of the val split that passes the recipe's filters; no probe is "
            "scored, and no alarm says that the loss is flat"
        )
    yield from plan.probes.describe()
