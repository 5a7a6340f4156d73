"""How commands read labels, and show their join to volumes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fovea.console import print_table, say

if TYPE_CHECKING:
    from manifests.cohort import JoinAudit, JoinCount, Participant

COLUMNS = ("", "", "labelled", "with OCT", "both", "label, no OCT", "OCT, no label")


def load_labels(address: str) -> "dict[str, Participant]":
    """The participants.tsv at a path or URL; what is wrong with the address itself is said first."""
    from manifests.cohort import load_participants
    from shards.storage import locate

    locate(address)
    return load_participants(address)


def print_join(audit: "JoinAudit") -> None:
    """Participants kept and lost: in all, by site, by device and by split."""
    groups: dict[str, Mapping[str, JoinCount]] = {
        "all": {"": audit.total},
        "site": audit.by_site,
        "device": audit.by_device,
        "split": audit.by_split,
    }
    rows = [_row(kind, name, count) for kind, counts in groups.items() for name, count in counts.items()]
    print_table("Label join, in participants", COLUMNS, rows)
    say(f"{audit.match_rate:.1%} of the participants with OCT have a label")
    if audit.relabelled:
        say(f"the labels override the dataset for {len(audit.relabelled)} participants: {', '.join(audit.relabelled)}")


def _row(kind: str, name: str, count: "JoinCount") -> tuple[object, ...]:
    return (
        kind,
        name,
        count.labelled,
        count.with_oct,
        count.matched,
        count.labelled_without_oct,
        count.oct_without_label,
    )
