"""Metrics: stages, devices, reasons and the slowest files of a real job; nothing in them names anybody."""

import csv
import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from apache_beam.metrics.cells import DistributionData, DistributionResult
from apache_beam.metrics.execution import MetricKey
from apache_beam.metrics.metricbase import MetricName

from beam_jobs.launch import IngestResult, run_ingest
from beam_jobs.metrics import NAMESPACE, STAGES, Distribution, Measured, SlowFile, read_measured, row_numbers
from beam_jobs.options import beam_options, make_job
from beam_jobs.summary import summarise
from ingest.phantom.cohort import write_cohort
from ingest.phantom.plan import CohortSpec
from manifests.reasons import Reason
from manifests.rows import SourceRow
from manifests.store import commit
from shards.schema import DEVICES

NAME = re.compile(
    rf"(files_found|samples_packed|shards_packed|bytes_(read|written)"
    rf"|files_(accepted|rejected|duplicate|excluded)(\.DEVICE)?|reason_({'|'.join(Reason)})(\.DEVICE)?)".replace(
        "DEVICE", f"({'|'.join(DEVICES)}|unknown)"
    )
)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cohort") / "c"
    write_cohort(root, CohortSpec(participants=6, volumes_per_participant=2, corrupt=0.3, small=True, seed=3))
    return root


