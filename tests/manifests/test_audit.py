"""The audit adds up exactly when the tables do."""

import dataclasses
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fovea.audit import command
from manifests.audit import AuditReport, Tables, account, audit, read_tables
from manifests.audit_html import write_audit_html
from manifests.cohort import Participant, audit_join
from manifests.errors import AuditError, NoDatasetError
from manifests.reasons import Reason
from manifests.rows import SourceRow
from manifests.store import commit
from shards.schema import SampleRow, ShardRow

EVIL = "<script>alert('=1+1')</script>"
SITES = {"1": "UW", "4": "UCSD", "7": "UAB"}


def sample(identity: str, number: int, shard: str = "train-zeiss_cirrus-00000.tar") -> SampleRow:
    return SampleRow(
        key=f"{identity}-zeiss_cirrus-R-cirrus_mac_oct-{number:010x}",
        shard=shard,
        split="train",
        device="zeiss_cirrus",
        protocol="cirrus_mac_oct",
        anatomic_region="Macula",
        laterality="R",
        participant_id=identity,
        clinical_site=SITES[identity[0]],
        study_group="healthy",
        age=50.0,
        content_tokens=9216,
        spacing_d_mm=0.09375,
        spacing_h_mm=0.006,
        spacing_w_mm=0.015625,
        volume_offset=0,
        volume_bytes=10,
        meta_offset=0,
        meta_bytes=10,
        sha256="0" * 64,
    )


def accepted(row: SampleRow, **changes: Any) -> SourceRow:
    values: dict[str, Any] = {
        "path": f"zeiss_cirrus/{row.participant_id}/{row.key}.dcm",
        "bytes": 10,
        "status": "accepted",
        "participant_id": row.participant_id,
        "device": row.device,
        "protocol": row.protocol,
        "num_frames": 128,
        "rows": 1024,
        "columns": 512,
        "spacing_d_mm": 6 / 127,
        "spacing_h_mm": 2 / 1024,
        "spacing_w_mm": 6 / 512,
        "spacing_source": "field_of_view",
        "split": row.split,
        "key": row.key,
        "shard": row.shard,
    }
    return SourceRow(**(values | changes))


def refused(path: str, reason: Reason, status: str = "rejected", **changes: Any) -> SourceRow:
    info = reason.info
    return SourceRow(
        path=path, bytes=1, status=status, reason=reason, severity=info.severity, stage=info.stage, **changes
    )


def header(sources: list[SourceRow], num_samples: int, num_shards: int) -> dict[str, Any]:
    reasons = [str(row.reason) for row in sources if row.reason]
    statuses = [row.status for row in sources]
    return {
        "code_version": "0.1.0",
        "geometry": {"name": "block6"},
        "counts": {
            "inputs": len(sources),
            **{status: statuses.count(status) for status in ("accepted", "rejected", "duplicate", "excluded")},
            "samples": num_samples,
            "shards": num_shards,
            "by_reason": {reason: reasons.count(reason) for reason in {*reasons, "ALL_ZERO"}},
        },
        "other_files": {"tsv": 2},
    }


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    samples = [sample(f"{site}{number:03d}", number) for number, site in enumerate("147147")]
    sources = [accepted(row) for row in samples]
    sources[0] = accepted(samples[0], spacing_d_mm=6 / 120, detail="SATURATED: 12% of the voxels at the maximum")
    sources += [
        refused("a/7001.dcm", Reason.EMPTY_FILE, participant_id="7001", device="zeiss_cirrus"),
        refused("a/7002.dcm", Reason.EMPTY_FILE, participant_id="7002", device="zeiss_cirrus"),
        refused(f"{EVIL}.dcm", Reason.NOT_DICOM, detail=EVIL),
        refused("a/copy.dcm", Reason.DUP_SOP_UID_IDENTICAL, "duplicate", participant_id="1000"),
        refused("a/other.dcm", Reason.OUTSIDE_FILTER, "excluded", device="topcon_triton"),
    ]
    shards = [
        ShardRow(shard=samples[0].shard, split="train", device="zeiss_cirrus", num_samples=6, bytes=1, sha256="0" * 64)
    ]
    url = str(tmp_path / "dataset")
    commit(url, sources=sources, samples=samples, shards=shards, header=header(sources, len(samples), len(shards)))
    return url


