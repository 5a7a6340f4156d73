"""The row that every input file gets, whatever became of it."""

import dataclasses
from dataclasses import dataclass
from typing import Final, Literal

Status = Literal["accepted", "rejected", "duplicate", "excluded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRow:
    """A row of `sources.csv`. None is an empty cell.

    `path` is relative to SOURCE (`a.zip!b.dcm` for a member of a ZIP). `reason` is empty exactly when
    the file was accepted; `detail` holds the sentence of the reason, or the warnings of an accepted file.
    Spacing is native, mm. `sha256` is of the whole file; excluded files are not read for it.
    """

    path: str
    bytes: int | None = None
    sha256: str | None = None
    status: Status
    reason: str | None = None
    severity: str | None = None
    stage: str | None = None
    detail: str | None = None
    participant_id: str | None = None
    device: str | None = None
    manufacturer_model: str | None = None
    protocol: str | None = None
    anatomic_region: str | None = None
    laterality: str | None = None
    num_frames: int | None = None
    rows: int | None = None
    columns: int | None = None
    transfer_syntax_uid: str | None = None
    spacing_d_mm: float | None = None
    spacing_h_mm: float | None = None
    spacing_w_mm: float | None = None
    spacing_source: str | None = None
    sop_instance_uid: str | None = None
    split: str | None = None
    key: str | None = None
    shard: str | None = None

    def __post_init__(self) -> None:
        if (self.status == "accepted") != (self.reason is None):
            raise ValueError(f"{self.path}: status {self.status} with reason {self.reason}.")


SOURCE_COLUMNS: Final = tuple(field.name for field in dataclasses.fields(SourceRow))
