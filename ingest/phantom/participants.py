"""`participants.tsv`: people of three sites in four study groups, with a recommended split."""

import dataclasses
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from shards.schema import Split

STUDY_GROUPS: Final = (
    "healthy",
    "pre_diabetes_lifestyle_controlled",
    "oral_medication_and_or_non_insulin_injectable_medication_controlled",
    "insulin_dependent",
)
"""In label order 0-3."""

SITES: Final = (("1", "UW"), ("4", "UCSD"), ("7", "UAB"))
"""First digit of the participant id, and the clinical site."""

MAX_PARTICIPANTS: Final = 3 * 999
HELD_OUT_SHARE: Final = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """A person of the cohort; `number` names the random streams and does not depend on the label."""

    number: int
    person_id: str
    clinical_site: str
    label: int
    age: int
    study_visit_date: datetime.date
    recommended_split: Split

    @property
    def study_group(self) -> str:
        return STUDY_GROUPS[self.label]


def recruit(count: int, seed: int) -> tuple[Participant, ...]:
    """People in order of their id: sites in equal thirds, groups balanced within sites, splits within groups."""
    rng = np.random.default_rng([seed, 3])
    serial = {digit: rng.permutation(np.arange(1, 1000)) for digit, _ in SITES}
    people = []
    for index in range(count):
        digit, site = SITES[index % 3]
        person = Participant(
            number=index,
            person_id=f"{digit}{serial[digit][index // 3]:03d}",
            clinical_site=site,
            label=index % 4,
            age=int(np.clip(rng.normal(60, 11), 40, 85)),
            study_visit_date=datetime.date(2023, 7, 19) + datetime.timedelta(days=int(rng.integers(0, 600))),
            recommended_split="train",
        )
        people.append(person)
    return tuple(sorted(_split(people, rng), key=lambda person: person.person_id))


def _split(people: Sequence[Participant], rng: np.random.Generator) -> list[Participant]:
    """Hold out about 15% each for val and test, taking a person of each group in turn.

    From 12 people on nobody's group is missing in train; with fewer than three all are train.
    """
    count = len(people)
    held_out = max(1, round(HELD_OUT_SHARE * count)) if count >= 3 else 0
    order = [people[i] for i in rng.permutation(count)]
    in_turn = [person for turn in range(count) for person in _turn(order, turn)]
    splits: dict[int, Split] = {person.number: "val" for person in in_turn[:held_out]}
    splits |= {person.number: "test" for person in in_turn[held_out : 2 * held_out]}
    return [dataclasses.replace(p, recommended_split=splits.get(p.number, "train")) for p in people]


def _turn(order: Sequence[Participant], turn: int) -> list[Participant]:
    """The next person of each group, groups in label order."""
    groups = [[person for person in order if person.label == label] for label in range(len(STUDY_GROUPS))]
    return [group[turn] for group in groups if turn < len(group)]


def participant_cells(person: Participant) -> dict[str, str]:
    """A row of `participants.tsv`; every modality is recorded as present."""
    flags = (
        "cardiac_ecg",
        "clinical_data",
        "environment",
        "retinal_flio",
        "retinal_oct",
        "retinal_octa",
        "retinal_photography",
        "wearable_activity_monitor",
        "wearable_blood_glucose",
    )
    return {
        "person_id": person.person_id,
        "clinical_site": person.clinical_site,
        "study_group": person.study_group,
        "age": str(person.age),
        "study_visit_date": person.study_visit_date.isoformat(),
        "recommended_split": person.recommended_split,
        **dict.fromkeys(flags, "TRUE"),
    }
