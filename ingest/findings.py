"""What is asked about one file, and what each check says of it."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Self

from ingest.geometry import Geometry
from ingest.record import Limits
from ingest.watch import Stage
from manifests.plan import ManifestRow

OK: Final = "ok"
WARNING: Final = "warning"
NOT_REACHED: Final = "not reached"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A file that was read whole, and what `ingest.convert.convert_file` needs beside it."""

    data: bytes = field(repr=False)
    path: str
    manifest: ManifestRow | None
    geometry: Geometry
    limits: Limits

    def to_bytes(self) -> bytes:
        """A line of JSON, then the file."""
        head = {name: value for name, value in asdict(replace(self, data=b"")).items() if name != "data"}
        return json.dumps(head).encode() + b"\n" + self.data

    @classmethod
    def from_bytes(cls, message: bytes) -> Self:
        """What `to_bytes` wrote."""
        line, _, data = message.partition(b"\n")
        head: dict[str, Any] = json.loads(line)
        geometry: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in head["geometry"].items()
        }
        return cls(
            data=data,
            path=head["path"],
            manifest=ManifestRow(**head["manifest"]) if head["manifest"] else None,
            geometry=Geometry(**geometry),
            limits=Limits(**head["limits"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found: `outcome` is ok, warning, not reached, or the code of a reason."""

    check: str
    outcome: str
    found: str

    @property
    def failed(self) -> bool:
        return self.outcome not in {OK, WARNING, NOT_REACHED}


@dataclass(frozen=True, slots=True)
class Said:
    """What a check says when it is not simply ok."""

    outcome: str
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A method of `ingest.checkup.Checkup` by name; `stage` says what it means when the process dies in it."""

    name: str
    run: Callable[[Any], str | Said]
    stage: Stage = "parse"