def test_a_sound_dataset_adds_up(dataset: str) -> None:
    report = audit(dataset)
    assert report.problems == ()
    assert report.adds_up
    assert report.equation == "11 files = 6 accepted + 3 rejected + 1 duplicate + 1 excluded"
    assert [(split.split, split.num_participants, split.num_samples) for split in report.by_split] == [("train", 6, 6)]


def test_reasons_are_counted_by_device_and_site(dataset: str) -> None:
    counts = {(count.reason, count.device, count.site): count.num_files for count in audit(dataset).by_reason}
    assert counts == {
        ("EMPTY_FILE", "zeiss_cirrus", "UAB"): 2,
        ("NOT_DICOM", "unknown", "unknown"): 1,
        ("DUP_SOP_UID_IDENTICAL", "unknown", "UW"): 1,
        ("OUTSIDE_FILTER", "topcon_triton", "unknown"): 1,
    }
    assert audit(dataset).by_warning == {"SATURATED": 1}


def test_spacing_and_shapes_are_summarised_by_protocol(dataset: str) -> None:
    (summary,) = audit(dataset).protocols
    assert summary.protocol == "cirrus_mac_oct"
    assert summary.spacing_d_mm == pytest.approx((6 / 127, 6 / 127, 6 / 120))
    assert summary.shapes == {"128x1024x512": 6}
    assert summary.spacing_sources == {"field_of_view": 6}


Change = Callable[[Tables], Tables]


def without_last(table: str) -> Change:
    return lambda tables: dataclasses.replace(tables, **{table: getattr(tables, table)[:-1]})


def with_cell(table: str, place: int, **cells: str) -> Change:
    def change(tables: Tables) -> Tables:
        rows = list(getattr(tables, table))
        rows[place] = {**rows[place], **cells}
        return dataclasses.replace(tables, **{table: rows})

    return change


def with_count(**counts: Any) -> Change:
    return lambda tables: dataclasses.replace(
        tables, info={**tables.info, "counts": {**tables.info["counts"], **counts}}
    )


def repeated(table: str) -> Change:
    return lambda tables: dataclasses.replace(tables, **{table: [*getattr(tables, table), getattr(tables, table)[-1]]})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (without_last("sources"), r"dataset\.json counts inputs 11, its tables 10"),
        (without_last("rejected"), r"rejected\.csv has 4 rows"),
        (without_last("samples"), "was accepted into train-zeiss_cirrus-00000.tar, but samples.csv has no such row"),
        (without_last("shards"), "holds 0 samples by shards.csv, 6 by samples.csv"),
        (repeated("sources"), r"sources\.csv lists zeiss_cirrus/.* 2 times"),
        (repeated("samples"), r"samples\.csv lists .* 2 times"),
        (with_count(accepted=7), "counts accepted 7, its tables 6"),
        (with_count(by_reason={"EMPTY_FILE": 2}), "counts by_reason"),
        (with_cell("sources", -1, status="lost"), "status 'lost' is not one of"),
        (with_cell("sources", -1, reason="EMPTY_FILE"), "status accepted with reason 'EMPTY_FILE'"),
        (with_cell("sources", 1, reason=""), "status rejected with reason ''|status duplicate with reason ''"),
        (with_cell("sources", 1, reason="BAD_LUCK"), "reason 'BAD_LUCK' is not a known code"),
        (with_cell("sources", -1, spacing_h_mm=""), "accepted with spacing"),
        (with_cell("sources", -1, key=""), "but no accepted file made it"),
        (with_cell("sources", -1, key="1000-zeiss_cirrus-R-cirrus_mac_oct-0000000000"), r"sources\.csv accepts 1000-"),
        (with_cell("sources", -1, spacing_h_mm="nan"), "accepted with spacing"),
        (with_cell("sources", -1, shard="train-zeiss_cirrus-00001.tar"), "no accepted file made it"),
        (with_cell("samples", -1, split="test", participant_id="1000"), "participant 1000 is in test and train"),
        (with_cell("shards", 0, num_samples="5"), "holds 5 samples by shards.csv, 6 by samples.csv"),
    ],
)
def test_any_disagreement_between_tables_is_a_problem(dataset: str, change: Change, problem: str) -> None:
    report = account(change(read_tables(dataset)))
    assert not report.adds_up
    assert any(re.search(problem, found) for found in report.problems), report.problems


