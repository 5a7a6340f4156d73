"""How much of the work fits on one worker: memory, threads and disk, by machine type."""

import math
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from beam_jobs.errors import JobOptionError
from beam_jobs.options import IngestJob

GIB: Final = 2**30

GIB_PER_VCPU: Final = MappingProxyType({
    "n1": {"standard": 3.75, "highmem": 6.5, "highcpu": 0.9},
    "e2": {"standard": 4.0, "highmem": 8.0, "highcpu": 1.0},
    "n2": {"standard": 4.0, "highmem": 8.0, "highcpu": 1.0},
    "n2d": {"standard": 4.0, "highmem": 8.0, "highcpu": 1.0},
    "n4": {"standard": 4.0, "highmem": 8.0, "highcpu": 2.0},
    "c2": {"standard": 4.0},
    "c2d": {"standard": 4.0, "highmem": 8.0, "highcpu": 2.0},
    "c3": {"standard": 4.0, "highmem": 8.0, "highcpu": 2.0},
    "c3d": {"standard": 4.0, "highmem": 8.0, "highcpu": 2.0},
    "c4": {"standard": 3.75, "highmem": 7.75, "highcpu": 2.0},
    "t2d": {"standard": 4.0},
})  # fmt: skip
"""Of the x86 series, from cloud.google.com/compute/docs/general-purpose-machines; the worker image is x86 too."""

NAMED: Final = re.compile(r"([a-z]\d[a-z]?)-(standard|highmem|highcpu)-(\d{1,3})")
CUSTOM: Final = re.compile(r"(?:(n1|n2|n2d|e2|n4)-)?custom-(\d{1,3})-(\d{4,7})(?:-ext)?")
"""vCPUs and MiB."""

DEFAULT_MACHINE: Final = "n2-standard-4"
SYSTEM_GIB: Final = 2.0
"""The worker's own processes take up to 1 GiB, the SDK process with side inputs and rows about as much."""

VOLUME_GIB: Final = 1.25
"""A thread at its peak: 0.77 for the child that converts 512 x 992 x 512 voxels (docs/geometry.md), 0.12 for the child
that probes, the file three times (read, handed over, parsed: 51 MB each), and some room."""

GRID_BYTES_A_VOXEL: Final = 16
"""The target grid of 16 bits in the child, in the shared memory, as a sample and as its file, and 8 for sums."""

SYSTEM_DISK_GIB: Final = 15.0
"""Operating system, container image and logs."""

LARGEST_FILE_BYTES: Final = 2**26
"""The cohort's largest file has 51 MB."""

LEAST_DISK_GIB: Final = 25
"""What Dataflow gives a batch worker by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine type by its name."""

    name: str
    vcpus: int
    memory_gib: float

    def threads(self, job: IngestJob) -> int:
        """How many volumes it can have in work: one a vCPU, if memory holds them.

        Raises:
            JobOptionError: if it cannot hold one.
        """
        needed = thread_gib(job)
        fitting = int((self.memory_gib - SYSTEM_GIB) / needed)
        if fitting < 1:
            raise JobOptionError(
                f"machine type {self.name} has {self.memory_gib:g} GiB: a volume takes {needed:.2f} GiB beside "
                f"{SYSTEM_GIB:g} GiB for the system; {DEFAULT_MACHINE} has room for four."
            )
        return min(self.vcpus, fitting)


def machine(name: str) -> Machine:
    """The vCPUs and memory of a machine type.

    Raises:
        JobOptionError: if it is not one of the x86 types that fovea knows.
    """
    if found := NAMED.fullmatch(name):
        share = GIB_PER_VCPU.get(found[1], {}).get(found[2])
        if share and int(found[3]) > 0:
            return Machine(name=name, vcpus=int(found[3]), memory_gib=int(found[3]) * share)
    elif (found := CUSTOM.fullmatch(name)) and int(found[2]) > 0:
        return Machine(name=name, vcpus=int(found[2]), memory_gib=int(found[3]) / 1024)
    raise JobOptionError(
        f"machine type {name!r} is not known: use one such as {DEFAULT_MACHINE}, of {', '.join(GIB_PER_VCPU)}."
    )


def thread_gib(job: IngestJob) -> float:
    """Memory of one volume in work, the target grid included."""
    return VOLUME_GIB + GRID_BYTES_A_VOXEL * math.prod(job.geometry.size) / GIB


def disk_gib(job: IngestJob, threads: int) -> int:
    """Disk of a worker: each thread has one shard's temporary file, of 16-bit samples in the worst case."""
    voxels = math.prod(job.geometry.size)
    shard = 2 * max(job.target_shard_bytes, voxels) + LARGEST_FILE_BYTES
    return max(LEAST_DISK_GIB, math.ceil(SYSTEM_DISK_GIB + threads * shard / GIB))
