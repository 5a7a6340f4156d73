"""`fovea verify --repair`: what is damaged comes back with its committed bytes, and nothing else is touched."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from typer.testing import CliRunner

from beam_jobs.launch import run_ingest
from beam_jobs.options import beam_options, make_job
from beam_jobs.repair import repair
from fovea.cli import build_app
from ingest.convert import convert_file
from ingest.phantom.cohort import write_cohort
from ingest.phantom.plan import CohortSpec
from manifests.committed import read_committed
from manifests.mend import mend
from manifests.rows import SourceRow
from manifests.store import commit
from shards.verify import MANIFESTS, verify
from tests.in_process import InProcess


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A cohort, the dataset made of it, and the hash of each of its files."""

    source: Path
    dataset: Path
    hashes: dict[str, str]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Four participants in several shards; a damaged file, and a table with site, group and age."""
    root = tmp_path_factory.mktemp("repair")
    spec = CohortSpec(
        participants=4, volumes_per_participant=3, devices=("topcon_triton", "zeiss_cirrus"), small=True, seed=5
    )
    write_cohort(root / "source", spec, workers=1)
    (root / "source/retinal_oct/broken.dcm").write_bytes(b"broken" * 99)
    (root / "tiny.yaml").write_text("target_spacing_mm:\nsize: [16, 128, 128]\nanchor: center\n")
    job = make_job(str(root / "source"), str(root / "d"), geometry=str(root / "tiny.yaml"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("beam_jobs.transforms.Guard", InProcess)
        run_ingest(replace(job, target_shard_bytes=2**19), beam_options([], num_workers=1))
    assert len(list((root / "d/shards").iterdir())) >= 5
    return Case(source=root / "source", dataset=root / "d", hashes=hashes(root / "d"))


@pytest.fixture
def copy(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("beam_jobs.transforms.Guard", InProcess)
    monkeypatch.setattr("beam_jobs.repair.beam_options", lambda extra: beam_options(extra, num_workers=1))
    return Path(shutil.copytree(case.dataset, tmp_path / "d"))


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def stamps(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def shards(dataset: Path) -> list[Path]:
    return sorted((dataset / "shards").glob("*.tar"))


def command(dataset: Path, *words: str) -> Any:
    return CliRunner().invoke(build_app(), ["verify", str(dataset), *words])


def flip(dataset: Path) -> list[str]:
    path = shards(dataset)[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    return [f"shards/{path.name}"]


def truncate(dataset: Path) -> list[str]:
    path = shards(dataset)[1]
    path.write_bytes(path.read_bytes()[:-700])
    return [f"shards/{path.name}"]


def delete(dataset: Path) -> list[str]:
    path = shards(dataset)[2]
    path.unlink()
    return [f"shards/{path.name}"]


def delete_all(dataset: Path) -> list[str]:
    names = [f"shards/{path.name}" for path in shards(dataset)]
    shutil.rmtree(dataset / "shards")
    return names


def swap(dataset: Path) -> list[str]:
    one, other = shards(dataset)[:2]
    between = one.with_name("between")
    one.rename(between)
    other.rename(one)
    between.rename(other)
    return [f"shards/{one.name}", f"shards/{other.name}"]


def lose_samples(dataset: Path) -> list[str]:
    (dataset / "manifests/samples.csv").unlink()
    return ["manifests/samples.csv"]


def damage_sources(dataset: Path) -> list[str]:
    path = dataset / "manifests/sources.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    return ["manifests/sources.parquet"]


def damage_one_form_of_each(dataset: Path) -> list[str]:
    names = ["samples.parquet", "shards.csv", "sources.csv", "rejected.csv", "rejected.parquet"]
    for name in names:
        (dataset / "manifests" / name).write_bytes(b"damaged")
    return [f"manifests/{name}" for name in names]


def everything_at_once(dataset: Path) -> list[str]:
    return [*swap(dataset), *delete(dataset), *damage_one_form_of_each(dataset)]


DAMAGES = (
    flip, truncate, delete, delete_all, swap, lose_samples, damage_sources, damage_one_form_of_each, everything_at_once,
)  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_made_again_and_nothing_else_is_touched(
    case: Case, copy: Path, damage: Callable[[Path], list[str]]
) -> None:
    damaged = damage(copy)
    before = stamps(copy)
    result = command(copy, str(case.source), "--repair", "--json")
    said = json.loads(result.stdout)
    assert (result.exit_code, said["ok"], said["left"]) == (0, True, [])
    assert sorted(said["made_again"]) == sorted(damaged)
    assert hashes(copy) == case.hashes
    after = stamps(copy)
    assert {name for name in after if after[name] != before.get(name)} == set(damaged)
    assert verify(str(copy)).problems == ()
    assert not (copy / "_staging").exists()


def test_without_damage_it_says_so_and_writes_nothing(case: Case, copy: Path) -> None:
    before = stamps(copy)
    result = command(copy, "--repair")
    assert (result.exit_code, "nothing to repair" in result.stdout) == (0, True)
    assert stamps(copy) == before


def test_strays_that_are_named_like_ours_go_and_others_are_named(case: Case, copy: Path) -> None:
    name = shards(copy)[0].name
    ours = [f"shards/{name[:-9]}09999.tar", f"shards/.{name}.{'0a' * 16}", f"manifests/.samples.csv.{'0a' * 16}"]
    theirs = ["shards/notes.txt", "manifests/samples (1).csv", f"shards/{name}.bak"]
    for stray in (*ours, *theirs):
        (copy / stray).write_bytes(b"stray")
    result = command(copy, "--repair")
    assert result.exit_code == 1
    for stray in ours:
        assert not (copy / stray).exists()
        assert f"{stray}: removed" in result.stdout
    for stray in theirs:
        assert (copy / stray).exists()
        assert f"{stray}: is not part of the dataset, and is not named as fovea names files: move it" in result.stdout
        (copy / stray).unlink()
    assert hashes(copy) == case.hashes
    assert command(copy, "--repair").exit_code == 0


def test_damaged_shards_need_source(case: Case, copy: Path) -> None:
    swap(copy)
    before = hashes(copy)
    result = command(copy, "--repair")
    assert getattr(result.exception, "exit_code", None) == 2
    assert "2 shards are damaged, and the argument SOURCE is missing" in str(result.exception)
    assert hashes(copy) == before
    assert command(copy, str(case.source)).exit_code == 2


@pytest.mark.parametrize(
    ("damage", "file", "what"),
    [
        (lambda d: (d / "_SUCCESS").unlink(), "_SUCCESS", "is missing, and nothing else"),
        (lambda d: (d / "dataset.json").unlink(), "dataset.json", "is missing, and nothing else"),
        (lambda d: (d / "dataset.json").write_bytes(b"{}"), "dataset.json", "not the one that _SUCCESS"),
        (lambda d: (d / "_SUCCESS").write_bytes(b"x"), "dataset.json", "not the one that _SUCCESS"),
        (
            lambda d: [path.unlink() for path in (d / "manifests").glob("samples.*")],
            "manifests/samples.parquet",
            "cannot be made again",
        ),
    ],
)
def test_what_nothing_vouches_for_cannot_be_repaired(
    case: Case, copy: Path, damage: Callable[[Path], object], file: str, what: str
) -> None:
    damage(copy)
    before = hashes(copy)
    result = command(copy, str(case.source), "--repair")
    assert result.exit_code == 1
    assert any(line.startswith(f"{file}: ") and what in line for line in result.stdout.splitlines())
    assert "bring it back from a copy, or ingest into a new DATASET" in result.stdout
    assert hashes(copy) == before


def test_an_unfinished_dataset_is_sent_back_to_ingest(copy: Path) -> None:
    (copy / "_SUCCESS").unlink()
    (copy / "_staging").mkdir()
    done = repair(str(copy), None)
    assert [problem.what for problem in done.left] == [
        "is missing: the dataset was not finished; run the same `fovea ingest` again"
    ]


def test_a_file_that_changed_or_went_stops_its_shard_alone(case: Case, copy: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(case.source, tmp_path / "source"))
    tables = read_committed(str(case.dataset)).tables
    changed, gone = (next(row for row in tables.sources if row.shard == path.name) for path in shards(copy)[:2])
    data = (source / changed.path).read_bytes()
    (source / changed.path).write_bytes(b"\x01" * 128 + data[128:])
    (source / gone.path).unlink()
    for path in shards(copy)[:3]:
        path.write_bytes(b"damaged")
    result = command(copy, str(source), "--repair", "--json")
    said = json.loads(result.stdout)
    assert (result.exit_code, said["made_again"]) == (1, [f"shards/{shards(copy)[2].name}"])
    left = {problem["file"]: problem["what"] for problem in said["left"]}
    assert left.keys() == {f"shards/{path.name}" for path in shards(copy)[:2]}
    assert f"sample {changed.key} has changed in SOURCE" in left[f"shards/{shards(copy)[0].name}"]
    assert f"sample {gone.key} is not in SOURCE any more" in left[f"shards/{shards(copy)[1].name}"]
    assert not any(row.path in result.stdout for row in (changed, gone))
    assert command(copy, str(case.source), "--repair").exit_code == 0
    assert hashes(copy) == case.hashes


def test_code_that_gives_other_bytes_puts_nothing_in_place(
    case: Case, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(copy)
    before = hashes(copy)
    monkeypatch.setattr("beam_jobs.repair.code_version", lambda: "9.9")
    with monkeypatch.context() as patch:
        patch.setattr(InProcess, "convert", staticmethod(darker))
        (left,) = repair(str(copy), str(case.source)).left
    assert "comes out with other bytes" in left.what
    assert "this is 9.9" in left.what
    assert hashes(copy) == before
    assert repair(str(copy), str(case.source)).left == ()


def darker(*words: Any) -> Any:
    record = convert_file(*words)
    return replace(record, volume=record.volume // 2)  # type: ignore[type-var]


def test_a_reader_never_meets_half_of_a_shard(case: Case, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shards(copy)[0]
    flip(copy)
    damaged, whole = path.read_bytes(), (case.dataset / "shards" / path.name).read_bytes()
    seen: set[bytes] = set()
    write = LocalFileSystem._open

    def watched(self: Any, name: str, mode: str = "rb", **choices: Any) -> Any:
        seen.add(path.read_bytes())
        file = write(self, name, mode, **choices)
        assert mode == "rb" or name != str(path)
        return file

    monkeypatch.setattr(LocalFileSystem, "_open", watched)
    assert repair(str(copy), str(case.source)).left == ()
    assert seen == {damaged, whole}


def test_a_dataset_that_waits_for_an_append_keeps_it(case: Case, copy: Path) -> None:
    (copy / "_staging/retry").mkdir(parents=True)
    (copy / "_staging/retry/_SUCCESS").write_bytes(b"x")
    flip(copy)
    assert repair(str(copy), str(case.source)).left == ()
    assert [path.name for path in (copy / "_staging").iterdir()] == ["retry"]


def test_workers_in_processes_of_their_own_give_the_same_bytes(case: Case, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(case.dataset, tmp_path / "d"))
    flip(copy)
    truncate(copy)
    result = command(copy, str(case.source), "--repair")
    assert (result.exit_code, "as committed again" in result.stdout) == (0, True)
    assert hashes(copy) == case.hashes


@pytest.mark.parametrize("num_rejected", [0, 9000])
def test_large_and_empty_tables_come_back_too(tmp_path: Path, num_rejected: int) -> None:
    """How a table lies in memory, in how many pieces, must not show in its bytes; nor whose mark a cell has."""
    status = {"status": "rejected", "reason": "NOT_DICOM", "severity": "error", "stage": "probe"}
    accepted = [SourceRow(path=f"a{number}", status="accepted", bytes=number) for number in range(5)]
    rejected = [SourceRow(path=f"'=r{n}", detail=f"-{n}", spacing_d_mm=n / 7, **status) for n in range(num_rejected)]  # type: ignore[arg-type]
    commit(str(tmp_path / "d"), sources=[*rejected, *accepted], samples=[], shards=[], header={"schema_version": 1})
    found = {name: (tmp_path / "d/manifests" / name).read_bytes() for name in MANIFESTS}
    committed = json.loads((tmp_path / "d/dataset.json").read_bytes())["manifests"]
    for left in ("csv", "parquet"):
        mended = mend({name: data if name.endswith(left) else None for name, data in found.items()}, committed)
        assert (mended.lost, len(mended.files)) == ((), 4)
    mended = mend({name: None if name.startswith("rejected") else data for name, data in found.items()}, committed)
    assert (mended.lost, len(mended.files)) == ((), 2)


def test_every_manifest_comes_back_from_its_other_form(case: Case) -> None:
    found = {name: (case.dataset / "manifests" / name).read_bytes() for name in MANIFESTS}
    committed = json.loads((case.dataset / "dataset.json").read_bytes())["manifests"]
    for suffix in ("csv", "parquet"):
        left = {name: data if name.endswith(suffix) else None for name, data in found.items()}
        mended = mend(left, committed)
        assert (mended.lost, mended.files) == ((), {name: data for name, data in found.items() if left[name] is None})
        assert mended.tables == read_committed(str(case.dataset)).tables