def test_missing_and_changed_tables_are_one_sentence(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(NoDatasetError, match="there is no dataset at"):
        audit(str(tmp_path / "nowhere"))
    with pytest.raises(AuditError, match=r"sources\.csv is missing"):
        audit(str(tmp_path))
    table = Path(dataset, "manifests", "samples.csv")
    table.write_bytes(table.read_bytes().replace(b"participant_id", b"person", 1))
    with pytest.raises(AuditError, match="has the columns"):
        audit(dataset)
    table.write_bytes(b"\xff")
    with pytest.raises(AuditError, match="not UTF-8"):
        audit(dataset)


def test_a_cut_line_is_found(dataset: str) -> None:
    table = Path(dataset, "manifests", "shards.csv")
    table.write_bytes(table.read_bytes()[:-70])
    with pytest.raises(AuditError, match="more or fewer cells"):
        audit(dataset)


def test_a_cut_dataset_json_is_found(dataset: str) -> None:
    path = Path(dataset, "dataset.json")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(AuditError, match="is not JSON"):
        audit(dataset)


class Inventory(HTMLParser):
    """Tags that were opened, and addresses that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_is_self_contained_and_its_cells_are_inert(dataset: str, tmp_path: Path) -> None:
    report = audit(dataset)
    problem = dataclasses.replace(report, problems=(f"{EVIL}: lost",), url=EVIL)
    labels = audit_join(
        [],
        {
            "1": Participant(
                participant_id="1", clinical_site=EVIL, study_group="healthy", age=None, recommended_split=None
            )
        },
    )
    write_audit_html(tmp_path / "sub" / "audit.html", problem, labels)
    page = (tmp_path / "sub" / "audit.html").read_text(encoding="utf-8")
    inventory = Inventory()
    inventory.feed(page)
    assert "script" not in inventory.tags
    assert inventory.addresses == []
    assert "url(" not in page
    assert page.count("&lt;script&gt;") == 3
    assert "does not add up" in page


def test_the_page_says_what_each_reason_means(dataset: str, tmp_path: Path) -> None:
    write_audit_html(tmp_path / "audit.html", audit(dataset))
    page = (tmp_path / "audit.html").read_text(encoding="utf-8")
    assert "11 files = 6 accepted + 3 rejected + 1 duplicate + 1 excluded. Every table agrees." in page
    assert Reason.EMPTY_FILE.info.hint in page
    assert "0.04724 (0.04724 to 0.05)" in page


def run(*words: str) -> Any:
    import typer

    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(words))


def test_the_command_ends_with_1_when_the_accounting_does_not_add_up(dataset: str) -> None:
    assert run(dataset).exit_code == 0
    path = Path(dataset, "dataset.json")
    path.write_text(path.read_text().replace('"accepted": 6', '"accepted": 7'))
    result = run(dataset, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["problems"] == ["dataset.json counts accepted 7, its tables 6."]


def test_the_report_is_json(dataset: str) -> None:
    report: AuditReport = audit(dataset)
    assert json.loads(json.dumps(report.to_json()))["by_status"]["accepted"] == 6
