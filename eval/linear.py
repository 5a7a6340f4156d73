"""The linear probe: how much of the label a frozen encoder's features hold, for people it was not fitted on.

Shapes: N volumes, P participants, C features, K classes. Volumes are fitted, participants are scored: the
probabilities of a participant are the mean over eyes, devices and visits.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from eval.errors import ProbeError
from eval.metrics import Labels, Probabilities, Scores, score
from eval.stats import Interval, Null, bootstrap, permutation_null

STRENGTHS: Final = (1e-3, 1e-2, 1e-1, 1.0)
"""Values of C, strong to weak regularisation; features that vary in few directions would gain by weaker ones, too
(docs/training.md, "Does it learn?")."""

DEFAULT_STRENGTH: Final = 1e-2
"""For cohorts too small to choose one."""

MIN_VALIDATION: Final = 3
"""Participants of each class in the validation split; with fewer, which C is best there is luck."""

NUM_FOLDS: Final = 5
NUM_CHOOSING_FOLDS: Final = 3
"""Fewer folds inside a fold: they only rank values of C, and they are most of the time."""

MAX_ITERATIONS: Final = 5000

ONE_THREAD_BELOW: Final = 1_000_000
"""Numbers in the feature matrix below which threads cost three times what they give."""

Matrix = npt.NDArray[np.float64]
Rows = npt.NDArray[np.bool_]
Weighting = Literal["balanced", "uniform"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """Volumes with a label: `features` [N, C], `labels` [N] in 0..K-1, the participant and split of each.

    `classes` are the K groups that occur, in label order. With `devices`, features are taken relative to the mean of
    their device: a participant's volumes come from several, and what made them differ is no property of the person.
    """

    features: Matrix = field(repr=False)
    labels: Labels = field(repr=False)
    participants: tuple[str, ...] = field(repr=False)
    splits: tuple[str, ...] = field(repr=False)
    classes: tuple[str, ...]
    devices: tuple[str, ...] | None = field(repr=False, default=None)

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise ProbeError(f"a probe needs two study groups, there is {', '.join(self.classes) or 'none'}.")
        if len({*zip(self.participants, self.labels, strict=True)}) != len(set(self.participants)):
            raise ProbeError("a participant has two labels.")

    def of(self, participants: Sequence[str]) -> Rows:
        """Which volumes are of these participants."""
        return np.isin(np.array(self.participants), np.array(participants, dtype=str))

    def people(self, rows: Rows | None = None) -> tuple[list[str], Labels]:
        """Participants in order of id, with their labels [P]."""
        chosen = np.ones(len(self.labels), bool) if rows is None else rows
        label_of = {self.participants[place]: int(self.labels[place]) for place in np.flatnonzero(chosen)}
        names = sorted(label_of)
        return names, np.array([label_of[name] for name in names], np.int64)

    def in_split(self, split: str) -> Rows:
        return np.array([one == split for one in self.splits], bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Scores of one set of participants, how sure they are, and what luck would give.

    `probabilities` are by participant and class.
    """

    scores: Scores
    intervals: Mapping[str, Interval]
    null: Null | None
    probabilities: Mapping[str, tuple[float, ...]] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeScores:
    """A probe on one set of features.

    `test` is the one look at the test split, with C chosen on validation; `cv` scores every participant
    out of fold once, with C chosen inside each fold; either is None where there are too few participants.
    """

    test: Evaluation | None
    cv: Evaluation | None
    strength: float
    chosen_by: str


def probe(cohort: Cohort, *, seed: int = 0) -> ProbeScores:
    """Fit, choose on validation, look at test once; and cross-validate over all participants.

    Raises:
        ProbeError: if the training split has fewer than two classes.
    """
    train, val, test = (cohort.in_split(split) for split in ("train", "val", "test"))
    if len(set(cohort.labels[train])) < 2:
        raise ProbeError("the training split has fewer than two study groups: nothing can be fitted.")
    with threadpool_limits(1 if cohort.features.size < ONE_THREAD_BELOW else None):
        strength, chosen_by = _choose(cohort, train, val, seed)
        held_out = _evaluate(cohort, predict(cohort, train, test, strength), seed) if test.any() else None
        cv = cross_validate(cohort, seed=seed)
    return ProbeScores(test=held_out, cv=cv, strength=strength, chosen_by=chosen_by)


def majority(cohort: Cohort, *, seed: int = 0) -> ProbeScores:
    """The baseline that knows only how frequent the classes are among the participants of `train`."""
    _, counted = cohort.people(cohort.in_split("train"))
    shares = np.bincount(counted, minlength=len(cohort.classes)) / max(1, len(counted))
    names, _ = cohort.people()
    everybody = dict.fromkeys(names, tuple(float(share) for share in shares))
    tested, _ = cohort.people(cohort.in_split("test"))
    held_out = _evaluate(cohort, {name: everybody[name] for name in tested}, seed) if tested else None
    return ProbeScores(
        test=held_out, cv=_evaluate(cohort, everybody, seed), strength=0.0, chosen_by="frequency in the training split"
    )


def fit(cohort: Cohort, rows: Rows, strength: float, weighting: Weighting = "balanced") -> Pipeline:
    """Standardise and fit a multinomial logistic regression on some volumes.

    Statistics and weights come from these volumes alone.
    """
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=MAX_ITERATIONS))
    weights = volume_weights(cohort, rows, weighting)
    model.fit(cohort.features[rows], cohort.labels[rows], logisticregression__sample_weight=weights)
    return model


