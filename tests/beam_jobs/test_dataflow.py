"""Submission to Dataflow against stand-ins for its API and for Cloud Storage: what is sent, and how it ends."""

import hashlib
import importlib
import json
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from apache_beam.internal.gcp import auth
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.dataflow import build_wheel, complete, is_dataflow, job_name
from beam_jobs.errors import JobError, JobOptionError
from beam_jobs.estimate import GRAPH_LIMIT_BYTES
from beam_jobs.launch import run_ingest
from beam_jobs.machine import disk_gib, machine
from beam_jobs.options import IngestJob, beam_options, make_job
from ingest.geometry import BLOCK6, METHODS
from ingest.phantom.cohort import write_cohort
from ingest.phantom.plan import CohortSpec
from shards.publish import publish
from shards.storage import exists, locate, names_below, read_bytes
from tests.beam_jobs.dataflow_service import JOB_ID, NOTE, Service, everything, holds, serve, write_account

SECRET = "canary-of-the-hash-key-5f1c"  # noqa: S105 - not one
BASE = ("--runner=DataflowRunner", "--project=proj-123456", "--region=us-central1", "--temp_location=gs://bkt-123/tmp")
IMAGE = "--sdk_container_image=registry.example/fovea-worker:1"


def job_of(**changes: Any) -> IngestJob:
    values = {
        "source": "gs://bkt-123/in",
        "dataset": "gs://bkt-123/out",
        "geometry": BLOCK6,
        "hash_key": SECRET.encode(),
    }
    return IngestJob(**(values | changes))


def completed(*words: str, **changes: Any) -> dict[str, Any]:
    options = PipelineOptions([*BASE, *words])
    complete(job_of(**changes), options)
    return dict(options.get_all_options())


