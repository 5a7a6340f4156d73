"""From embeddings and labels to a verdict: the join with its audit, the probe, and what a trivial model would score."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.errors import LabelsMissingError
from eval.linear import Cohort, Evaluation, ProbeScores, majority, probe
from eval.store import EmbeddedVolume, Embeddings
from manifests.cohort import STUDY_GROUPS, JoinAudit, Participant, join_labels, participants_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """A probe beside its baselines: `majority` knows the class frequencies, `intensity` six grey-level statistics."""

    classes: tuple[str, ...]
    num_participants: int
    num_volumes: int
    audit: JoinAudit
    encoder: ProbeScores
    baselines: Mapping[str, ProbeScores]
    source: Mapping[str, Any]
    seed: int

    @property
    def chance(self) -> float:
        """The balanced accuracy of any predictor that ignores its input."""
        return 1 / len(self.classes)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What nobody may overlook."""
        evaluations = {"test": self.encoder.test, "cross-validation": self.encoder.cv}
        found = [line for name, one in evaluations.items() for line in _warnings(name, one)]
        if self.encoder.cv and not _beats(self.encoder.cv, self.baselines.values()):
            found.append("a baseline scores as well or better.")
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"chance": self.chance, "warnings": list(self.warnings)}


def run_probe(
    embeddings: Embeddings,
    participants: Mapping[str, Participant] | None = None,
    *,
    allow_unmatched: bool = False,
    seed: int = 0,
) -> ProbeResult:
    """Join labels to volumes, and probe.

    Args:
        embeddings: vectors of volumes.
        participants: whose labels to use; None takes those stored with the embeddings.
        allow_unmatched: go on although more than 5% of the participants, or a whole site, are lost.
        seed: of folds, resampling and permutations.

    Raises:
        LabelsMissingError: if there are no labels at all.
        JoinError: if labels and volumes do not meet.
        ProbeError: if too few participants or classes are left.
    """
    volumes = embeddings.volumes()
    people = participants_of(volumes) if participants is None else participants
    if not any(person.study_group for person in people.values()):
        raise LabelsMissingError("no participant has a study group: pass --labels participants.tsv.")
    join = join_labels(volumes, people)
    join.audit.check(allow_unmatched)
    rows = [place for place, volume in enumerate(volumes) if volume.key in join.labels]
    labels = [join.labels[volumes[place].key] for place in rows]
    labelled = [volumes[place] for place in rows]
    cohort = _cohort(embeddings.features[rows], labelled, labels)
    intensity = _cohort(embeddings.intensity[rows], labelled, labels)
    return ProbeResult(
        classes=cohort.classes,
        num_participants=len(set(cohort.participants)),
        num_volumes=len(rows),
        audit=join.audit,
        encoder=probe(cohort, seed=seed),
        baselines={"intensity": probe(intensity, seed=seed), "majority": majority(cohort, seed=seed)},
        source=dict(embeddings.attributes),
        seed=seed,
    )


def _cohort(features: npt.NDArray[np.float32], volumes: Sequence[EmbeddedVolume], labels: Sequence[int]) -> Cohort:
    """Labels are renumbered over the groups that occur, in the order of STUDY_GROUPS."""
    occurring = sorted(set(labels))
    return Cohort(
        features=features.astype(np.float64),
        labels=np.array([occurring.index(label) for label in labels], np.int64),
        participants=tuple(volume.participant_id for volume in volumes),
        splits=tuple(volume.split for volume in volumes),
        devices=tuple(volume.device for volume in volumes),
        classes=tuple(STUDY_GROUPS[label] for label in occurring),
    )


def _warnings(name: str, evaluation: Evaluation | None) -> list[str]:
    if evaluation is None:
        return [f"{name}: no score, there are too few participants."]
    found = []
    if evaluation.scores.single_class:
        called = evaluation.scores.single_class
        found.append(
            f"{name}: PREDICTS A SINGLE CLASS: every participant is called {called}. This probe learned nothing."
        )
    if evaluation.null and evaluation.null.p_value > 0.05:
        found.append(f"{name}: not distinguishable from chance (p = {evaluation.null.p_value:.2g}).")
    return found


def _beats(cv: Evaluation, baselines: Iterable[ProbeScores]) -> bool:
    values = [_balanced_accuracy(one.cv) for one in baselines]
    return _balanced_accuracy(cv) > max(values)


def _balanced_accuracy(evaluation: Evaluation | None) -> float:
    value = evaluation.scores.balanced_accuracy.value if evaluation else None
    return -1.0 if value is None else value
