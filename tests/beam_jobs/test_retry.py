"""`--retry-rejected` through the real job: what can be read now gets its row, and nothing else changes."""

import csv
import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from typer.testing import CliRunner

from beam_jobs.commit_retry import finish_retry
from beam_jobs.errors import JobError, JobOptionError
from beam_jobs.launch import IngestResult, check_start, run_ingest
from beam_jobs.options import IngestJob, beam_options, make_job
from fovea.cli import build_app
from ingest.convert import convert_file
from ingest.phantom.cohort import write_cohort
from ingest.phantom.plan import CohortSpec
from ingest.record import Rejection
from manifests.audit import audit
from manifests.reasons import Reason
from shards.errors import DatasetIncompleteError
from shards.publish import probe_store
from shards.reader import open_dataset, read_sample
from shards.verify import verify
from tests.in_process import InProcess
from tests.stores.flaky import FlakyStore

OCT, AGAIN = "retinal_oct/structural_oct", "retinal_oct/again"


class Defective(InProcess):
    """Has a defect that one file meets."""

    name = ""

    def convert(self, data: bytes, path: str, *rest: Any) -> Any:  # type: ignore[override]
        if path.endswith(Defective.name):
            return Rejection(reason=Reason.UNKNOWN_ERROR, detail="a defect.")
        return convert_file(data, path, *rest)


