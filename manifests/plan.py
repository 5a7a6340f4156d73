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
    """The files that share one SOP Instance UID and one key, in path order: at most one of them becomes a sample.

    `rivals` have the UID too, but are of another participant, device, eye or protocol: each has an element of its own,
    and is read here only to learn whether it is valid.
    """

    key: str
    split: Split
    device: Device
    files: tuple[FileRef, ...]
    rivals: tuple[FileRef, ...] = ()


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


def make_elements(files: Iterable[FileRef], participants: Mapping[str, Participant], hash_key: bytes) -> list[Element]:
    """Group files of one SOP Instance UID by their key: one element, unless a UID is used for two scans."""
    by_key: dict[str, list[FileRef]] = defaultdict(list)
    for file in sorted(files, key=lambda file: file.path):
        by_key[_key(file, hash_key)].append(file)
    return [
        Element(
            key=key,
            split=split_of(own[0].participant_id, participants, hash_key),
            device=own[0].device,
            files=tuple(own),
            rivals=tuple(file for other, rivals in sorted(by_key.items()) for file in rivals if other != key),
        )
        for key, own in sorted(by_key.items())
    ]


def _key(file: FileRef, hash_key: bytes) -> str:
    return sample_key(
        participant_id=file.participant_id,
        device=file.device,
        laterality=file.laterality,
        protocol=file.protocol,
        sop_instance_uid=file.sop_instance_uid,
        hash_key=hash_key,
    )


def split_of(participant_id: str, participants: Mapping[str, Participant], hash_key: bytes) -> Split:
    """The participant's `recommended_split`, else a keyed hash 70/15/15."""
    participant = participants.get(participant_id)
    recommended = participant.recommended_split if participant else None
    return recommended or hashed_split(participant_id, hash_key)


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
        for element in make_elements(group, participants, hash_key):
            by_shelf[element.split, element.device].append(element)
    return [
        shard
        for shelf in sorted(by_shelf)
        for shard in cut_shards(by_shelf[shelf], samples_per_shard=samples_per_shard)
    ]
