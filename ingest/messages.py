"""What the guard and the process that it guards say to each other; bytes go through `ingest.exchange`."""

from dataclasses import dataclass

from ingest.geometry import Geometry
from ingest.record import Facts, Limits, Probed, Rejection, VolumeRecord
from ingest.watch import Stage
from manifests.plan import ManifestRow
from shards.schema import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What the guard asks for: `num_bytes` lie in the inbox; `inbox_size` and `outbox_size` are reserved.

    Without a geometry it is a probe of the first part of a file (`complete`: of all of it).
    """

    num_bytes: int
    inbox_size: int
    outbox_size: int
    path: str
    manifest: ManifestRow | None
    limits: Limits
    geometry: Geometry | None = None
    complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Milestone:
    """A stage has begun, and this much is known of the file."""

    stage: Stage
    facts: Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeInOutbox:
    """Shape and type of a record's volume, which lies in the outbox; the record comes without it."""

    shape: Shape
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of the file; None: a probe needs more of it."""

    result: Probed | VolumeRecord | Rejection | None
    volume: VolumeInOutbox | None = None
