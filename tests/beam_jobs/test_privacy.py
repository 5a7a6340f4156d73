"""What a header, a private tag or a file name says of a person stays out of everything but two documented columns."""

import csv
import io
import json
import logging
import sys
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
import pytest

from beam_jobs.errors import JobError, JobOptionError
from beam_jobs.launch import IngestResult, run_ingest
from beam_jobs.options import beam_options, make_job
from fovea.cli import main
from tests.wandb_files import recorded

CONTROLLED: Final = ("path", "sop_instance_uid")
"""The manifest columns that may hold text of the source (docs/privacy.md)."""

BOOM: Final = """
import ingest.intensity

whole = ingest.intensity.check_content

def check_content(volume, bits):
    if ((volume[:, 0, 0] == 251) & (volume[:, 0, 1] == 7)).any():
        raise RuntimeError("QZXCANARY7 is a patient")
    return whole(volume, bits)

ingest.intensity.check_content = check_content
"""


class Run:
    """A finished job and everything that it said."""

    def __init__(self, dataset: Path, result: IngestResult, said: str) -> None:
        self.dataset = dataset
        self.result = result
        self.said = said


@pytest.fixture(scope="module")
def run(canaries: Any, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Run:
    """The whole job, with a defect of ours injected into the other process, and every stream recorded."""
    folder = tmp_path_factory.mktemp("hook")
    (folder / "sitecustomize.py").write_text(BOOM, encoding="utf-8")
    dataset = tmp_path_factory.mktemp("job") / "dataset"
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    logged = io.StringIO()
    handler = logging.StreamHandler(logged)
    logging.getLogger().addHandler(handler)
    capture.read_global_capture()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        job = make_job(str(canaries.root), str(dataset), geometry="block6")
        result = run_ingest(job, beam_options([], num_workers=1))
    said = capture.read_global_capture()
    logging.getLogger().removeHandler(handler)
    return Run(dataset, result, f"{said.out}{said.err}{logged.getvalue()}")


def rows_of(dataset: Path, name: str) -> list[dict[str, str]]:
    with (dataset / "manifests" / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files_in(folder: Path) -> list[Path]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert found
    return found


def test_the_search_finds_what_it_is_to_find(canaries: Any) -> None:
    """The sources hold the secrets, or the tests below would prove nothing."""
    found = canaries.leaks(b"".join(path.read_bytes() for path in files_in(canaries.root)))
    assert found >= {"QZXCANARY7", "1.2.826.0.1.777000777000777", "SN90887766", "20190317"}
    assert len(found) > 100
    assert canaries.leaks("a qzxcanary7".encode("utf-16-le")) == {"QZXCANARY7"}


def test_every_file_has_its_row_and_its_reason(canaries: Any, run: Run) -> None:
    assert {row["path"]: row["reason"] for row in rows_of(run.dataset, "sources.csv")} == canaries.expected
    assert len(run.result.dataset["counts"]["by_reason"]) >= 17


def test_shards_and_dataset_json_hold_no_secret(canaries: Any, run: Run) -> None:
    for path in files_in(run.dataset):
        assert not canaries.leaks(str(path.relative_to(run.dataset)))
        if path.parent.name != "manifests":
            assert not canaries.leaks(path.read_bytes()), path.name


@pytest.mark.parametrize("name", ["sources", "rejected", "samples", "shards"])
def test_manifests_hold_secrets_in_the_documented_columns_only(name: str, canaries: Any, run: Run) -> None:
    typed = pq.read_table(run.dataset / f"manifests/{name}.parquet").to_pylist()
    for row in [*rows_of(run.dataset, f"{name}.csv"), *typed]:
        for column, cell in row.items():
            assert column in CONTROLLED or not canaries.leaks(str(cell)), (column, cell)


def test_counters_and_streams_hold_no_secret(canaries: Any, run: Run) -> None:
    assert run.result.counters["files_rejected"] >= 14
    assert not canaries.leaks(json.dumps(dict(run.result.counters)))
    assert not canaries.leaks(json.dumps(run.result.dataset))
    assert not canaries.leaks(run.said)


def test_the_audit_holds_no_secret(
    canaries: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    page, labels = tmp_path / "audit.html", canaries.root / "participants.tsv"
    for more in (["--html", str(page)], ["--json"]):
        assert command(monkeypatch, "audit", str(run.dataset), "--labels", str(labels), *more) == 0
    said = capfd.readouterr()
    assert "SPACING_INVALID" in said.out
    assert not canaries.leaks(said.out + said.err)
    assert not canaries.leaks(page.read_bytes())


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of `fovea` in this process."""
    monkeypatch.setattr(sys, "argv", ["fovea", *words])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.mark.slow
def test_training_and_weights_and_biases_hold_no_secret(
    canaries: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    changes = [
        "log.wandb=true",
        "train.max_steps=3",
        "data.pool=8",
        "objective.num_visible=8",
        "objective.num_targets=4",
    ]
    words = [word for change in changes for word in ("--set", change)]
    out = tmp_path / "run"
    code = command(monkeypatch, "pretrain", "--recipe", "smoke", "--data", str(run.dataset), "--out", str(out), *words)
    said = capfd.readouterr()
    assert code == 0, said.err
    assert len(recorded(out, "*", b"train/loss")) > 1000
    for path in files_in(out):
        assert not canaries.leaks(path.read_bytes()), path.name
    assert not canaries.leaks(said.out + said.err)


def test_a_copy_to_be_shared_as_documented_holds_no_secret_and_verifies(
    canaries: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs/privacy.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], names)  # noqa: S102 - the documented code itself
    names["share"](str(run.dataset), str(tmp_path / "copy"))
    for name in ("sources", "rejected"):
        csv_rows, typed = rows_of(tmp_path / "copy", f"{name}.csv"), tmp_path / f"copy/manifests/{name}.parquet"
        assert len(csv_rows) == len(rows_of(run.dataset, f"{name}.csv"))
        assert not canaries.leaks(json.dumps([csv_rows, pq.read_table(typed).to_pylist()]))
    assert command(monkeypatch, "verify", str(tmp_path / "copy")) == 0
    assert command(monkeypatch, "audit", str(tmp_path / "copy")) == 0


def test_records_of_an_unfinished_job_hold_secrets_in_the_documented_columns_only(
    canaries: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise RuntimeError("the machine went away")

    monkeypatch.setattr("beam_jobs.build_dataset.commit_dataset", die)
    with pytest.raises(JobError) as caught:
        run_ingest(
            make_job(str(canaries.root), str(tmp_path / "d"), geometry="block6"), beam_options([], num_workers=1)
        )
    assert not canaries.leaks(str(caught.value))
    records = [json.loads(path.read_bytes()) for path in files_in(tmp_path / "d/_staging")]
    rows = [row for record in records for row in record.get("sources", ())]
    assert len(rows) >= 8
    for row in rows:
        row.update(dict.fromkeys(CONTROLLED))
    assert not canaries.leaks(json.dumps(records))


def test_a_duplicate_names_no_other_file(few_canaries: Any, tmp_path: Path) -> None:
    twin, again = few_canaries.add("DUP_SOP_UID_IDENTICAL")
    few_canaries.write(twin.replace(".dcm", ""), again)  # the path without a suffix comes first
    first, second = ingested(few_canaries, tmp_path / "d")
    assert (first["status"], second["status"]) == ("accepted", "duplicate")
    assert not few_canaries.leaks(second["detail"])


def test_a_transfer_syntax_that_nobody_registered_is_not_quoted(few_canaries: Any, tmp_path: Path) -> None:
    private = b"1.2.777000777000777"
    few_canaries.add("TS_UNSUPPORTED", damage=lambda data: data.replace(b"1.2.840.10008.1.2.1", private, 1))
    (row,) = ingested(few_canaries, tmp_path / "d")
    assert row["reason"] == "TS_UNSUPPORTED"
    assert "777000777000777" not in row["detail"] + row["transfer_syntax_uid"]


def ingested(source: Any, dataset: Path) -> list[dict[str, str]]:
    run_ingest(make_job(str(source.root), str(dataset), geometry="block6"), beam_options([], num_workers=1))
    return rows_of(dataset, "sources.csv")


@pytest.mark.parametrize("key", ["", "x" * 15])
def test_the_hash_key_is_the_environments_or_the_cohorts(
    key: str, few_canaries: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_canaries.write("participants.tsv", b"person_id\tstudy_group\n4123\thealthy\n")
    monkeypatch.setenv("FOVEA_HASH_KEY", "a secret of more than 16 bytes")
    secret = make_job(str(few_canaries.root), str(tmp_path / "d"))
    assert (secret.hash_key, secret.config()["hash_key"]) == (b"a secret of more than 16 bytes", "environment")
    assert b"secret" not in repr(secret).encode() + json.dumps(secret.config()).encode()
    monkeypatch.setenv("FOVEA_HASH_KEY", key)
    if key:
        with pytest.raises(JobOptionError, match="15 bytes") as caught:
            make_job(str(few_canaries.root), str(tmp_path / "d"))
        assert key not in str(caught.value)
        return
    default = make_job(str(few_canaries.root), str(tmp_path / "d"))
    other = make_job(str(few_canaries.root), str(tmp_path / "d"), geometry="block6", participant_metadata=False)
    assert default.config()["hash_key"] == "default"
    assert default.hash_key == other.hash_key != secret.hash_key
