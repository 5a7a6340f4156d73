"""Which file goes into which shard: a pure function of the set of inputs, on rows of a few hundred bytes."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from manifests.cohort import Participant
from manifests.keys import hashed_split, sample_key
from shards.schema import Device, Laterality, Split, shard_name


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestRow:
    """What `manifest.tsv` says of a file and its header may lack."""

    pixel_spacing: str | None = None
    slice_thickness: str | None = None
    anatomic_region: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRef:
    """A file that passed the probe. `path` is relative to SOURCE."""

    path: str
    bytes: int
    sop_instance_uid: str
    participant_id: str
    device: Device
    laterality: Laterality
    protocol: str
    manifest: ManifestRow | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """The files that share one SOP Instance UID, in path order: at most one of them becomes a sample."""

    key: str
    split: Split
    device: Device
    files: tuple[FileRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """One shard to pack: elements in key order."""

    shard: str
    split: Split
    device: Device
    elements: tuple[Element, ...]

    def fingerprint(self, config_sha256: str) -> str:
        """sha256 of everything that decides the bytes of the shard, but for the content of its files."""
        text = json.dumps([config_sha256, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def make_element(files: Iterable[FileRef], participants: Mapping[str, Participant], hash_key: bytes) -> Element:
    """Group files of one SOP Instance UID; identity is that of the first path.

    The split is the participant's `recommended_split`, else a keyed hash 70/15/15.
    """
    ordered = tuple(sorted(files, key=lambda file: file.path))
    first = ordered[0]
    key = sample_key(
        participant_id=first.participant_id,
        device=first.device,
        laterality=first.laterality,
        protocol=first.protocol,
        sop_instance_uid=first.sop_instance_uid,
        hash_key=hash_key,
    )
    participant = participants.get(first.participant_id)
    recommended = participant.recommended_split if participant else None
    split = recommended or hashed_split(first.participant_id, hash_key)
    return Element(key=key, split=split, device=first.device, files=ordered)


def cut_shards(elements: Iterable[Element], *, samples_per_shard: int) -> list[ShardPlan]:
    """Cut the elements of one split and device into shards of nearly equal size.

    Elements are dealt in the order of a hash of their key, so that a shard mixes participants; within a
    shard they are in key order.
    """
    mixed = sorted(elements, key=lambda element: (hashlib.sha256(element.key.encode()).digest(), element.files[0].path))
    num_shards = -(-len(mixed) // samples_per_shard)
    return [_shard_plan(number, mixed[number::num_shards]) for number in range(num_shards)]


def _shard_plan(number: int, elements: list[Element]) -> ShardPlan:
    first = elements[0]
    return ShardPlan(
        shard=shard_name(first.split, first.device, number),
        split=first.split,
        device=first.device,
        elements=tuple(sorted(elements, key=lambda element: (element.key, element.files[0].path))),
    )


def plan(
    files: Iterable[FileRef], participants: Mapping[str, Participant], *, hash_key: bytes, samples_per_shard: int
) -> list[ShardPlan]:
    """The whole plan in memory: what the pipeline does with two groupings, for tests and for sizing."""
    by_uid: dict[str, list[FileRef]] = defaultdict(list)
    for file in files:
        by_uid[file.sop_instance_uid].append(file)
    by_shelf: dict[tuple[str, str], list[Element]] = defaultdict(list)
    for group in by_uid.values():
        element = make_element(group, participants, hash_key)
        by_shelf[element.split, element.device].append(element)
    return [
        shard
        for shelf in sorted(by_shelf)
        for shard in cut_shards(by_shelf[shelf], samples_per_shard=samples_per_shard)
    ]