@pytest.mark.parametrize(
    ("words", "changes", "sentence"),
    [
        (["--project="], {}, "--project"),
        (["--project=My Project"], {}, "--project"),
        (["--region=Iowa"], {}, "--region"),
        (["--temp_location=/tmp/x"], {}, "--temp_location"),
        (["--temp_location=gs://bkt-123"], {}, "--temp_location"),
        (["--staging_location=s3://b/x"], {}, "--staging_location"),
        (["--temp_location=gs://bkt-123/out/tmp"], {}, "hash key"),
        (["--staging_location=gs://bkt-123/in"], {}, "hash key"),
        ([], {"source": "/data/cohort"}, "SOURCE /data/cohort"),
        ([], {"dataset": "/data/out"}, "DATASET /data/out"),
        ([], {"labels": "/data/participants.tsv"}, "--labels"),
        ([], {"source": "s3://bkt/in"}, "AWS credentials"),
        ([IMAGE, "--s3_secret_access_key=abc"], {}, "--s3_secret_access_key"),
        (["--sdk_container_image=fovea"], {}, "--sdk_container_image"),
        (["--machine_type=huge-9000"], {}, "machine type"),
        (["--machine_type=t2a-standard-4"], {}, "machine type"),
        (["--machine_type=n2-standard-0"], {}, "machine type"),
        (["--machine_type=e2-highcpu-2"], {}, "2 GiB"),
        (["--machine_type=n2-standard-4", "--number_of_worker_harness_threads=5"], {}, "threads=5"),
        (["--disk_size_gb=10"], {}, "disk_size_gb"),
        (["--experiments=use_multiple_sdk_containers"], {}, "use_multiple_sdk_containers"),
    ],
)  # fmt: skip
def test_what_could_not_work_is_refused_in_one_sentence(
    words: list[str], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(JobOptionError) as caught:
        completed(*words, **changes)
    assert sentence in str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_what_was_left_open_is_filled_in() -> None:
    values = completed()
    assert values["machine_type"] == "n2-standard-4"
    assert values["number_of_worker_harness_threads"] == 4
    assert values["disk_size_gb"] >= 15 + 4 * 0.5
    assert {"use_runner_v2", "no_use_multiple_sdk_containers"} <= set(values["experiments"])
    assert values["max_num_workers"] == 10
    assert values["staging_location"] == "gs://bkt-123/tmp/staging"
    assert values["requirements_file"].endswith("worker.lock")
    assert values["requirements_cache"] == "skip"
    assert completed(IMAGE)["requirements_file"] is None


def test_what_was_said_is_kept() -> None:
    words = [
        "--machine_type=n1-highmem-8",
        "--number_of_worker_harness_threads=2",
        "--disk_size_gb=90",
        "--job_name=mine",
    ]
    values = completed(*words, "--num_workers=40", IMAGE)
    assert (values["machine_type"], values["number_of_worker_harness_threads"]) == ("n1-highmem-8", 2)
    assert (values["disk_size_gb"], values["job_name"], values["max_num_workers"]) == (90, "mine", 40)


def test_threads_follow_from_memory() -> None:
    assert machine("n2-standard-8").threads(job_of()) == 8
    assert machine("n1-highcpu-16").threads(job_of()) < 16
    assert machine("custom-8-8192").threads(job_of()) == 4
    large = replace(BLOCK6, size=(256, 768, 768))
    assert machine("n2-highcpu-8").threads(job_of(geometry=large)) < machine("n2-highcpu-8").threads(job_of())


def test_disk_follows_from_the_shards() -> None:
    assert disk_gib(job_of(), 4) == 25
    assert disk_gib(job_of(target_shard_bytes=2**31), 8) == pytest.approx(15 + 8 * (4 + 1 / 16), abs=1)


def test_one_ingest_has_one_job_name_and_another_has_another() -> None:
    assert job_name(job_of()) == job_name(job_of())
    names = {job_name(job_of()), job_name(job_of(dataset="gs://bkt-123/else")), job_name(job_of(geometry=METHODS))}
    assert len(names) == 3
    assert SECRET not in "".join(names)


def test_only_dataflow_is_dataflow() -> None:
    assert is_dataflow(PipelineOptions(["--runner=DataflowRunner"]))
    assert not is_dataflow(PipelineOptions([]))
    assert not is_dataflow(PipelineOptions(["--runner=FnApiRunner"]))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_every_room_and_the_lock(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for part in ("shards/codec.py", "ingest/isolated.py", "beam_jobs/build_dataset.py", "beam_jobs/worker.lock"):
        assert part in names
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Cloud Storage's emulator in its own process, with an empty bucket."""
    with serve(Service(storage="")) as free:  # a port that was free a moment ago
        port = free.url.rpartition(":")[2]
    log = (tmp_path_factory.mktemp("storage") / "log").open("wb")
    code = "import sys; from gcp_storage_emulator.__main__ import main; sys.exit(main())"
    words = ["start", "--host", "localhost", "--port", port, "--default-bucket", "bkt-123", "--in-memory", "--quiet"]
    server = subprocess.Popen([sys.executable, "-c", code, *words], stdout=log, stderr=log)
    try:
        await_answer(f"http://localhost:{port}/")
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def await_answer(url: str) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            with urlopen(url):  # noqa: S310 - the emulator's own address
                return
        except URLError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def process_state() -> Iterator[None]:
    """What Beam's authentication leaves in a process: a default timeout of all sockets, and credentials."""
    timeout, kept = socket.getdefaulttimeout(), auth._Credentials
    before = (kept._credentials_init, kept._credentials)
    yield
    socket.setdefaulttimeout(timeout)
    kept._credentials_init, kept._credentials = before


@pytest.fixture
def service(process_state: None, storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """The stand-in; this process finds it, the emulator and credentials where it would find Google's."""
    with ExitStack() as stack:
        found = stack.enter_context(serve(Service(storage=storage)))
        write_account(tmp_path / "account.json", f"{found.url}/token")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage)
        monkeypatch.setenv("NO_GCE_CHECK", "true")
        monkeypatch.setenv("FOVEA_HASH_KEY", SECRET)
        runner = importlib.import_module("apache_beam.runners.dataflow.dataflow_runner")
        hurried = SimpleNamespace(sleep=lambda seconds: time.sleep(0.01 * seconds), time=time.time)
        monkeypatch.setattr(runner, "time", hurried)
        yield found


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fleet") / "c"
    write_cohort(root, CohortSpec(participants=2, volumes_per_participant=2, small=True, seed=5))
    return root


@pytest.fixture
def bucket(service: Service, cohort: Path, request: pytest.FixtureRequest) -> str:
    """SOURCE in the bucket, under a name of the test's own."""
    root = f"gs://bkt-123/{hashlib.sha256(request.node.name.encode()).hexdigest()[:8]}"
    for path in sorted(path for path in cohort.rglob("*") if path.is_file()):
        publish(f"{root}/in/{path.relative_to(cohort)}", path.read_bytes())
    return root


def words_of(service: Service, *more: str) -> list[str]:
    return [*BASE, f"--dataflow_endpoint={service.url}", *more]


@pytest.fixture
def submit(service: Service, bucket: str) -> Callable[..., Any]:
    def run(*words: str) -> Any:
        job = make_job(f"{bucket}/in", f"{bucket}/out", geometry="block6")
        return run_ingest(job, beam_options(words_of(service, *words)))

    return run


def test_the_staged_graph_alone_gives_the_dataset_of_a_local_run(
    service: Service, bucket: str, submit: Callable[..., Any], cohort: Path, tmp_path: Path, wheel: Path
) -> None:
    """The stand-in runs what lies in the bucket, and nothing else that this process knows."""
    service.works = True
    result = submit(f"--extra_package={wheel}", "--labels=team=eye")
    run_ingest(make_job(str(cohort), str(tmp_path / "d"), geometry="block6"), beam_options([], num_workers=1))
    out = locate(f"{bucket}/out")
    there = {name: read_bytes(out / name, num_bytes) for name, num_bytes in names_below(out).items()}
    here = {str(path.relative_to(tmp_path / "d")): path for path in (tmp_path / "d").rglob("*") if path.is_file()}
    assert there.keys() == here.keys()
    assert there["manifests/sources.csv"].decode() == here["manifests/sources.csv"].read_bytes().decode()
    assert not [name for name, data in there.items() if data != here[name].read_bytes()]
    assert result.dataset["counts"]["samples"] == 4, "ADR 0007's process must not see Beam's socket timeout"
    check_request(service, wheel)
    check_secret(service)


def check_request(service: Service, wheel: Path) -> None:
    job = service.job
    assert len(service.bodies[0]) < GRAPH_LIMIT_BYTES
    assert job["name"].startswith("fovea-ingest-")
    assert job["type"] in ("JOB_TYPE_BATCH", 1)
    assert service.requests[0]["project"] == "proj-123456"
    assert service.requests[0]["region"] == "us-central1"
    (pool,) = job["environment"]["workerPools"]
    assert pool["machineType"] == "n2-standard-4"
    assert (pool["numThreadsPerWorker"], pool["diskSizeGb"]) == (4, 25)
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 10
    assert {"use_runner_v2", "no_use_multiple_sdk_containers"} <= set(job["environment"]["experiments"])
    (image,) = pool["sdkHarnessContainerImages"]
    assert f"beam_python{sys.version_info[0]}.{sys.version_info[1]}_sdk:2.77.0" in image["containerImage"]
    staged = {Path(package["name"]).name: package["location"] for package in pool["packages"]}
    assert {wheel.name, "requirements.txt"} <= staged.keys()
    for name, source in ((wheel.name, wheel), ("requirements.txt", Path("beam_jobs/worker.lock"))):
        sent = service.fetch("gs://" + staged[name].removeprefix("storage.googleapis.com/"))
        assert sent == source.read_bytes(), name


def check_secret(service: Service) -> None:
    """The key travels in the graph's payloads: nowhere where the console or an API of Dataflow shows it."""
    shown = "\n".join(everything(service.job)).encode()
    assert not holds(SECRET, service.bodies[0])
    assert not holds(SECRET, shown)
    graph = service.graph()
    parts = list(graph.components.transforms.values())
    assert [part for part in parts if holds(SECRET, part.spec.payload)], "docs/dataflow.md says that it is there"
    for part in parts:
        part.spec.payload = b""
    assert not holds(SECRET, graph.SerializeToString())


def test_a_container_image_takes_the_place_of_wheel_and_lock(service: Service, submit: Callable[..., Any]) -> None:
    service.states = ["JOB_STATE_CANCELLED"]
    with pytest.raises(JobError, match=r"the job was cancelled\."):
        submit(IMAGE, "--max_num_workers=3", "--machine_type=c3-standard-8")
    (pool,) = service.job["environment"]["workerPools"]
    assert pool["sdkHarnessContainerImages"][0]["containerImage"] == IMAGE.partition("=")[2]
    assert (pool["machineType"], pool["autoscalingSettings"]["maxNumWorkers"]) == ("c3-standard-8", 3)
    assert not [package for package in pool.get("packages", []) if package["name"].endswith(".whl")]


def traceback_of(line: str) -> str:
    """A worker's error as Dataflow reports it."""
    return f"Traceback (most recent call last):\n  File x\n{line}{NOTE}"


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("Workflow failed. Causes: ZONE_RESOURCE_POOL_EXHAUSTED", "FAILED: Workflow failed. Causes: ZONE_RESOURCE"),
        (traceback_of("beam_jobs.errors.JobError: 3 inputs have two rows. [while running 'Commit']"), "have two rows."),
        (traceback_of("OSError: 4123_SMITH.dcm [while running 'Pack']"), "a worker's error; --debug"),
    ],
)  # fmt: skip
def test_a_failed_job_says_why_and_names_no_file(
    service: Service, submit: Callable[..., Any], message: str, sentence: str
) -> None:
    service.states, service.message = ["JOB_STATE_RUNNING", "JOB_STATE_FAILED"], message
    with pytest.raises(JobError) as caught:
        submit(IMAGE)
    assert sentence in str(caught.value)
    assert "SMITH" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_refusal_of_the_service_is_one_sentence(service: Service, submit: Callable[..., Any]) -> None:
    service.refuse = (403, "Dataflow API has not been used in project 1 before or it is disabled")
    with pytest.raises(JobError, match=r"Dataflow answered 403: .*is disabled\."):
        submit(IMAGE)


