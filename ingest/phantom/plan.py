"""Which volume of which eye goes where: a pure function of the cohort's specification."""

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ingest.phantom.anatomy import effect_of, make_eye
from ingest.phantom.errors import PhantomUsageError
from ingest.phantom.header import MODELS, HeaderSpec, Subject, Uids, protocol_header, topcon_uid
from ingest.phantom.participants import MAX_PARTICIPANTS, Participant, recruit
from ingest.phantom.pixels import Volume8
from ingest.phantom.protocols import PROTOCOLS, TRANSFER_SYNTAXES, Protocol
from ingest.phantom.render import render_volume
from shards.schema import DEVICES, Device, Laterality

OCT_ROOT: Final = "retinal_oct/structural_oct"


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortSpec:
    """What cohort to write; the same specification gives the same bytes.

    `signal` scales what the label does to the pixels (0: nothing), `corrupt` is the share of files to break.
    """

    participants: int = 24
    volumes_per_participant: int = 4
    devices: tuple[Device, ...] = DEVICES
    corrupt: float = 0.0
    signal: float = 1.0
    small: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for value, name, least, most in (
            (self.participants, "the number of participants", 1, MAX_PARTICIPANTS),
            (self.volumes_per_participant, "the number of volumes per participant", 1, 1000),
            (self.corrupt, "the corrupt fraction", 0, 1),
            (self.signal, "the signal strength", 0, 10),
            (self.seed, "the seed", 0, 2**32 - 1),
        ):
            if not (math.isfinite(value) and least <= value <= most):
                raise PhantomUsageError(f"{name} must lie between {least} and {most}; it is {value}.")
        unknown = [device for device in self.devices if device not in DEVICES]
        if unknown or not self.devices:
            raise PhantomUsageError(
                f"unknown device {', '.join(unknown) or '(none)'}; choose from {', '.join(DEVICES)}."
            )


def parse_devices(words: Sequence[str]) -> tuple[Device, ...]:
    """Devices by full or short name (`topcon_triton` or `triton`), separated by commas or given one by one.

    Args:
        words: what the user typed; nothing means all devices.

    Raises:
        PhantomUsageError: if a name is unknown.
    """
    by_name: dict[str, Device] = {device.split("_")[-1]: device for device in DEVICES}
    by_name |= {device: device for device in DEVICES}
    names = [name.strip().lower() for word in words for name in word.split(",") if name.strip()]
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise PhantomUsageError(f"unknown device {', '.join(unknown)}; choose from {', '.join(by_name)}.")
    chosen = {by_name[name] for name in names} or set(DEVICES)
    return tuple(device for device in DEVICES if device in chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumePlan:
    """One volume to render and write. `path` is relative to the tree's root, with forward slashes."""

    seed: int
    number: int
    signal: float
    participant: Participant
    protocol: Protocol
    subject: Subject
    transfer_syntax: str
    offset_table: bool

    @property
    def folder(self) -> str:
        return f"{OCT_ROOT}/{self.protocol.device}/{self.participant.person_id}"

    @property
    def path(self) -> str:
        side = self.subject.laterality.lower()
        name = f"{self.participant.person_id}_{self.protocol.name}_{side}_{self.subject.uids.sop_instance}.dcm"
        return f"{self.folder}/{name}"


def plan_cohort(spec: CohortSpec) -> tuple[VolumePlan, ...]:
    """Volumes go round-robin over protocols, devices alternating, and over both eyes."""
    people = recruit(spec.participants, spec.seed)
    protocols = _in_turn(spec.devices)
    written: dict[Device, int] = dict.fromkeys(spec.devices, 0)
    plans = []
    for turn in range(spec.participants * spec.volumes_per_participant):
        person = people[turn // spec.volumes_per_participant]
        protocol = protocols[turn % len(protocols)]
        plans.append(_plan_volume(spec, person, protocol, turn, written[protocol.device]))
        written[protocol.device] += 1
    return tuple(plans)


def _in_turn(devices: Sequence[Device]) -> list[Protocol]:
    """Protocols of the chosen devices, one of each device in turn: a volume each before a second one of any."""
    by_device = [[p for p in PROTOCOLS.values() if p.device == device and p.raster] for device in DEVICES]
    rounds = [group[rank] for rank in range(4) for group in by_device if rank < len(group)]
    radial = [protocol for protocol in PROTOCOLS.values() if not protocol.raster]
    return [protocol for protocol in (*rounds, *radial) if protocol.device in devices]


def _plan_volume(spec: CohortSpec, person: Participant, protocol: Protocol, turn: int, rank: int) -> VolumePlan:
    """`rank` counts the device's volumes: its protocols and transfer syntaxes are combined in every way."""
    syntaxes = TRANSFER_SYNTAXES[protocol.device]
    models = MODELS[protocol.device]
    per_round = sum(p.device == protocol.device for p in PROTOCOLS.values())
    choice = rank % per_round + rank // per_round
    rng = np.random.default_rng([spec.seed, 5, turn])
    visit = datetime.datetime.combine(person.study_visit_date, datetime.time(9))
    acquired = visit + datetime.timedelta(seconds=int(rng.integers(0, 6 * 3600)))
    laterality: Laterality = "R" if turn % 2 == 0 else "L"
    subject = Subject(
        participant_id=person.person_id,
        laterality=laterality,
        model=models[choice % len(models)],
        uids=_identifiers(spec, person, protocol, turn, acquired),
        acquired=acquired,
        instance_number=turn + 1,
    )
    return VolumePlan(
        seed=spec.seed,
        number=turn,
        signal=spec.signal,
        participant=person,
        protocol=protocol.small() if spec.small else protocol,
        subject=subject,
        transfer_syntax=syntaxes[choice % len(syntaxes)],
        offset_table=turn % 3 != 0,
    )


def _identifiers(
    spec: CohortSpec, person: Participant, protocol: Protocol, turn: int, acquired: datetime.datetime
) -> Uids:
    """Synthetic UIDs; a Topcon SOP Instance UID carries a made-up serial number and the time stamp."""
    uids = Uids.from_entropy("fovea phantom", str(spec.seed), person.person_id, str(turn))
    if not protocol.device.startswith("topcon"):
        return uids
    serial = "910123" if protocol.device == "topcon_maestro2" else "920456"
    return Uids(
        study=uids.study,
        series=uids.series,
        sop_instance=topcon_uid(serial, acquired, 100_000 * (spec.seed % 10_000) + turn),
        frame_of_reference=uids.frame_of_reference,
        localizer=uids.localizer,
    )


def realise(plan: VolumePlan, *, scan: int = 0, speckle: int = 0) -> tuple[Volume8, HeaderSpec]:
    """Render the planned volume, in stored order, with its header.

    Args:
        plan: which volume.
        scan: another number is another acquisition of the same eye: aim, depth, tilt, motion, gain, shading and the
            choroid's pattern are drawn anew, and speckle.
        speckle: another number is the same acquisition in other speckle.
    """
    person = plan.participant
    seed = (plan.seed, 23, plan.number, scan) if scan else (plan.seed, 17, plan.number)
    eye = make_eye(plan.seed, person.number, plan.subject.laterality, effect_of(person.label, plan.signal))
    volume = render_volume(plan.protocol, eye, seed, speckle_seed=speckle)
    header = protocol_header(plan.protocol, plan.subject, plan.transfer_syntax, offset_table=plan.offset_table)
    return (volume[::-1] if plan.protocol.reversed_frames else volume), header
