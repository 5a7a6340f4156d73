"""Peak memory of a worker and of its guarded process while full-size volumes are packed: `make memory`.

The largest protocol, 512 x 992 x 512 voxels, once uncompressed (the most bytes in memory) and once as the device writes
it. One shard of 4 files and one of 12, each packed in a process of its own: memory must not grow with their number.
`VmHWM` is each process's own high-water mark, kept by the kernel, which misses nothing; "together" is the most that a
sampler of /proc saw at one moment, with the memory that both share counted twice. Exit status 1: over 3 GiB, or 12
files take a tenth more than 4.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

from figures import MIB, machine, peak_bytes, put, resident_bytes, table

from fovea.leave import leave_after

ROOT: Final = Path(__file__).parents[1]
PROTOCOL: Final = "triton_macula_12x12_octa"
LIMIT_BYTES: Final = 3 * 2**30
MAX_GROWTH: Final = 1.1
SAMPLE_EVERY_S: Final = 0.01
COUNTS: Final = (4, 12)


def write_files(folder: Path, syntax: str, count: int) -> list[Any]:
    """Full-size phantoms that differ in their SOP Instance UID; returns what the probe says of each."""
    from ingest.convert import probe_file
    from ingest.phantom.dicom import encode_dicom
    from ingest.phantom.plan import CohortSpec, plan_cohort, realise
    from ingest.record import Probed

    plan = next(plan for plan in plan_cohort(CohortSpec(participants=12, seed=11)) if plan.protocol.name == PROTOCOL)
    volume, header = realise(dataclasses.replace(plan, transfer_syntax=syntax))
    data, uid = encode_dicom(volume, header), header.uids.sop_instance
    refs = []
    for number in range(count):
        other = f"{uid[:-4]}{number:04d}"  # as long as it was: every length in the file stays right
        relative = plan.path.replace(uid, other)
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.replace(uid.encode(), other.encode()))
        with path.open("rb") as stream:
            probed = probe_file(stream, relative, None)
        assert isinstance(probed, Probed), probed
        refs.append(dataclasses.asdict(probed.file_ref(relative, len(data), None)))
    return refs


def measure(folder: str, refs: list[dict[str, Any]]) -> dict[str, float]:
    """Pack these files as one shard in this process, as the job does."""
    from beam_jobs.options import IngestJob
    from beam_jobs.pack import Tools, pack_shard
    from ingest.geometry import BLOCK6
    from ingest.guard import Guard
    from ingest.reader import SourceReader
    from manifests.plan import FileRef, plan

    dataset = tempfile.mkdtemp(dir=Path(folder).parent)
    job = IngestJob(source=folder, dataset=dataset, geometry=BLOCK6, hash_key=b"memory")
    shards = plan([FileRef(**ref) for ref in refs], {}, hash_key=job.hash_key, samples_per_shard=len(refs))
    tools = Tools(reader=SourceReader(folder), guard=Guard())
    tools.guard.start()
    child = tools.guard._child
    assert child is not None
    before = resident_bytes()
    with Sampler(child.pid) as sampler:
        started = time.perf_counter()
        packed = pack_shard(shards[0], job, {}, tools)
        seconds = time.perf_counter() - started
        guard_bytes = peak_bytes(child.pid)
    assert len(shards) == 1, shards
    assert len(packed.samples) == len(refs), packed.sources
    assert tools.guard._child is child, "the guarded process was replaced: its peak is lost"
    tools.close()
    return {
        "before_bytes": before,
        "worker_bytes": peak_bytes(),
        "guard_bytes": guard_bytes,
        "together_bytes": sampler.most,
        "seconds": seconds,
    }


class Sampler:
    """Looks at this process and another again and again: the most that both took at one moment."""

    def __init__(self, other: int) -> None:
        self._other = other
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.most = 0

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY_S):
            self.most = max(self.most, resident_bytes() + resident_bytes(self._other))


def case(name: str, syntax: str, scratch: Path) -> tuple[list[tuple[object, ...]], list[str]]:
    """Rows of the table for one transfer syntax, and the promises that are broken."""
    folder = scratch / name
    started = time.perf_counter()
    refs = write_files(folder, syntax, max(COUNTS))
    print(f"{name}: {len(refs)} files in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    rows, together = [], {}
    for count in COUNTS:
        words = [sys.executable, __file__, "--one", str(folder)]
        text = json.dumps(refs[:count])
        found = subprocess.run(words, check=True, input=text, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        row = json.loads(found.stdout)
        together[count] = row["together_bytes"]
        parts = [f"{row[part] / MIB:.0f}" for part in ("before_bytes", "worker_bytes", "guard_bytes", "together_bytes")]
        rows.append((name, f"{refs[0]['bytes'] / 1e6:.0f}", count, *parts, f"{row['seconds']:.0f}"))
        print(rows[-1], file=sys.stderr)
    broken = [f"{name}, {count} files: over 3 GiB." for count, most in together.items() if most > LIMIT_BYTES]
    if together[max(COUNTS)] > MAX_GROWTH * together[min(COUNTS)]:
        broken.append(f"{name}: memory grows with the number of files.")
    return rows, broken


def main() -> int:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", metavar="FOLDER")
    parser.add_argument("--only", choices=("uncompressed", "jpeg 2000"))
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, json.load(sys.stdin))))
        return 0
    from ingest.phantom.protocols import EXPLICIT_LE, JPEG_2000

    cases = {"uncompressed": EXPLICIT_LE, "jpeg 2000": JPEG_2000}
    chosen = {name: cases[name] for name in ([options.only] if options.only else cases)}
    rows, broken = [], []
    for name, syntax in chosen.items():
        with tempfile.TemporaryDirectory() as scratch:
            found, faults = case(name, syntax, Path(scratch))
        rows += found
        broken += faults
    head = ("syntax", "MB a file", "files", "worker before MiB", "worker peak", "guard peak", "together", "seconds")
    text = table(head, rows)
    print(text)
    print("\n".join(broken) or "Under 3 GiB, and independent of the number of files.")
    if len(chosen) == len(cases):
        put("memory", f"{text}\n{machine()}.\n")
    return int(bool(broken))


if __name__ == "__main__":
    leave_after(lambda: sys.exit(main()))
