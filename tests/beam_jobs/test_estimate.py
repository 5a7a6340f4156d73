"""What `--dry-run` reckons with, on numbers that can be checked by hand."""

import math
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.errors import JobOptionError
from beam_jobs.estimate import Fleet, Inputs, Prices, count_inputs, estimate, field_of_view, volume_seconds
from beam_jobs.machine import machine
from beam_jobs.options import beam_options, make_job
from ingest.geometry import BLOCK6, FIT, METHODS, content_share
from ingest.phantom.cohort import write_cohort
from ingest.phantom.plan import CohortSpec
from ingest.phantom.protocols import PROTOCOLS

FOLDER = "retinal_oct/structural_oct/topcon_maestro2/1001/1001_maestro2_3d_macula_oct_l_1.2.3.{}.dcm"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("estimate") / "c"
    write_cohort(root, CohortSpec(participants=2, volumes_per_participant=2, small=True, seed=5))
    return root


def test_inputs_are_counted_by_protocol_without_being_opened() -> None:
    listing = {FOLDER.format(1): 30, FOLDER.format(2): 20, "a.zip": 60_000_000, "x": 5, "notes.txt": 7, "pipe": -1}
    found = count_inputs(listing)
    assert dict(found.by_protocol) == {"": 4, "maestro2_3d_macula_oct": 2}
    assert (found.files, found.archives, found.other_files, found.volumes) == (3, 1, 1, 6)
    assert found.bytes == 30 + 20 + 60_000_000 + 5


@pytest.mark.parametrize(
    ("name", "geometry", "seconds"),
    [
        ("maestro2_3d_macula_oct", FIT, 6.0 + 0.43),
        ("maestro2_3d_macula_oct", METHODS, 3.3 + 0.18),
        ("triton_macula_12x12_octa", FIT, 11.8 + 1.31),
        ("cirrus_disc_oct", BLOCK6, 4.3 + 0.32),
    ],
)
def test_a_volume_s_time_is_that_of_the_table_in_the_docs(name: str, geometry: object, seconds: float) -> None:
    assert volume_seconds(PROTOCOLS[name], geometry) == pytest.approx(seconds, rel=0.2)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "filled"), [("maestro2_3d_macula_oct", 0.24), ("triton_3d_radial_oct", 0.33)])
def test_content_is_that_of_the_table_in_the_docs(name: str, filled: float) -> None:
    assert content_share(field_of_view(PROTOCOLS[name]), METHODS) == pytest.approx(filled, abs=0.01)


def test_an_hour_of_a_worker_costs_its_parts() -> None:
    fleet = Fleet(runner="DataflowRunner", workers=2, threads=4, machine=machine("n2-standard-4"), disk_gib=25)
    assert fleet.hourly(Prices()) == pytest.approx(4 * 0.056 + 16 * 0.003557 + 25 * 0.000054)
    assert fleet.hourly(Prices(vcpu_hour=0, memory_gib_hour=0, disk_gib_hour=1)) == 25


def test_prices_may_be_replaced_by_numbers_only(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text("vcpu_hour: 0.1\n")
    assert Prices.load(str(path)) == Prices(vcpu_hour=0.1)
    for text in ("vcpu: 1", "vcpu_hour: -1", "vcpu_hour: much", "vcpu_hour: .nan", "- 1", "{"):
        path.write_text(text)
        with pytest.raises(JobOptionError):
            Prices.load(str(path))


def test_numbers_of_a_local_estimate_fit_each_other(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(str(cohort), str(tmp_path / "d"), geometry="block6")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = estimate(job, beam_options([], num_workers=2))
    assert not [*tmp_path.iterdir()]  # where Beam makes a folder for each pipeline
    assert found.dollars is None
    assert found.inputs.volumes == 4
    assert found.hours == pytest.approx(4 / found.volumes_an_hour)
    assert found.bytes_out >= 4 * math.prod(BLOCK6.size)
    assert found.graph.bytes < 10**6
    assert {"Discover", "Pack", "Commit"} <= set(found.graph.steps)
    assert found.content_share == found.content_share_block6 > 0.8
    assert not (tmp_path / "d").exists()


def test_a_fleet_costs_by_its_hours_not_by_its_size(cohort: Path) -> None:
    words = ["--runner=DataflowRunner", "--project=proj-123456", "--region=us-central1", "--temp_location=gs://b-1/t"]
    few, many = (
        Fleet(runner="DataflowRunner", workers=workers, threads=4, machine=machine("n2-standard-4"), disk_gib=25)
        for workers in (1, 100)
    )
    assert few.hourly(Prices()) == many.hourly(Prices())
    with pytest.raises(JobOptionError, match="SOURCE"):
        estimate(make_job(str(cohort), "gs://b-1/d"), PipelineOptions(words))


def test_a_source_without_volumes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/notes.txt").write_text("nothing")
    with pytest.raises(JobOptionError, match="no DICOM"):
        estimate(make_job(str(tmp_path / "s"), str(tmp_path / "d")), beam_options([], num_workers=1))
    assert Inputs(files=0, archives=0, bytes=0, other_files=1, by_protocol={}).volumes == 0
