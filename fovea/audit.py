"""`fovea audit`: account for every input file of a dataset."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from manifests.audit import AuditReport
    from manifests.cohort import JoinAudit


def command(
    dataset: str = typer.Argument(..., help="Path or URL of a dataset that `fovea ingest` made."),
    labels: str | None = typer.Option(None, help="participants.tsv: also audit the join of its labels to the volumes."),
    html: Path | None = typer.Option(None, help="Write the audit as one self-contained page."),
    json: bool = typer.Option(False, "--json", help="Print the machine-readable result."),
) -> None:
    """Count every input file by status, reason, device and site, and check that all tables agree.

    Exits with 1 if the accounting does not add up. (`fovea verify` checks the bytes.)

    Example: fovea audit out/dataset --labels out/cohort/participants.tsv --html out/audit.html
    """
    from manifests.audit import audit
    from manifests.audit_html import write_audit_html

    report = audit(dataset)
    join = _join(dataset, labels) if labels else None
    if html:
        write_audit_html(html, report, join)
    if json:
        _print_json(report, join)
    else:
        _print(report, join)
    if not report.adds_up:
        raise typer.Exit(1)


def _join(dataset: str, labels: str) -> "JoinAudit":
    from manifests.cohort import audit_join, load_participants
    from shards.reader import open_dataset

    return audit_join(open_dataset(dataset).samples, load_participants(labels))


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
    splits = [(split.split, split.num_participants, split.num_samples) for split in report.by_split]
    print_table("In the shards", ["split", "participants", "volumes"], splits)
    if join:
        print_join(join)
    for problem in report.problems:
        say(f"problem: {problem}")
    say(report.equation)
    say("every table agrees" if report.adds_up else f"the accounting does not add up: {len(report.problems)} problems")
