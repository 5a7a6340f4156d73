"""What a run leaves behind: rows, pictures, checkpoints and a summary."""

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from shards.reader import read_sample
from train.best import Best, find_best, read_best
from train.checkpoint import saved_steps
from train.device import Device
from train.diagnostics import alarms, rankme, weight_distance
from train.encoder import num_parameters
from train.feed import Feed, validation_batch
from train.flops import volume_flops
from train.objective import Batch, Networks, encode_target
from train.pca import save_components
from train.plan import Plan, go_back
from train.probe import LABEL, encode
from train.report import save_masks
from train.run_folder import RunFolder
from train.saver import open_saver
from train.schedules import learning_rate
from train.selfcheck import Motion, check_itself
from train.sharding import whole_networks
from train.signals import Stop
from train.snapshot import help_snapshot
from train.step import StepResult, TrainState
from train.tracking import Tracker
from train.validation import check_varies, validate

LEAST_RATE: Final = 1e-7
"""AdamW moves a weight by about the rate; with less, float32 weights of 0.1 and their loss may stay as they are."""


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
        self._tracker = Tracker(run, plan.recipe, self._dataset(), self.say) if device.ranks.is_first else None
        self._saver = open_saver(plan, run, state, self._tracker, self.say) if self._tracker else None
        self._motion, self._scored = Motion.of(state.networks), (state.step, state.skipped)
        self._saved_step: int | None = None
        self._proof: Mapping[str, float] = {}
        self.rows = run.rows()
        self._settle_best()
        if len(self._plan.probes.alike(LABEL, self.rows)) < len(self.rows):
            self.say("the labels are not those of earlier validations: scores on them are not compared with ours.")
        self._validating_s = self._probing_s = 0.0
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
            **self._proof,
        }
        self._publish(row)
        self._proof = {}
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

        Without any, what the self-check finds stands in the next row of training.

        Raises:
            StopRequestedError: on all ranks, if one is asked to stop; nothing is recorded.
        """
        stop, began = stop or Stop(), time.perf_counter()
        networks = whole_networks(self._state.networks, self._plan.recipe)
        if self._plan.val.samples:
            self._score(networks, stop)
        else:
            self._proof = self._check_itself(networks, stop)
        self._mark += time.perf_counter() - began
        self._validating_s += time.perf_counter() - began

    def _score(self, networks: Networks, stop: Stop) -> None:
        """A row about the held-out volumes."""
        state, recipe = self._state, self._plan.recipe
        summary, pooled_VC = validate(networks, self._plan.val, recipe, self._device, stop)
        previous = [row["loss"] for row in self.rows if row["split"] == "val" and row["step"] < state.step]
        check_varies(summary["loss"], state.step, previous=previous[-1] if previous and self._has_learned() else None)
        self._scored = state.step, state.skipped
        samples = state.step * recipe.train.global_batch
        proof, probes = self._check_itself(networks, stop), self._probe(networks, pooled_VC, stop)
        self._publish({"split": "val", "step": state.step, "samples": samples, **summary, **proof, **probes})

    def _check_itself(self, networks: Networks, stop: Stop) -> Mapping[str, float]:
        with stop.agreed(self._device.ranks), stop.ending_waits():
            return check_itself(networks, self._plan.train, self._plan.recipe, self._device)

    def _has_learned(self) -> bool:
        """Whether an update that moves weights was made since the last validation, or since the process began."""
        (step, skipped), state, recipe = self._scored, self._state, self._plan.recipe
        all_left_out = state.skipped - skipped >= state.step - step
        rates = (learning_rate(one, recipe.train.max_steps, recipe.optim) for one in range(step, state.step))
        return not all_left_out and any(rate > LEAST_RATE for rate in rates)

    def _probe(self, networks: Networks, pooled_VC: Tensor, stop: Stop) -> Mapping[str, float | str | None]:
        """What the features of held-out volumes say of them, beside chance and beside a random encoder's."""
        probes, began = self._plan.probes, time.perf_counter()
        if not probes.tasks:
            return probes.unasked
        fitted_VC = encode(networks, probes.fitted, self._plan.recipe, self._device, stop)
        scores = probes.scores(fitted_VC, pooled_VC.cpu().double())
        self._probing_s += time.perf_counter() - began
        starts = {f"probe_{task.name}_start": self._start(task.name, scores) for task in probes.tasks}
        of: dict[str, str] = {"probe_label_sha256": probes.labels_sha256} if probes.labels_sha256 else {}
        return {**probes.unasked, **scores, **starts, **of}

    def _start(self, name: str, scores: Mapping[str, float | None]) -> float | None:
        """What a probe scored at step 0, on the same labels."""
        before = [row for row in self._plan.probes.alike(name, self.rows) if (row["split"], row["step"]) == ("val", 0)]
        first = scores if self._state.step == 0 else before[0] if before else {}
        return first.get(f"probe_{name}")

    def is_best(self) -> bool:
        """Whether the validation of this step scored higher than that of any checkpoint that is kept.

        As the first rank sees it, which alone has saved them.
        """
        measure = self._plan.best
        now = find_best(self.rows[-1:], measure, {self._state.step}) if measure else None
        if now is None:  # also after a step without a validation: it waits for no save
            return False
        if self._saver:
            self._saver.finish()  # the one in flight may be the best so far
            self._settle_best()
        self._device.ranks.wait()
        is_higher = self.best is None or now.value > self.best.value
        return self._device.ranks.any(is_higher and self._device.ranks.is_first)

    def _settle_best(self) -> None:
        """Look which of the checkpoints that are there is the best, and say so in `best.json`.

        A run that goes on without its labels chooses no other, and keeps the one that it has while it is there.
        """
        known, measure = read_best(self._run.path), self._plan.best
        steps = saved_steps(self._run.checkpoints)
        if measure is None and known is not None:
            measure, steps = known.measure, steps & {known.step}
        rows = self._plan.probes.alike((measure or "").removeprefix("probe_"), self.rows)
        rowless = known if self._has_no_row(known, measure, steps) else None
        self.best = find_best(rows, measure, steps, rowless=rowless) if measure else None
        if self._tracker is not None and self.best != known:
            self._run.write_best(self.best)

    def _has_no_row(self, known: Best | None, measure: str | None, steps: Collection[int]) -> bool:
        """Whether what was the best is still there, and only its row was lost."""
        return (
            known is not None
            and known.measure == measure
            and not (measure == f"probe_{LABEL}" and self._plan.probes.labels_sha256)  # of which labels, the row said
            and known.step in steps
            and known.step <= self._state.step
            and not any(row["split"] == "val" and row["step"] == known.step for row in self.rows)
        )

    def has_drawn(self) -> bool:
        """Whether every rank sees the pictures of this step."""
        return not self._device.ranks.any(not all(path.exists() for path in self._pictures))

    def draw(self, stop: Stop | None = None) -> None:
        """Pictures of one volume, with its masks and with its features: always the same one, held out if possible.

        Raises:
            StopRequestedError: on all ranks, if one is asked to stop; nothing is drawn.
        """
        began = time.perf_counter()
        self._draw(stop or Stop())
        self._mark += time.perf_counter() - began

    def _draw(self, stop: Stop) -> None:
        dataset = self._plan.val if self._plan.val.samples else self._plan.train
        with stop.agreed(self._device.ranks), stop.ending_waits():
            sample = read_sample(dataset, dataset.samples[0]) if self._device.ranks.is_first else None
        networks = whole_networks(self._state.networks, self._plan.recipe)
        if self._tracker is None or sample is None:
            return
        recipe, step, (masks, components) = self._plan.recipe, self._state.step, self._pictures
        batch, title = validation_batch([sample], recipe, self._device), f"{sample.key}, step {step}"
        save_masks(masks, batch, recipe, title=title)
        save_components(components, batch, self._features(networks, batch), recipe, title=title)
        for path in (masks, components):
            self._tracker.picture(path, step)

    @property
    def _pictures(self) -> tuple[Path, Path]:
        names = (f"{name}-{self._state.step:08d}.png" for name in ("masks", "pca"))
        masks, components = (self._run.media / name for name in names)
        return masks, components

    @torch.no_grad()
    def _features(self, networks: Networks, batch: Batch) -> Tensor:
        """The target's tokens, float32 `[B, N, C]` on the CPU."""
        networks.eval()
        with self._device.autocast():
            tokens_BNC = encode_target(networks, batch.target_BDHW, batch.content_BN, batch.spacing_B3)
        networks.train()
        return tokens_BNC.cpu()

    def saving(self, stop: Stop) -> AbstractContextManager[None]:
        """While the loop runs, which `stop` ends; afterwards all is saved, or a CheckpointError raised."""
        return self._saver.running(stop) if self._saver else nullcontext()

    def save(self) -> None:
        """A checkpoint of the state as it is, the same on every rank; done when told to stop, else on its way."""
        is_saved, self._saved_step = self._saved_step == self._state.step, self._state.step
        began = time.perf_counter()
        if self._saver:
            self._saver.finish()
        self._device.ranks.wait()
        if self._saver is None:
            if not is_saved:
                help_snapshot(self._state)
            return
        self._settle_best()
        if not is_saved:
            self._saver.save(best=self.best.step if self.best else None)
            self._settle_best()
        self._mark += time.perf_counter() - began

    def go_back(self, feed: Feed) -> bool:
        """Put the state, and what was recorded, back to before the updates that were left out, if that is saved."""
        if self._saver:
            self._saver.finish()
        self._device.ranks.wait()  # no rank looks for the newest checkpoint before it is there
        went = go_back(self._run, self._state, self._device)
        if went and self._saver:
            self._saver.forget_after(self._state.step)
        self._saved_step = None
        self.rows = self._run.rows()
        self._settle_best()
        self._motion, self._scored = Motion.of(self._state.networks), (self._state.step, self._state.skipped)
        self._marked_step, self._marked_wait_s = self._state.step, feed.waited_s
        self._mark = time.perf_counter()
        return went

    def close(self, status: str, *, failed: bool = False) -> dict[str, Any]:
        """Write the summary, and end the W&B run."""
        self._settle_best()
        summary = self.summary(status)
        if self._tracker is not None:
            try:
                self._run.write_summary(summary)
            finally:
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
            "seconds_validating": self._validating_s,
            "seconds_probing": self._probing_s,
            "save_wait_s": self._saver.held_s if self._saver else 0.0,
            "copies_failed": self._saver.copier.failed if self._saver and self._saver.copier else 0,
            "num_train": len(self._plan.train.samples),
            "num_val": len(self._plan.val.samples),
            "dropped": list(self._plan.dropped),
            "dataset": self._dataset(),
            "skipped": state.skipped,
            "parameters": {
                "encoder": num_parameters(networks.context),
                "predictor": num_parameters(networks.predictor),
            },
            "alarms": sorted({alarm for row in self.rows for alarm in row["alarms"]}),
            "train": {"first": train[0], "last": train[-1]} if train else None,
            "validation": {"first": val[0], "last": val[-1]} if val else "none",
            "best": self.best.to_json() if self.best else None,
        }

    def _dataset(self) -> dict[str, Any]:
        """What became of the files of the dataset, and the volumes of this run by split and device."""
        parts = {"train": self._plan.train, "val": self._plan.val}
        devices = {split: dict(Counter(row.device for row in part.samples)) for split, part in parts.items()}
        return {**self._plan.train.info.get("counts", {}), "used": devices}

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
