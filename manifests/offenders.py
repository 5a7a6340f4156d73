"""The worst offenders: where an auditor looks first."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

SPACING_COLUMNS: Final = ("spacing_d_mm", "spacing_h_mm", "spacing_w_mm")
NUM_LISTED: Final = 10
"""More is no short list; `sources.csv` has them all."""
SAME_SHARE: Final = 0.001
"""A spacing that differs from the median by less only differs by rounding."""

Row = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedOf:
    """Files of one participant (`device` empty), or of one device and protocol, and how many of them were rejected."""

    participant_id: str = ""
    device: str = ""
    protocol: str = ""
    num_rejected: int
    num_files: int
    reasons: Mapping[str, int]

    @property
    def share(self) -> float:
        return self.num_rejected / self.num_files


@dataclass(frozen=True, slots=True, kw_only=True)
class SpacingOutlier:
    """An accepted file, and the axis whose spacing is furthest from its protocol's median; over 1 is larger."""

    key: str
    device: str
    protocol: str
    axis: str
    spacing_mm: float
    median_mm: float
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Offenders:
    """The worst first, each list at most `NUM_LISTED` long."""

    participants: tuple[RejectedOf, ...] = ()
    protocols: tuple[RejectedOf, ...] = ()
    spacing: tuple[SpacingOutlier, ...] = ()


def worst_offenders(sources: Sequence[Row]) -> Offenders:
    """Participants by rejected files, devices and protocols by their share, accepted files by their spacing.

    Duplicates count as files, what is outside of the job's filters does not.
    """
    looked_at = [row for row in sources if row["status"] != "excluded"]
    people = [row for row in looked_at if row["participant_id"]]
    return Offenders(
        participants=_worst(
            _rejected_of(people, ("participant_id",)), lambda one: (-one.num_rejected, -one.share, one.participant_id)
        ),
        protocols=_worst(
            _rejected_of(looked_at, ("device", "protocol")),
            lambda one: (-one.share, -one.num_rejected, one.device, one.protocol),
        ),
        spacing=_outliers([row for row in sources if row["status"] == "accepted"]),
    )


def positive(cell: str) -> float | None:
    """The number in a cell; None unless it is finite and positive."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def _worst(found: Iterable[RejectedOf], order: Callable[[RejectedOf], tuple[object, ...]]) -> tuple[RejectedOf, ...]:
    return tuple(sorted((one for one in found if one.num_rejected), key=order)[:NUM_LISTED])


def _rejected_of(rows: Sequence[Row], columns: Sequence[str]) -> Iterable[RejectedOf]:
    for names, group in _grouped(rows, columns).items():
        reasons = Counter(row["reason"] for row in group if row["status"] == "rejected")
        yield RejectedOf(
            **dict(zip(columns, (name or "unknown" for name in names), strict=True)),
            num_rejected=reasons.total(),
            num_files=len(group),
            reasons=dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        )


def _grouped(rows: Sequence[Row], columns: Sequence[str]) -> dict[tuple[str, ...], list[Row]]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in columns), []).append(row)
    return groups


def _outliers(accepted: Sequence[Row]) -> tuple[SpacingOutlier, ...]:
    found = [one for group in _grouped(accepted, ("device", "protocol")).values() for one in _of_protocol(group)]
    return tuple(sorted(found, key=lambda one: (-abs(math.log(one.ratio)), one.key))[:NUM_LISTED])


def _of_protocol(rows: Sequence[Row]) -> Iterable[SpacingOutlier]:
    """For each file of a protocol the axis that is furthest off, if one is."""
    middles = {}
    for axis in SPACING_COLUMNS:
        values = [value for row in rows if (value := positive(row[axis])) is not None]
        middles[axis] = median(values) if values else None
    for row in rows:
        axes = [one for axis, middle in middles.items() if middle and (one := _distance(row, axis, middle))]
        if axes:
            yield max(axes, key=lambda one: abs(math.log(one.ratio)))


def _distance(row: Row, axis: str, middle: float) -> SpacingOutlier | None:
    value = positive(row[axis])
    if value is None or abs(value / middle - 1) < SAME_SHARE:
        return None
    return SpacingOutlier(
        key=row["key"],
        device=row["device"],
        protocol=row["protocol"],
        axis=axis.removeprefix("spacing_").removesuffix("_mm").upper(),
        spacing_mm=value,
        median_mm=middle,
        ratio=round(value / middle, 6),
    )
