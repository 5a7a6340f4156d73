"""The same job through Beam's portability API: a job server in its own process, workers in theirs."""

import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2 as protos

from beam_jobs.build_dataset import build, build_retry
from beam_jobs.launch import run_ingest
from beam_jobs.options import beam_options, make_job
from ingest.phantom.cohort import write_cohort
from ingest.phantom.plan import CohortSpec

PLAIN_TRANSFORMS = {
    "beam:transform:impulse:v1",
    "beam:transform:pardo:v1",
    "beam:transform:flatten:v1",
    "beam:transform:group_by_key:v1",
}
"""All that is left when composites are opened: the Flink and the Spark runner have each of them."""

SUBPROCESS = "beam:env:harness_subprocess_python:v1"
"""The job server starts each worker by a command line."""

SIDE_INPUTS = {"beam:side_input:iterable:v1", "beam:side_input:multimap:v1"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("portable") / "c"
    write_cohort(root, CohortSpec(participants=2, volumes_per_participant=2, small=True, seed=5))
    return root


@pytest.fixture
def job_server(tmp_path: Path) -> Iterator[str]:
    """The address of Beam's local job service."""
    port_file = tmp_path / "port"
    command = [sys.executable, "-m", "apache_beam.runners.portability.local_job_service_main", "--port_file"]
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen([*command, str(port_file)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not port_file.exists():
            assert server.poll() is None, (tmp_path / "server.log").read_text()
            assert time.monotonic() < deadline, "the job server did not start"
            time.sleep(0.1)
        yield f"localhost:{port_file.read_text()}"
    finally:
        server.terminate()
        server.wait(30)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_job_server_with_its_own_workers_gives_the_same_bytes(cohort: Path, job_server: str, tmp_path: Path) -> None:
    run_ingest(make_job(str(cohort), str(tmp_path / "here"), geometry="block6"), beam_options([], num_workers=1))
    worker = f"{sys.executable} -m apache_beam.runners.worker.sdk_worker_main"
    words = [
        "--runner=PortableRunner",
        f"--job_endpoint={job_server}",
        f"--environment_type={SUBPROCESS}",
        f"--environment_config={worker}",
    ]
    result = run_ingest(make_job(str(cohort), str(tmp_path / "there"), geometry="block6"), beam_options(words))
    assert hashes(tmp_path / "there") == hashes(tmp_path / "here")
    assert result.dataset["counts"]["samples"] == 4


def does_something(part: Any) -> bool:
    """`Create` leaves a step behind that hands its input on: every runner drops it."""
    return not set(part.outputs.values()) <= set(part.inputs.values())


@pytest.mark.parametrize("add", [build, build_retry])
def test_the_graph_needs_nothing_that_flink_and_spark_lack(add: Any, cohort: Path, tmp_path: Path) -> None:
    pipeline = beam.Pipeline(options=PipelineOptions(["--runner=PortableRunner", "--job_endpoint=localhost:1"]))
    add(pipeline, make_job(str(cohort), str(tmp_path / "d")))
    proto = pipeline.to_runner_api()
    assert not proto.requirements
    leaves = [part for part in proto.components.transforms.values() if not part.subtransforms and does_something(part)]
    assert {part.spec.urn for part in leaves} == PLAIN_TRANSFORMS
    used = [protos.ParDoPayload.FromString(part.spec.payload) for part in leaves if "pardo" in part.spec.urn]
    assert len(used) > 10
    for pardo in used:
        assert not pardo.state_specs
        assert not pardo.timer_family_specs
        assert not pardo.restriction_coder_id
        assert not pardo.requires_stable_input
        assert not pardo.requires_time_sorted_input
        assert not pardo.requests_finalization
        assert {side.access_pattern.urn for side in pardo.side_inputs.values()} <= SIDE_INPUTS
    for windowing in proto.components.windowing_strategies.values():
        assert windowing.window_fn.urn == "beam:window_fn:global_windows:v1"
    for collection in proto.components.pcollections.values():
        assert collection.is_bounded == protos.IsBounded.BOUNDED
