"""`--append` through the real job: what is new gets rows and shards of its own, and what was there stays as it was."""

import csv
import hashlib
import json
import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from beam_jobs.commit_retry import finish_retry
from beam_jobs.errors import JobError, JobOptionError
from beam_jobs.launch import IngestResult, check_start, run_ingest
from beam_jobs.options import IngestJob, beam_options, make_job
from beam_jobs.retry import count_changes, scope_of
from fovea.cli import build_app
from ingest.phantom.cohort import write_cohort
from ingest.phantom.plan import CohortSpec
from manifests.audit import audit
from manifests.reasons import Reason
from manifests.rows import SourceRow
from shards.reader import open_dataset, read_sample
from shards.verify import verify
from tests.in_process import InProcess

COMER = "7015"
"""The participant who is in the grown cohort only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A cohort as it was, the dataset made of it, and the cohort as it has grown."""

    first: Path
    grown: Path
    dataset: Path
    geometry: str
    later: str
    missing: str
    twins: tuple[str, str]

    def job(self, dataset: Path, source: Path | None = None, **choices: Any) -> IngestJob:
        job = make_job(str(source or self.grown), str(dataset), **({"geometry": self.geometry} | choices))
        return replace(job, target_shard_bytes=2**20)

    def run(self, dataset: Path, source: Path | None = None, **flags: Any) -> IngestResult:
        return run_ingest(self.job(dataset, source), beam_options([], num_workers=1), **flags)

    def append(self, dataset: Path, source: Path | None = None) -> IngestResult:
        return self.run(dataset, source, append=True)


def without(file: Path, *words: str) -> None:
    """Take the lines of a table out that hold one of the words."""
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not any(word in line for word in words)))


