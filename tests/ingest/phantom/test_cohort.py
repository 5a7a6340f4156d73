import csv
import hashlib
from collections import Counter
from pathlib import Path

import pydicom
import pytest
from typer import Typer
from typer.testing import CliRunner

from fovea import phantom
from ingest.phantom.cohort import write_cohort
from ingest.phantom.errors import PhantomUsageError
from ingest.phantom.participants import STUDY_GROUPS, recruit
from ingest.phantom.plan import CohortSpec, parse_devices, plan_cohort
from ingest.phantom.protocols import PROTOCOLS, TRANSFER_SYNTAXES
from manifests.reasons import Reason
from shards.schema import DEVICES


def digests(root: Path):
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def table(path, delimiter="\t"):
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort") / "good"
    return root, write_cohort(root, CohortSpec(participants=4, small=True, seed=5), workers=1)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    root = tmp_path_factory.mktemp("cohort") / "broken"
    spec = CohortSpec(participants=12, volumes_per_participant=4, small=True, corrupt=0.85, seed=3)
    return root, write_cohort(root, spec)


def test_same_seed_same_bytes_whatever_the_number_of_workers(good, tmp_path):
    write_cohort(tmp_path / "again", CohortSpec(participants=4, small=True, seed=5), workers=2)
    assert digests(tmp_path / "again") == digests(good[0])


def test_another_seed_gives_other_files(good, tmp_path):
    write_cohort(tmp_path / "other", CohortSpec(participants=1, small=True, seed=6), workers=1)
    assert not set(digests(tmp_path / "other").values()) & set(digests(good[0]).values())


def test_every_file_opens_and_is_named_in_the_manifest(good):
    root, summary = good
    rows = table(root / "retinal_oct/manifest.tsv")
    files = sorted(root.rglob("*.dcm"))
    assert len(rows) == len(files) == summary.files == 16
    for row in rows:
        path = root / row["filepath"].lstrip("/")
        dataset = pydicom.dcmread(path)
        assert path.name.startswith(f"{row['person_id']}_")
        assert path.name.endswith(f"_{row['laterality'].lower()}_{row['sop_instance_uid']}.dcm")
        assert (dataset.SOPInstanceUID, dataset.PatientID) == (row["sop_instance_uid"], row["person_id"])
        assert [dataset.NumberOfFrames, dataset.Rows, dataset.Columns] == [
            int(row[name]) for name in ("number_of_frames", "height", "width")
        ]
        assert dataset.ImageLaterality == row["laterality"]
        assert row["manufacturers_model_name"] == dataset.ManufacturerModelName


def test_manifest_has_the_documented_columns_and_texts(good):
    rows = table(good[0] / "retinal_oct/manifest.tsv")
    assert list(rows[0]) == [
        "person_id", "manufacturer", "manufacturers_model_name", "anatomic_region", "imaging", "laterality", "height",
        "width", "number_of_frames", "pixel_spacing", "slice_thickness", "sop_instance_uid", "filepath",
        "reference_instance_uid", "reference_filepath",
    ]  # fmt: skip
    radial = [row for row in rows if "onh_rc" in row["filepath"]]
    assert radial
    assert all((row["pixel_spacing"], row["slice_thickness"]) == ("Varies by frame", "Not reported") for row in radial)
    assert all(row["filepath"].startswith("/retinal_oct/structural_oct/") for row in rows)


def test_a_cohort_covers_every_protocol_syntax_and_eye():
    plans = plan_cohort(CohortSpec(participants=12))
    assert {plan.protocol.name for plan in plans} == set(PROTOCOLS)
    assert {plan.transfer_syntax for plan in plans} == {uid for uids in TRANSFER_SYNTAXES.values() for uid in uids}
    for device, syntaxes in TRANSFER_SYNTAXES.items():
        written = {plan.transfer_syntax for plan in plans if plan.protocol.device == device}
        assert written == set(syntaxes)
    eyes = Counter((plan.participant.person_id, plan.subject.laterality) for plan in plans)
    assert set(eyes.values()) == {2}
    assert len({plan.subject.uids.sop_instance for plan in plans}) == len({plan.path for plan in plans}) == 48
    assert max(len(plan.subject.uids.sop_instance) for plan in plans) <= 64


