"""One optimizer step: forward, backward, measure, clip, move, follow.

Shapes: B volumes, N tokens, V recent volumes, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from train.device import Device
from train.diagnostics import Measures, measure, summarise
from train.errors import DeviceError, MemoryTooSmallError, MicroBatchError, NonFiniteError, TrainError
from train.objective import Batch, Networks, build_networks, compile_blocks, evaluate
from train.schedules import build_optimizer, ema_momentum, learning_rate, move_target
from train.sharding import check_sharding, clip, is_sharded, shard
from train.signals import StopRequestedError

if TYPE_CHECKING:  # pydantic, which a step does not need
    from train.config import Recipe

WINDOW: Final = 64  # volumes; a batch alone is too small to show a rank


@dataclass(slots=True, kw_only=True)
class TrainState:
    """All that changes while training, and all that a checkpoint holds. `step` counts updates, also skipped ones."""

    networks: Networks
    optimizer: torch.optim.AdamW
    recent_VC: Tensor  # on the CPU: the target's pooled features of the latest volumes, for the rank across them
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """Measurements of one step, over the whole batch."""

    summary: dict[str, float]
    grad_norm: float
    lr: float
    momentum: float
    applied: bool


def start_state(recipe: Recipe, device: Device) -> TrainState:
    """Initial weights of the recipe's seed, and an empty optimizer, on the device.

    Raises:
        DeviceError: if blocks should be compiled for a device that compiles all that it does, or weights be sharded
            where they cannot be.
        TrainError: if memory is too small for the weights.
    """
    try:
        with device.telling_memory():
            networks = build_networks(recipe).to(device.torch_device).train()
    except MemoryTooSmallError as error:
        raise TrainError(
            f"the networks alone do not fit into memory ({error}): choose a smaller model.preset, or a larger device."
        ) from error
    if recipe.train.compile:
        if device.is_lazy:
            raise DeviceError("train.compile is true, and XLA compiles by itself: set train.compile=false.")
        compile_blocks(networks)
    check_sharding(recipe, device)
    if is_sharded(recipe, device):
        shard(networks, device)
    return TrainState(
        networks=networks,
        optimizer=build_optimizer([networks.context, networks.predictor], recipe.optim, is_lazy=device.is_lazy),
        recent_VC=torch.zeros(0, networks.target.dim),
    )


def train_step(state: TrainState, batches: Iterable[Batch], recipe: Recipe, device: Device) -> StepResult:
    """`try_step`, and an update that is not finite is left out and counted.

    Raises:
        NonFiniteError: after `train.max_nonfinite` such updates in a row.
    """
    result = try_step(state, batches, recipe, device)
    if not result.applied:
        skip_step(state, recipe, result)
    return result


def try_step(state: TrainState, batches: Iterable[Batch], recipe: Recipe, device: Device) -> StepResult:
    """Accumulate the batch, then update the weights and the target once; not at all if the update is not finite.

    Each micro-batch counts by its number of volumes, so the gradient is the mean over the whole batch however it is
    cut and over however many ranks. The gradient's norm is that before clipping.

    Raises:
        MicroBatchError: on all ranks, if memory was too small on one; nothing has changed.
        StopRequestedError: on all ranks, if one was asked to stop while it waited for data; nothing has changed.
        TrainError: on the rank whose memory was too small, where ranks meet within a pass; the others wait in vain.
            Or if memory is too small for an update, whatever the micro-batch.
    """
    state.optimizer.zero_grad(set_to_none=True)
    buffers = [buffer.clone() for buffer in state.networks.buffers()]  # BatchNorm's, which a forward pass moves
    ranks, total = device.ranks, recipe.train.global_batch
    measures, said, stopped = [], "", False
    try:
        with device.telling_memory():
            measures = _accumulate(state, batches, recipe, device)
    except MemoryTooSmallError as error:
        said = str(error)
        _end_if_others_wait(said, recipe, device)
    except StopRequestedError:
        stopped = True
    too_large, stopped = ranks.any_of(bool(said), stopped)
    if too_large or stopped:
        _put_back(state, buffers)
        raise StopRequestedError if stopped else MicroBatchError(said or "memory was too small on another rank")
    if not is_sharded(recipe, device):  # else the backward pass did
        ranks.add_up([one.grad for one in state.networks.learned_parameters() if one.grad is not None])
    result = _update(state, summarise(measures, ranks), recipe, device)
    if result.applied:
        vectors_VC = ranks.gather(torch.cat([one.pooled_BC.cpu() for one in measures]), total)
        state.recent_VC = torch.cat([state.recent_VC, vectors_VC])
        state.recent_VC = state.recent_VC[max(0, len(state.recent_VC) - WINDOW) :]
        state.step += 1
        state.skipped_in_a_row = 0
    else:
        _put_back(state, buffers)
    return result


def _accumulate(state: TrainState, batches: Iterable[Batch], recipe: Recipe, device: Device) -> list[Measures]:
    measures = []
    for batch in batches:
        with device.autocast():
            outcome = evaluate(state.networks, batch)
        torch.autograd.backward(outcome.total_loss * len(batch.content_BN) / recipe.train.global_batch)
        measures.append(measure(outcome, batch))
        device.send_off()
    return measures


def meets_in_a_pass(recipe: Recipe, device: Device) -> bool:
    """Whether ranks wait for each other within a pass: in BatchNorm, and for weights that are sharded."""
    return not device.ranks.is_alone and (recipe.objective.name == "methods" or is_sharded(recipe, device))


def _end_if_others_wait(said: str, recipe: Recipe, device: Device) -> None:
    """They do so in a pass of their own: there is no vote, and nothing can be done again."""
    if meets_in_a_pass(recipe, device):
        raise TrainError(
            f"a micro-batch does not fit into memory ({said}), and ranks that meet in a pass cannot halve it: set "
            f"train.micro_batch below {recipe.train.micro_batch}, or train.recompute=true, and the same command "
            "resumes."
        )


def _put_back(state: TrainState, buffers: Sequence[Tensor]) -> None:
    state.optimizer.zero_grad(set_to_none=True)
    for buffer, before in zip(state.networks.buffers(), buffers, strict=True):
        buffer.copy_(before)


def _update(state: TrainState, summary: dict[str, float], recipe: Recipe, device: Device) -> StepResult:
    lr = learning_rate(state.step, recipe.train.max_steps, recipe.optim)
    momentum = ema_momentum(state.step, recipe.train.max_steps, recipe.optim)
    grad_norm = clip(state.networks.learned_parameters(), recipe.optim.grad_clip)
    applied = math.isfinite(summary["loss"]) and math.isfinite(grad_norm)
    if applied:
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        try:
            with device.telling_memory():
                state.optimizer.step()
        except MemoryTooSmallError as error:
            raise TrainError(
                f"gradients fit into memory and the optimizer's moments do not ({error}): choose a smaller "
                "model.preset, train.shard=true over several devices, or a larger device."
            ) from error
        move_target(state.networks.target, state.networks.context, momentum, is_lazy=device.is_lazy)
    device.send_off()
    return StepResult(summary=summary, grad_norm=grad_norm, lr=lr, momentum=momentum, applied=applied)


def skip_step(state: TrainState, recipe: Recipe, result: StepResult) -> None:
    """Go on without an update that is not finite.

    Raises:
        NonFiniteError: after `train.max_nonfinite` in a row.
    """
    state.step += 1
    state.skipped += 1
    state.skipped_in_a_row += 1
    if state.skipped_in_a_row >= recipe.train.max_nonfinite:
        raise NonFiniteError(
            f"{state.skipped_in_a_row} updates in a row up to step {state.step} were not finite "
            f"(loss {result.summary['loss']}, gradient norm {result.grad_norm})."
        )
