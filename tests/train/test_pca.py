"""Pictures of features: what differs for the encoder has another colour."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

import train.report
from shards.schema import Sample
from train.config import Recipe
from train.device import Device
from train.feed import validation_batch
from train.objective import build_networks, encode_target
from train.pca import component_colours, save_components


def two_layers(sample: Sample) -> Sample:
    """Dark vitreous above, bright tissue below; the last quarter of W is padding."""
    volume = np.full(sample.volume.shape, 20, np.uint8)
    volume[:, 16:] = 200
    volume += np.random.default_rng(0).integers(0, 20, volume.shape, dtype=np.uint8)
    volume[:, :, 24:] = 0
    statistics = replace(sample.meta.intensity, mean=120.0, std=90.0)
    box = ((0, 8), (0, 32), (0, 24))
    return replace(sample, volume=volume, meta=replace(sample.meta, content_box=box, intensity=statistics))


@pytest.fixture
def drawn(
    make_recipe: object, recipe: Recipe, tiny_samples: list[Sample], cpu: Device, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[np.ndarray, Path]:  # fmt: skip
    """Colours of each voxel of the B-scans that were drawn, and the picture."""
    shown: list[np.ndarray] = []
    real = train.report._pair

    def pair(axes: object, grey: np.ndarray, coloured: np.ndarray, title: str) -> None:
        shown.append(coloured)
        real(axes, grey, coloured, title)

    monkeypatch.setattr(train.report, "_pair", pair)
    batch = validation_batch([two_layers(tiny_samples[0])], recipe, cpu)
    with torch.no_grad():
        tokens = encode_target(build_networks(recipe), batch.target_BDHW, batch.content_BN, batch.spacing_B3)
    save_components(tmp_path / "pca-00000000.png", batch, tokens, recipe, title="a volume")
    return np.stack(shown[:4]), tmp_path / "pca-00000000.png"


def test_two_layers_have_two_colours(drawn: tuple[np.ndarray, Path]) -> None:
    colours, path = drawn
    above, below = colours[:, :16, :24].reshape(-1, 3), colours[:, 16:, :24].reshape(-1, 3)
    apart = np.abs(above.mean(0) - below.mean(0)).max()
    assert apart > 0.6, "the components are of the layers"
    assert apart > 2 * max(above.std(0)[0], below.std(0)[0])
    assert below[:, 0].mean() > above[:, 0].mean(), "turned towards what is bright"
    assert not colours[:, :, 24:].any(), "padding is black"
    pixels = imread(path)
    assert pixels.shape[0] > 300
    assert (np.ptp(pixels[..., :3], axis=-1) > 0.3).mean() > 0.1


def test_signs_and_scales_of_features_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(50, 8, generator=generator) * torch.arange(1, 9)
    grey, content = torch.randn(50, generator=generator), torch.arange(50) < 40
    colours = component_colours(tokens, content, grey)
    torch.testing.assert_close(component_colours(-3 * tokens, content, grey), colours)
    assert not colours[40:].any()
    assert (colours.amin(), colours.amax()) == (0, 1)
    assert torch.isfinite(component_colours(torch.ones(50, 8), content, grey)).all()