def test_a_second_submission_of_a_running_ingest_is_refused(service: Service, submit: Callable[..., Any]) -> None:
    service.active_request = "of-another-submission"
    with pytest.raises(JobError, match="submitted before"):
        submit(IMAGE)


def test_the_command_follows_a_job_and_ends_with_its_code(
    service: Service, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service.states, service.message = ["JOB_STATE_RUNNING", "JOB_STATE_FAILED"], "Workflow failed."
    words = ["fovea", "ingest", f"{bucket}/in", f"{bucket}/out", "--geometry", "block6", *words_of(service, IMAGE)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as caught:
        importlib.import_module("fovea.cli").main()
    said = capsys.readouterr().err
    assert caught.value.code == 1
    assert f"https://console.cloud.google.com/dataflow/jobs/us-central1/{JOB_ID}?project=proj-123456" in said
    assert "FAILED: Workflow failed." in said
    assert SECRET not in said


def test_a_dry_run_sends_nothing_and_writes_nothing(
    service: Service, bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    staged = names_below("gs://bkt-123/tmp")
    words = ["fovea", "ingest", f"{bucket}/in", f"{bucket}/out", "--dry-run", "--json", *words_of(service)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as caught:
        importlib.import_module("fovea.cli").main()
    found = json.loads(capsys.readouterr().out)
    assert caught.value.code == 0
    assert (found["inputs"]["files"], found["inputs"]["volumes"]) == (4, 4)
    assert found["fleet"]["machine"]["name"] == "n2-standard-4"
    assert found["dollars"] >= 0
    assert not service.requests
    assert not exists(f"{bucket}/out")
    assert staged == names_below("gs://bkt-123/tmp")


def test_without_a_checkout_the_wheel_must_be_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("beam_jobs.dataflow.SOURCES", tmp_path)
    with pytest.raises(JobOptionError, match="no wheel can be built"):
        completed()
    assert completed("--extra_package=/w/fovea_oct-0.1.0-py3-none-any.whl")["extra_packages"]
    with pytest.raises(JobError, match="could not be built"):
        build_wheel(tmp_path)
