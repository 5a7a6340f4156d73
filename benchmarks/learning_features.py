"""What `learning.py` looks at: features of encoders, pixels and A-scans, and how much of features is what."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from scipy.stats import entropy
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from torch.nn.functional import avg_pool3d, pad

from shards.reader import Dataset
from shards.schema import Sample
from train.checkpoint import Which, load_encoder
from train.config import Recipe
from train.data import prepare
from train.encoder import Encoder
from train.features import pooled_features

COMPONENTS: Final = 32
BATCH: Final = 8
EDGE: Final = 8
"""Voxels of 6 um on each side of an edge that are compared."""
ABOVE: Final = 50
BELOW: Final = 14
"""Voxels of an aligned A-scan above and below the retina's lower edge: up to the inner nuclear layer and over it."""


def encoded(run: Path, which: Which, samples: Sequence[Sample]) -> np.ndarray:
    """Features of the newest checkpoint of a run."""
    encoder, recipe = load_encoder(run, which=which)
    return features(encoder, recipe, samples)


def features(encoder: Encoder, recipe: Recipe, samples: Sequence[Sample]) -> np.ndarray:
    """Mean of content tokens, float64 `[N, C]`: what `fovea embed` stores."""
    return pooled_features(encoder, recipe, samples, torch.device("cpu")).double().numpy()


class Repeating(NamedTuple):
    """What of features is there again when the same eyes are taken once more."""

    share: float
    """Of their variance."""
    directions: float
    """In how many it lies; a mean where it is over seeds."""
    rank: float
    """RankMe of those directions alone."""


def repeating(one: np.ndarray, other: np.ndarray) -> Repeating:
    """What of features `[N, C]` is there again in those of other takes of the same eyes.

    What is each take's own adds nothing to their covariance but chance, which is as often negative: directions are
    its eigenvalues over twice the most negative one. That is cross-validated PCA (Stringer et al. 2019,
    "High-dimensional geometry of population responses in visual cortex").
    """
    first, second = one - one.mean(0), other - other.mean(0)
    shared = (first.T @ second + second.T @ first) / 2
    eigenvalues = np.linalg.eigvalsh(shared)
    share = np.trace(shared) / ((first**2).sum() + (second**2).sum()) * 2
    found = eigenvalues[eigenvalues > 2 * abs(min(eigenvalues[0], 0.0))]
    rank = np.exp(entropy(np.sqrt(found))) if len(found) else 0.0
    return Repeating(float(share), len(found), float(rank))


def components(dataset: Dataset, recipe: Recipe, samples: Sequence[Sample]) -> np.ndarray:
    """Coordinates of pooled, normalised volumes along the principal components of the training half."""
    pixels = torch.cat([x.flatten(1) for x in _volumes(recipe, samples)])
    is_train = torch.tensor([row.split == "train" for row in dataset.samples])
    centred = pixels - pixels[is_train].mean(0)
    *_, directions = torch.linalg.svd(centred[is_train], full_matrices=False)
    return (centred @ directions[:COMPONENTS].T).double().numpy()


def profiles(recipe: Recipe, samples: Sequence[Sample]) -> np.ndarray:
    """What there is to be found: A-scans averaged by 4 x 8, aligned at the lower edge, and their mean."""
    found = []
    for x_BDHW in _volumes(recipe, samples):
        scans_BSH, edge_BS = lower_edge(x_BDHW)
        places_BSH = edge_BS[..., None] + torch.arange(-ABOVE, BELOW)
        aligned_BSH = scans_BSH.gather(2, places_BSH.clamp(0, scans_BSH.shape[-1] - 1))
        found.append(aligned_BSH.mean(1))
    return torch.cat(found).double().numpy()


def causes(labels: np.ndarray, recipe: Recipe, samples: Sequence[Sample]) -> np.ndarray:
    """By what volumes differ: label, depth of the lower edge, mean and spread of grey levels; `[N, 4]`."""
    depths = torch.cat([lower_edge(x_BDHW)[1].double().mean(1) for x_BDHW in _volumes(recipe, samples)])
    levels = [(sample.volume.mean(), sample.volume.std()) for sample in samples]
    return np.column_stack([labels, depths.numpy(), levels])


def lower_edge(volumes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A-scans averaged by 4 x 8, `[B, S, H]`, and where each darkens most downwards, `[B, S]`."""
    mean_BDHW = avg_pool3d(volumes[:, None], (4, 1, 8))[:, 0]
    scans_BSH = mean_BDHW.permute(0, 1, 3, 2).flatten(1, 2)
    sums_BSH = pad(scans_BSH, (1, 0)).cumsum(-1)
    above_BSH = (sums_BSH[..., EDGE:] - sums_BSH[..., :-EDGE]) / EDGE
    return scans_BSH, (above_BSH[..., :-EDGE] - above_BSH[..., EDGE:]).argmax(-1) + EDGE


def _volumes(recipe: Recipe, samples: Sequence[Sample]) -> Iterator[torch.Tensor]:
    for start in range(0, len(samples), BATCH):
        yield prepare(samples[start : start + BATCH], recipe, torch.device("cpu")).x_BDHW


def known_share(features: np.ndarray, found: np.ndarray) -> float:
    """Share of the variance of features, over all channels, that is linear in `causes`."""
    explained = LinearRegression().fit(found, features).predict(found)
    return float(r2_score(features, explained, multioutput="variance_weighted"))
