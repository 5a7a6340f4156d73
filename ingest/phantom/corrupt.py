"""Which files to break, and how."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np

from ingest.phantom.case import Case, Outcome, Way, good
from ingest.phantom.damage_file import FILE_WAYS, ZIPPED
from ingest.phantom.damage_header import GEOMETRY_WAYS, IDENTITY_WAYS, IMAGE_WAYS
from ingest.phantom.damage_pixels import PIXEL_WAYS
from ingest.phantom.plan import VolumePlan
from manifests.reasons import Reason


def _one_reason_after_another(groups: Sequence[Sequence[Way]]) -> Iterator[Way]:
    """Ways in turn from every group, the first of each reason before a second of any."""
    longest = max(len(group) for group in groups)
    mixed = [group[rank] for rank in range(longest) for group in groups if rank < len(group)]
    seen: set[str] = set()
    later = []
    for way in mixed:
        if way.reason in seen:
            later.append(way)
        else:
            seen.add(way.reason)
            yield way
    yield from later


WAYS: Final[MappingProxyType[str, Way]] = MappingProxyType(
    {
        way.name: way
        for way in (
            *_one_reason_after_another((PIXEL_WAYS, GEOMETRY_WAYS, FILE_WAYS, IDENTITY_WAYS, IMAGE_WAYS)),
            ZIPPED,
        )
    }
)
"""Every kind of damage by name, in the order in which a cohort uses them."""


def apply_way(case: Case, name: str | None) -> Outcome:
    """The files that come of a case: undamaged without a way."""
    return good(case) if name is None else WAYS[name].apply(case)


def assign_ways(plans: Sequence[VolumePlan], fraction: float, seed: int) -> Mapping[int, str]:
    """Choose round(fraction x volumes) volumes and a way for each; one more, if there is one, comes as a ZIP.

    Ways are taken in order and begin again when all were used, so that few broken files show many kinds of damage.
    Radial scans come last: a pack-stage reason would be hidden by NOT_RASTER.

    Returns:
        Name of a way by number of the volume; a volume without one stays good.
    """
    count = round(fraction * len(plans))
    if count == 0:
        return {}
    rng = np.random.default_rng([seed, 7])
    shuffled = [plans[i] for i in rng.permutation(len(plans))]
    free = sorted(shuffled, key=lambda plan: not plan.protocol.raster)
    ways: dict[int, str] = {}
    order = [way for way in WAYS.values() if way.breaks]
    while len(ways) < count:
        for way in order:
            _take(free, way, ways)
            if len(ways) == count:
                break
    _take(free, ZIPPED, ways)
    return ways


def _take(free: list[VolumePlan], way: Way, ways: dict[int, str]) -> None:
    """Give the way to the first volume that it fits, if there is one."""
    for plan in free:
        if way.fits(plan.protocol):
            ways[plan.number] = way.name
            free.remove(plan)
            return


def reasons_covered() -> frozenset[Reason]:
    """The reasons that a cohort can show."""
    return frozenset(Reason(way.reason) for way in WAYS.values() if way.reason) | {Reason.NOT_RASTER}
