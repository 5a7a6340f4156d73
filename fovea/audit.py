"""`fovea audit`: account for every input file of a dataset."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fovea.places import on_this_machine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from manifests.audit import AuditReport, ProtocolSummary, Range
    from manifests.cohort import JoinAudit
    from manifests.offenders import Offenders, RejectedOf

SHAPE_COLUMNS = ("protocol", "shapes", "spacing from")


def command(
    dataset: str = typer.Argument(..., help="Path or URL of a dataset that `fovea ingest` made."),
    labels: str | None = typer.Option(None, help="participants.tsv: also audit the join of its labels to the volumes."),
    html: Path | None = typer.Option(
        None, help="Write the audit as one self-contained page.", callback=on_this_machine
    ),
    json: bool = typer.Option(False, "--json", help="Print the machine-readable result."),
) -> None:
    """Count every input file by status, reason, device and site, and check that all tables agree.

    Exits with 1 if the accounting does not add up; labels are not joined then. (`fovea verify` checks the bytes.)

    Example: fovea audit out/dataset --labels out/cohort/participants.tsv --html out/audit.html
    """
    from manifests.audit import audit
    from manifests.audit_html import write_audit_html

    report = audit(dataset)
    join = _join(dataset, labels) if labels is not None and report.adds_up else None
    if html:
        write_audit_html(html, report, join)
    if json:
        _print_json(report, join)
    else:
        _print(report, join)
    if not report.adds_up:
        raise typer.Exit(1)


def _join(dataset: str, labels: str) -> "JoinAudit":
    from fovea.labels import load_labels
    from manifests.cohort import audit_join
    from shards.reader import open_dataset

    return audit_join(open_dataset(dataset).samples, load_labels(labels))


def _print_json(report: "AuditReport", join: "JoinAudit | None") -> None:
    from dataclasses import asdict

    from fovea.console import print_json

    print_json(report.to_json() | ({"labels": asdict(join)} if join else {}))


def _print(report: "AuditReport", join: "JoinAudit | None") -> None:
    from fovea.console import print_table, say
    from fovea.labels import print_join

    if report.by_reason:
        rows = [(count.reason, count.status, count.device, count.site, count.num_files) for count in report.by_reason]
        print_table("Not in the shards", ["reason", "status", "device", "site", "files"], rows)
    if report.by_warning:
        print_table("Accepted with a warning", ["warning", "files"], list(report.by_warning.items()))
    splits = [(split.split, split.num_participants, split.num_samples) for split in report.by_split]
    print_table("In the shards", ["split", "participants", "volumes"], splits)
    _print_protocols(report.protocols)
    _print_offenders(report.offenders)
    if join:
        print_join(join)
    for problem in report.problems:
        say(f"problem: {problem}")
    say(report.equation)
    say("every table agrees" if report.adds_up else f"the accounting does not add up: {len(report.problems)} problems")


def _print_protocols(protocols: "Sequence[ProtocolSummary]") -> None:
    from fovea.console import print_table

    if not protocols:
        return
    spacings = [
        (one.protocol, one.num_files, *map(_range, (one.spacing_d_mm, one.spacing_h_mm, one.spacing_w_mm)))
        for one in protocols
    ]
    columns = ["protocol", "volumes", "B-scan step", "axial", "lateral"]
    print_table("Native spacing of the accepted volumes, mm: minimum, median, maximum", columns, spacings)
    shapes = [(one.protocol, _counted(one.shapes), _counted(one.spacing_sources)) for one in protocols]
    print_table("Their shapes (B-scans x rows x columns), and where the spacing came from", SHAPE_COLUMNS, shapes)


def _print_offenders(worst: "Offenders") -> None:
    from fovea.console import print_table

    if worst.participants:
        people = [(one.participant_id, *_rejected(one)) for one in worst.participants]
        print_table("Worst: participants by rejected files", ["participant", "rejected", "reasons"], people)
    if worst.protocols:
        shares = [(one.device, one.protocol, f"{one.share:.0%}", *_rejected(one)) for one in worst.protocols]
        columns = ["device", "protocol", "share", "rejected", "reasons"]
        print_table("Worst: devices and protocols by share rejected", columns, shares)
    if worst.spacing:
        far = [(one.key, one.axis, f"{one.spacing_mm:.4g}", f"{one.median_mm:.4g}", one.ratio) for one in worst.spacing]
        columns = ["sample", "axis", "mm", "median", "ratio"]
        print_table("Worst: accepted, with the spacing furthest from the protocol's median", columns, far)


def _rejected(one: "RejectedOf") -> tuple[str, str]:
    return f"{one.num_rejected} of {one.num_files}", _counted(one.reasons)


def _range(values: "Range | None") -> str:
    return " ".join(f"{value:.4g}" for value in values) if values else "not recorded"


def _counted(counts: "Mapping[str, int]") -> str:
    return ", ".join(f"{name} ({number})" for name, number in counts.items())
