"""How sure a score is: confidence intervals and a null distribution, with participants as the unit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from eval.metrics import HEADLINES, Labels, Metric, Probabilities, confusion, macro, recalls, score

NUM_RESAMPLES: Final = 1000
NUM_PERMUTATIONS: Final = 1000
CONFIDENCE: Final = 0.95

MIN_MEMBERS: Final = 4
"""Participants of the smallest class below which there is no interval: resampling one or two people shows no spread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A confidence interval, from percentiles of the bootstrap."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"[{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Null:
    """Balanced accuracy when labels are shuffled between participants: what luck gives, and how often it is as good.

    `high` is the 95th percentile; `p_value` the share of shuffles that are at least as good as the truth.
    """

    mean: float
    high: float
    p_value: float
    num_permutations: int


def bootstrap(
    labels: Labels, probabilities: Probabilities, classes: Sequence[str], *, seed: int, resamples: int = NUM_RESAMPLES
) -> dict[str, Interval]:
    """95% intervals of the headline metrics.

    Each row is a participant, with all eyes, devices and visits in it, so resampling rows resamples clusters.
    Resampling is within classes: otherwise a small class drops out of some resamples, and every macro
    metric with it. The interval is about who was sampled for testing, not about retraining.

    Returns:
        Metric name -> interval; none where a class has fewer than four participants, or a metric is undefined.
    """
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == place) for place in range(len(classes))]
    if min(len(group) for group in members) < MIN_MEMBERS:
        return {}
    values: dict[str, list[float]] = {name: [] for name in HEADLINES}
    for _ in range(resamples):
        rows = np.concatenate([generator.choice(group, len(group)) for group in members])
        scores = score(labels[rows], probabilities[rows], classes)
        for name, measure in HEADLINES.items():
            metric = measure(scores)
            values[name] += [] if metric.value is None else [metric.value]
    return {name: _interval(found) for name, found in values.items() if len(found) == resamples}


def _interval(values: Sequence[float]) -> Interval:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(low=float(low), high=float(high))


def permutation_null(
    labels: Labels, probabilities: Probabilities, classes: Sequence[str], *, seed: int, times: int = NUM_PERMUTATIONS
) -> Null | None:
    """Shuffle labels between participants, and count how often balanced accuracy is as good as the true one.

    The predictions stay as they are, which is cheap; exact for a held-out set, and a little cautious for
    out-of-fold predictions (a fold's training labels are short of just what it is tested on). The p value
    counts the true labelling as one of the permutations (Phipson and Smyth 2010).

    Returns:
        None where balanced accuracy is undefined.
    """
    generator = np.random.default_rng(seed)
    predicted = probabilities.argmax(axis=1)
    observed = _balanced_accuracy(labels, predicted, classes)
    if observed.value is None:
        return None
    shuffled = [_balanced_accuracy(generator.permutation(labels), predicted, classes).value for _ in range(times)]
    values = np.array(shuffled, np.float64)
    as_good = int(np.count_nonzero(values >= observed.value - 1e-12))
    return Null(
        mean=float(values.mean()),
        high=float(np.quantile(values, CONFIDENCE)),
        p_value=(1 + as_good) / (1 + times),
        num_permutations=times,
    )


def _balanced_accuracy(labels: Labels, predicted: Labels, classes: Sequence[str]) -> Metric:
    return macro(recalls(confusion(labels, predicted, len(classes)), classes))
