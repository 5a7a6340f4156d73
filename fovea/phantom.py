"""`fovea phantom`: a synthetic cohort to try everything on."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fovea.places import on_this_machine

if TYPE_CHECKING:
    from ingest.phantom.cohort import CohortSummary


def command(
    out: Annotated[Path, typer.Argument(help="A new or empty folder for the cohort.", callback=on_this_machine)],
    participants: Annotated[int, typer.Option(help="How many people.")] = 24,
    volumes: Annotated[int, typer.Option(metavar="PER_PARTICIPANT", help="Volumes per person.")] = 4,
    devices: Annotated[list[str] | None, typer.Option(help="Only these, e.g. maestro2,cirrus; repeatable.")] = None,
    corrupt: Annotated[float, typer.Option(metavar="FRACTION", help="Share of files to break, 0-1.")] = 0.0,
    signal: Annotated[float, typer.Option(metavar="STRENGTH", help="How far the label shows; 0: not at all.")] = 1.0,
    small: Annotated[bool, typer.Option("--small", help="16-24 B-scans of 128 x 128, same field of view.")] = False,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the machine-readable result.")] = False,
) -> None:
    """Write a synthetic cohort shaped like AI-READI: OCT DICOMs, manifest.tsv, participants.tsv, truth.csv.

    The label changes a layer's thickness and adds fluid pockets, so that learning can be seen.
    truth.csv says what an ingest must make of each file.

    Example: fovea phantom out/cohort --participants 12 --corrupt 0.2 --seed 7 --small
    """
    from fovea.console import is_terminal
    from fovea.stop import stoppable
    from ingest.phantom.cohort import write_cohort
    from ingest.phantom.plan import CohortSpec, parse_devices

    spec = CohortSpec(
        participants=participants,
        volumes_per_participant=volumes,
        devices=parse_devices(devices or []),
        corrupt=corrupt,
        signal=signal,
        small=small,
        seed=seed,
    )
    with stoppable(f"remove {out}, and run the same command again."):
        summary = write_cohort(out, spec, progress=_show_progress if is_terminal() else None)
    _print(summary, json=json)


def _show_progress(done: int, total: int) -> None:
    """One line on the terminal, rewritten after each volume."""
    sys.stderr.write(f"\r\x1b[K{done} of {total} volumes" if done < total else "\r\x1b[K")
    sys.stderr.flush()


def _print(summary: "CohortSummary", *, json: bool) -> None:
    import dataclasses

    from fovea.console import print_json, say

    if json:
        print_json(dataclasses.asdict(summary))
        return
    devices = ", ".join(f"{device} {count}" for device, count in summary.by_device.items())
    say(f"volumes: {devices}")
    if summary.broken:
        reasons = ", ".join(f"{reason} {count}" for reason, count in summary.reasons.items())
        say(f"{summary.broken} broken; expected: {reasons}")
    say(
        f"Wrote {summary.files} files ({summary.bytes / 1e6:.1f} MB) of {summary.participants} participants"
        f" to {summary.root}; next: fovea ingest {summary.root} DATASET"
    )
