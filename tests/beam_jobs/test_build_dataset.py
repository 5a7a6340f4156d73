"""The whole job on the local runner: every input has its row, and the bytes depend on the inputs alone."""

import csv
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from beam_jobs.errors import JobError, JobOptionError
from beam_jobs.launch import IngestResult, run_ingest
from beam_jobs.options import beam_options, make_job
from ingest.phantom.cohort import write_cohort
from ingest.phantom.plan import CohortSpec


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve participants of three sites, a fifth of the files damaged."""
    root = tmp_path_factory.mktemp("cohort") / "c"
    write_cohort(root, CohortSpec(participants=12, volumes_per_participant=2, corrupt=0.2, small=True, seed=7))
    return root


@pytest.fixture(scope="module")
def dataset(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dataset") / "d"
    ingest(cohort, out)
    return out


def ingest(source: Path | str, out: Path | str, workers: int = 1, **choices: Any) -> IngestResult:
    job = make_job(str(source), str(out), **({"geometry": "block6"} | choices))
    return run_ingest(job, beam_options([], num_workers=workers))


def rows(dataset: Path, name: str) -> list[dict[str, str]]:
    with (dataset / "manifests" / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_input_has_exactly_one_row_with_the_true_reason(cohort: Path, dataset: Path) -> None:
    """PREDECESSOR 3: failed files returned None and disappeared inside of the batch."""
    with (cohort / "truth.csv").open(newline="", encoding="utf-8") as file:
        truth = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    found = rows(dataset, "sources.csv")
    assert {row["path"]: row["reason"] for row in found} == truth
    assert len(found) == len(truth)
    assert sum(bool(reason) for reason in truth.values()) >= 4


def test_totals_add_up_everywhere(dataset: Path) -> None:
    counts = json.loads((dataset / "dataset.json").read_bytes())["counts"]
    found = rows(dataset, "sources.csv")
    assert counts["inputs"] == len(found)
    assert counts["inputs"] == sum(counts[name] for name in ("accepted", "rejected", "duplicate", "excluded"))
    samples = rows(dataset, "samples.csv")
    assert {row["key"] for row in samples} == {row["key"] for row in found if row["key"]}
    assert counts["samples"] == len(samples) == sum(int(row["num_samples"]) for row in rows(dataset, "shards.csv"))
    assert len(rows(dataset, "rejected.csv")) == len(found) - counts["accepted"]
    assert counts["samples"] == counts["accepted"]
    assert all(len(row["sha256"]) == 64 for row in found if row["reason"] not in {"FILE_MISSING", "OUTSIDE_FILTER"})


def test_all_three_sites_reach_the_samples(dataset: Path) -> None:
    """PREDECESSOR 5: two of three clinical sites were lost."""
    assert {row["participant_id"][0] for row in rows(dataset, "samples.csv")} == {"1", "4", "7"}


def test_a_participant_is_in_one_split(dataset: Path) -> None:
    splits: dict[str, set[str]] = {}
    for row in rows(dataset, "samples.csv"):
        splits.setdefault(row["participant_id"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())


def test_bytes_do_not_depend_on_workers_or_listing(
    cohort: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = LocalFileSystem.find

    def backwards(self: LocalFileSystem, *args: Any, **choices: Any) -> Any:
        return dict(reversed(find(self, *args, **choices).items()))

    monkeypatch.setattr(LocalFileSystem, "find", backwards)
    ingest(cohort, tmp_path / "d", workers=2)
    assert hashes(tmp_path / "d") == hashes(dataset)


def test_an_interrupted_job_goes_on_and_gives_the_same_bytes(
    cohort: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "d"
    with monkeypatch.context() as patch:
        patch.setattr("beam_jobs.build_dataset.commit_dataset", _die)
        with pytest.raises(JobError, match="again"):
            ingest(cohort, out)
    assert not (out / "_SUCCESS").exists()
    (broken,) = sorted((out / "shards").glob("*.tar"))[:1]
    broken.write_bytes(broken.read_bytes()[:-1])
    result = ingest(cohort, out)
    assert hashes(out) == hashes(dataset)
    assert result.counters["shards_packed"] == 1
    assert result.counters["shards_reused"] >= 3


def _die(*_: object, **__: object) -> None:
    raise RuntimeError("the machine went away")


def test_a_second_run_on_a_complete_dataset_does_nothing_and_notices_changes(
    cohort: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hashes(dataset)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert ingest(cohort, dataset).already_complete
    with pytest.raises(JobOptionError, match="geometry"):
        ingest(cohort, dataset, geometry="methods")
    assert not [*(tmp_path / "tmp").iterdir()]  # where Beam makes a folder for each pipeline
    grown = tmp_path / "grown"
    shutil.copytree(cohort, grown)
    (grown / "new.dcm").write_bytes(b"new")
    with pytest.raises(JobOptionError, match="0 files changed or gone, 1 new") as caught:
        ingest(grown, dataset)
    assert "new.dcm" not in str(caught.value)
    assert hashes(dataset) == before


def test_devices_outside_of_the_filter_are_excluded_with_a_row(cohort: Path, tmp_path: Path) -> None:
    ingest(cohort, tmp_path / "d", devices=["triton"], participant_metadata=False)
    found = rows(tmp_path / "d", "sources.csv")
    assert {row["device"] for row in found if row["status"] == "accepted"} == {"topcon_triton"}
    assert {row["reason"] for row in found if row["status"] == "excluded"} == {"OUTSIDE_FILTER"}
    assert all(not row["study_group"] for row in rows(tmp_path / "d", "samples.csv"))


def test_a_source_without_dicoms_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/readme.txt").write_text("nothing here")
    with pytest.raises(JobOptionError, match="no DICOM"):
        ingest(tmp_path / "s", tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_labels_without_the_needed_columns_are_refused(cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.tsv").write_text("name\tvalue\nx\t1\n")
    with pytest.raises(Exception, match="participant_id") as caught:
        ingest(cohort, tmp_path / "d", labels=str(tmp_path / "labels.tsv"))
    assert getattr(caught.value, "exit_code", None) == 2
    assert not (tmp_path / "d").exists()


def test_a_folder_of_something_else_is_never_overwritten(cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/thesis.docx").write_text("precious")
    with pytest.raises(JobOptionError, match="no dataset of fovea"):
        ingest(cohort, tmp_path / "d")
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["thesis.docx"]


def test_source_and_dataset_may_not_lie_in_one_another(cohort: Path) -> None:
    with pytest.raises(JobOptionError, match="apart"):
        ingest(cohort, cohort / "d")


class FaultyFileSystem(LocalFileSystem):
    """A store that answers every write with an error: as root, permissions prove nothing."""

    protocol = "faulty"

    def _open(self, path: str, mode: str = "rb", *args: Any, **choices: Any) -> Any:
        if "w" in mode:
            raise PermissionError(13, "the store refuses writes")
        return super()._open(path, mode, *args, **choices)


@pytest.fixture
def faulty() -> str:
    fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
    return "faulty://"


def test_an_unwritable_dataset_is_refused_before_a_file_is_read(cohort: Path, tmp_path: Path, faulty: str) -> None:
    with pytest.raises(JobError, match="cannot be written"):
        ingest(cohort, f"{faulty}{tmp_path}/d")
    assert not list(tmp_path.rglob("*SUCCESS*"))


def test_misspelt_options_are_refused() -> None:
    with pytest.raises(JobOptionError, match="--geomtry"):
        beam_options(["--geomtry=block6"])
    with pytest.raises(JobOptionError, match="nikon"):
        make_job("/tmp", "/tmp/d", devices=["nikon"])  # noqa: S108 - never opened


def test_local_runs_use_all_cores_unless_told_otherwise() -> None:
    options = beam_options(["--direct_num_workers=3"]).get_all_options()
    assert (options["direct_num_workers"], options["direct_running_mode"]) == (3, "multi_processing")
    assert beam_options(["--runner=DataflowRunner"]).get_all_options()["runner"] == "DataflowRunner"