@pytest.fixture(scope="module", autouse=True)
def flaky() -> Iterator[None]:
    fsspec.register_implementation("flaky", FlakyStore, clobber=True)
    yield
    FlakyStore.unreadable, FlakyStore.changes_left = frozenset(), None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A cohort as it was, the dataset made of it, and the cohort as it is when all its files can be read."""

    source: Path
    dataset: Path
    names: tuple[str, ...]
    geometry: str

    def job(self, dataset: Path | str, source: Path | str | None = None, **choices: Any) -> IngestJob:
        job = make_job(str(source or self.source), str(dataset), **({"geometry": self.geometry} | choices))
        return replace(job, target_shard_bytes=2**20)

    def retry(self, dataset: Path | str, source: Path | str | None = None, **choices: Any) -> IngestResult:
        return run_ingest(self.job(dataset, source, **choices), beam_options([], num_workers=1), retry_rejected=True)


def path_of(name: str, folder: str = OCT) -> str:
    device = "topcon_triton" if "triton" in name else "zeiss_cirrus"
    return f"{folder}/{device}/{name.partition('_')[0]}/{name}"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A copy of files 0, 5 (cut) and 6 in another folder, 2 and 3 in a ZIP; the dataset is of `as_it_was`."""
    root = tmp_path_factory.mktemp("retry")
    source = root / "source"
    spec = CohortSpec(
        participants=3, volumes_per_participant=4, devices=("topcon_triton", "zeiss_cirrus"), small=True, seed=5
    )
    write_cohort(source, spec, workers=1)
    names = tuple(sorted(path.name for path in (source / OCT).rglob("*.dcm")))
    for number in (0, 5, 6):
        copy = source / path_of(names[number], AGAIN)
        copy.parent.mkdir(parents=True, exist_ok=True)
        data = (source / path_of(names[number])).read_bytes()
        copy.write_bytes(data[: len(data) * 3 // 4] if number == 5 else data)
    with zipfile.ZipFile(source / "retinal_oct/more.zip", "w") as archive:
        for number in (2, 3):
            file = source / path_of(names[number])
            archive.write(file, names[number])
            file.unlink()
    (root / "tiny.yaml").write_text("target_spacing_mm:\nsize: [16, 128, 128]\nanchor: center\n")
    found = Case(source=source, dataset=root / "dataset", names=names, geometry=str(root / "tiny.yaml"))
    with as_it_was(found) as address:
        run_ingest(found.job(found.dataset, address), beam_options([], num_workers=1))
    return found


@contextmanager
def as_it_was(case: Case) -> Iterator[str]:
    """The source at first: the copies, file 0 and the ZIP are unreadable, 1 is missing, 4 meets a defect."""
    missing = case.source / path_of(case.names[1])
    away = missing.rename(case.source.parent / "away.dcm")
    copies = [path_of(case.names[number], AGAIN) for number in (0, 5, 6)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FlakyStore, "unreadable", frozenset(["more.zip", path_of(case.names[0]), *copies]))
        patch.setattr(Defective, "name", case.names[4])
        patch.setattr("beam_jobs.transforms.Guard", Defective)
        yield f"flaky://{case.source}"
    away.rename(missing)


@pytest.fixture(scope="module")
def retried(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("retried") / "d"
    shutil.copytree(case.dataset, out)
    assert case.retry(out).retryable == 9
    return out


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beam_jobs.transforms.Guard", InProcess)


@pytest.fixture
def copy(case: Case, tmp_path: Path, in_process: None) -> Path:
    return Path(shutil.copytree(case.dataset, tmp_path / "d"))


def rows(dataset: Path, name: str = "sources.csv") -> dict[str, dict[str, str]]:
    with (dataset / "manifests" / name).open(newline="", encoding="utf-8") as file:
        return {row.get("path") or row.get("key") or row["shard"]: row for row in csv.DictReader(file)}


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_sound(dataset: Path) -> None:
    """Verified, audited, and every sample readable with its hash."""
    assert verify(str(dataset)).problems == ()
    assert audit(str(dataset)).problems == ()
    opened = open_dataset(dataset)
    for row in opened.samples:
        read_sample(opened, row)
    assert not (dataset / "_staging").exists()


def reasons(dataset: Path, paths: list[str]) -> list[str]:
    found = rows(dataset)
    return [found[path]["reason"] for path in paths]


def test_inputs_that_can_be_read_now_get_their_rows(case: Case, retried: Path) -> None:
    names = case.names
    again = [path_of(names[number], AGAIN) for number in (0, 5, 6)]
    before = [path_of(names[0]), *again, path_of(names[1]), "retinal_oct/more.zip", path_of(names[4])]
    assert reasons(case.dataset, before) == [
        *["IO_UNREADABLE"] * 4, "FILE_MISSING", "IO_UNREADABLE", "UNKNOWN_ERROR",
    ]  # fmt: skip
    assert reasons(case.dataset, [path_of(names[2]), path_of(names[3])]) == ["FILE_MISSING"] * 2
    found = rows(retried)
    assert reasons(retried, [path_of(names[1]), path_of(names[4])]) == ["", ""]
    assert reasons(retried, ["retinal_oct/more.zip"]) == ["OUTSIDE_FILTER"]
    assert reasons(retried, [f"retinal_oct/more.zip!{names[number]}" for number in (2, 3)]) == ["", ""]
    assert not found.keys() & {path_of(names[2]), path_of(names[3])}
    assert reasons(retried, [again[0], path_of(names[0])]) == ["", "DUP_SOP_UID_IDENTICAL"]
    assert reasons(retried, [again[2], path_of(names[6])]) == ["DUP_SOP_UID_IDENTICAL", ""]
    assert found[again[1]]["stage"] in {"probe", "pack"}
    assert found[path_of(names[5])]["status"] == "accepted"
    assert_sound(retried)


def test_everything_else_stays_byte_for_byte(case: Case, retried: Path) -> None:
    before, after = hashes(case.dataset / "shards"), hashes(retried / "shards")
    assert before.items() <= after.items()
    for table in ("samples.csv", "shards.csv"):
        assert rows(case.dataset, table).items() <= rows(retried, table).items()
    kept = {
        path: row for path, row in rows(case.dataset).items() if not Reason(row["reason"] or "ALL_ZERO").info.retryable
    }
    assert kept.items() <= rows(retried).items()
    assert len(kept) == 7
    for shard in after.keys() - before.keys():
        shelf, _, number = shard.removesuffix(".tar").rpartition("-")
        last = max((int(name[-9:-4]) for name in before if name.startswith(shelf)), default=-1)
        assert int(number) > last


def test_samples_are_those_of_one_run_on_the_whole_source(
    case: Case, retried: Path, tmp_path: Path, in_process: None
) -> None:
    run_ingest(case.job(tmp_path / "d"), beam_options([], num_workers=1))
    whole, mended = rows(tmp_path / "d", "samples.csv"), rows(retried, "samples.csv")
    assert whole.keys() == mended.keys()
    different = {key for key in whole if whole[key]["sha256"] != mended[key]["sha256"]}
    # In one run the first by path is taken, and manifest.tsv does not list the copy; in a retry what is there stands.
    assert different <= {rows(retried)[path_of(case.names[6])]["key"]}
    for column in ("split", "participant_id"):
        assert {key: row[column] for key, row in whole.items()} == {key: row[column] for key, row in mended.items()}


def test_nothing_accepted_is_read_again_and_the_bytes_are_the_same(
    case: Case, retried: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted = [path for path, row in rows(case.dataset).items() if row["status"] == "accepted"]
    monkeypatch.setattr(FlakyStore, "unreadable", frozenset(accepted))
    case.retry(copy, f"flaky://{case.source}")
    assert hashes(copy) == hashes(retried)


def test_nothing_to_retry_writes_nothing(case: Case, retried: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in retried.rglob("*")}
    result = case.retry(retried)
    assert (result.already_complete, result.retryable) == (True, 0)
    assert {path: path.stat().st_mtime_ns for path in retried.rglob("*")} == before


def test_what_is_still_missing_or_unreadable_keeps_its_row_and_the_dataset_its_bytes(case: Case, copy: Path) -> None:
    before = hashes(copy)
    with as_it_was(case) as address:
        assert case.retry(copy, address).retryable == 9
    assert hashes(copy) == before


@pytest.fixture
def conflicting(case: Case, tmp_path: Path) -> Path:
    """The source, with a preamble in the unreadable copy of 6 that makes it another, valid file."""
    source = Path(shutil.copytree(case.source, tmp_path / "source"))
    twin = source / path_of(case.names[6], AGAIN)
    twin.write_bytes(b"\x01" * 128 + twin.read_bytes()[128:])
    return source


def test_a_valid_twin_with_other_bytes_takes_the_accepted_one_out(case: Case, copy: Path, conflicting: Path) -> None:
    lost = rows(case.dataset)[path_of(case.names[6])]
    case.retry(copy, conflicting)
    twins = [path_of(case.names[6]), path_of(case.names[6], AGAIN)]
    assert reasons(copy, twins) == ["DUP_SOP_UID_CONFLICT"] * 2
    assert all(not rows(copy)[path][column] for path in twins for column in ("key", "shard", "split"))
    assert lost["key"] not in rows(copy, "samples.csv")
    assert not (copy / "shards" / lost["shard"]).exists()
    before, after = rows(case.dataset, "samples.csv"), rows(copy, "samples.csv")
    beside = {key for key, row in before.items() if row["shard"] == lost["shard"]} - {lost["key"]}
    assert beside
    assert {after[key]["sha256"] for key in beside} == {before[key]["sha256"] for key in beside}
    assert {after[key]["shard"] for key in beside}.isdisjoint(row["shard"] for row in before.values())
    assert json.loads((copy / "dataset.json").read_bytes())["dropped_shards"] == [lost["shard"]]
    assert_sound(copy)


def staged(case: Case, dataset: Path, source: Path) -> None:
    """A retry that ended when all was ready, before anything was moved in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("beam_jobs.commit_retry._move_in", _die)
        with pytest.raises(JobError, match="again"):
            case.retry(dataset, source)


def _die(*_: object, **__: object) -> None:
    raise RuntimeError("the machine went away")


def look(dataset: Path) -> set[str] | None:
    """The keys that a reader sees, all of them whole; None when the dataset is refused as incomplete."""
    try:
        opened = open_dataset(dataset)
    except DatasetIncompleteError:
        assert not (dataset / "_SUCCESS").exists()
        return None
    assert {read_sample(opened, row).key for row in opened.samples} == {row.key for row in opened.samples}
    return {row.key for row in opened.samples}


def test_an_interruption_at_every_change_is_seen_by_no_reader_and_mended(
    case: Case, copy: Path, conflicting: Path, tmp_path: Path
) -> None:
    staged(case, copy, conflicting)
    whole = Path(shutil.copytree(copy, tmp_path / "whole"))
    assert finish_retry(case.job(whole))
    wanted, seen = hashes(whole), []
    probe_store(f"flaky://{tmp_path}/once")  # the changes that are counted are those of the retry
    for number in range(100):
        broken = Path(shutil.copytree(copy, tmp_path / f"broken-{number}"))
        FlakyStore.changes_left = number
        try:
            finish_retry(case.job(f"flaky://{broken}"))
            break
        except OSError:
            seen.append(look(broken))
        finally:
            FlakyStore.changes_left = None
        again = run_ingest(case.job(broken, conflicting), beam_options([]), retry_rejected=number % 2 == 0)
        assert (again.already_complete, again.retryable) == (True, 0)
        assert hashes(broken) == wanted
        shutil.rmtree(broken)
    else:
        pytest.fail("it never came to its end")
    keys = [set(rows(case.dataset, "samples.csv")), set(rows(whole, "samples.csv"))]
    assert seen[0] == keys[0]
    assert seen[-1] == keys[1]
    assert sum(found is None for found in seen) >= 14
    assert all(found is None or found in keys for found in seen)


@pytest.mark.parametrize("step", ["beam_jobs.build_dataset.commit_retry", "beam_jobs.commit_retry.commit"])
def test_an_interruption_before_all_is_ready_leaves_the_dataset_and_can_be_repeated(
    case: Case, retried: Path, copy: Path, step: str
) -> None:
    before = hashes(copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, _die)
        with pytest.raises(JobError, match="again"):
            case.retry(copy)
    assert before.items() <= hashes(copy).items()
    assert all(name in before or name.startswith("_staging/") for name in hashes(copy))
    result = case.retry(copy)
    assert result.counters["shards_reused"] >= 3
    assert hashes(copy) == hashes(retried)


def test_what_failed_in_an_interrupted_retry_is_looked_at_again(
    case: Case, retried: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Defective, "name", case.names[4])
    with monkeypatch.context() as patch:
        patch.setattr("beam_jobs.transforms.Guard", Defective)
        patch.setattr("beam_jobs.build_dataset.commit_retry", _die)
        with pytest.raises(JobError, match="again"):
            case.retry(copy)
    case.retry(copy)
    assert hashes(copy) == hashes(retried)


def test_a_lost_shard_is_noticed_before_the_dataset_is_touched(case: Case, copy: Path) -> None:
    staged(case, copy, case.source)
    next((copy / "shards").iterdir()).unlink()
    with pytest.raises(JobError, match="lost 1 shards"):
        finish_retry(case.job(copy))
    assert (copy / "_SUCCESS").exists()


def test_a_dataset_that_is_not_complete_is_refused(case: Case, tmp_path: Path) -> None:
    with pytest.raises(JobOptionError, match="finish it first") as caught:
        case.retry(tmp_path / "d")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "d").exists()


def test_another_configuration_is_refused(case: Case, copy: Path) -> None:
    with pytest.raises(JobOptionError, match="geometry"):
        case.retry(copy, geometry="methods")
    staged(case, copy, case.source)
    with pytest.raises(JobOptionError, match="geometry"):
        case.retry(copy, geometry="methods")
    assert (copy / "_staging/retry/_SUCCESS").exists()


def test_other_changes_of_source_are_refused_without_a_file_name(case: Case, copy: Path, tmp_path: Path) -> None:
    before = hashes(copy)
    with pytest.raises(JobOptionError, match="--retry-rejected takes them in"):
        check_start(case.job(copy))
    source = Path(shutil.copytree(case.source, tmp_path / "source"))
    accepted = source / path_of(case.names[7])
    for change in (
        lambda: accepted.write_bytes(b"other"),
        lambda: (source / "Doe_Jane.dcm").write_bytes(b"new"),
        (source / path_of(case.names[0])).unlink,
    ):
        change()
        for retry_rejected in (True, False):
            with pytest.raises(JobOptionError, match="give a new DATASET") as caught:
                check_start(case.job(copy, source), retry_rejected=retry_rejected)
            assert not any(word in str(caught.value) for word in ("Doe", ".dcm"))
        shutil.rmtree(source)
        shutil.copytree(case.source, source)
    assert hashes(copy) == before


def command(case: Case, dataset: Path, *words: str) -> Any:
    place = [str(case.source), str(dataset), "--geometry", case.geometry, "--shard-mb", "1"]
    return CliRunner().invoke(build_app(), ["ingest", *place, *words, "--runner=FnApiRunner"])


def test_the_command_says_what_it_retried(case: Case, retried: Path, copy: Path) -> None:
    result = command(case, copy, "--retry-rejected", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["retried"] == 9
    assert json.loads(result.stdout)["dataset"] == json.loads((retried / "dataset.json").read_bytes())
    again = command(case, copy, "--retry-rejected")
    assert (again.exit_code, "nothing to retry" in again.stdout) == (0, True)
    assert "nothing to do" in command(case, copy).stdout
