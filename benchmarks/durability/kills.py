"""SIGKILL at random moments of an ingest, then the same command again."""

import argparse
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from reliability.report import Promise, none_of, table, verdict

from durability.cohorts import digest, fresh, make_cohort
from durability.jobs import Setting, finish, kill, run, start
from shards.errors import ShardError
from shards.reader import open_dataset

ONE: Setting = Setting(name="in memory")
TWO: Setting = Setting(name="2 processes", options=("--direct_num_workers=2",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """One job that was killed: when, how far it had come, and what came of the second."""

    setting: str
    stage: str
    opened_early: bool
    equal: bool


def run_target(options: argparse.Namespace) -> int:
    """`count` kills, at moments spread over the time that a job takes."""
    folder = fresh("kills")
    source = make_cohort(folder / "cohort", participants=1)
    seconds = {setting.name: _undisturbed(source, folder / setting.name, setting) for setting in (ONE, TWO)}
    wanted = digest(folder / ONE.name)
    moments = list(_moments(options.count, options.seed, seconds))
    with ThreadPoolExecutor(options.processes) as pool:
        found = list(pool.map(lambda one: _kill_once(source, folder, wanted, *one), enumerate(moments)))
    return _report(found)


def _undisturbed(source: Path, dataset: Path, setting: Setting) -> float:
    """Seconds from when a job claims DATASET to its end."""
    job = start(str(source), str(dataset), setting)
    _wait_for(dataset, job)
    started = time.monotonic()
    finish(job)
    return time.monotonic() - started


def _wait_for(dataset: Path, job: subprocess.Popen[bytes]) -> None:
    while not dataset.exists() and job.poll() is None:
        time.sleep(0.002)


def _moments(count: int, seed: int, seconds: dict[str, float]) -> Iterator[tuple[Setting, float]]:
    """Seconds after a job claimed DATASET; before that nothing can happen. One in four has workers of its own."""
    generator = random.Random(seed)
    for number in range(count):
        setting = TWO if number % 4 == 3 else ONE
        yield setting, generator.uniform(0.0, 1.02) * seconds[setting.name]


def _kill_once(
    source: Path, folder: Path, wanted: dict[str, str], number: int, moment: tuple[Setting, float]
) -> Killed:
    setting, after_s = moment
    dataset = folder / f"run-{number:03d}"
    job = start(str(source), str(dataset), setting)
    _wait_for(dataset, job)
    opened_early = _watch(dataset, after_s)
    kill(job)
    stage = _stage(dataset)
    run(str(source), str(dataset), setting)
    return Killed(setting=setting.name, stage=stage, opened_early=opened_early, equal=digest(dataset) == wanted)


def _watch(dataset: Path, after_s: float) -> bool:
    """Wait until it is time, as a reader who tries all the while: no dataset may open before `_SUCCESS` is there."""
    early, until = False, time.monotonic() + after_s
    while time.monotonic() < until:
        early |= _opens(dataset) and not (dataset / "_SUCCESS").exists()
        time.sleep(0.01)
    return early


def _opens(dataset: Path) -> bool:
    try:
        open_dataset(dataset)
    except ShardError:
        return False
    return True


def _stage(dataset: Path) -> str:
    """How far a job had come when it was killed."""
    if (dataset / "_SUCCESS").exists():
        return "after _SUCCESS"
    if (dataset / "manifests").exists():
        return "in the commit"
    if any(dataset.glob("shards/*.tar")):
        return "between shards"
    return "before the first shard"


def _report(found: Sequence[Killed]) -> int:
    stages = Counter((one.setting, one.stage) for one in found)
    print(table(("runner", "killed", "jobs"), [(*key, count) for key, count in sorted(stages.items())]))
    equal = sum(one.equal for one in found)
    text, status = verdict(
        [
            Promise(
                text="the second job's bytes are those of an undisturbed one",
                found=str(equal),
                kept=equal == len(found),
            ),
            none_of("a reader accepted the dataset before `_SUCCESS`", sum(one.opened_early for one in found)),
        ]
    )
    print(text)
    return status