def centred(cohort: Cohort, fitted_on: Rows) -> Matrix:
    """Features [N, C] less the mean of their device over the volumes that are fitted on; labels play no part.

    A device that is not among those is taken relative to the mean of all of them.
    """
    if cohort.devices is None:
        return cohort.features
    moved: Matrix = cohort.features - cohort.features[fitted_on].mean(axis=0)
    names = np.array(cohort.devices)
    for device in np.unique(names[fitted_on]):
        rows = names == device
        moved[rows] = cohort.features[rows] - cohort.features[rows & fitted_on].mean(axis=0)
    return moved


def volume_weights(cohort: Cohort, rows: Rows, weighting: Weighting) -> Matrix:
    """Weight of each volume [N of rows], 1 on average.

    The volumes of a participant share one weight: a person scanned 24 times counts as much as one scanned
    twice. With `balanced`, the participants of each class share one weight, too.
    """
    names = [cohort.participants[place] for place in np.flatnonzero(rows)]
    per_person = Counter(names)
    weights = np.array([1 / per_person[name] for name in names])
    if weighting == "balanced":
        labels = cohort.labels[rows]
        weights = weights / np.bincount(labels, weights=weights)[labels]
    scaled: Matrix = weights * (len(weights) / weights.sum())
    return scaled


def predict(
    cohort: Cohort, fitted_on: Rows, rows: Rows, strength: float, weighting: Weighting = "balanced"
) -> dict[str, tuple[float, ...]]:
    """Probabilities by participant: the mean over the volumes of `rows`. A class never fitted has 0."""
    cohort = replace(cohort, features=centred(cohort, fitted_on), devices=None)
    model = fit(cohort, fitted_on, strength, weighting)
    by_volume = np.zeros((int(rows.sum()), len(cohort.classes)))
    by_volume[:, model.classes_] = model.predict_proba(cohort.features[rows])
    names = np.array(cohort.participants)[rows]
    means = {str(name): by_volume[names == name].mean(axis=0) for name in np.unique(names)}
    return {name: tuple(float(share) for share in mean) for name, mean in means.items()}


def cross_validate(cohort: Cohort, *, seed: int) -> Evaluation | None:
    """Every participant is scored once, by a probe that never saw any volume of them.

    Folds are stratified by class; C is chosen by another cross-validation inside the training part.

    Returns:
        None if a class has fewer than two participants.
    """
    folds = _folds(cohort, np.ones(len(cohort.labels), bool), seed, NUM_FOLDS)
    scored: dict[str, tuple[float, ...]] = {}
    for held_out in folds:
        rows = cohort.of(held_out)
        scored |= predict(cohort, ~rows, rows, _choose_by_folds(cohort, ~rows, seed) or DEFAULT_STRENGTH)
    return _evaluate(cohort, scored, seed) if folds else None


def _folds(cohort: Cohort, rows: Rows, seed: int, at_most: int) -> list[list[str]]:
    """Participants to hold out in turn; fewer folds if the smallest class is small, none if it has one member."""
    names, labels = cohort.people(rows)
    num_folds = min(at_most, *np.unique(labels, return_counts=True)[1])
    if num_folds < 2:
        return []
    splitter = StratifiedKFold(int(num_folds), shuffle=True, random_state=seed)
    return [[names[place] for place in places] for _, places in splitter.split(names, labels)]


def _choose(cohort: Cohort, train: Rows, val: Rows, seed: int) -> tuple[float, str]:
    """C, and how it was chosen: on validation if that can tell, else by cross-validation within train."""
    _, counted = cohort.people(val)
    if np.bincount(counted, minlength=len(cohort.classes)).min() >= MIN_VALIDATION:
        found = {strength: predict(cohort, train, val, strength) for strength in STRENGTHS}
        return _best(cohort, found), "balanced accuracy on the validation split"
    strength = _choose_by_folds(cohort, train, seed)
    if strength is None:
        return DEFAULT_STRENGTH, "default: too few participants to choose"
    return strength, f"cross-validation within train: validation has fewer than {MIN_VALIDATION} of a class"


def _choose_by_folds(cohort: Cohort, rows: Rows, seed: int) -> float | None:
    folds = _folds(cohort, rows, seed, NUM_CHOOSING_FOLDS)
    found: dict[float, dict[str, tuple[float, ...]]] = {strength: {} for strength in STRENGTHS}
    for held_out in folds:
        tested = cohort.of(held_out)
        for strength in STRENGTHS:
            found[strength] |= predict(cohort, rows & ~tested, rows & tested, strength)
    return _best(cohort, found) if folds else None


def _best(cohort: Cohort, found: Mapping[float, Mapping[str, tuple[float, ...]]]) -> float:
    """The C of the highest balanced accuracy of participants; the strongest regularisation of several."""
    values = {}
    for strength, scored in found.items():
        scores = score(*_arrays(cohort, scored), cohort.classes)
        values[strength] = _mean_recall(scores)
    return max(sorted(values), key=lambda strength: values[strength])


def _mean_recall(scores: Scores) -> float:
    """Balanced accuracy over the classes that are there: enough to compare values of C on the same people."""
    return float(np.mean([recall.value for recall in scores.recall if recall.value is not None]))


def _arrays(cohort: Cohort, scored: Mapping[str, tuple[float, ...]]) -> tuple[Labels, Probabilities]:
    names, labels = cohort.people(cohort.of(list(scored)))
    return labels, np.array([scored[name] for name in names])


def _evaluate(cohort: Cohort, scored: Mapping[str, tuple[float, ...]], seed: int) -> Evaluation:
    labels, probabilities = _arrays(cohort, scored)
    return Evaluation(
        scores=score(labels, probabilities, cohort.classes),
        intervals=bootstrap(labels, probabilities, cohort.classes, seed=seed),
        null=permutation_null(labels, probabilities, cohort.classes, seed=seed),
        probabilities=dict(scored),
    )