def test_no_protocol_is_tied_to_one_transfer_syntax():
    pairs = {(plan.protocol.name, plan.transfer_syntax) for plan in plan_cohort(CohortSpec(participants=48))}
    assert min(Counter(name for name, _ in pairs).values()) >= 2


@pytest.mark.parametrize(("count", "expected"), [(24, (16, 4, 4)), (12, (8, 2, 2)), (100, (70, 15, 15))])
def test_splits_sites_and_groups_are_balanced(count, expected):
    people = recruit(count, seed=1)
    splits = Counter(person.recommended_split for person in people)
    assert (splits["train"], splits["val"], splits["test"]) == expected
    assert {person.label for person in people if person.recommended_split == "train"} == {0, 1, 2, 3}
    sites = Counter(person.person_id[0] for person in people)
    assert set(sites) == {"1", "4", "7"}
    assert max(sites.values()) - min(sites.values()) <= 1
    groups = Counter(person.study_group for person in people)
    assert set(groups) == set(STUDY_GROUPS)
    assert max(groups.values()) - min(groups.values()) <= 1
    assert len({person.person_id for person in people}) == count


def test_truth_names_every_file_and_every_missing_one(broken):
    root, summary = broken
    truth = {row["path"]: row["reason"] for row in table(root / "truth.csv", ",")}
    on_disk = {path for path in digests(root) if path.startswith("retinal_oct/structural_oct/")}
    missing = {path for path, reason in truth.items() if reason == Reason.FILE_MISSING}
    members = {path for path in truth if "!" in path}
    assert set(truth) == on_disk | missing | members
    assert missing
    assert not missing & on_disk
    assert {truth[path] for path in members} == {"", Reason.ZIP_UNSAFE}
    assert summary.files == len(on_disk)
    listed = {row["filepath"].lstrip("/") for row in table(root / "retinal_oct/manifest.tsv")}
    assert listed <= set(truth)


def test_the_asked_share_of_files_is_broken_in_many_ways(broken):
    root, summary = broken
    assert summary.broken == round(0.85 * 48)
    reasons = Counter(row["reason"] for row in table(root / "truth.csv", ","))
    assert len(set(reasons) - {""}) >= 33
    assert {Reason(reason) for reason in reasons if reason}


def test_a_good_cohort_has_no_reason_but_the_radial_scans(good):
    truth = table(good[0] / "truth.csv", ",")
    assert len(truth) == 16
    for row in truth:
        assert row["reason"] == ("NOT_RASTER" if "onh_rc" in row["path"] else "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"participants": 0},
        {"volumes_per_participant": 0},
        {"corrupt": 1.5},
        {"corrupt": float("nan")},
        {"signal": -1.0},
        {"seed": -1},
        {"devices": ()},
    ],
)
def test_nonsense_is_refused_before_anything_is_written(wrong):
    with pytest.raises(PhantomUsageError) as caught:
        CohortSpec(**wrong)
    assert caught.value.exit_code == 2


def test_devices_by_short_and_full_name():
    assert parse_devices([]) == DEVICES
    assert parse_devices(["cirrus,Maestro2", "topcon_maestro2"]) == ("topcon_maestro2", "zeiss_cirrus")
    with pytest.raises(PhantomUsageError, match=r"unknown device nikon; choose from .*triton"):
        parse_devices(["triton, nikon"])


@pytest.fixture
def command():
    app = Typer()
    app.command()(phantom.command)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_command_writes_a_cohort_and_names_the_next_command(command, tmp_path):
    out = tmp_path / "c"
    result = command(out, "--participants", 1, "--volumes", 2, "--devices", "maestro2", "--small")
    assert result.exit_code == 0
    assert result.output.splitlines()[-1].endswith(f"next: fovea ingest {out} DATASET")
    assert sorted(path.name for path in out.iterdir()) == ["participants.tsv", "retinal_oct", "truth.csv"]


@pytest.mark.parametrize("content", ["folder with a file", "file"])
def test_command_refuses_to_write_over_something(command, tmp_path, content):
    target = tmp_path / "c"
    if content == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine.txt").write_text("mine")
    result = command(target, "--participants", 1, "--small")
    assert isinstance(result.exception, PhantomUsageError)
    assert result.exception.exit_code == 2
    assert "new" in str(result.exception)
    assert len(list(tmp_path.rglob("*"))) == (1 if content == "file" else 2)
