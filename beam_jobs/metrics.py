"""Beam counters and distributions: files, bytes, milliseconds by stage and device, rejections by reason and device.

A name holds words of closed lists only: a stage, a status, a reason code, a device. Nothing of a header or a path is in
a name or a value, for whoever may see a job may see its metrics, and paths are controlled-access. The slowest files are
said by their row in `sources.csv`. Only counters and distributions are used: the query of Dataflow knows nothing else.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final, Self

import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.metrics import Metrics

from manifests.columns import spelled
from manifests.rows import SourceRow
from shards.schema import DEVICES
from shards.storage import open_file

NAMESPACE: Final = "fovea"
STAGES: Final = ("discover", "probe", "read", "check", "decode", "resample", "write", "publish", "commit")
"""Where a worker's time goes. `check` is parsing, every check, and the way to the guarded process and back; `write` is
adding a sample to a shard, `publish` is a shard's checksum and its way to DATASET."""

EVERY: Final = "all"
"""Stands for the device where a stage is about all files, or a shard."""
UNKNOWN: Final = "unknown"
"""Stands for the device of a file that does not say."""
NUM_SLOWEST: Final = 10

Milliseconds = Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTime:
    """What one file took in one step; `path` stays in the pipeline, and goes into no metric."""

    path: str
    milliseconds: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.milliseconds.values())


def total_of(file: FileTime) -> tuple[int, str]:
    """What the slowest files are sorted by; the path decides between equal times."""
    return file.total, file.path


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """How many values there were, their sum and their range."""

    count: int
    sum: int
    min: int
    max: int

    def __add__(self, other: Self) -> "Distribution":
        return Distribution(
            count=self.count + other.count,
            sum=self.sum + other.sum,
            min=min(self.min, other.min),
            max=max(self.max, other.max),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowFile:
    """One of the slowest files: its row in `sources.csv`, counted from 1 behind the header line, and what it took."""

    row: int
    milliseconds: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The metrics of a run. Distributions have the metric's name before the dot, and the device after it."""

    counters: Mapping[str, int] = field(default_factory=dict)
    distributions: Mapping[tuple[str, str], Distribution] = field(default_factory=dict)
    slowest: tuple[SlowFile, ...] = ()


def count(name: str, amount: int = 1, *, device: str | None = None) -> None:
    """Add to a counter of this job; `read_measured` also gives the total over devices, where one is given."""
    Metrics.counter(NAMESPACE, f"{name}.{device}" if device else name).inc(amount)


def observe(name: str, value: int, device: str = EVERY) -> None:
    """Add a value to a distribution."""
    Metrics.distribution(NAMESPACE, f"{name}.{device}").update(value)


def device_of(name: str | None) -> str:
    """A device's name as metrics have it: a known one, or `unknown`."""
    return name if name in DEVICES else UNKNOWN


def count_row(row: SourceRow) -> None:
    """A file has its row: by status and device, and by reason and device unless accepted."""
    count(f"files_{row.status}", device=device_of(row.device))
    if row.reason:
        count(f"reason_{row.reason}", device=device_of(row.device))


def observe_stages(milliseconds: Milliseconds, device: str = EVERY) -> None:
    """What the stages of one file, or of one shard, took."""
    for stage, value in milliseconds.items():
        observe(f"milliseconds_{stage}", value, device)


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Observe how long the block takes."""
    started = perf_counter()
    yield
    observe_stages({stage: in_milliseconds(perf_counter() - started)})


def in_milliseconds(seconds: float) -> int:
    """Metrics hold whole numbers."""
    return round(1000 * seconds)


def report_slowest(_committed: object, dataset: str, slowest: Iterable[FileTime]) -> None:
    """Say the slowest files by their rows, when these are written: a rank is a few distributions of one value.

    A table that cannot be read back costs the job nothing but this report.
    """
    ranked = sorted(slowest, key=total_of, reverse=True)
    try:
        rows = row_numbers(dataset, [file.path for file in ranked])
    except OSError:
        count("slowest_unknown")
        return
    for rank, file in enumerate(ranked):
        if file.path in rows:
            observe(f"slow_{rank:02d}_row", rows[file.path])
            for stage, value in file.milliseconds.items():
                observe(f"slow_{rank:02d}_{stage}", value)


def row_numbers(dataset: str, paths: Iterable[str]) -> dict[str, int]:
    """Path -> its row in `sources.csv`, from 1; paths without a row are left out.

    Raises:
        OSError: if the table cannot be read.
    """
    with open_file(f"{dataset}/manifests/sources.parquet") as file:
        column = pq.read_table(file, columns=["path"]).column("path")
    found = {path: pc.index(column, spelled(path)).as_py() for path in paths}
    return {path: index + 1 for path, index in found.items() if index >= 0}


def read_measured(result: Any) -> Measured:
    """Every metric of a finished run; one that several steps share is their sum."""
    metrics = result.metrics().query()
    counters: dict[str, int] = {}
    for name, value in _ours(metrics["counters"]):
        for one in {name, name.partition(".")[0]}:
            counters[one] = counters.get(one, 0) + int(value)
    distributions: dict[tuple[str, str], Distribution] = {}
    for name, value in _ours(metrics["distributions"]):
        what, _, device = name.partition(".")
        known = distributions.get((what, device))
        new = Distribution(count=value.count, sum=value.sum, min=value.min, max=value.max)
        distributions[what, device] = known + new if known else new
    kept = {key: value for key, value in distributions.items() if not key[0].startswith("slow_")}
    return Measured(
        counters=dict(sorted(counters.items())),
        distributions=dict(sorted(kept.items())),
        slowest=tuple(_slowest(distributions)),
    )


def _ours(metrics: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for metric in metrics:
        if metric.key.metric.namespace == NAMESPACE and metric.result is not None:
            yield metric.key.metric.name, metric.result


def _slowest(distributions: Mapping[tuple[str, str], Distribution]) -> Iterator[SlowFile]:
    """The largest value is the one of the attempt that counts: attempts of one step report the same."""
    for rank in range(NUM_SLOWEST):
        row = distributions.get((f"slow_{rank:02d}_row", EVERY))
        if row is not None:
            found = {stage: distributions.get((f"slow_{rank:02d}_{stage}", EVERY)) for stage in STAGES}
            yield SlowFile(row=row.max, milliseconds={stage: one.max for stage, one in found.items() if one})
