"""Batches of a run: samples, one geometry each, masks, two views, and how long the loop waited for them."""

import time
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from shards.loader import Loader
from shards.order import Place, RunOrder
from shards.reader import Dataset
from shards.schema import Sample
from train.augment import jitter
from train.config import Recipe
from train.data import blank_padding, content_tokens, prepare
from train.device import Device
from train.masks import TokenMasks, least_content, plan_masks, stack_masks
from train.move import draw_move, move_sample
from train.objective import Batch
from train.presets import dimensions
from train.seeding import generator
from train.signals import Stop


class Feed:
    """Micro-batches of one optimizer step after another, a pure function of the recipe, dataset and step.

    Whatever the ranks, their reader processes and the size of a micro-batch: a step has the same samples, and each of
    them the same shift, masks, contrast and noise.
    """

    def __init__(
        self, dataset: Dataset, recipe: Recipe, device: Device, *, step: int, stop: Stop | None = None
    ) -> None:
        """Start after `step` updates; `stop` ends the wait for data."""
        sizes, ranks = recipe.train, device.ranks
        order = RunOrder(
            rows=dataset.samples,
            seed=sizes.seed,
            batch=sizes.global_batch,
            rank=ranks.rank,
            world_size=ranks.world_size,
        )
        self._recipe = recipe
        self._device = device
        self._stop = stop or Stop()
        self._loader = Loader(dataset, order, workers=recipe.data.workers, start=step * sizes.global_batch)
        self.micro_batch = sizes.micro_batch
        self.waited_s = 0.0
        self.epoch = 0

    def go_to(self, step: int) -> None:
        """Do the step after `step` updates next, again or not."""
        self._loader.load_state_dict({"samples": step * self._recipe.train.global_batch})

    def step_batches(self) -> Iterator[Batch]:
        """The micro-batches of this rank's part of a step; the last is smaller when they do not divide it.

        Raises:
            StopRequestedError: before each of them, and while it is waited for.
        """
        samples = self._loader.batch()
        began = time.perf_counter()
        while drawn := self._draw(samples):
            moved = move_and_mask(drawn, self._recipe)
            self.epoch = drawn[-1][0]
            self.waited_s += time.perf_counter() - began  # what follows waits for the device, or is its work
            yield _batch(*moved, self._recipe, self._device, [epoch for epoch, _ in drawn])
            began = time.perf_counter()

    def _draw(self, samples: Iterator[tuple[Place, Sample]]) -> list[tuple[int, Sample]]:
        with self._stop.ending_waits():
            return [(place.epoch, sample) for place, sample in islice(samples, self.micro_batch)]

    def close(self) -> None:
        """End the reader processes."""
        self._loader.close()


def training_batch(drawn: Sequence[tuple[int, Sample]], recipe: Recipe, device: Device) -> Batch:
    """A batch for learning: each sample is moved once, then both views are made from that one volume.

    Args:
        drawn: epoch and sample.
        recipe: budgets, augmentation and seed.
        device: where the batch goes.
    """
    return _batch(*move_and_mask(drawn, recipe), recipe, device, [epoch for epoch, _ in drawn])


def move_and_mask(drawn: Sequence[tuple[int, Sample]], recipe: Recipe) -> tuple[list[Sample], list[TokenMasks]]:
    """The host's part of a batch."""
    samples = [_move(sample, recipe, epoch) for epoch, sample in drawn]
    masks = [
        plan_masks(
            recipe, content_tokens(sample.meta, recipe), generator(recipe.train.seed, "masks", epoch, sample.key)
        )
        for (epoch, _), sample in zip(drawn, samples, strict=True)
    ]
    return samples, masks


def validation_batch(samples: Sequence[Sample], recipe: Recipe, device: Device) -> Batch:
    """A batch for scoring: no augmentation, and masks that depend on the key alone, in every run and at every step."""
    masks = [
        plan_masks(recipe, content_tokens(sample.meta, recipe), generator(0, "validation", sample.key))
        for sample in samples
    ]
    return _batch(samples, masks, recipe, device, None)


def _batch(
    samples: Sequence[Sample], masks: Sequence[TokenMasks], recipe: Recipe, device: Device, epochs: list[int] | None
) -> Batch:
    prepared = prepare(samples, recipe, device.torch_device)
    context, scale_BL2 = prepared.x_BDHW, None
    if epochs is not None:
        keys = [sample.key for sample in samples]
        context = jitter(context, recipe.augment, keys, recipe.train.seed, epochs, device)
        if context is not prepared.x_BDHW:  # a brightness that padding had, too, could be read from it
            context = blank_padding(context, samples, recipe)
        scale_BL2 = draw_depth(recipe, keys, epochs)
    return Batch.build(
        views=(context, prepared.x_BDHW),
        content_BN=prepared.content_BN,
        spacing_B3=prepared.spacing_B3,
        masks=stack_masks(masks),
        scale_BL2=scale_BL2,
    ).over(device)


def draw_depth(recipe: Recipe, keys: Sequence[str], epochs: Sequence[int]) -> Tensor | None:
    """Factors of both parts of each block, float32 `[B, L, 2]`: 0 where a volume skips it; None without `drop_path`."""
    rate, depth = recipe.model.drop_path, dimensions(recipe.model).depth
    if not rate:
        return None
    stays_L1 = 1 - rate * np.linspace(0, 1, depth)[:, None]
    draws = [generator(recipe.train.seed, "depth", *pair).random((depth, 2)) for pair in zip(epochs, keys, strict=True)]
    return torch.from_numpy(((np.stack(draws) < stays_L1) / stays_L1).astype(np.float32))


def _move(sample: Sample, recipe: Recipe, epoch: int) -> Sample:
    """The moved sample, or the sample as it is where the move would leave too little content."""
    moved = move_sample(sample, draw_move(recipe.augment, recipe.train.seed, epoch, sample.key))
    return moved if content_tokens(moved.meta, recipe).sum() >= least_content(recipe) else sample
