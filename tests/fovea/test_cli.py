"""The command as a user meets it: help, exit codes, one sentence and no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fovea.cli import COMMANDS


def fovea(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fovea", *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


def modules_after(code: str) -> set[str]:
    words = [sys.executable, "-c", f"{code}\nimport sys; print('\\n'.join(sys.modules))"]
    return set(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    result = fovea("--help")
    assert result.returncode == 0
    assert all(name in result.stdout for name in COMMANDS)
    loaded = modules_after("from fovea.cli import build_app; build_app()")
    assert not loaded & {"torch", "apache_beam", "pandas", "pydicom", "numpy", "matplotlib", "sklearn"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = fovea(name, "--help", COLUMNS="200")
    assert result.returncode == 0
    assert f"Example: fovea {name}" in result.stdout


def test_ingest_never_imports_torch() -> None:
    loaded = modules_after("import beam_jobs.launch, beam_jobs.transforms, beam_jobs.commit, fovea.ingest")
    assert "apache_beam" in loaded
    assert not loaded & {"torch", "webdataset", "sklearn"}


def test_version() -> None:
    assert fovea("--version").stdout.startswith("fovea 0.")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["ingest", "{tmp}/nowhere", "{tmp}/d"], 2, "not a folder"),
        (["ingest", "{tmp}", "{tmp}-d"], 2, "no DICOM"),
        (["ingest", "{tmp}", "{tmp}-d", "--geometry", "blok6"], 2, "block6"),
        (["ingest", "{tmp}", "{tmp}-d", "--devices", "nikon"], 2, "nikon"),
        (["ingest", "{tmp}", "{tmp}-d", "--labels", "{tmp}/none.tsv"], 2, "none.tsv"),
        (["verify", "{tmp}/nowhere"], 2, "nowhere"),
        (["verify", "{tmp}"], 1, "_SUCCESS"),
        (["pretrain", "--recipe", "nothing", "--data", "{tmp}", "--out", "{tmp}/r"], 2, "cpu-small"),
        (["pretrain", "--recipe", "smoke", "--data", "{tmp}", "--out", "{tmp}/r"], 1, "_SUCCESS"),
        (
            ["pretrain", "--recipe", "smoke", "--data", "{tmp}", "--out", "{tmp}/r", "--set", "train.max_step=3"],
            2,
            "max_steps",
        ),
        (["demo", "--out", "{tmp}"], 2, "no demo wrote"),
    ],
)
def test_bad_input_is_one_sentence_and_an_exit_code(tmp_path: Path, words: list[str], code: int, says: str) -> None:
    (tmp_path / "readme.txt").write_text("no DICOM here")
    result = fovea(*(word.format(tmp=tmp_path) for word in words))
    assert result.returncode == code, result.stderr
    assert says in result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.rglob("_SUCCESS"))
    assert not (tmp_path / "r").exists()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = fovea("ingest", str(tmp_path / "nowhere"), str(tmp_path / "d"), "--debug")
    assert result.returncode != 0
    assert "Traceback" in result.stderr


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['fovea', 'pretrain', '--recipe', 'smoke', '--data', 'x',"
    )
    code += f" '--out', {str(tmp_path / 'r')!r}]; from fovea.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "fovea-oct[train]" in result.stderr
    assert "Traceback" not in result.stderr


def test_training_never_parses_dicom() -> None:
    """PREDECESSOR 4: DICOM was parsed in each step, about 30 hours an epoch."""
    loaded = modules_after("import train.loop, train.feed, shards.loader, eval.embed, fovea.pretrain")
    assert "torch" in loaded
    assert not loaded & {"pydicom", "imagecodecs", "SimpleITK", "apache_beam"}
