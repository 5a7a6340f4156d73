"""The cohort: `participants.tsv`, and the join of its labels to volumes with an audit by site, device and split."""

import csv
import dataclasses
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from manifests.errors import CohortError, JoinError
from shards.errors import ShardError
from shards.schema import SPLITS, Split
from shards.storage import read_bytes

STUDY_GROUPS: Final = (
    "healthy",
    "pre_diabetes_lifestyle_controlled",
    "oral_medication_and_or_non_insulin_injectable_medication_controlled",
    "insulin_dependent",
)
"""The classes; a label is the index into this tuple (AI-READI's order of severity)."""

ID_COLUMNS: Final = ("person_id", "participant_id")
MIN_MATCH_RATE: Final = 0.95

Known = TypeVar("Known", bound=str)

# Ids are matched by structure alone: a pattern with a first digit in it once lost two sites of three.
_ID: Final = re.compile(r"([0-9]+)(?:\.0)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """One row of `participants.tsv`; `age` is in years, what the file does not say is None."""

    participant_id: str
    clinical_site: str | None
    study_group: str | None
    age: float | None
    recommended_split: Split | None


def read_participants(data: bytes, *, name: str) -> dict[str, Participant]:
    """Parse a participants file, tab- or comma-separated, with `person_id` (v3) or `participant_id` (v1, v2).

    Args:
        data: the file's bytes, UTF-8 with or without a byte order mark.
        name: what to call the file in an error.

    Returns:
        Participants by id, in the order of the file.

    Raises:
        CohortError: if a needed column is missing, an id or a value is not as documented, or two rows
            of one participant disagree.
    """
    participants: dict[str, Participant] = {}
    for number, row in _rows(data, name):
        where = f"{name}, line {number}"
        participant = _participant(row, where)
        known = participants.setdefault(participant.participant_id, participant)
        if known != participant:
            raise CohortError(
                f"{where}: participant {known.participant_id} appears twice with {_difference(known, participant)}."
            )
    if not participants:
        raise CohortError(f"{name} has a header but no participants.")
    return participants


def load_participants(url: str) -> dict[str, Participant]:
    """`read_participants` of a path or fsspec URL.

    Raises:
        CohortError: as `read_participants`, and if there is no such file.
    """
    try:
        data = read_bytes(url)
    except ShardError as error:
        raise CohortError(f"{url} cannot be opened: {str(error).rstrip('.')}.") from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise CohortError(f"{url} is not a file: give the participants.tsv of the cohort.") from error
    return read_participants(data, name=url)


def participant_id(text: str) -> str | None:
    """The id in a cell, whatever its first digit: `" 4123.0"` -> `"4123"`; None if it is not a number."""
    match = _ID.fullmatch(text.strip())
    return match.group(1) if match else None


def _rows(data: bytes, name: str) -> Iterable[tuple[int, dict[str, str]]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CohortError(
            f"{name} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8."
        ) from error
    header = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in header else ",")
    try:
        columns = [column.strip() for column in next(reader, [])]
        _check_columns(columns, name)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, _by_column(columns, cells, f"{name}, line {reader.line_num}")
    except csv.Error as error:  # of a quote that nobody closes
        raise CohortError(f"{name}, line {reader.line_num}: {error}.") from error


def _by_column(columns: Sequence[str], cells: Sequence[str], where: str) -> dict[str, str]:
    if len(cells) != len(columns):
        raise CohortError(f"{where}: {len(cells)} cells under {len(columns)} column names.")
    return dict(zip(columns, (cell.strip() for cell in cells), strict=True))


def _check_columns(columns: Sequence[str], name: str) -> None:
    missing = [] if set(ID_COLUMNS) & set(columns) else [" or ".join(ID_COLUMNS)]
    missing += [] if "study_group" in columns else ["study_group"]
    if missing:
        found = ", ".join(columns) if any(columns) else "none"
        raise CohortError(f"{name} lacks the column {' and the column '.join(missing)}; columns found: {found}.")


def _participant(row: Mapping[str, str], where: str) -> Participant:
    column = next(column for column in ID_COLUMNS if column in row)
    identity = participant_id(row[column])
    if identity is None:
        raise CohortError(f"{where}: {column} {row[column]!r} is not a number.")
    return Participant(
        participant_id=identity,
        clinical_site=row.get("clinical_site") or None,
        study_group=_one_of(STUDY_GROUPS, row["study_group"], f"{where}: study_group"),
        age=_age(row.get("age", ""), where),
        recommended_split=_one_of(SPLITS, row.get("recommended_split", ""), f"{where}: recommended_split"),
    )


def _one_of(known: Sequence[Known], value: str, what: str) -> Known | None:
    """The known value equal to `value`; None for an empty cell. A misspelt value is never a missing one."""
    if not value:
        return None
    if value not in known:
        raise CohortError(f"{what} {value!r} is not one of {', '.join(known)}.")
    return known[known.index(value)]


def _age(value: str, where: str) -> float | None:
    if not value:
        return None
    try:
        age = float(value)
    except ValueError as error:
        raise CohortError(f"{where}: age {value!r} is not a number of years.") from error
    if not (math.isfinite(age) and age >= 0):
        raise CohortError(f"{where}: age {value!r} is not a number of years.")
    return age


def _difference(one: Participant, other: Participant) -> str:
    fields = [field.name for field in dataclasses.fields(Participant)]
    pairs = [(field, getattr(one, field), getattr(other, field)) for field in fields]
    return ", ".join(f"{field} {first!r} and {second!r}" for field, first, second in pairs if first != second)


class VolumeRow(Protocol):
    """What the join needs to know of a volume: a `SampleRow`, or anything else with these columns."""

    @property
    def key(self) -> str: ...
    @property
    def participant_id(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def clinical_site(self) -> str | None: ...
    @property
    def study_group(self) -> str | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinCount:
    """Participants of one site, device or split: how many have a label, how many have OCT, how many both."""

    labelled: int
    with_oct: int
    matched: int

    @property
    def labelled_without_oct(self) -> int:
        return self.labelled - self.matched

    @property
    def oct_without_label(self) -> int:
        return self.with_oct - self.matched


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinAudit:
    """What a join of labels to volumes kept and lost, counted in participants.

    `relabelled` are participants whose study group in the dataset differs from the labels' file, which wins.
    """

    total: JoinCount
    by_site: Mapping[str, JoinCount]
    by_device: Mapping[str, JoinCount]
    by_split: Mapping[str, JoinCount]
    relabelled: tuple[str, ...] = ()

    @property
    def match_rate(self) -> float:
        """Share of the participants with OCT that found a label."""
        return self.total.matched / self.total.with_oct if self.total.with_oct else 0.0

    @property
    def lost_sites(self) -> tuple[str, ...]:
        """Sites that have labels or OCT, and not one participant with both."""
        return tuple(site for site, count in self.by_site.items() if not count.matched)

    def check(self, allow_unmatched: bool = False) -> None:
        """Stop a run that would silently be about fewer people than it says.

        Raises:
            JoinError: below 95% of the participants with OCT, or when a whole site is lost, naming the sites.
        """
        if not self.total.matched:
            raise JoinError("no participant has both OCT and a label: the labels belong to another cohort.")
        if allow_unmatched or (self.match_rate >= MIN_MATCH_RATE and not self.lost_sites):
            return
        losses = [f"{site} {_loss(count)}" for site, count in self.by_site.items() if _is_loss(count)]
        raise JoinError(
            f"{self.total.matched} of {self.total.with_oct} participants with OCT have a label "
            f"({self.match_rate:.1%}; {MIN_MATCH_RATE:.0%} and every site are needed); by site: {'; '.join(losses)}. "
            "Correct the labels' file, or pass --allow-unmatched."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelJoin:
    """Label (index into STUDY_GROUPS) of every volume whose participant has one, by sample key."""

    labels: Mapping[str, int]
    audit: JoinAudit


def join_labels(samples: Sequence[VolumeRow], participants: Mapping[str, Participant]) -> LabelJoin:
    """Give every volume the label of its participant, and count who was lost.

    Raises:
        CohortError: if two samples have the same key.
    """
    repeated = [key for key, times in Counter(row.key for row in samples).items() if times > 1]
    if repeated:
        raise CohortError(f"sample {repeated[0]} appears twice: one volume would overwrite the other.")
    groups = {row.key: _group(participants.get(row.participant_id)) for row in samples}
    labels = {key: STUDY_GROUPS.index(group) for key, group in groups.items() if group}
    return LabelJoin(labels=labels, audit=audit_join(samples, participants))


def participants_of(volumes: Iterable[VolumeRow]) -> dict[str, Participant]:
    """The participants as the volumes themselves know them, where they were made with participant metadata."""
    return {
        row.participant_id: Participant(
            participant_id=row.participant_id,
            clinical_site=row.clinical_site,
            study_group=row.study_group,
            age=None,
            recommended_split=None,
        )
        for row in volumes
    }


def audit_join(samples: Sequence[VolumeRow], participants: Mapping[str, Participant]) -> JoinAudit:
    """Count the participants with a label, with OCT and with both; in all, by site, device and split.

    A participant without OCT on a device counts there as labelled without OCT. The split is that of the
    dataset, else the recommended one; the site is that of `participants.tsv`, else of the dataset, else
    the one that all ids with the same first digit share.
    """
    labelled = {identity for identity, person in participants.items() if person.study_group}
    with_oct = {row.participant_id for row in samples}
    splits = {row.participant_id: str(row.split) for row in samples}
    site_of = _site_namer(samples, participants)
    devices = sorted({row.device for row in samples})
    return JoinAudit(
        total=_count(labelled, with_oct),
        by_site=_count_by(site_of, labelled, with_oct),
        by_device={
            device: _count(labelled, {row.participant_id for row in samples if row.device == device})
            for device in devices
        },
        by_split=_count_by(lambda one: splits.get(one) or _recommended(participants[one]), labelled, with_oct),
        relabelled=_relabelled(samples, participants),
    )


def _group(person: Participant | None) -> str | None:
    return person.study_group if person else None


def _count(labelled: set[str], with_oct: set[str]) -> JoinCount:
    return JoinCount(labelled=len(labelled), with_oct=len(with_oct), matched=len(labelled & with_oct))


def _count_by(group_of: Callable[[str], str], labelled: set[str], with_oct: set[str]) -> dict[str, JoinCount]:
    groups: dict[str, set[str]] = {}
    for identity in labelled | with_oct:
        groups.setdefault(group_of(identity), set()).add(identity)
    ordered = sorted(groups, key=lambda group: (SPLITS.index(group) if group in SPLITS else len(SPLITS), group))
    return {group: _count(labelled & groups[group], with_oct & groups[group]) for group in ordered}


def _site_namer(samples: Iterable[VolumeRow], participants: Mapping[str, Participant]) -> Callable[[str], str]:
    named = {row.participant_id: row.clinical_site for row in samples if row.clinical_site}
    named |= {identity: person.clinical_site for identity, person in participants.items() if person.clinical_site}
    by_digit: dict[str, set[str]] = {}
    for identity, site in named.items():
        by_digit.setdefault(identity[0], set()).add(site)

    def site_of(identity: str) -> str:
        shared = by_digit.get(identity[0], set())
        fallback = next(iter(shared)) if len(shared) == 1 else f"ids {identity[0]}..."
        return named.get(identity, fallback)

    return site_of


def _recommended(person: Participant) -> str:
    return person.recommended_split or "unassigned"


def _relabelled(samples: Iterable[VolumeRow], participants: Mapping[str, Participant]) -> tuple[str, ...]:
    stored = {row.participant_id: row.study_group for row in samples if row.study_group}
    given = {identity: person.study_group for identity, person in participants.items() if person.study_group}
    return tuple(sorted(one for one, group in stored.items() if given.get(one, group) != group))


def _is_loss(count: JoinCount) -> bool:
    return not count.matched or count.oct_without_label > 0


def _loss(count: JoinCount) -> str:
    """`"keeps 3 of 80 with OCT"`, or what is there when nothing is kept."""
    if count.with_oct:
        return f"keeps {count.matched} of {count.with_oct} with OCT"
    return f"has {count.labelled} labelled and none with OCT"
