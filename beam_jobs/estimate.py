"""What an ingest would take, before it is started: `fovea ingest --dry-run`. Nothing is written to DATASET."""

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self

import yaml
from apache_beam.options.pipeline_options import DebugOptions, PipelineOptions, TestOptions, WorkerOptions

from beam_jobs.build_dataset import build
from beam_jobs.dataflow import complete, is_dataflow
from beam_jobs.errors import JobOptionError
from beam_jobs.machine import Machine, machine
from beam_jobs.options import IngestJob
from beam_jobs.pipeline import new_pipeline
from ingest.facts import path_facts
from ingest.geometry import BLOCK6, Geometry, content_share
from ingest.phantom.protocols import PROTOCOLS, Protocol
from ingest.source import IRREGULAR_BYTES, is_candidate, list_files
from shards.schema import Spacing

GRAPH_LIMIT_BYTES: Final = 20 * 10**6
"""Dataflow refuses a larger job (cloud.google.com/dataflow/quotas)."""

NS_A_VOXEL: Final = MappingProxyType({
    "heidelberg_spectralis": 1.0,
    "topcon_maestro2": 102.0,
    "topcon_triton": 45.0,
    "zeiss_cirrus": 102.0,
})  # fmt: skip
"""Decoding, by device, in the syntax that it most likely writes: docs/geometry.md, on a core of that machine."""

RESAMPLE_NS_A_VOXEL: Final = 6.0
READ_BYTES_A_SECOND: Final = 50e6
"""One stream from a bucket of the same region; assumed, not measured."""

OVERHEAD_S: Final = 0.3
"""A volume's probe, checks and bookkeeping."""

ARCHIVED_FILE_BYTES: Final = 25 * 10**6
"""A typical file: archives are not opened for an estimate, and count as one volume for each of these."""

