"""Manifests: inert CSV, equal Parquet, and a commit whose last word is `_SUCCESS`."""

import csv
import hashlib
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests import store
from manifests.columns import columns_of
from manifests.rows import SOURCE_COLUMNS, SourceRow
from manifests.store import cell, commit, csv_bytes, parquet_bytes, publish, read_csv
from shards.schema import SAMPLE_COLUMNS, SHARD_COLUMNS, SampleRow, ShardRow


def _row(path: str, **values: object) -> SourceRow:
    return SourceRow(path=path, status="rejected", reason="NOT_DICOM", **values)  # type: ignore[arg-type]


def test_columns_are_the_contract() -> None:
    assert SOURCE_COLUMNS == (
        "path", "bytes", "sha256", "status", "reason", "severity", "stage", "detail", "participant_id", "device",
        "manufacturer_model", "protocol", "anatomic_region", "laterality", "num_frames", "rows", "columns",
        "transfer_syntax_uid", "spacing_d_mm", "spacing_h_mm", "spacing_w_mm", "spacing_source", "sop_instance_uid",
        "split", "key", "shard",
    )  # fmt: skip
    assert tuple(columns_of(SampleRow)) == SAMPLE_COLUMNS
    assert tuple(columns_of(ShardRow)) == SHARD_COLUMNS


@given(st.text(st.characters() | st.sampled_from("=+-@\t\r\n'\x00\udcff ＝")))
def test_text_cells_are_inert_and_survive(text: str) -> None:
    (row,) = csv.DictReader(io.StringIO(csv_bytes(SourceRow, [_row(text)]).decode(), newline=""))
    assert not row["path"].lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"))
    readable = text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
    assert row["path"].removeprefix("'") == readable
    assert row["path"] == cell(text)


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx", "  =1+1", "＝1+1", "＋1", "－1", "＠x", "'=1", "'"]
)
def test_formulas_and_marks_get_one_mark_in_front(text: str) -> None:
    assert cell(text) == f"'{text}"


def test_other_text_is_as_it_was() -> None:
    for text in ("a=b", "x/-1.dcm", "1.2.840", "Macula, 6 x 6", "<b>", 'say "x"', "it's", " a "):
        assert cell(text) == text


def test_numbers_are_numbers_and_none_is_empty() -> None:
    data = csv_bytes(SourceRow, [_row("a", spacing_d_mm=-0.5, num_frames=3)])
    assert data.count(b"\r\n") == 2
    (row,) = read_csv(data)
    assert (row["spacing_d_mm"], row["num_frames"], row["split"]) == ("-0.5", "3", "")


def test_parquet_holds_the_same_rows_typed() -> None:
    rows = [_row("a", bytes=7, spacing_d_mm=0.25), _row("b")]
    table = pq.read_table(io.BytesIO(parquet_bytes(SourceRow, rows)))
    assert table.column_names == list(SOURCE_COLUMNS)
    assert table.to_pylist()[0]["bytes"] == 7
    assert table.to_pylist()[1]["spacing_d_mm"] is None
    assert parquet_bytes(SourceRow, rows) == parquet_bytes(SourceRow, rows)


def test_accepted_rows_have_no_reason_and_others_have_one() -> None:
    with pytest.raises(ValueError, match="accepted"):
        SourceRow(path="a", status="accepted", reason="NOT_DICOM")
    with pytest.raises(ValueError, match="rejected"):
        SourceRow(path="a", status="rejected")


def test_success_is_written_last_and_vouches_for_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[str] = []
    monkeypatch.setattr(
        store, "publish", lambda url, data, **how: (published.append(url), publish(url, data, **how))[1]
    )
    root = str(tmp_path / "d")
    commit(root, sources=[_row("b"), _row("a")], samples=[], shards=[], header={"schema_version": 1})
    assert published[-1] == f"{root}/_SUCCESS"
    assert published[-2] == f"{root}/dataset.json"
    body = (tmp_path / "d/dataset.json").read_bytes()
    assert (tmp_path / "d/_SUCCESS").read_text().strip() == hashlib.sha256(body).hexdigest()
    for name, digest in json.loads(body)["manifests"].items():
        assert hashlib.sha256((tmp_path / "d/manifests" / name).read_bytes()).hexdigest() == digest
    assert [row["path"] for row in read_csv((tmp_path / "d/manifests/sources.csv").read_bytes())] == ["a", "b"]


def test_nobody_sees_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(*_: object, **__: object) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(Path, "hardlink_to", break_off)
    with pytest.raises(OSError, match="gone"):
        publish(str(tmp_path / "d/dataset.json"), b"{}")
    assert not list((tmp_path / "d").iterdir())
