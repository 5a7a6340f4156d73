"""The audit adds up exactly when the tables do."""

import dataclasses
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fovea.audit import _print, command
from manifests.audit import AuditReport, Tables, account, audit, read_tables
from manifests.audit_html import write_audit_html
from manifests.cohort import Participant, audit_join
from manifests.errors import AuditError, NoDatasetError
from manifests.offenders import worst_offenders
from manifests.reasons import Reason
from manifests.rows import SOURCE_COLUMNS, SourceRow
from manifests.store import commit
from shards.schema import SCHEMA_VERSION, SampleRow, ShardRow

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
        "schema_version": SCHEMA_VERSION,
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


def test_the_worst_offenders_are_named(dataset: str) -> None:
    worst = audit(dataset).offenders
    assert [(one.participant_id, one.num_rejected, one.num_files) for one in worst.participants] == [
        ("7001", 1, 1),
        ("7002", 1, 2),
    ]
    assert [(one.device, one.protocol, one.share, dict(one.reasons)) for one in worst.protocols] == [
        ("zeiss_cirrus", "unknown", 1.0, {"EMPTY_FILE": 2}),
        ("unknown", "unknown", 0.5, {"NOT_DICOM": 1}),
    ]
    (far,) = worst.spacing
    assert far.key.startswith("1000-")
    assert (far.axis, far.spacing_mm, far.median_mm) == ("D", pytest.approx(6 / 120), pytest.approx(6 / 127))
    assert far.ratio == pytest.approx(127 / 120, abs=1e-5)


def source(**cells: str) -> dict[str, str]:
    return dict.fromkeys(SOURCE_COLUMNS, "") | {"status": "accepted", "device": "d", "protocol": "p"} | cells


def test_offenders_are_ordered_and_few() -> None:
    rows = [source(participant_id=f"{number:04d}", key=str(number), spacing_w_mm="0.02") for number in range(40)]
    rows += [
        source(status="rejected", reason="ALL_ZERO", participant_id=f"{number:04d}", protocol=f"p{number % 3}")
        for number in range(20)
        for _ in range(number + 1)
    ]
    rows += [source(key="narrow", spacing_w_mm="0.005"), source(key="wide", spacing_w_mm="0.06", spacing_h_mm="x")]
    rows += [source(key="odd", spacing_w_mm="nan"), source(status="excluded", reason="OUTSIDE_FILTER", protocol="p9")]
    worst = worst_offenders(rows)
    assert [one.participant_id for one in worst.participants] == [f"{number:04d}" for number in range(19, 9, -1)]
    assert worst.participants[0].num_rejected == 20
    assert [(one.protocol, one.num_rejected) for one in worst.protocols] == [("p1", 77), ("p0", 70), ("p2", 63)]
    assert [(one.key, one.ratio) for one in worst.spacing] == [("narrow", 0.25), ("wide", 3.0)]


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
        (repeated("sources"), r"sources\.csv lists 1 paths more than once"),
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
    with pytest.raises(AuditError, match=r"_SUCCESS is missing"):
        audit(str(tmp_path))
    table = Path(dataset, "manifests", "samples.csv")
    table.write_bytes(table.read_bytes().replace(b"participant_id", b"person", 1))
    with pytest.raises(AuditError, match="has the columns"):
        audit(dataset)
    table.write_bytes(b"\xff")
    with pytest.raises(AuditError, match="not UTF-8"):
        audit(dataset)
    table.write_bytes(b'"' + b"x" * 140_000)
    with pytest.raises(AuditError, match="is no CSV"):
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
    assert "Most rejected files" in page
    assert "<td>1000-zeiss_cirrus-R-cirrus_mac_oct-0000000000</td><td>D</td><td>0.05</td>" in page


FORMULA = "=HYPERLINK(1)[red]<b>@"


def test_cells_are_inert_on_page_and_terminal(dataset: str, tmp_path: Path) -> None:
    """Spreadsheet formulas, markup of the terminal's and of the page's: text, wherever a table's cell is shown."""
    tables = read_tables(dataset)
    evil = {"protocol": FORMULA, "device": FORMULA, "participant_id": FORMULA, "spacing_source": FORMULA}
    sources = [{**row, **evil, "key": FORMULA, "spacing_d_mm": str(n + 1)} for n, row in enumerate(tables.sources)]
    samples = [{**row, "clinical_site": FORMULA, "participant_id": FORMULA} for row in tables.samples]
    report = account(dataclasses.replace(tables, sources=sources, samples=samples))
    write_audit_html(tmp_path / "audit.html", report)
    page = (tmp_path / "audit.html").read_text(encoding="utf-8")
    assert "<b>" not in page
    assert page.count("=HYPERLINK(1)[red]&lt;b&gt;@") > 10
    rows = [row for row in printed(report).splitlines() if "HYPERLINK" in row]
    assert len(rows) > 10
    assert all(FORMULA in row for row in rows)


def printed(report: AuditReport) -> str:
    app = typer.Typer()
    app.command()(lambda: _print(report, None))
    return str(CliRunner().invoke(app, []).stdout)


def test_the_terminal_shows_distributions_offenders_and_the_label_join(dataset: str, tmp_path: Path) -> None:
    labels = tmp_path / "participants.tsv"
    table = "person_id\tclinical_site\tstudy_group\tage\trecommended_split\n"
    people = [("1000", "UW"), ("4001", "UCSD"), ("7002", "UAB"), ("1999", "UW")]
    rows = "".join(f"{identity}\t{site}\thealthy\t50\tval\n" for identity, site in people)
    labels.write_text(table + rows, encoding="utf-8")
    result = run(dataset, "--labels", str(labels))
    assert result.exit_code == 0, repr(result.exception)
    shown = [" ".join(line.replace("│", " ").split()) for line in result.stdout.splitlines()]
    assert "cirrus_mac_oct 6 0.04724 0.04724 0.05 0.001953 0.001953 0.001953 0.01172 0.01172 0.01172" in shown
    assert "cirrus_mac_oct 128x1024x512 (6) field_of_view (6)" in shown
    assert "SATURATED 1" in shown
    assert "7001 1 of 1 EMPTY_FILE (1)" in shown
    assert "zeiss_cirrus unknown 100% 2 of 2 EMPTY_FILE (2)" in shown
    assert "1000-zeiss_cirrus-R-cirrus_mac_oct-0000000000 D 0.05 0.04724 1.058333" in shown
    assert "site UW 2 2 1 1 1" in shown
    assert "split train 3 6 3 0 3" in shown
    assert "split val 1 0 0 1 0" in shown


def run(*words: str) -> Any:
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


def test_labels_do_not_hide_that_the_accounting_does_not_add_up(dataset: str, tmp_path: Path) -> None:
    path = Path(dataset, "dataset.json")
    path.write_text(path.read_text().replace('"accepted": 6', '"accepted": 7'))
    result = run(dataset, "--labels", str(tmp_path / "participants.tsv"))
    assert result.exit_code == 1
    assert "problem: dataset.json counts accepted 7, its tables 6." in result.stdout


def test_the_report_is_json(dataset: str) -> None:
    report: AuditReport = audit(dataset)
    assert json.loads(json.dumps(report.to_json()))["offenders"]["spacing"][0]["axis"] == "D"
    assert json.loads(json.dumps(report.to_json()))["by_status"]["accepted"] == 6
