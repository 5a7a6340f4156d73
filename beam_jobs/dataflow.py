"""A job for Dataflow: what could not work is refused before anything is sent, and what was left open is filled in."""

import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    WorkerOptions,
)

from beam_jobs.errors import JobError, JobOptionError
from beam_jobs.machine import DEFAULT_MACHINE, disk_gib, machine
from beam_jobs.options import IngestJob

RUNNER: Final = "DataflowRunner"
PROJECT: Final = re.compile(r"(?:[a-z][-a-z0-9.]*:)?[a-z][-a-z0-9]{4,28}[a-z0-9]")
REGION: Final = re.compile(r"[a-z]+-[a-z]+\d+")
BUCKET_FOLDER: Final = re.compile(r"gs://[a-z0-9][-_.a-z0-9]{1,220}[a-z0-9]/[^/].*")
IMAGE: Final = re.compile(r"[a-z0-9][-a-z0-9.:]*/[-\w./]+(?::[\w.-]+|@sha256:[0-9a-f]{64})")
SECRET_OPTIONS: Final = ("s3_access_key_id", "s3_secret_access_key", "s3_session_token", "azure_connection_string")
"""Everybody who may look at a Dataflow job sees its options."""

DEFAULT_MAX_WORKERS: Final = 10
"""Enough for the whole cohort in some hours; without a limit the service may start hundreds."""

EXPERIMENTS: Final = ("use_runner_v2", "no_use_multiple_sdk_containers")
"""One SDK process a worker, with a thread a volume: decoding happens in the guards' processes, where no GIL is shared;
by default there is a process a vCPU, and each would have the side inputs and that number of threads once more."""

OWN_MODULES: Final = ("beam_jobs.", "ingest.", "manifests.", "shards.")
LOCK: Final = Path(__file__).with_name("worker.lock")
SOURCES: Final = Path(__file__).resolve().parent.parent
WHEEL_PREFIX: Final = "fovea_oct-"


def is_dataflow(options: PipelineOptions) -> bool:
    """Whether the job goes to Dataflow."""
    runner = options.view_as(StandardOptions).runner or ""
    return bool(runner.rpartition(".")[2].lower() == RUNNER.lower())


@contextmanager
def ready_to_send(job: IngestJob, options: PipelineOptions) -> Iterator[None]:
    """Options checked and completed, and the code of this project at hand for as long as the block lasts.

    Raises:
        JobOptionError: if the job could not run as asked for.
        JobError: if the code cannot be packed.
    """
    if not is_dataflow(options):
        yield
        return
    complete(job, options)
    with tempfile.TemporaryDirectory(prefix="fovea-wheel-") as folder:
        setup = options.view_as(SetupOptions)
        if not options.view_as(WorkerOptions).sdk_container_image and not _brings_wheel(setup):
            setup.extra_packages = [*(setup.extra_packages or []), str(build_wheel(Path(folder)))]
        yield


def complete(job: IngestJob, options: PipelineOptions) -> None:
    """Refuse what could not work, then fill in name, machine, threads, disk and experiments.

    Raises:
        JobOptionError: the first thing that could not work.
    """
    cloud, worker = options.view_as(GoogleCloudOptions), options.view_as(WorkerOptions)
    _check_cloud(cloud)
    _check_places(job, cloud)
    _check_secrets(options)
    _check_code(job, worker, options.view_as(SetupOptions))
    _fill_worker(job, worker, options.view_as(DebugOptions))
    cloud.staging_location = cloud.staging_location or f"{cloud.temp_location.rstrip('/')}/staging"
    cloud.job_name = cloud.job_name or job_name(job)


def job_name(job: IngestJob) -> str:
    """The same for each submission of one ingest: Dataflow refuses a second active job of a name."""
    return f"fovea-ingest-{hashlib.sha256(f'{job.dataset} {job.config_sha256()}'.encode()).hexdigest()[:12]}"


def _check_cloud(cloud: GoogleCloudOptions) -> None:
    if not cloud.project or not PROJECT.fullmatch(cloud.project):
        raise JobOptionError(
            f"--project {cloud.project or ''} is no project ID: give one such as --project my-project."
        )
    if not cloud.region or not REGION.fullmatch(cloud.region):
        raise JobOptionError(f"--region {cloud.region or ''} is no region: give the bucket's, such as us-central1.")
    for name in ("temp_location", "staging_location"):
        place = getattr(cloud, name)
        if not BUCKET_FOLDER.fullmatch(place or "") and (place or name == "temp_location"):
            raise JobOptionError(
                f"--{name} {place or ''} is no folder of a bucket: give one such as gs://my-bucket/dataflow."
            )


def _check_places(job: IngestJob, cloud: GoogleCloudOptions) -> None:
    for what, place in (("SOURCE", job.source), ("DATASET", job.dataset), ("--labels", job.labels)):
        if place and not place.startswith(("gs://", "s3://")):
            raise JobOptionError(f"{what} {place} is on this machine: workers of Dataflow read gs:// and s3:// only.")
    for name in ("temp_location", "staging_location"):
        place = f"{getattr(cloud, name) or ''}/"
        if place.startswith((f"{job.dataset.rstrip('/')}/", f"{job.source.rstrip('/')}/")):
            raise JobOptionError(
                f"--{name} {place[:-1]} lies in SOURCE or DATASET: the job's graph lies there and holds the hash key, "
                "so give a folder that readers of the dataset cannot read."
            )


