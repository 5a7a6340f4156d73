"""Good files: none may be rejected, and what is read from them must be the truth."""

import argparse
import dataclasses
import io
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pydicom.uid import UID

from ingest.geometry import BLOCK6
from ingest.guard import Guard
from ingest.phantom.dicom import encode_dicom
from ingest.phantom.participants import MAX_PARTICIPANTS
from ingest.phantom.plan import CohortSpec, VolumePlan, plan_cohort, realise
from ingest.phantom.protocols import TRANSFER_SYNTAXES, true_spacing_mm
from ingest.record import Facts, Probed, Rejection, VolumeRecord
from manifests.reasons import Reason
from reliability.report import Promise, chunks, in_processes, none_of, table, verdict
from reliability.seeds import SYNTAXES, dataset_of, write

TOLERANCE_MM: Final = 1e-6
CHUNK: Final = 65
COHORT_SEED: Final = 3
PER_PARTICIPANT: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One good file: its protocol and transfer syntax, the largest error of its spacing in mm, and what was wrong."""

    protocol: str
    syntax: str
    raster: bool
    error_mm: float
    faults: tuple[str, ...]


def small_plans(count: int, seed: int = COHORT_SEED) -> list[VolumePlan]:
    """So many raster scans of `--small` cohorts, with the radial ones that come between.

    Every second file is in its device's own transfer syntax, the others in all that fovea decodes, in turn.
    """
    found: list[VolumePlan] = []
    people = min(MAX_PARTICIPANTS, count // PER_PARTICIPANT + 50)
    spec = CohortSpec(participants=people, volumes_per_participant=PER_PARTICIPANT, small=True, seed=seed)
    for plan in plan_cohort(spec):
        if sum(earlier.protocol.raster for earlier in found) == count:
            break
        syntax = SYNTAXES[plan.number // 2 % len(SYNTAXES)] if plan.number % 2 else plan.transfer_syntax
        found.append(dataclasses.replace(plan, transfer_syntax=syntax))
    return found


def full_plans(seed: int = COHORT_SEED) -> list[VolumePlan]:
    """One full-size volume of every protocol, radial ones too."""
    plans = plan_cohort(CohortSpec(participants=13, seed=seed))
    return list({plan.protocol.name: plan for plan in plans}.values())


def check(plan: VolumePlan, guard: Guard) -> Checked:
    """Write the volume, probe and convert it, and compare with what was planned."""
    volume, header = realise(plan)
    own = plan.transfer_syntax in TRANSFER_SYNTAXES[plan.protocol.device]
    data = encode_dicom(volume, header) if own else write(dataset_of(volume, header))
    results = (guard.probe(io.BytesIO(data), plan.path, None), guard.convert(data, plan.path, None, BLOCK6))
    worst, faults = 0.0, []
    for step, result in zip(("probe", "convert"), results, strict=True):
        error, wrong = compare(plan, result)
        worst = max(worst, error)
        faults += [f"{step} of {plan.number} {plan.protocol.name} {plan.transfer_syntax}: {fault}" for fault in wrong]
    return Checked(
        protocol=plan.protocol.name,
        syntax=UID(plan.transfer_syntax).keyword,
        raster=plan.protocol.raster,
        error_mm=worst,
        faults=tuple(faults),
    )


def compare(plan: VolumePlan, result: Probed | VolumeRecord | Rejection) -> tuple[float, list[str]]:
    """The largest error of the spacing in mm, and what is not as planned."""
    if isinstance(result, Rejection):
        expected = result.reason is Reason.NOT_RASTER and not plan.protocol.raster
        return 0.0, [] if expected else [f"{result.reason} ({result.detail})"]
    if not plan.protocol.raster:
        return 0.0, ["a radial scan is accepted"]
    found = (result.facts.spacing_d_mm, result.facts.spacing_h_mm, result.facts.spacing_w_mm)
    error = max(abs((mm or 0.0) - truth) for mm, truth in zip(found, true_spacing_mm(plan.protocol), strict=True))
    wrong = [f"{name} {value}, not {truth}" for name, value, truth in identity(plan, result.facts) if value != truth]
    return error, wrong if error <= TOLERANCE_MM else [*wrong, f"spacing off by {error:.3g} mm"]


def identity(plan: VolumePlan, facts: Facts) -> Iterator[tuple[str, object, object]]:
    """What the header says of whose eye it is: (name, as found, as planned)."""
    yield "laterality", facts.laterality, plan.subject.laterality
    yield "device", facts.device, plan.protocol.device
    yield "protocol", facts.protocol, plan.protocol.name
    yield "participant_id", facts.participant_id, plan.participant.person_id
    yield "frames", facts.num_frames, plan.protocol.num_frames


def check_all(plans: Sequence[VolumePlan]) -> list[Checked]:
    """A run of volumes through a guard of their own."""
    with Guard() as guard:
        return [check(plan, guard) for plan in plans]


def show(name: str, results: Sequence[Checked]) -> int:
    """Counts by protocol and the promises; returns the exit status."""
    files = Counter(found.protocol for found in results)
    rows = [(protocol, count, *_of(protocol, results)) for protocol, count in sorted(files.items())]
    print(f"{name}: {len(results)} files.\n")
    print(table(("protocol", "files", "transfer syntaxes", "wrong", "largest error of a spacing, mm"), rows))
    rasters = [found for found in results if found.raster]
    worst = max((found.error_mm for found in rasters), default=0.0)
    wrong = [found for found in rasters if found.faults]
    radial = [found for found in results if not found.raster]
    text, status = verdict(
        (
            none_of(f"of {len(rasters)} raster scans rejected or misread", len(wrong)),
            Promise(text="spacing is the truth to 1e-6 mm", found=f"{worst:.1e} mm", kept=worst <= TOLERANCE_MM),
            none_of(f"of {len(radial)} radial scans not NOT_RASTER", sum(bool(found.faults) for found in radial)),
        )
    )
    print(text)
    print("".join(f"{fault}\n" for found in results for fault in found.faults))
    return status


def _of(protocol: str, results: Sequence[Checked]) -> tuple[int, int, str]:
    own = [found for found in results if found.protocol == protocol]
    wrong = sum(bool(found.faults) for found in own)
    error = f"{max(found.error_mm for found in own):.1e}" if own[0].raster else "NOT_RASTER"
    return len({found.syntax for found in own}), wrong, error


def run(options: argparse.Namespace) -> int:
    """Small volumes, and one full-size volume of every protocol."""
    started = time.perf_counter()
    plans = small_plans(options.count, options.seed)
    pieces = [[plans[number] for number in piece] for piece in chunks(len(plans), CHUNK)]
    small = [found for part in in_processes(check_all, pieces, options.processes) for found in part]
    status = show("--small", small)
    if not options.small_only:
        full = [[plan] for plan in full_plans(options.seed)]
        status |= show(
            "Full size", [found for part in in_processes(check_all, full, options.processes) for found in part]
        )
    print(f"{time.perf_counter() - started:.0f} s in all.")
    return status
