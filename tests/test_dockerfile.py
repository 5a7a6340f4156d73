"""The Dockerfile: no image can be built where the tests run, so its lines are read, and what can run is run."""

import re
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
LOCKS = {"worker": ROOT / "beam_jobs/worker.lock", "trainer": ROOT / "train/trainer.lock"}


@dataclass(kw_only=True)
class Stage:
    base: str
    lines: list[tuple[str, str]] = field(default_factory=list)

    def args(self, word: str) -> list[str]:
        return [rest for found, rest in self.lines if found == word]


def stages() -> dict[str, Stage]:
    """Stage -> its instructions; the file uses no continuation lines."""
    found: dict[str, Stage] = {}
    current = Stage(base="")
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            current = found[name] = Stage(base=base)
        elif word and not word.startswith("#"):
            assert word in {"RUN", "COPY", "WORKDIR", "ENTRYPOINT"}, line
            current.lines.append((word, rest))
    return found


def pins(lock: Path) -> dict[str, str]:
    names = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;]+)", lock.read_text(), re.MULTILINE)
    return {name.lower().replace("_", "-"): pinned for name, pinned in names}


def test_there_is_a_worker_and_a_trainer_each_from_its_own_lock() -> None:
    found = stages()
    for name, lock in LOCKS.items():
        runs = found[name].args("RUN")
        assert f"{lock.relative_to(ROOT)} {lock.name}" in found[name].args("COPY")
        assert runs[0].endswith(f"--require-hashes --requirement {lock.name}")
        assert "python -m pip check" in runs


def test_the_worker_starts_as_beam_s_own_image_does() -> None:
    found = stages()
    harness = re.fullmatch(r"apache/beam_python([\d.]+)_sdk:([\d.]+)", found["harness"].base)
    assert harness is not None
    assert harness[2] == pins(LOCKS["worker"])["apache-beam"] == version("apache-beam")
    assert found["worker"].base.startswith(f"python:{harness[1]}-")
    assert "--from=harness /opt/apache/beam /opt/apache/beam" in found["worker"].args("COPY")
    assert found["worker"].args("ENTRYPOINT") == ['["/opt/apache/beam/boot"]']


def test_every_copied_path_is_there_and_not_ignored() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for stage in stages().values():
        for words in (rest.split() for rest in stage.args("COPY")):
            for path in () if words[0].startswith("--from") else words[:-1]:
                assert (ROOT / path).exists(), path
                assert path.split("/")[0] in allowed, path


@pytest.mark.parametrize(("name", "extra"), [("worker", "ingest"), ("trainer", "tpu")])
def test_a_lock_satisfies_the_project(name: str, extra: str) -> None:
    import tomllib

    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = pins(LOCKS[name])
    for text in (*project["dependencies"], *project["optional-dependencies"][extra]):
        wanted = Requirement(text)
        assert wanted.specifier.contains(pinned[wanted.name.lower().replace("_", "-")]), text


@pytest.mark.parametrize("name", ["worker", "trainer"])
def test_every_pin_of_a_lock_has_a_hash_and_no_address(name: str) -> None:
    text = LOCKS[name].read_text()
    blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(pins(LOCKS[name])) > 60
    assert all("--hash=sha256:" in block for block in blocks)
    assert "://" not in text


def test_torch_of_the_trainer_is_the_one_that_torch_xla_fits() -> None:
    pinned = pins(LOCKS["trainer"])
    assert pinned["torch"] == pinned["torch-xla"] == "2.9.0"


@pytest.mark.slow
def test_the_wheel_s_lines_run_in_a_clean_environment(tmp_path: Path) -> None:
    """`pip wheel` builds from what COPY brings, and the wheel alone holds the command."""
    run_stage(stages()["wheel"], tmp_path / "build", clean_python(tmp_path))
    (wheel,) = (tmp_path / "build/dist").glob("fovea_oct-*.whl")
    python = clean_python(tmp_path / "other")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    listed = subprocess.run([python, "-m", "pip", "show", "--files", "fovea-oct"], capture_output=True, check=True)
    assert b"beam_jobs/worker.lock" in listed.stdout


def clean_python(folder: Path) -> str:
    venv.create(folder / "venv", with_pip=True)
    return str(folder / "venv/bin/python")


def run_stage(stage: Stage, folder: Path, python: str) -> None:
    """COPY and RUN of one stage, in a folder of its own in place of WORKDIR."""
    folder.mkdir(parents=True, exist_ok=True)
    for word, rest in stage.lines:
        if word == "COPY":
            *sources, target = rest.split()
            for source in [] if "--from" in rest else sources:
                copy(ROOT / source, folder / target, many=len(sources) > 1)
        elif word == "RUN":
            command = rest.replace("python ", f"{python} ", 1)
            subprocess.run(command, shell=True, cwd=folder, check=True)  # noqa: S602 - our own Dockerfile


def run_image(name: str, folder: Path) -> None:
    """Every COPY and RUN of an image but what comes from other images: downloads some GB (`make image-lines`)."""
    found, python = stages(), clean_python(folder)
    run_stage(found["wheel"], folder / "wheel", clean_python(folder / "builder"))
    shutil.copytree(folder / "wheel/dist", folder / name / "dist")
    run_stage(found[name], folder / name, python)


def copy(source: Path, target: Path, *, many: bool) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target / source.name if many else target)


def test_this_python_is_the_image_s() -> None:
    """Beam pickles code: the machine that submits and the workers must have one minor version."""
    assert stages()["worker"].base.startswith("python:3.11-")
    assert sys.version_info >= (3, 11)


if __name__ == "__main__":
    import tempfile

    for image in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as scratch:
            run_image(image, Path(scratch))
