"""What a run leaves behind: rows, pictures, checkpoints and a summary."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.reader import read_sample
from train.checkpoint import save_checkpoint
from train.device import Device
from train.diagnostics import alarms, rankme, weight_distance
from train.encoder import num_parameters
from train.feed import Feed, validation_batch
from train.flops import volume_flops
from train.plan import Plan, go_back
from train.report import save_masks
from train.run_folder import RunFolder
from train.selfcheck import Motion, check_itself
from train.signals import Stop
from train.step import StepResult, TrainState
from train.tracking import Tracker
from train.validation import check_varies, validate


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Who hears what happens: each row of `metrics.jsonl`, and sentences for people."""

    row: Callable[[Mapping[str, Any]], None] = lambda _row: None
    say: Callable[[str], None] = lambda _sentence: None


class Recorder:
    """Writes the run folder, and tells the listener and W&B: the first rank; the others measure with it."""

    def __init__(
        self, plan: Plan, run: RunFolder, state: TrainState, device: Device, listener: Listener | None = None
    ) -> None:
        self._plan, self._run, self._state, self._device = plan, run, state, device
        self._listener = listener or Listener()
        self.say = self._listener.say
        self._tracker = Tracker(run, plan.recipe) if device.ranks.is_first else None
        self._motion = Motion.of(state.networks)
        self.rows = run.rows()
        self._began = self._mark = time.perf_counter()
        self._marked_step, self._marked_wait_s = state.step, 0.0

    def log(self, result: StepResult, feed: Feed) -> None:
        """A row about the step just made, with the throughput since the row before."""
        state, recipe = self._state, self._plan.recipe
        elapsed = time.perf_counter() - self._mark
        volumes = (state.step - self._marked_step) * recipe.train.global_batch
        row = {
            "split": "train",
            "step": state.step,
            "samples": state.step * recipe.train.global_batch,
            "epoch": feed.epoch,
            **result.summary,
            "rankme": float(rankme(state.recent_VC)),
            "lr": result.lr,
            "grad_norm": result.grad_norm,
            "ema_momentum": result.momentum,
            "target_context_distance": float(weight_distance(state.networks.target, state.networks.context)),
            "volumes_per_s": volumes / elapsed,
            **self._arithmetic(volumes / elapsed),
            "data_wait": (feed.waited_s - self._marked_wait_s) / elapsed,
            "skipped": state.skipped,
            "micro_batch": feed.micro_batch,
            "peak_memory_bytes": self._device.peak_memory_bytes(),
            **self._motion.look(state.networks),
        }
        self._publish(row)
        self._marked_step, self._marked_wait_s = state.step, feed.waited_s
        self._mark = time.perf_counter()

    def _arithmetic(self, volumes_per_s: float) -> dict[str, float]:
        """TFLOP/s of this run's model, and the share of what its devices could do, where that is known."""
        flops, peak = volumes_per_s * volume_flops(self._plan.recipe), self._device.peak_flops
        ranks = self._device.ranks.world_size
        return {"tflops": flops / 1e12} | ({"mfu": flops / (peak * ranks)} if peak else {})

    def has_validated(self) -> bool:
        """Whether every rank sees a row about the held-out volumes at this step."""
        found = any(row["split"] == "val" and row["step"] == self._state.step for row in self.rows)
        return not self._device.ranks.any(not found)

    def validate(self, stop: Stop | None = None) -> None:
        """Score the held-out volumes, if there are any, and refuse a score that measures nothing.

        Raises:
            StopRequestedError: on all ranks, if one is asked to stop; nothing is recorded.
        """
        if not self._plan.val.samples:
            return
        stop = stop or Stop()
        began = time.perf_counter()
        state, recipe = self._state, self._plan.recipe
        summary = validate(state.networks, self._plan.val, recipe, self._device, stop)
        previous = [row["loss"] for row in self.rows if row["split"] == "val" and row["step"] < state.step]
        check_varies(summary["loss"], state.step, previous=previous[-1] if previous else None)
        samples = state.step * recipe.train.global_batch
        with stop.agreed(self._device.ranks), stop.ending_waits():
            proof = check_itself(state.networks, self._plan.train, recipe, self._device)
        self._publish({"split": "val", "step": state.step, "samples": samples, **summary, **proof})
        self._mark += time.perf_counter() - began

    def has_drawn(self) -> bool:
        """Whether every rank sees a picture of this step."""
        return not self._device.ranks.any(not self._picture.exists())

    def draw(self, stop: Stop | None = None) -> None:
        """A picture of one volume with its masks: always the same one, held out if there are such.

        Raises:
            StopRequestedError: on all ranks, if one is asked to stop; nothing is drawn.
        """
        stop = stop or Stop()
        dataset = self._plan.val if self._plan.val.samples else self._plan.train
        with stop.agreed(self._device.ranks), stop.ending_waits():
            sample = read_sample(dataset, dataset.samples[0]) if self._device.ranks.is_first else None
        if self._tracker is None or sample is None:
            return
        batch = validation_batch([sample], self._plan.recipe, self._device)
        save_masks(self._picture, batch, self._plan.recipe, title=f"{sample.key}, step {self._state.step}")
        self._tracker.picture(self._picture, self._state.step)

    @property
    def _picture(self) -> Path:
        return self._run.media / f"masks-{self._state.step:08d}.png"

    def save(self) -> None:
        """A checkpoint of the state as it is, the same on every rank."""
        if self._tracker is None:
            return
        began = time.perf_counter()
        save_checkpoint(
            self._run.checkpoints,
            self._state,
            self._plan.recipe,
            dataset_sha256=self._plan.dataset_sha256,
            keep=self._plan.recipe.checkpoint.keep,
        )
        self._mark += time.perf_counter() - began

    def go_back(self) -> bool:
        """Put the state, and what was recorded, back to before the updates that were left out, if that is saved."""
        went = go_back(self._run, self._state, self._device)
        self.rows = self._run.rows()
        self._motion = Motion.of(self._state.networks)
        self._marked_step, self._mark = self._state.step, time.perf_counter()
        return went

    def close(self, status: str, *, failed: bool = False) -> dict[str, Any]:
        """Write the summary, and end the W&B run."""
        summary = self.summary(status)
        if self._tracker is not None:
            self._run.write_summary(summary)
            self._tracker.close(failed=failed)
        return summary

    def summary(self, status: str) -> dict[str, Any]:
        """The run in one object: what it is, how far it came, and its last measures."""
        state, recipe = self._state, self._plan.recipe
        networks, step = state.networks, state.step
        train, val = ([row for row in self.rows if row["split"] == split] for split in ("train", "val"))
        return {
            "status": status,
            "recipe": recipe.name,
            "recipe_sha256": recipe.hash(),
            "dataset_sha256": self._plan.dataset_sha256,
            "device": self._device.kind,
            "precision": self._device.precision,
            "ranks": self._device.ranks.world_size,
            "step": step,
            "samples": step * recipe.train.global_batch,
            "epochs": step * recipe.train.global_batch / len(self._plan.train.samples),
            "seconds": time.perf_counter() - self._began,
            "num_train": len(self._plan.train.samples),
            "num_val": len(self._plan.val.samples),
            "dropped": list(self._plan.dropped),
            "skipped": state.skipped,
            "parameters": {
                "encoder": num_parameters(networks.context),
                "predictor": num_parameters(networks.predictor),
            },
            "alarms": sorted({alarm for row in self.rows for alarm in row["alarms"]}),
            "train": {"first": train[0], "last": train[-1]} if train else None,
            "validation": {"first": val[0], "last": val[-1]} if val else "none",
        }

    def _publish(self, measured: Mapping[str, Any]) -> None:
        """Send a row everywhere; JSON has no NaN, so what is not finite becomes null."""
        known = {**measured, "alarms": alarms(measured, self._plan.recipe)}
        row = {name: None if _is_not_finite(value) else value for name, value in known.items()}
        self.rows.append(row)
        if self._tracker is not None:
            self._run.append_row(row)
            self._tracker.row(row)
            self._listener.row(row)


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
