"""Scores of a classifier, on the whole set at once; what cannot be computed is None with its reason.

Shapes: P participants, K classes. Labels are `[P]` in 0..K-1, probabilities `[P, K]` with rows that add up to 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from manifests.cohort import STUDY_GROUPS

Labels = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]
Confusion = npt.NDArray[np.int64]

CALIBRATION_BINS: Final = 10
"""Bins of the expected calibration error (Naeini et al. 2015)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number, or why there is none. A metric that is undefined is never 0 and never an exception."""

    value: float | None
    undefined: str | None = None

    def __str__(self) -> str:
        return f"undefined ({self.undefined})" if self.value is None else f"{self.value:.3f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Every metric of one set of predictions. `confusion` is `[K, K]`, true class by predicted class.

    `single_class` names the class that a predictor always says, None if it says more than one.
    """

    classes: tuple[str, ...]
    num_participants: int
    balanced_accuracy: Metric
    macro_auroc: Metric
    macro_f1: Metric
    quadratic_kappa: Metric
    brier: Metric
    calibration_error: Metric
    recall: tuple[Metric, ...]
    f1: tuple[Metric, ...]
    auroc: tuple[Metric, ...]
    confusion: tuple[tuple[int, ...], ...]
    single_class: str | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def score(labels: Labels, probabilities: Probabilities, classes: Sequence[str]) -> Scores:
    """All metrics; a prediction is the most probable class, the first of several."""
    table = confusion(labels, probabilities.argmax(axis=1), len(classes))
    recall, f1 = recalls(table, classes), f1_scores(table, classes)
    auroc = tuple(auroc_of(labels == place, probabilities[:, place], name) for place, name in enumerate(classes))
    return Scores(
        classes=tuple(classes),
        num_participants=len(labels),
        balanced_accuracy=macro(recall),
        macro_auroc=macro(auroc),
        macro_f1=macro(f1),
        quadratic_kappa=quadratic_kappa(table, grades(classes)),
        brier=brier(labels, probabilities),
        calibration_error=calibration_error(labels, probabilities),
        recall=recall,
        f1=f1,
        auroc=auroc,
        confusion=tuple(tuple(int(number) for number in row) for row in table),
        single_class=single_class(table, classes),
    )


def confusion(labels: Labels, predicted: Labels, num_classes: int) -> Confusion:
    """Counts `[K, K]`, true class by predicted class."""
    table = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(table, (labels, predicted), 1)
    return table


def macro(metrics: Sequence[Metric]) -> Metric:
    """The mean over classes; undefined if it is for any class, for then it would be a mean of other things."""
    missing = [metric.undefined for metric in metrics if metric.undefined]
    if missing:
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        return Metric(value=None, undefined=missing[0] + others)
    return Metric(value=float(np.mean([metric.value for metric in metrics])))


def recalls(table: Confusion, classes: Sequence[str]) -> tuple[Metric, ...]:
    """Share of a class that was recognised; their mean is the balanced accuracy."""
    return tuple(
        _ratio(table[place, place], table[place].sum(), f"no participant is {name}")
        for place, name in enumerate(classes)
    )


def f1_scores(table: Confusion, classes: Sequence[str]) -> tuple[Metric, ...]:
    """Harmonic mean of precision and recall, `2 TP / (2 TP + FP + FN)`, by class."""
    return tuple(
        _ratio(
            2 * table[place, place],
            table[place].sum() + table[:, place].sum(),
            f"no participant is {name} or is called so",
        )
        for place, name in enumerate(classes)
    )


def auroc_of(is_class: npt.NDArray[np.bool_], probability: npt.NDArray[np.float64], name: str) -> Metric:
    """Area under the ROC curve of one class against the rest: P(member outranks non-member), ties count half."""
    members, others = probability[is_class], np.sort(probability[~is_class])
    if not len(members) or not len(others):
        return Metric(value=None, undefined=f"{'no' if not len(members) else 'every'} participant is {name}")
    below = np.searchsorted(others, members, "left") + np.searchsorted(others, members, "right")
    return Metric(value=float(below.sum() / (2 * len(members) * len(others))))


def grades(classes: Sequence[str]) -> Labels:
    """How severe each class is, `[K]`: study groups by their place among all, others by the order that they come in.

    So a group that a cohort lacks still lies between its neighbours, and kappas of cohorts compare.
    """
    known = set(classes) <= set(STUDY_GROUPS)
    return np.array([STUDY_GROUPS.index(name) if known else place for place, name in enumerate(classes)], np.int64)


def quadratic_kappa(table: Confusion, grades: Labels) -> Metric:
    """Cohen's kappa with squared distance between grades as weight: 1 perfect, 0 what the marginals alone give."""
    distance = np.square(np.subtract.outer(grades, grades))
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / max(1, table.sum())
    disagreement = _ratio(
        (distance * table).sum(), (distance * expected).sum(), "truth and prediction are one and the same class"
    )
    return disagreement if disagreement.value is None else Metric(value=1.0 - disagreement.value)


def brier(labels: Labels, probabilities: Probabilities) -> Metric:
    """Mean squared distance to the truth, summed over classes: 0 perfect, 2 worst, `1 - 1/K` for a uniform guess."""
    truth = np.eye(probabilities.shape[1])[labels]
    return _ratio(np.square(probabilities - truth).sum(), len(labels), "no participant")


def calibration_error(labels: Labels, probabilities: Probabilities) -> Metric:
    """Expected calibration error: |accuracy - confidence| of the predicted class, averaged over bins of confidence."""
    if not len(labels):
        return Metric(value=None, undefined="no participant")
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(place, weights=right - confidence, minlength=CALIBRATION_BINS)
    return Metric(value=float(np.abs(gaps).sum() / len(labels)))


def single_class(table: Confusion, classes: Sequence[str]) -> str | None:
    """The only class that was ever predicted, although there are several true ones."""
    said = np.flatnonzero(table.sum(axis=0))
    several = np.count_nonzero(table.sum(axis=1)) > 1
    return classes[said[0]] if len(said) == 1 and several else None


def _ratio(part: float, whole: float, undefined: str) -> Metric:
    return Metric(value=float(part / whole)) if whole else Metric(value=None, undefined=undefined)


Measure = Callable[[Scores], Metric]
HEADLINES: Final[dict[str, Measure]] = {
    "balanced_accuracy": lambda scores: scores.balanced_accuracy,
    "macro_auroc": lambda scores: scores.macro_auroc,
    "macro_f1": lambda scores: scores.macro_f1,
    "quadratic_kappa": lambda scores: scores.quadratic_kappa,
    "brier": lambda scores: scores.brier,
}
"""The metrics that get a confidence interval."""
