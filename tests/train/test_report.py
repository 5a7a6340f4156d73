"""Pictures of masks: the colours are where the tokens are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.image import imread

from shards.schema import Sample
from train.config import Recipe
from train.device import Device
from train.feed import training_batch
from train.objective import Batch
from train.report import CONTEXT, HIDDEN, PADDING, TARGET, overlay, save_masks, token_labels


def test_every_token_is_labelled_by_its_use(recipe: Recipe, tiny_samples: list[Sample], cpu: Device) -> None:
    sample = replace(tiny_samples[0], meta=replace(tiny_samples[0].meta, content_box=((0, 8), (0, 24), (0, 30))))
    batch = training_batch([(0, sample)], recipe, cpu)
    labels = token_labels(batch, 0)
    assert (labels == PADDING).sum() == 16
    assert (labels == TARGET).sum() == recipe.objective.num_targets
    num_hidden = 48 - 16 if recipe.objective.name == "vjepa" else round(0.6 * 48)
    assert (labels == CONTEXT).sum() == 48 - num_hidden
    assert (labels == HIDDEN).sum() == num_hidden - recipe.objective.num_targets


def test_a_tint_keeps_the_picture_beneath() -> None:
    grey = np.linspace(-1, 2, 16, dtype=np.float32).reshape(4, 4)
    red, green = overlay(grey, np.full((4, 4), TARGET)), overlay(grey, np.full((4, 4), CONTEXT))
    assert red[..., 0].mean() > red[..., 1].mean()
    assert green[..., 1].mean() > green[..., 0].mean()
    assert np.corrcoef(red.mean(-1).ravel(), grey.ravel())[0, 1] > 0.999


def test_the_picture_is_a_png_with_all_colours(recipe: Recipe, batch: Batch, tmp_path: Path) -> None:
    path = tmp_path / "masks-00000000.png"
    save_masks(path, batch, recipe, title="a volume")
    pixels = imread(path)
    assert pixels.shape[0] > 300
    reddish = (pixels[..., 0] > pixels[..., 1] + 0.15) & (pixels[..., 0] > pixels[..., 2] + 0.1)
    greenish = (pixels[..., 1] > pixels[..., 0] + 0.1) & (pixels[..., 2] > pixels[..., 0] + 0.1)
    assert reddish.mean() > 0.01
    assert greenish.mean() > 0.01