def edited(file: Path, line: str, **cells: str) -> None:
    """Change cells of the line of a table that starts so."""
    rows = [row.split("\t") for row in file.read_text().split("\n")]
    for row in rows:
        if row[0] == line:
            for column, value in cells.items():
                row[rows[0].index(column)] = value
    file.write_text("\n".join("\t".join(row) for row in rows))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Five participants, one of them new, two without a recommended split; a new volume of another, a missing one."""
    root = tmp_path_factory.mktemp("append")
    grown, first = root / "grown", root / "first"
    spec = CohortSpec(
        participants=5, volumes_per_participant=3, devices=("topcon_triton", "zeiss_cirrus"), small=True, seed=5
    )
    write_cohort(grown, spec, workers=1)
    for line in ("1285", "4531"):
        edited(grown / "participants.tsv", line, recommended_split="")
    shutil.copytree(grown, first)
    files = sorted(path.relative_to(grown) for path in grown.rglob("*.dcm"))
    later = next(path for path in files if path.parent.name == "1738")
    missing = next(path for path in files if path.parent.name == "4087")
    for path in (later, missing, *(path for path in files if path.parent.name == COMER)):
        (first / path).unlink()
    without(first / "participants.tsv", COMER)
    without(first / "retinal_oct/manifest.tsv", later.name, f"\n{COMER}", f"/{COMER}/")
    twins = tuple(str(path) for path in files if path.parent.name == "1285")[:2]
    for number, path in enumerate(twins):
        twin = grown / path.replace("structural_oct", "again")
        twin.parent.mkdir(parents=True, exist_ok=True)
        data = (grown / path).read_bytes()
        twin.write_bytes(data if number == 0 else b"\x01" * 128 + data[128:])
    (grown / "retinal_oct/broken.dcm").write_bytes(b"broken" * 99)
    (grown / "notes.json").write_bytes(b"{}")
    (root / "tiny.yaml").write_text("target_spacing_mm:\nsize: [16, 128, 128]\nanchor: center\n")
    found = Case(
        first=first, grown=grown, dataset=root / "dataset", geometry=str(root / "tiny.yaml"),
        later=str(later), missing=str(missing), twins=(twins[0], twins[1]),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("beam_jobs.transforms.Guard", InProcess)
        found.run(found.dataset, first)
    return found


@pytest.fixture(scope="module")
def appended(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("appended") / "d"
    shutil.copytree(case.dataset, out)
    before = stamps(out / "shards")
    result = case.append(out)
    assert not result.already_complete
    assert before.items() <= stamps(out / "shards").items()
    return out


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beam_jobs.transforms.Guard", InProcess)


@pytest.fixture
def copy(case: Case, tmp_path: Path, in_process: None) -> Path:
    return Path(shutil.copytree(case.dataset, tmp_path / "d"))


@pytest.fixture
def source(case: Case, tmp_path: Path) -> Path:
    return Path(shutil.copytree(case.grown, tmp_path / "source"))


def rows(dataset: Path, name: str = "sources.csv") -> dict[str, dict[str, str]]:
    with (dataset / "manifests" / name).open(newline="", encoding="utf-8") as file:
        return {row.get("path") or row.get("key") or row["shard"]: row for row in csv.DictReader(file)}


def info(dataset: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((dataset / "dataset.json").read_bytes())
    return found


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def stamps(folder: Path) -> dict[str, tuple[int, str]]:
    return {name: ((folder / name).stat().st_mtime_ns, sha256) for name, sha256 in hashes(folder).items()}


def assert_sound(dataset: Path) -> None:
    assert verify(str(dataset)).problems == ()
    assert audit(str(dataset)).problems == ()
    opened = open_dataset(dataset)
    for row in opened.samples:
        read_sample(opened, row)
    assert not (dataset / "_staging").exists()


def test_what_is_new_gets_rows_and_shards_of_its_own(case: Case, appended: Path) -> None:
    assert rows(case.dataset)[case.missing]["reason"] == "FILE_MISSING"
    assert case.later not in rows(case.dataset)
    found = rows(appended)
    paths = (case.missing, case.later, "retinal_oct/broken.dcm")
    assert [found[path]["reason"] for path in paths] == ["", "", "NOT_DICOM"]
    kept = {path: row for path, row in rows(case.dataset).items() if path != case.missing}
    assert kept.items() <= found.items()
    for table in ("samples.csv", "shards.csv"):
        assert rows(case.dataset, table).items() < rows(appended, table).items()
    last = Counter(name.rpartition("-")[0] for name in rows(case.dataset, "shards.csv"))
    new = rows(appended, "shards.csv").keys() - rows(case.dataset, "shards.csv").keys()
    assert new
    assert all(int(name[-9:-4]) >= last[name.rpartition("-")[0]] for name in new)
    assert_sound(appended)


def test_totals_are_right_and_say_what_came(case: Case, appended: Path) -> None:
    before, after = info(case.dataset), info(appended)
    assert after["counts"]["inputs"] == len(rows(appended)) == before["counts"]["inputs"] + 7
    assert after["counts"]["samples"] == len(rows(appended, "samples.csv")) == before["counts"]["samples"] + 5
    assert after["counts"]["by_reason"].get("FILE_MISSING") is None
    assert after["other_files"][".json"] == before["other_files"].get(".json", 0) + 1
    table = hashlib.sha256((case.grown / "participants.tsv").read_bytes()).hexdigest()
    assert after["appended"] == [{"labels_sha256": table, "inputs": 8, "samples": 5}]
    assert after["config"] == before["config"]
    assert after["config"]["labels_sha256"] != table


def test_a_participant_keeps_the_split_and_gets_what_the_table_says(case: Case, appended: Path) -> None:
    splits: dict[str, set[str]] = defaultdict(set)
    for row in rows(appended, "samples.csv").values():
        splits[row["participant_id"]].add(row["split"])
    assert {person: len(found) for person, found in splits.items()} == dict.fromkeys(splits, 1)
    assert COMER in splits
    comers = [row for row in rows(appended, "samples.csv").values() if row["participant_id"] == COMER]
    assert {(row["clinical_site"], row["age"]) for row in comers} == {("UAB", "56.0")}


def test_a_new_file_never_takes_an_accepted_one_out(case: Case, appended: Path) -> None:
    found = rows(appended)
    same, other = (found[path.replace("structural_oct", "again")] for path in case.twins)
    assert (same["status"], same["reason"]) == ("duplicate", "DUP_SOP_UID_IDENTICAL")
    assert (other["status"], other["reason"], other["key"]) == ("rejected", "DUP_SOP_UID_CONFLICT", "")
    assert [found[path]["status"] for path in case.twins] == ["accepted"] * 2
    assert not list((appended / "shards").glob("twin*"))


def test_the_grown_dataset_is_complete_with_the_grown_table(case: Case, appended: Path) -> None:
    before = stamps(appended)
    for flags in ({}, {"append": True}, {"retry_rejected": True}):
        assert case.run(appended, **flags).already_complete
    assert stamps(appended) == before
    with pytest.raises(JobOptionError, match="grown with another labels_sha256"):
        check_start(case.job(appended, labels=str(case.first / "participants.tsv")))
    with pytest.raises(JobOptionError, match=r"gives 1 of the 5 participants"):
        check_start(case.job(appended, labels=str(case.first / "participants.tsv")), append=True)


def test_it_grows_again(case: Case, appended: Path, source: Path, tmp_path: Path, in_process: None) -> None:
    out = Path(shutil.copytree(appended, tmp_path / "d"))
    again = source / case.later.replace("structural_oct", "again")
    again.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / case.later, again)
    case.append(out, source)
    table = info(out)["appended"][0]["labels_sha256"]
    assert info(out)["appended"][1:] == [{"labels_sha256": table, "inputs": 1, "samples": 0}]
    assert rows(out)[str(again.relative_to(source))]["reason"] == "DUP_SOP_UID_IDENTICAL"
    assert_sound(out)
    again.unlink()
    again.with_name("other.dcm").write_bytes(b"other")
    with pytest.raises(JobOptionError, match=r"1 files changed or gone, 0 new"):
        case.append(out, source)


def test_without_the_flag_the_refusal_names_it(case: Case, copy: Path, source: Path) -> None:
    before = hashes(copy)
    with pytest.raises(JobOptionError, match="--append takes new files in, if the participants' table"):
        check_start(case.job(copy))
    shutil.copy(case.first / "participants.tsv", source / "participants.tsv")
    with pytest.raises(JobOptionError, match=r"0 files changed or gone, 8 new.*--append takes new files in"):
        check_start(case.job(copy, source))
    with pytest.raises(JobOptionError, match=r"0 files changed or gone, 7 new.*--append takes new files in"):
        check_start(case.job(copy, source), retry_rejected=True)
    assert hashes(copy) == before


@pytest.mark.parametrize(
    ("line", "cells", "number"),
    [
        ("1738", {"clinical_site": "UCSD"}, 1),
        ("1738", {"age": "58"}, 1),
        ("1738", {"study_group": "healthy"}, 1),
        ("4087", {"recommended_split": "train"}, 1),
        ("1285", {"person_id": "9999"}, 1),
        (COMER, {"age": "99"}, 0),
    ],
)
def test_a_table_may_grow_and_not_change(
    case: Case, copy: Path, source: Path, line: str, cells: dict[str, str], number: int
) -> None:
    edited(source / "participants.tsv", line, **cells)
    if not number:
        assert check_start(case.job(copy, source), append=True)
        return
    with pytest.raises(JobOptionError, match=f"gives {number} of the 4 participants") as caught:
        case.append(copy, source)
    assert line not in str(caught.value)
    assert caught.value.exit_code == 2


def test_what_has_a_row_must_be_as_it_was(case: Case, copy: Path, source: Path) -> None:
    before = hashes(copy)
    (source / case.twins[0]).write_bytes(b"other")
    (source / case.twins[1]).unlink()
    with pytest.raises(JobOptionError, match=r"2 files changed or gone, 0 new.*new DATASET"):
        case.append(copy, source)
    assert hashes(copy) == before


def test_other_jobs_are_refused(case: Case, copy: Path, tmp_path: Path) -> None:
    for choices, what in (
        ({"geometry": "methods"}, "geometry"),
        ({"devices": ["triton"]}, "devices"),
        ({"participant_metadata": False}, "participant_metadata"),
    ):
        with pytest.raises(JobOptionError, match=f"made with another {what}:"):
            check_start(case.job(copy, **choices), append=True)
    with pytest.raises(JobOptionError, match="another target_shard_bytes"):
        check_start(replace(case.job(copy), target_shard_bytes=2**21), append=True)
    with pytest.raises(JobOptionError, match="without --append"):
        check_start(case.job(tmp_path / "none"), append=True)
    with pytest.raises(JobOptionError, match="give one"):
        check_start(case.job(copy), append=True, retry_rejected=True)
    assert not (tmp_path / "none").exists()


def test_another_version_is_refused(case: Case, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beam_jobs.options.code_version", lambda: "9.9")
    with pytest.raises(JobOptionError, match="another version"):
        check_start(case.job(copy), append=True)


def _die(*_: object, **__: object) -> None:
    raise RuntimeError("the machine went away")


STEPS = ("beam_jobs.build_dataset.commit_retry", "beam_jobs.commit_retry.commit", "beam_jobs.commit_retry._move_in")


@pytest.mark.parametrize("step", STEPS)
def test_an_interrupted_append_goes_on(case: Case, appended: Path, copy: Path, step: str) -> None:
    before = hashes(copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, _die)
        with pytest.raises(JobError, match="again"):
            case.append(copy)
    assert before.items() <= hashes(copy).items()
    result = case.append(copy)
    assert result.already_complete == (step == STEPS[2])
    assert hashes(copy) == hashes(appended)


@pytest.mark.parametrize("step", ["move", "publish"])
def test_an_append_that_ends_while_it_is_moved_in_is_finished_by_a_plain_ingest(
    case: Case, appended: Path, copy: Path, step: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("beam_jobs.commit_retry._move_in", _die)
        with pytest.raises(JobError):
            case.append(copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"beam_jobs.commit_retry.{step}", _die)
        with pytest.raises(RuntimeError):
            finish_retry(case.job(copy))
    assert not (copy / "_SUCCESS").exists()
    with pytest.raises(JobOptionError, match="grown with another labels_sha256"):
        case.run(copy, case.first)
    assert case.run(copy).already_complete
    assert hashes(copy) == hashes(appended)


def test_shards_that_another_table_packed_are_not_taken_over(
    case: Case, appended: Path, copy: Path, source: Path
) -> None:
    edited(source / "participants.tsv", COMER, age="99")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("beam_jobs.build_dataset.commit_retry", _die)
        with pytest.raises(JobError):
            case.append(copy, source)
    case.append(copy)
    assert hashes(copy) == hashes(appended)


def test_members_of_an_archive_that_has_a_row_are_no_new_files() -> None:
    there = [SourceRow(path="a.zip", status="rejected", reason=Reason.IO_UNREADABLE.value, bytes=9)]
    scope = scope_of(there, append=True)
    assert [scope.holds(path) for path in ("a.zip", "a.zip!x.dcm", "b.zip", "b.zip!x.dcm", "x.dcm")] == [
        False, False, True, True, True,
    ]  # fmt: skip
    assert count_changes(there, {"a.zip": 9, "b.zip": 5, "notes.txt": 1}, scope) == (0, 0)
    assert count_changes(there, {"a.zip": 8, "b.zip": 5}, scope) == (1, 0)


def test_the_command_says_what_came(case: Case, appended: Path, copy: Path) -> None:
    def command(*words: str) -> Any:
        place = [str(case.grown), str(copy), "--geometry", case.geometry, "--shard-mb", "1"]
        return CliRunner().invoke(build_app(), ["ingest", *place, *words, "--runner=FnApiRunner"])

    first = command("--append", "--json")
    assert first.exit_code == 0
    assert json.loads(first.stdout)["appended"] == {"inputs": 8, "samples": 5, "conflicts": 1}
    assert hashes(copy) == hashes(appended)
    again = command("--append")
    assert (again.exit_code, "nothing to append" in again.stdout) == (0, True)
    assert json.loads(command("--append", "--json").stdout)["appended"]["inputs"] == 0
    assert "nothing to do" in command().stdout


def test_it_says_in_words_what_is_in_conflict(case: Case, copy: Path) -> None:
    from fovea.ingest import _append_line

    line = _append_line("d", case.append(copy))
    assert line == (
        "d: 8 inputs appended with 5 samples; what was there is as it was. "
        "1 new files have the SOP Instance UID of another and other bytes: not taken."
    )
