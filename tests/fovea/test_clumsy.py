"""What a clumsy user types: one sentence that says what to do next, exit code 2 (usage) or 1 (work), no traceback."""

import hashlib
import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import apache_beam as beam
import pytest

from beam_jobs import launch
from beam_jobs.errors import JobError
from beam_jobs.failures import what_failed
from beam_jobs.options import IngestJob, beam_options, describe_run
from fovea.cli import main
from ingest.phantom.cohort import write_cohort
from ingest.phantom.plan import CohortSpec
from shards.schema import SCHEMA_VERSION, Sample

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def dataset(
    tmp_path_factory: pytest.TempPathFactory, make_sample: Callable[..., Sample], make_dataset: Callable[..., str]
) -> Path:
    folder = tmp_path_factory.mktemp("clumsy") / "dataset"
    return Path(make_dataset(folder, [make_sample(number, (8, 16, 16)) for number in range(4)]))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clumsy") / "cohort"
    write_cohort(root, CohortSpec(participants=1, volumes_per_participant=1, small=True), workers=1)
    return root


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with the wrong kinds of things; the packages that speak to stores are not installed."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain.txt").write_text("hello")
    (tmp_path / "empty.tsv").write_text("")
    (tmp_path / "binary.tsv").write_bytes(bytes(range(256)))
    monkeypatch.chdir(tmp_path)
    for package in ("gcsfs", "s3fs"):
        monkeypatch.setitem(sys.modules, package, None)
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run a command through the entry point; returns its exit code and what it said on standard error."""

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fovea", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr().err
        assert "Traceback" not in said, said
        assert "did not foresee" not in said, said
        return int(ended.value.code or 0), said

    on_ctrl_c = signal.getsignal(signal.SIGINT)
    yield run
    signal.signal(signal.SIGINT, on_ctrl_c)


OPENERS = {
    "audit": ["audit", "{}"],
    "verify": ["verify", "{}"],
    "show": ["show", "{}", "key", "--png", "a.png"],
    "pretrain": ["pretrain", "--recipe", "smoke", "--data", "{}", "--out", "run"],
    "embed": ["embed", "--run", "run", "--data", "{}", "--out", "e.zarr"],
}


@pytest.mark.parametrize("command", OPENERS)
@pytest.mark.parametrize(
    ("address", "code", "says"),
    [
        ("gs://bucket/x", 2, "install gcsfs"),
        ("s3://bucket/x", 2, "install s3fs"),
        ("foo://x", 2, "give a path"),
        ("plain.txt", 2, "give the folder that `fovea ingest` wrote"),
        ("", 2, "give "),
        ("nowhere", 2, "give the folder that `fovea ingest` wrote"),
    ],
)
def test_what_is_no_dataset_is_refused(here: Path, run: Run, command: str, address: str, code: int, says: str) -> None:
    ended, said = run(*(word.format(address) for word in OPENERS[command]))
    assert (ended, says in said, said.count("\n")) == (code, True, 1), said


@pytest.mark.parametrize("command", OPENERS)
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{ not json", "not JSON"),
        ("[1, 2]", ""),
        ("{}", "schema version"),
        ('{"schema_version": 99}', "schema version"),
    ],
)
def test_a_dataset_json_of_another_kind_is_named(
    here: Path, run: Run, dataset: Path, command: str, text: str, says: str
) -> None:
    recommit(dataset, here / "d", text)
    ended, said = run(*(word.format("d") for word in OPENERS[command]))
    assert ended == 1
    if command != "verify":  # its result is on standard output
        assert says in said
        assert "again" in said
        assert said.count("\n") == 1


def test_an_audit_needs_its_parts_of_dataset_json(here: Path, run: Run, dataset: Path) -> None:
    recommit(dataset, here / "d", json.dumps({"schema_version": SCHEMA_VERSION, "geometry": "block6"}))
    ended, said = run("audit", "d")
    assert ended == 1
    assert "no object geometry" in said


def recommit(dataset: Path, target: Path, text: str) -> None:
    shutil.copytree(dataset, target)
    (target / "dataset.json").write_text(text)
    (target / "_SUCCESS").write_text(hashlib.sha256(text.encode()).hexdigest() + "\n")


def test_a_store_that_refuses_is_no_defect(run: Run, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentialsError(Exception):
        __module__ = "botocore.exceptions"

    def refuse(*_: object, **__: object) -> None:
        raise NoCredentialsError

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.isdir", refuse)
    ended, said = run("audit", dataset)
    assert ended == 1
    assert "cannot be read (NoCredentialsError); check permissions, credentials" in said
    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.cat_file", refuse)
    ended, said = run("show", dataset, "key", "--png", "a.png")
    assert ended == 1
    assert "NoCredentialsError" in said
    assert "check permissions, credentials" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--html", "folder"], "name another file"),
        (["--html", "plain.txt/a.html"], "name another file"),
        (["--html", "s3://bucket/a.html"], "is a URL"),
        (["--labels", "foo://x"], "give a path"),
        (["--labels", "s3://bucket/x"], "install s3fs"),
        (["--labels", "folder"], "give the participants.tsv"),
        (["--labels", "nothing.tsv"], "give the participants.tsv"),
        (["--labels", "binary.tsv"], "save it as UTF-8"),
        (["--labels", "empty.tsv"], "lacks the column"),
        (["--labels", ""], "give a path"),
    ],
)
def test_an_audit_of_what_cannot_be_read_or_written(
    here: Path, run: Run, dataset: Path, words: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Labels are joined only if the accounting adds up; these sources have no spacing.
    monkeypatch.setattr("manifests.audit._row_problems", lambda _: ())
    ended, said = run("audit", dataset, *words)
    assert (ended, says in said) == (2, True), said


def test_a_page_goes_into_a_folder_that_does_not_exist_yet(here: Path, run: Run, dataset: Path) -> None:
    run("audit", dataset, "--html", "new/sub/a.html")
    assert (here / "new/sub/a.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["", "d"], 2, "SOURCE is empty"),
        (["{cohort}", ""], 2, "DATASET is empty"),
        (["{cohort}", "{cohort}/d"], 2, "keep them apart"),
        (["file://{cohort}", "{cohort}/d"], 2, "keep them apart"),
        (["{cohort}", "{cohort}"], 2, "keep them apart"),
        (["{cohort}", "plain.txt"], 2, "new or empty folder"),
        (["{cohort}", "plain.txt/d"], 1, "cannot be written"),
        (["{cohort}", "foo://d"], 2, "give a path"),
        (["{cohort}", "gs://bucket/d"], 2, "install gcsfs"),
        (["s3://bucket/c", "d"], 2, "install s3fs"),
        (["{cohort}", "d", "--direct_num_workers=x"], 2, "invalid int value"),
        (["{cohort}", "d", "--direct_num_workers"], 2, "expected one argument"),
        (["{cohort}", "d", "--direct_num_workers=-1"], 2, "or 0 for one a core"),
        (["{cohort}", "d", "--direct_num_workers", "2", "stray"], 2, "stray"),
        (["{cohort}", "d", "--runner=Nope"], 2, "Nope"),
        (["{cohort}", "d", "--runner=no.such.Runner"], 2, "no"),
        (["{cohort}", "d", "--direct_running_mode=nope"], 2, "invalid choice"),
        (["{cohort}", "d", "--nonsense"], 2, "--nonsense"),
        (["{cohort}", "d", "--devices", "nope"], 2, "use spectralis"),
        (["{cohort}", "d", "--geometry", "missing.yaml"], 2, "missing.yaml"),
        (["{cohort}", "d", "--shard-mb", "0"], 2, "--shard-mb"),
        (["{cohort}", "d", "--labels", "nothing.tsv"], 2, "nothing.tsv"),
        (["{cohort}", "d", "--labels", ""], 2, "--labels is empty"),
        (["{cohort}", "damaged"], 2, "give a new DATASET"),
        (["{cohort}", "half"], 2, "give a new DATASET"),
    ],
)
def test_an_ingest_that_cannot_start_leaves_nothing(
    here: Path, run: Run, cohort: Path, words: list[str], code: int, says: str
) -> None:
    for name, record in (("damaged", "_SUCCESS"), ("half", "_staging/job.json")):
        (here / name / record).parent.mkdir(parents=True)
        (here / name / record).write_text("x")
        (here / name / "dataset.json").write_text("[1, 2]")
    ended, said = run("ingest", *(word.format(cohort=cohort) for word in words))
    assert (ended, says in said, "usage:" in said) == (code, True, False), said
    assert not (here / "d").exists()


def test_no_workers_means_one_a_core() -> None:
    assert describe_run(beam_options(["--direct_num_workers=0"])) == describe_run(beam_options([]))
    assert describe_run(beam_options(["--direct_num_workers", "3"]))["workers"] == 3


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["phantom", "c", "--participants", "0"], 2, "between 1 and"),
        (["phantom", "c", "--participants", "-1"], 2, "between 1 and"),
        (["phantom", "c", "--volumes", "0"], 2, "between 1 and"),
        (["phantom", "c", "--corrupt", "1.5"], 2, "between 0 and 1"),
        (["phantom", "c", "--corrupt", "-0.1"], 2, "between 0 and 1"),
        (["phantom", "c", "--corrupt", "nan"], 2, "between 0 and 1"),
        (["phantom", "c", "--signal", "-1"], 2, "between 0 and 10"),
        (["phantom", "plain.txt"], 2, "new or empty folder"),
        (["phantom", "plain.txt/c"], 2, "name another folder"),
        (["phantom", "s3://bucket/c"], 2, "is a URL"),
        (["explain", "folder"], 2, "name one file in it"),
        (["explain", "nothing.dcm"], 2, "does not exist"),
        (["explain", "gs://bucket/a.dcm"], 2, "install gcsfs"),
        (["explain", "foo://a.dcm"], 2, "give a path"),
        (["explain", ""], 2, "give a path"),
        (["demo", "--out", "plain.txt"], 2, "another --out"),
        (["demo", "--out", "plain.txt/d"], 2, "another --out"),
        (["demo", "--out", "s3://bucket/d"], 2, "is a URL"),
        (["probe", "nothing.zarr", "--labels", "foo://x"], 2, "give a path"),
    ],
)
def test_other_commands(here: Path, run: Run, words: list[str], code: int, says: str) -> None:
    ended, said = run(*words)
    assert (ended, says in said) == (code, True), said
    assert not (here / "c").exists()
    assert not (here / "s3:").exists()


@pytest.mark.parametrize("words", [["export", "--out", "x"], ["embed", "--out", "x.zarr", "--data", "{dataset}"]])
def test_a_run_without_a_checkpoint_is_bad_usage(here: Path, run: Run, dataset: Path, words: list[str]) -> None:
    ended, said = run(*(word.format(dataset=dataset) for word in words), "--run", "folder")
    assert ended == 2
    assert said == "fovea: folder holds no checkpoint: give a run folder of `fovea pretrain`, or one checkpoint.\n"


class OddError(Exception):
    """Of a kind that fovea does not know."""


def test_a_foreign_error_is_named_by_kind_and_step(
    here: Path, run: Run, cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OddError("CANARY\nSECRET: CANARY")

    def build(pipeline: beam.Pipeline, _: IngestJob) -> None:
        _ = pipeline | beam.Create([1]) | "Element" >> beam.Map(lambda _: fail())

    monkeypatch.setattr(launch, "build", build)
    ended, said = run("ingest", cohort, "d", "--direct_num_workers=1")
    assert ended == 1
    assert "the pipeline failed: OddError in the step Element; --debug shows the rest." in said
    assert "CANARY" not in said
    assert "SECRET" not in said


def test_an_error_of_another_process_is_read_from_its_traceback() -> None:
    trace = (
        'Error received from SDK harness for instruction 7: Traceback (most recent call last):\n  File "a.py", line 1\n'
    )
    pack = " [while running 'Pack/ParDo(Pack)-ptransform-46']\n"
    foreign = RuntimeError(f"{trace}    f()\nValueError: CANARY\nSECRET: CANARY{pack}")
    assert what_failed(foreign) == "ValueError in the step Pack; --debug shows the rest."
    ours = RuntimeError(f"{trace}    f()\nbeam_jobs.errors.JobError: SOURCE holds no DICOM file.{pack}")
    assert what_failed(ours) == "SOURCE holds no DICOM file."
    assert what_failed(JobError(f"it is so.{pack}")) == "it is so."
