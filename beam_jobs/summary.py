"""What a run was like: how fast, where its time went, which files were slow, and what was rejected on which device."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from beam_jobs.metrics import STAGES, Distribution, Measured, SlowFile

MEGABYTE: Final = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Volumes and megabytes (1e6 bytes of files read) a second: of the run, and of a second that a worker works.

    `busy_workers` is how many worked on average: all workers' seconds in the stages over the seconds of the run. It
    needs no count of workers, which a fleet changes as it runs.
    """

    volumes_per_s: float
    megabytes_per_s: float
    busy_workers: float
    volumes_per_worker_s: float
    megabytes_per_worker_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """One stage on one device, or on all: seconds of all workers, their share, and milliseconds of one piece of work.

    `number` counts the pieces: files, but shards for `publish`, and the whole job for `discover` and `commit`.
    """

    stage: str
    device: str
    number: int
    seconds: float
    share: float
    mean_ms: float
    max_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """Files of one reason and device."""

    reason: str
    device: str
    files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSize:
    """The files of one device that were read to be packed."""

    device: str
    files: int
    mean_bytes: float
    max_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A run in numbers; nothing in it names a file."""

    rate: Rate
    stages: tuple[StageTime, ...]
    stages_by_device: tuple[StageTime, ...]
    sizes: tuple[FileSize, ...]
    rejected: tuple[Rejected, ...]
    slowest: tuple[SlowFile, ...]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def summarise(measured: Measured, seconds: float) -> Summary:
    """The summary of a run that took so long."""
    times = {
        (name.removeprefix("milliseconds_"), device): found
        for (name, device), found in measured.distributions.items()
        if name.startswith("milliseconds_")
    }
    busy = sum(found.sum for found in times.values()) / 1000
    totals: dict[str, Distribution] = {}
    for (stage, _), found in times.items():
        totals[stage] = totals[stage] + found if stage in totals else found
    return Summary(
        rate=_rate(measured.counters, seconds, busy),
        stages=tuple(_stage(stage, "all", totals[stage], busy) for stage in STAGES if stage in totals),
        stages_by_device=tuple(
            _stage(stage, device, found, busy)
            for (stage, device), found in sorted(times.items(), key=lambda pair: STAGES.index(pair[0][0]))
        ),
        sizes=tuple(_sizes(measured)),
        rejected=tuple(_rejected(measured.counters)),
        slowest=measured.slowest,
    )


def _rate(counters: Mapping[str, int], seconds: float, busy: float) -> Rate:
    volumes, megabytes = counters.get("samples_packed", 0), counters.get("bytes_read", 0) / MEGABYTE
    return Rate(
        volumes_per_s=_ratio(volumes, seconds),
        megabytes_per_s=_ratio(megabytes, seconds),
        busy_workers=_ratio(busy, seconds),
        volumes_per_worker_s=_ratio(volumes, busy),
        megabytes_per_worker_s=_ratio(megabytes, busy),
    )


def _ratio(amount: float, seconds: float) -> float:
    return round(amount / seconds, 4) if seconds else 0.0


def _stage(stage: str, device: str, found: Distribution, busy: float) -> StageTime:
    return StageTime(
        stage=stage,
        device=device,
        number=found.count,
        seconds=found.sum / 1000,
        share=_ratio(found.sum / 1000, busy),
        mean_ms=round(found.sum / found.count, 1),
        max_ms=found.max,
    )


def _sizes(measured: Measured) -> list[FileSize]:
    return [
        FileSize(device=device, files=found.count, mean_bytes=round(found.sum / found.count, 1), max_bytes=found.max)
        for (name, device), found in measured.distributions.items()
        if name == "bytes"
    ]


def _rejected(counters: Mapping[str, int]) -> list[Rejected]:
    """Every reason on every device, the most frequent reason first."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for name, files in counters.items():
        what, _, device = name.partition(".")
        if what.startswith("reason_") and device:
            found[what.removeprefix("reason_")][device] = files
    ordered = sorted(found.items(), key=lambda pair: (-sum(pair[1].values()), pair[0]))
    return [
        Rejected(reason=reason, device=device, files=files)
        for reason, by_device in ordered
        for device, files in sorted(by_device.items())
    ]
