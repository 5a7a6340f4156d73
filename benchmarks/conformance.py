"""`make conformance`: one synthetic file per protocol through dcmdump (dcmtk) and dciodvfy (dicom3tools).

Exits with 0 if dcmdump reads every file and dciodvfy names no error outside of `KNOWN`, which docs/conformance.md
explains line by line.
"""

import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from ingest.phantom.dicom import write_dicom
from ingest.phantom.plan import CohortSpec, VolumePlan, plan_cohort, realise
from ingest.phantom.protocols import DEFLATED_LE, PROTOCOLS

TOOLS = ("dcmdump", "dcmconv", "dciodvfy")

NOT_A_CONCATENATION = (
    "Attribute present when condition unsatisfied (which may not be present otherwise)"
    " Type 1C Conditional Element=<{}> Module=<MultiFrameFunctionalGroupsCommon>"
)
EMPTY_POSITION = (
    "Attribute present but empty (no value) even though condition not satisfied"
    " Type 1C Conditional Element=<ImagePositionPatient> Module=<PlanePositionMacro>"
)
NO_POSITION = "Missing attribute Type 1 Required Element=<PlanePositionSequence> Module=<PlanePositionMacro>"
SINGLE = "Cannot be less than or equal to one since then not a Concatenation - attribute <InConcatenationTotalNumber>"

KNOWN = {
    NOT_A_CONCATENATION.format("ConcatenationFrameOffsetNumber"): tuple(PROTOCOLS),
    NOT_A_CONCATENATION.format("InConcatenationNumber"): tuple(PROTOCOLS),
    SINGLE: tuple(PROTOCOLS),
    EMPTY_POSITION: tuple(name for name in PROTOCOLS if name.startswith(("maestro2", "triton"))),
    NO_POSITION: ("cirrus_mac_oct", "cirrus_disc_oct"),
}
"""Errors that the real device's file, or any conforming one, also raises, and the protocols that raise them."""


def main() -> int:
    """Check a file of every protocol and print what was found; the exit status."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        print(f"conformance: {', '.join(missing)} not found; on Debian: apt-get install dcmtk dicom3tools")
        return 2
    found: dict[str, set[str]] = defaultdict(set)
    with tempfile.TemporaryDirectory() as folder:
        for plan in one_per_protocol():
            for error in check(plan, Path(folder)):
                found[error].add(plan.protocol.name)
    new = 0
    for error, protocols in sorted(found.items()):
        strangers = protocols - set(KNOWN.get(error, ()))
        new += len(strangers)
        print(f"{'NEW' if strangers else 'known'}: {error}\n    {', '.join(sorted(strangers or protocols))}")
    print(f"{len(PROTOCOLS)} protocols, {new} errors that docs/conformance.md does not explain")
    return 1 if new else 0


def one_per_protocol() -> Iterator[VolumePlan]:
    """The first volume of each protocol in a small cohort: transfer syntaxes as they come."""
    plans = plan_cohort(CohortSpec(participants=6, small=True, seed=1))
    first = {plan.protocol.name: plan for plan in reversed(plans)}
    for name in PROTOCOLS:
        yield first[name]


def check(plan: VolumePlan, folder: Path) -> Iterator[str]:
    """Errors of one file; a deflated file is inflated for dciodvfy, which does not read it."""
    path = folder / f"{plan.protocol.name}.dcm"
    volume, header = realise(plan)
    write_dicom(path, volume, header)
    dump = run("dcmdump", "-q", str(path))
    if dump.returncode or dump.stderr.strip():
        yield f"dcmdump ends with {dump.returncode}: {dump.stderr.strip()[:200]}"
    if plan.transfer_syntax == DEFLATED_LE:
        inflated = path.with_suffix(".inflated")
        run("dcmconv", "+te", str(path), str(inflated)).check_returncode()
        path = inflated
    for line in run("dciodvfy", str(path)).stderr.splitlines():
        if line.startswith("Error - "):
            yield " ".join(line.removeprefix("Error - ").split())


def run(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of `TOOLS` and keep what it says."""
    command = [shutil.which(tool) or tool, *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


if __name__ == "__main__":
    sys.exit(main())