META_BYTES: Final = 10_000
HOUR_S: Final = 3600
GIB: Final = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """US dollars: list prices of Dataflow batch workers in us-central1, as published in 2025.

    Source: cloud.google.com/dataflow/pricing. They were not looked up since: check them, and give others in a file.
    """

    vcpu_hour: float = 0.056
    memory_gib_hour: float = 0.003557
    disk_gib_hour: float = 0.000054
    shuffle_gib: float = 0.011

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise JobOptionError(f"price {name} must be a number of US dollars, not {value!r}.")

    @classmethod
    def load(cls, path: str | None) -> Self:
        """The defaults, or some of them replaced by those of a YAML file.

        Raises:
            JobOptionError: if the file is not a table of these names.
        """
        if path is None:
            return cls()
        known = [field.name for field in fields(cls)]
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise JobOptionError(f"prices {path}: {type(error).__name__}; it must be readable YAML.") from error
        if not isinstance(values, dict) or not set(values) <= set(known):
            raise JobOptionError(f"prices {path}: it may have {', '.join(known)}, and nothing else.")
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What SOURCE holds, by its names: nothing is opened."""

    files: int
    archives: int
    bytes: int
    other_files: int
    by_protocol: Mapping[str, int]

    @property
    def volumes(self) -> int:
        """At most so many: every candidate counts, and archives by their size."""
        return sum(self.by_protocol.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Who does the work: `machine` is None where it is not known (a local run, another runner's cluster)."""

    runner: str
    workers: int
    threads: int
    machine: Machine | None = None
    disk_gib: int = 0

    def hourly(self, prices: Prices) -> float:
        """US dollars for an hour of one worker."""
        if self.machine is None:
            return 0.0
        memory = prices.memory_gib_hour * self.machine.memory_gib
        return prices.vcpu_hour * self.machine.vcpus + memory + prices.disk_gib_hour * self.disk_gib


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The job as Beam translates it."""

    bytes: int
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """All that `--dry-run` prints."""

    inputs: Inputs
    fleet: Fleet
    graph: Graph
    prices: Prices
    geometry: Geometry
    seconds_a_volume: float
    bytes_out: int
    content_share: float
    content_share_block6: float

    @property
    def worker_hours(self) -> float:
        return self.inputs.volumes * self.seconds_a_volume / self.fleet.threads / HOUR_S

    @property
    def hours(self) -> float:
        return self.worker_hours / self.fleet.workers

    @property
    def volumes_an_hour(self) -> float:
        return self.fleet.workers * self.fleet.threads * HOUR_S / self.seconds_a_volume

    @property
    def dollars(self) -> float | None:
        """None where nobody sends a bill that is known here."""
        if self.fleet.machine is None:
            return None
        shuffled = (self.inputs.files + self.inputs.archives) * 3 * 1000 / GIB  # three shuffles of rows under 1 kB
        return self.worker_hours * self.fleet.hourly(self.prices) + self.prices.shuffle_gib * shuffled

    def describe(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "inputs": asdict(self.inputs)
            | {"by_protocol": dict(self.inputs.by_protocol), "volumes": self.inputs.volumes},
            "fleet": asdict(self.fleet),
            "graph": {"bytes": self.graph.bytes, "limit_bytes": GRAPH_LIMIT_BYTES, "steps": list(self.graph.steps)},
            "prices": asdict(self.prices),
            "geometry": self.geometry.name,
            "seconds_a_volume": round(self.seconds_a_volume, 3),
            "volumes_an_hour": round(self.volumes_an_hour),
            "worker_hours": round(self.worker_hours, 3),
            "hours": round(self.hours, 3),
            "bytes_out": self.bytes_out,
            "dollars": None if self.dollars is None else round(self.dollars, 2),
            "content_share": round(self.content_share, 4),
            "content_share_block6": round(self.content_share_block6, 4),
        }


def estimate(job: IngestJob, options: PipelineOptions, prices: Prices | None = None) -> Estimate:
    """Check the options, list SOURCE, translate the job and reckon. Nothing is written, and nothing is sent.

    Raises:
        JobOptionError: if the job could not be started like this, or SOURCE holds no DICOM.
        SourceError: if SOURCE cannot be listed.
    """
    if is_dataflow(options):
        complete(job, options)
        options.view_as(TestOptions).dry_run = True  # or Beam would ask the buckets about their policies
    inputs = count_inputs(list_files(job.source))
    if not inputs.volumes:
        raise JobOptionError(f"SOURCE {job.source} holds no DICOM file (.dcm, .dicom, no extension, or .zip).")
    seconds = _mean(inputs, lambda protocol: volume_seconds(protocol, job.geometry))
    read = inputs.bytes / inputs.volumes / READ_BYTES_A_SECOND
    return Estimate(
        inputs=inputs,
        fleet=fleet_of(options),
        graph=translate(job, options),
        prices=prices or Prices(),
        geometry=job.geometry,
        seconds_a_volume=seconds + read,
        bytes_out=inputs.volumes * (math.prod(job.geometry.size) + META_BYTES),
        content_share=_mean(inputs, lambda protocol: content_share(field_of_view(protocol), job.geometry)),
        content_share_block6=_mean(inputs, lambda protocol: content_share(field_of_view(protocol), BLOCK6)),
    )


def count_inputs(listing: Mapping[str, int]) -> Inputs:
    """Files that may hold volumes, by the protocol in their names (empty: it is not known)."""
    sizes = {path: size for path, size in listing.items() if size != IRREGULAR_BYTES}
    archives = [path for path in sizes if path.lower().endswith(".zip")]
    files = [path for path in sizes if is_candidate(path)]
    by_protocol = Counter(path_facts(path).protocol or "" for path in files)
    by_protocol[""] += sum(math.ceil(sizes[path] / ARCHIVED_FILE_BYTES) for path in archives)
    return Inputs(
        files=len(files),
        archives=len(archives),
        bytes=sum(sizes[path] for path in (*files, *archives)),
        other_files=len(sizes) - len(files) - len(archives),
        by_protocol=dict(sorted((+by_protocol).items())),
    )


def field_of_view(protocol: Protocol) -> Spacing:
    """The extent of a scan in mm `[D, H, W]`."""
    return (
        protocol.num_frames * protocol.bscan_step_mm,
        protocol.rows * protocol.axial_spacing_mm,
        protocol.columns * protocol.lateral_spacing_mm,
    )


def volume_seconds(protocol: Protocol, geometry: Geometry) -> float:
    """A core's time for one volume of full size; B-scans outside of the grid are not decoded."""
    extent, spacing = field_of_view(protocol)[0], geometry.target_spacing_mm
    wanted = 1.0 if spacing is None else min(1.0, spacing[0] * geometry.size[0] / extent)
    nanoseconds = NS_A_VOXEL[protocol.device] + RESAMPLE_NS_A_VOXEL
    return OVERHEAD_S + wanted * math.prod(protocol.shape) * nanoseconds * 1e-9


def _mean(inputs: Inputs, value: Any) -> float:
    """Over the volumes; one whose protocol is not known, or is no raster, counts as the mean of all protocols."""
    raster = [protocol for protocol in PROTOCOLS.values() if protocol.raster]
    typical = math.fsum(map(value, raster)) / len(raster)
    known = {protocol.name: value(protocol) for protocol in raster}
    return math.fsum(known.get(name, typical) * number for name, number in inputs.by_protocol.items()) / inputs.volumes


def fleet_of(options: PipelineOptions) -> Fleet:
    """Workers and threads: of Dataflow at most, of a local run exactly, of another cluster one thread."""
    values = options.get_all_options()
    if is_dataflow(options):
        worker, debug = options.view_as(WorkerOptions), options.view_as(DebugOptions)
        return Fleet(
            runner="DataflowRunner",
            workers=worker.max_num_workers,
            threads=debug.number_of_worker_harness_threads,
            machine=machine(worker.machine_type),
            disk_gib=worker.disk_size_gb,
        )
    local = values["direct_num_workers"] or os.cpu_count() or 1
    runner = str(values["runner"])
    return Fleet(runner=runner, workers=1, threads=local)


def translate(job: IngestJob, options: PipelineOptions) -> Graph:
    """The job graph, as any portable runner gets it."""
    with new_pipeline(options) as pipeline:
        build(pipeline, job)
        proto = pipeline.to_runner_api()
    return Graph(bytes=proto.ByteSize(), steps=_steps(proto))


def _steps(proto: Any) -> tuple[str, ...]:
    (root,) = proto.root_transform_ids
    transforms = proto.components.transforms
    return tuple(transforms[name].unique_name for name in transforms[root].subtransforms)
