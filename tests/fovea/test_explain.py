"""`fovea explain` as a user meets it: a table or JSON, a verdict, an exit code."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fovea.explain import command
from ingest.phantom.cohort import write_cohort
from ingest.phantom.plan import CohortSpec, parse_devices


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cohort") / "c"
    spec = CohortSpec(
        participants=1, volumes_per_participant=1, devices=parse_devices(["maestro2"]), small=True, corrupt=0.0
    )
    write_cohort(root, spec, workers=1)
    return next(root.rglob("*.dcm"))


def run(*words: str) -> Any:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(words))


def test_a_good_file_is_explained_and_ends_with_0(file: Path) -> None:
    result = run(str(file), "--geometry", "methods")
    assert result.exit_code == 0
    assert result.stdout.rstrip().endswith("\naccepted")
    for words in ("transfer syntax", "frame structure", "methods: 64 x 384 x 384 voxels", "not reached"):
        assert words in " ".join(result.stdout.split()), words


def test_a_bad_file_ends_with_1_and_says_what_to_do(file: Path, tmp_path: Path) -> None:
    cut = tmp_path / file.name
    cut.write_bytes(file.read_bytes()[:-1000])
    result = run(str(cut), "--json")
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert said["accepted"] is False
    assert said["reason"] == "TRUNCATED_DATASET"
    assert {one["outcome"] for one in said["findings"]} == {"ok", "not reached", "TRUNCATED_DATASET"}
    text = run(str(cut)).stdout
    assert "not accepted: TRUNCATED_DATASET: the file ends" in text


def test_a_name_cannot_draw_on_the_terminal(file: Path, tmp_path: Path) -> None:
    evil = tmp_path / "=1+1[red]\x1b[2J.dcm"
    evil.write_bytes(b"")
    result = run(str(evil))
    assert result.exit_code == 1
    assert "=1+1[red]\\x1b[2J.dcm" in result.stdout
    assert "EMPTY_FILE" in result.stdout


def test_no_such_file_is_one_sentence_and_2(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "fovea", "explain", str(tmp_path / "none.dcm")]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "does not exist" in result.stderr
    assert "Traceback" not in result.stderr