def _check_secrets(options: PipelineOptions) -> None:
    given = options.get_all_options(drop_default=True)
    for name in SECRET_OPTIONS:
        if given.get(name):
            raise JobOptionError(
                f"--{name} would be shown to all who may see the job: let the image bring credentials."
            )


def _check_code(job: IngestJob, worker: WorkerOptions, setup: SetupOptions) -> None:
    """Either an image that has everything, or the wheel and the lock."""
    image = worker.sdk_container_image
    if image and not IMAGE.fullmatch(image):
        raise JobOptionError(f"--sdk_container_image {image} has no registry or no tag: give REGISTRY/NAME:TAG.")
    if image:
        return
    if any((place or "").startswith("s3://") for place in (job.source, job.dataset, job.labels)):
        raise JobOptionError("s3:// needs --sdk_container_image: the stock image brings no AWS credentials.")
    if not setup.requirements_file:
        setup.requirements_file = str(LOCK)
        setup.requirements_cache = "skip"  # workers fetch what the lock pins: no need to send 700 MB from here
    if not _brings_wheel(setup) and not (SOURCES / "pyproject.toml").is_file():
        raise JobOptionError(
            "give --sdk_container_image (docs/dataflow.md), or --extra_package with the wheel of fovea-oct: this "
            "fovea is not installed from a checkout, so no wheel can be built here."
        )


def _brings_wheel(setup: SetupOptions) -> bool:
    return any(Path(package).name.startswith(WHEEL_PREFIX) for package in setup.extra_packages or [])


def _fill_worker(job: IngestJob, worker: WorkerOptions, debug: DebugOptions) -> None:
    kind = machine(worker.machine_type or DEFAULT_MACHINE)
    most = kind.threads(job)
    threads = debug.number_of_worker_harness_threads or most
    if threads > most:
        raise JobOptionError(
            f"--number_of_worker_harness_threads={threads} is more than {kind.name} has vCPUs and memory for: {most}."
        )
    disk = disk_gib(job, threads)
    if worker.disk_size_gb and worker.disk_size_gb < disk:
        raise JobOptionError(
            f"--disk_size_gb={worker.disk_size_gb} is too small: {threads} shards in work and the image take {disk}."
        )
    worker.machine_type = kind.name
    worker.disk_size_gb = worker.disk_size_gb or disk
    worker.max_num_workers = worker.max_num_workers or max(worker.num_workers or 0, DEFAULT_MAX_WORKERS)
    debug.number_of_worker_harness_threads = threads
    if debug.lookup_experiment("use_multiple_sdk_containers"):
        raise JobOptionError("--experiments=use_multiple_sdk_containers multiplies the threads: leave it out.")
    for experiment in EXPERIMENTS:
        debug.add_experiment(experiment)


def build_wheel(folder: Path) -> Path:
    """The wheel of this checkout.

    Raises:
        JobError: if pip cannot build it.
    """
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(SOURCES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own interpreter
    wheels = sorted(folder.glob(f"{WHEEL_PREFIX}*.whl"))
    if done.returncode or not wheels:
        said = done.stderr.strip().splitlines() or ["it gave none"]
        raise JobError(f"the wheel for the workers could not be built ({said[-1]}): give --extra_package or an image.")
    return wheels[0]


def job_address(result: Any, options: PipelineOptions) -> str | None:
    """Where the job can be watched; None on other runners."""
    if not is_dataflow(options) or not getattr(result, "has_job", False):
        return None
    cloud = options.view_as(GoogleCloudOptions)
    return f"https://console.cloud.google.com/dataflow/jobs/{cloud.region}/{result.job_id()}?project={cloud.project}"


def what_service_said(error: BaseException) -> str | None:
    """A sentence on how Dataflow refused or ended a job; None of what is not Dataflow's.

    What a worker said is not repeated: a traceback may name a file.
    """
    kind = type(error).__name__
    if kind == "DataflowJobAlreadyExistsError":
        return "Dataflow runs a job of this name: it is this ingest, submitted before; wait for it, or cancel it."
    if kind == "DataflowRuntimeException":
        return _how_it_ended(error)
    code = getattr(error, "code", None)
    if isinstance(code, int) and hasattr(error, "grpc_status_code"):
        return f"Dataflow answered {int(code)}: {_sentence(getattr(error, 'message', ''))}"
    return None


def _how_it_ended(error: BaseException) -> str | None:
    state, _, said = str(error).partition("State: ")[2].partition(", Error:\n")
    if state == "CANCELLED":
        return "the job was cancelled."
    if "Traceback" in said:
        return _own_words(said)
    return f"Dataflow ended the job as {state}: {_sentence(said)}"


def _own_words(said: str) -> str | None:
    """Our own error in a worker's traceback; behind it Dataflow adds a note."""
    lines = [line.partition(": ") for line in said.splitlines()]
    ours = [text for kind, _, text in lines if kind.startswith(OWN_MODULES) and kind.endswith("Error")]
    return ours[-1].partition(" [while running")[0] if ours else "a worker's error; --debug shows it."


def _sentence(text: str) -> str:
    first = " ".join(text.split())[:300].rstrip(".")
    return f"{first}." if first and first != "None" else "it gave no reason."
