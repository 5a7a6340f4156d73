"""One full-size volume of every raster protocol through every geometry: `make geometry` prints the table.

Each conversion runs in a process of its own, so that its peak memory is its own. "Survives" is the share of the scan's
extent inside of the grid, "filled" the share of the grid that is content. Pictures go to docs/images/.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from pydicom.uid import UID

from fovea.leave import leave_after
from ingest.convert import convert_file
from ingest.geometry import GEOMETRIES
from ingest.phantom.dicom import write_dicom
from ingest.phantom.plan import CohortSpec, plan_cohort, realise
from ingest.phantom.protocols import EXPLICIT_LE, JPEG_2000, JPEG_2000_LOSSLESS, PROTOCOLS
from ingest.picture import sample_figure
from ingest.record import VolumeRecord

ROOT = Path(__file__).parents[1]
SYNTAXES = {
    "heidelberg_spectralis": EXPLICIT_LE,
    "topcon_maestro2": JPEG_2000_LOSSLESS,
    "topcon_triton": JPEG_2000,
    "zeiss_cirrus": JPEG_2000_LOSSLESS,
}
HEADER = (
    "| protocol | native D x H x W | transfer syntax | geometry | survives | filled | B-scans decoded "
    "| decode s | resample s | peak memory MiB |\n|---|---|---|---|---|---|---|---|---|---|\n"
)


def write_phantom(name: str, path: Path) -> str:
    """A full-size phantom of a protocol, in what its device most likely writes; returns its path in a cohort."""
    plans = plan_cohort(CohortSpec(participants=12, seed=11))
    plan = next(plan for plan in plans if plan.protocol.name == name)
    plan = dataclasses.replace(plan, transfer_syntax=SYNTAXES[plan.protocol.device])
    volume, header = realise(plan)
    write_dicom(path, volume, header)
    return plan.path


def measure(file: Path, relative: str, geometry: str, picture: Path) -> dict[str, object]:
    """Convert in this process and say what it cost."""
    data = file.read_bytes()
    record = convert_file(data, relative, None, GEOMETRIES[geometry])
    peak_mib = peak_memory_mib()
    assert isinstance(record, VolumeRecord), record
    sample = record.to_sample(
        key=f"1234-{record.facts.device}-R-{record.facts.protocol}-0123456789", split="train", participant=None
    )
    sample_figure(sample, picture)
    return {
        "native": " x ".join(map(str, record.native_shape)),
        "syntax": record.facts.transfer_syntax_uid,
        "survives": float(np.prod([1 - share for share in record.cropped_fraction])),
        "filled": float(np.prod([1 - share for share in record.padded_fraction])),
        "decoded": record.num_frames_decoded,
        "decode_s": record.seconds["decode"],
        "resample_s": record.seconds["resample"],
        "peak_mib": peak_mib,
    }


def peak_memory_mib() -> float:
    """High-water mark of this process alone: `ru_maxrss` would start from the parent's (getrusage(2))."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", nargs=4, metavar=("FILE", "RELATIVE", "GEOMETRY", "PICTURE"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs/images")
    parser.add_argument("--protocols", nargs="*", default=[n for n, p in PROTOCOLS.items() if p.raster])
    options = parser.parse_args()
    if options.one:
        file, relative, geometry, picture = options.one
        print(json.dumps(measure(Path(file), relative, geometry, Path(picture))))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    scratch = ROOT / "out/geometry"
    scratch.mkdir(parents=True, exist_ok=True)
    lines = []
    for name in options.protocols:
        started = time.perf_counter()
        relative = write_phantom(name, scratch / "full.dcm")
        print(f"{name}: phantom in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        for geometry in GEOMETRIES:
            picture = options.out / f"{name}-{geometry}.png"
            words = [sys.executable, __file__, "--one", str(scratch / "full.dcm"), relative, geometry, str(picture)]
            row = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
            lines.append(
                f"| {name} | {row['native']} | {UID(row['syntax']).keyword} | {geometry} | {row['survives']:.0%} "
                f"| {row['filled']:.0%} | {row['decoded']} | {row['decode_s']:.1f} | {row['resample_s']:.2f} "
                f"| {row['peak_mib']:.0f} |\n"
            )
            print(lines[-1].strip(), file=sys.stderr)
    print(HEADER + "".join(lines), end="")


if __name__ == "__main__":
    leave_after(main)
