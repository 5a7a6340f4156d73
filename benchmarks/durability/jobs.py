"""Ingest jobs in processes of their own: the listing shuffled, every bundle done twice, or all of it killed."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from reliability.report import ROOT

from durability.cohorts import SHARD_BYTES, geometry_file

HOOKS: Final = Path(__file__).parent / "hooks"
"""A folder with a `sitecustomize.py`, which every Python process of the job runs at its start, workers too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a job runs; nothing of it may show in the bytes."""

    name: str
    options: Sequence[str] = ("--direct_num_workers=1",)
    environment: Mapping[str, str] = field(default_factory=dict)


def start(
    source: str, dataset: str, setting: Setting, *extra: str, geometry: str | None = None
) -> subprocess.Popen[bytes]:
    """A job in a process group of its own; on the small grid unless another geometry is given."""
    grid = geometry or str(geometry_file())
    words = [sys.executable, "-m", "durability.run_job", source, dataset, grid, str(SHARD_BYTES)]
    path = os.pathsep.join((str(HOOKS), str(ROOT / "benchmarks"), str(ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, **setting.environment}
    return subprocess.Popen(
        [*words, *setting.options, *extra],
        env=environment,
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(job: subprocess.Popen[bytes], timeout_s: float = 600.0) -> tuple[int, str]:
    """Wait for a job; its exit status, and the last line that it wrote to standard error."""
    _, errors = job.communicate(timeout=timeout_s)
    lines = [line for line in errors.decode(errors="replace").splitlines() if line.strip()]
    return job.returncode, lines[-1] if lines else ""


def run(source: str, dataset: str, setting: Setting, *extra: str, geometry: str | None = None) -> None:
    """A job that must succeed.

    Raises:
        RuntimeError: if it does not.
    """
    status, line = finish(start(source, dataset, setting, *extra, geometry=geometry))
    if status:
        raise RuntimeError(f"{setting.name}: the job ended with {status}: {line}")


def kill(job: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the job and whatever it started."""
    os.killpg(job.pid, signal.SIGKILL)
    job.communicate()


def settings(count: int, seed: int) -> list[Setting]:
    """Runners, workers, orders of the listing and hash seeds, all different."""
    generator = random.Random(seed)
    runners = {
        "in memory": ("--direct_num_workers=1",),
        "threads": ("--direct_num_workers=2", "--direct_running_mode=multi_threading"),
        "2 processes": ("--direct_num_workers=2",),
        "4 processes": ("--direct_num_workers=4",),
    }
    names = [list(runners)[number % len(runners)] for number in range(count)]
    return [
        Setting(
            name=name,
            options=runners[name],
            environment={"SOAK_SHUFFLE": str(number), "PYTHONHASHSEED": str(generator.randrange(1, 2**32))},
        )
        for number, name in enumerate(names)
    ]
