"""The process in which one file is examined for `ingest.explain`: findings go out one by one, in lines of JSON.

A codec that dies takes this process with it, and leaves behind what was found before.
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Final

from ingest.checkup import Checkup
from ingest.convert import without_warnings
from ingest.findings import Check, Finding, Request
from ingest.isolated import FRAME_CPU_S, FRAME_VOXELS_PER_CPU_S, STAGE_CPU_S, allow_cpu, limit_memory
from ingest.record import Facts
from ingest.watch import UNWATCHED, Stage, Watch

CHECKS: Final = (
    Check(name="header", run=Checkup.header),
    Check(name="transfer syntax", run=Checkup.transfer_syntax),
    Check(name="file meta", run=Checkup.meta),
    Check(name="limits", run=Checkup.limits),
    Check(name="image kind", run=Checkup.image_kind),
    Check(name="path", run=Checkup.path),
    Check(name="participant", run=Checkup.participant),
    Check(name="device", run=Checkup.device),
    Check(name="laterality", run=Checkup.laterality),
    Check(name="identity", run=Checkup.identity),
    Check(name="pixel data", run=Checkup.pixel_data),
    Check(name="decoder", run=Checkup.decoder),
    Check(name="frames", run=Checkup.frames),
    Check(name="dimensions", run=Checkup.dimensions),
    Check(name="photometric", run=Checkup.photometric),
    Check(name="B-scans", run=Checkup.bscans),
    Check(name="pixel spacing", run=Checkup.pixel_sources),
    Check(name="B-scan distance", run=Checkup.bscan_sources),
    Check(name="spacing", run=Checkup.spacing),
    Check(name="raster", run=Checkup.raster),
    Check(name="positions", run=Checkup.positions),
    Check(name="agreement", run=Checkup.agreement),
    Check(name="functional groups", run=Checkup.functional_groups, stage="frames"),
    Check(name="frame structure", run=Checkup.structure, stage="frames"),
    Check(name="decoding", run=Checkup.decoding, stage="frames"),
    Check(name="content", run=Checkup.content, stage="resample"),
    Check(name="annotation", run=Checkup.annotation, stage="resample"),
    Check(name="margins", run=Checkup.margins, stage="resample"),
    Check(name="grid", run=Checkup.grid, stage="resample"),
    Check(name="duplicates", run=Checkup.duplicates, stage="resample"),
)
"""In the order of precedence of what they can find."""


class _Allowance(Watch):
    """CPU seconds for a stage or a frame; the kernel ends this process when they are spent."""

    def begin(self, stage: Stage, _facts: Facts) -> None:
        allow_cpu(STAGE_CPU_S[stage])

    def frame(self, num_voxels: int) -> None:
        allow_cpu(FRAME_CPU_S + num_voxels / FRAME_VOXELS_PER_CPU_S)


def examine(request: Request, watch: Watch = UNWATCHED) -> Iterator[Finding | Check]:
    """Each check before it runs, and then what it found."""
    checkup = Checkup(request, watch)
    with without_warnings():
        for check in CHECKS:
            watch.begin(check.stage, Facts())
            yield check
            yield checkup.find(check)


def main() -> None:
    """A `Request` on standard input, a line of JSON for each check that begins and that ends on output."""
    request = Request.from_bytes(sys.stdin.buffer.read())
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        # Codecs print; what they print may quote a file.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        limit_memory()
        for step in examine(request, _Allowance()):
            out.write(json.dumps({"begin": step.name} if isinstance(step, Check) else asdict(step)) + "\n")
            out.flush()
