"""From results of `ingest` to rows of `sources.csv`."""

import dataclasses
from typing import Any, Final

from ingest.facts import path_facts
from ingest.record import Facts, Rejection, VolumeRecord
from ingest.source import Settled
from manifests.reasons import Reason
from manifests.rows import SourceRow, Status

STATUS: Final[dict[Reason, Status]] = {
    Reason.OUTSIDE_FILTER: "excluded",
    Reason.DUP_SOP_UID_IDENTICAL: "duplicate",
}
"""Every other code is a rejection."""


def outcome_row(path: str, num_bytes: int | None, sha256: str | None, rejection: Rejection) -> SourceRow:
    """The row of a file that was not accepted."""
    reason = rejection.reason
    return SourceRow(
        path=path,
        bytes=num_bytes,
        sha256=sha256,
        status=STATUS.get(reason, "rejected"),
        reason=reason.value,
        severity=reason.info.severity,
        stage=reason.info.stage,
        detail=rejection.detail,
        **_columns(rejection.facts),
    )


def accepted_row(path: str, num_bytes: int | None, sha256: str | None, record: VolumeRecord) -> SourceRow:
    """The row of a sample's file; `detail` holds its warnings. Split, key and shard are the planner's."""
    return SourceRow(
        path=path,
        bytes=num_bytes,
        sha256=sha256,
        status="accepted",
        detail=" ".join(f"{caution.reason}: {caution.detail}" for caution in record.cautions) or None,
        **_columns(record.facts),
    )


def settled_row(settled: Settled, sha256: str | None) -> SourceRow:
    """The row of an input that the listing alone decides: a missing file, or an archive."""
    rejection = Rejection(reason=settled.reason, detail=settled.detail, facts=path_facts(settled.path))
    return outcome_row(settled.path, settled.bytes, sha256, rejection)


def _columns(facts: Facts) -> dict[str, Any]:
    return {field.name: getattr(facts, field.name) for field in dataclasses.fields(facts)}
