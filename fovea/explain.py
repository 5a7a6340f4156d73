"""`fovea explain`: every check on one file, and what it found."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ingest.explain import Explanation


def command(
    file: Annotated[str, typer.Argument(metavar="FILE.dcm", help="A DICOM file, or a member of a ZIP: a.zip!b.dcm.")],
    path: Annotated[
        str | None,
        typer.Option(
            metavar="PATH_IN_COHORT",
            help="Its path in the cohort, when it was moved: participant, device and protocol are read from it.",
        ),
    ] = None,
    geometry: Annotated[str, typer.Option(help="methods, block6, fit, or a YAML file.")] = "methods",
    json: Annotated[bool, typer.Option("--json", help="Print the machine-readable result.")] = False,
) -> None:
    """Run every check of the ingest on one file and say, check by check, what it found, and the verdict.

    Exits with 0 if the file would be accepted, 1 if not, 2 if there is no such file. The row of a manifest.tsv in a
    folder above it counts, as in a job.

    Example: fovea explain retinal_oct/structural_oct/zeiss_cirrus/1001/1001_cirrus_mac_oct_r_1.2.3.dcm
    """
    from fovea.console import print_json
    from ingest.explain import explain
    from ingest.geometry import load_geometry
    from ingest.guard import Guard
    from shards.storage import locate

    locate(file)
    chosen = load_geometry(geometry)
    with Guard() as guard:
        explanation = explain(file, guard, path=path, geometry=chosen)
    if json:
        print_json(explanation.to_json())
    else:
        _print(explanation)
    if not explanation.accepted:
        raise typer.Exit(1)


def _print(explanation: "Explanation") -> None:
    from fovea.console import print_table, say

    rows = [(finding.check, finding.outcome, finding.found) for finding in explanation.findings]
    print_table(explanation.path.rsplit("/", 1)[-1], ("check", "outcome", "what it found"), rows)
    say(explanation.verdict)