@pytest.fixture(scope="module", params=[1, 2])
def run(request: pytest.FixtureRequest, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One process, and several: their metrics must come home all the same."""
    out = tmp_path_factory.mktemp("dataset") / "d"
    result = run_ingest(make_job(str(cohort), str(out), geometry="block6"), beam_options([], num_workers=request.param))
    with (out / "manifests/sources.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return SimpleNamespace(result=result, rows=rows, out=out)


def measured(run: Any) -> Measured:
    result: IngestResult = run.result
    return result.measured


def test_rejections_are_counted_by_reason_and_device_as_the_manifest_has_them(run: Any) -> None:
    rejected = summarise(measured(run), 1.0).rejected
    found = {(row.reason, row.device): row.files for row in rejected}
    assert found == Counter((row["reason"], row["device"] or "unknown") for row in run.rows if row["reason"])
    assert len(found) >= 3
    for status in ("accepted", "rejected"):
        assert run.result.counters[f"files_{status}"] == sum(row["status"] == status for row in run.rows)


def test_every_stage_is_measured_once_a_piece(run: Any) -> None:
    stages = {row.stage: row for row in summarise(measured(run), 1.0).stages}
    assert set(stages) == set(STAGES)
    accepted = sum(row["status"] == "accepted" for row in run.rows)
    assert stages["decode"].number == stages["resample"].number == stages["write"].number == accepted
    assert stages["discover"].number == stages["commit"].number == 1
    assert stages["publish"].number == run.result.counters["shards_packed"]
    assert stages["read"].number >= accepted
    assert stages["probe"].number >= stages["read"].number
    assert abs(sum(row.share for row in stages.values()) - 1) < 0.01


def test_stages_and_sizes_are_known_by_device(run: Any) -> None:
    summary = summarise(measured(run), 1.0)
    devices = {row["device"] for row in run.rows if row["status"] == "accepted"}
    assert {row.device for row in summary.stages_by_device if row.stage == "decode"} == devices
    largest = {row.device: row.max_bytes for row in summary.sizes}
    for device in devices:
        sizes = [int(row["bytes"]) for row in run.rows if row["device"] == device and row["status"] == "accepted"]
        assert largest[device] >= max(sizes)


def test_the_slowest_files_are_rows_of_the_manifest(run: Any) -> None:
    slowest = measured(run).slowest
    assert len(slowest) == 10
    totals = [sum(file.milliseconds.values()) for file in slowest]
    assert totals == sorted(totals, reverse=True)
    packed = [file for file in slowest if "decode" in file.milliseconds]
    assert packed
    assert all(run.rows[file.row - 1]["transfer_syntax_uid"] for file in packed)
    assert all(1 <= file.row <= len(run.rows) for file in slowest)


def test_names_are_of_closed_lists_and_nothing_names_a_file_or_a_person(run: Any) -> None:
    assert all(NAME.fullmatch(name) for name in run.result.counters), run.result.counters
    known = {(f"milliseconds_{stage}", device) for stage in STAGES for device in (*DEVICES, "unknown", "all")}
    known |= {("bytes", device) for device in DEVICES}
    assert measured(run).distributions.keys() <= known
    said = json.dumps([dict(run.result.counters), summarise(measured(run), 1.0).to_json()])
    for row in run.rows:
        for column in ("path", "participant_id", "sop_instance_uid", "key", "sha256"):
            assert not row[column] or f'"{row[column]}' not in said
        assert Path(row["path"]).name not in said


def test_no_time_reaches_the_dataset(run: Any, cohort: Path, tmp_path: Path) -> None:
    run_ingest(make_job(str(cohort), str(tmp_path / "d"), geometry="block6"), beam_options([], num_workers=1))
    names = sorted(str(path.relative_to(run.out)) for path in run.out.rglob("*") if path.is_file())
    assert any(name.endswith(".tar") for name in names)
    for name in names:
        one, other = ((root / name).read_bytes() for root in (run.out, tmp_path / "d"))
        assert hashlib.sha256(one).digest() == hashlib.sha256(other).digest(), name


def test_a_row_number_counts_lines_behind_the_header(tmp_path: Path) -> None:
    """Undecodable names are spelled in manifests; files that have no row have no number."""
    names = ["b.dcm", "a.dcm", "c\udcff.dcm"]
    rows = [SourceRow(path=name, status="rejected", reason="NOT_DICOM") for name in names]
    commit(str(tmp_path), sources=rows, samples=[], shards=[], header={})
    assert row_numbers(str(tmp_path), [*names, "gone"]) == {"a.dcm": 1, "b.dcm": 2, "c\udcff.dcm": 3}


def finished(counters: dict[str, int], distributions: dict[str, tuple[int, int, int, int]]) -> Any:
    """A run as Dataflow's query gives it: committed values, None for what was never committed."""

    def key(name: str, namespace: str = NAMESPACE) -> MetricKey:
        return MetricKey("step", MetricName(namespace, name))

    query = {
        "counters": [
            *(SimpleNamespace(key=key(name), result=value) for name, value in counters.items()),
            SimpleNamespace(key=key("files_found", "another"), result=99),
            SimpleNamespace(key=key("files_never"), result=None),
        ],
        "distributions": [
            SimpleNamespace(key=key(name), result=DistributionResult(DistributionData(*values)))
            for name, values in distributions.items()
        ],
    }
    return SimpleNamespace(metrics=lambda: SimpleNamespace(query=lambda: query))


def test_counters_of_devices_have_their_total_and_foreign_ones_are_left_out() -> None:
    found = read_measured(finished({"files_rejected.zeiss_cirrus": 2, "files_rejected.unknown": 3}, {}))
    assert found.counters == {"files_rejected": 5, "files_rejected.unknown": 3, "files_rejected.zeiss_cirrus": 2}


def test_the_slowest_are_put_together_from_their_ranks() -> None:
    ranks = {"slow_00_row.all": (7, 1, 7, 7), "slow_00_read.all": (40, 2, 20, 20), "slow_01_row.all": (9, 1, 9, 9)}
    found = read_measured(finished({}, ranks | {"milliseconds_read.unknown": (30, 2, 10, 20)}))
    assert found.slowest == (SlowFile(row=7, milliseconds={"read": 20}), SlowFile(row=9, milliseconds={}))
    assert found.distributions == {("milliseconds_read", "unknown"): Distribution(count=2, sum=30, min=10, max=20)}


def test_rates_are_of_the_run_and_of_a_busy_worker() -> None:
    time = Distribution(count=4, sum=8000, min=1, max=5000)
    run = Measured(
        counters={"samples_packed": 4, "bytes_read": 80_000_000}, distributions={("milliseconds_read", "unknown"): time}
    )
    rate = summarise(run, 2.0).rate
    assert (rate.volumes_per_s, rate.megabytes_per_s, rate.busy_workers) == (2.0, 40.0, 4.0)
    assert (rate.volumes_per_worker_s, rate.megabytes_per_worker_s) == (0.5, 10.0)
    assert summarise(Measured(), 0.0).rate.volumes_per_s == 0.0
