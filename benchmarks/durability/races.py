"""Every bundle done twice, and two jobs on one DATASET."""

import argparse
import random
import time
from pathlib import Path

from reliability.report import Promise, table, verdict

from durability.cohorts import digest, fresh, make_cohort
from durability.jobs import Setting, finish, run, settings, start
from shards.verify import verify

ONE: Setting = Setting(name="in memory")
TWICE: Setting = Setting(name="every bundle twice", environment={"SOAK_TWICE": "1"})


def run_target(options: argparse.Namespace) -> int:
    """One job of which all is done twice, and `count` races of two jobs."""
    folder = fresh("races")
    source = make_cohort(folder / "cohort")
    run(str(source), str(folder / "alone"), ONE)
    wanted = digest(folder / "alone")
    run(str(source), str(folder / "twice"), TWICE)
    generator = random.Random(options.seed)
    races = [_race(source, folder / f"race-{number}", generator.uniform(0, 1.5)) for number in range(options.count)]
    print(table(("race", "first job", "second job"), [(number, *ends) for number, (ends, _) in enumerate(races)]))
    equal = sum(hashes == wanted for _, hashes in races)
    ended = sum(ends.count("0") for ends, _ in races)
    whole = sum(not verify(str(folder / f"race-{number}")).problems for number in range(options.count))
    text, status = verdict(
        [
            Promise(
                text="every bundle done twice: the same bytes",
                found="equal" if digest(folder / "twice") == wanted else "different",
                kept=digest(folder / "twice") == wanted,
            ),
            Promise(text=f"{options.count} races: one valid dataset", found=str(whole), kept=whole == options.count),
            Promise(text="of the same bytes", found=str(equal), kept=equal == options.count),
            Promise(
                text="jobs that ended well", found=f"{ended} of {2 * options.count}", kept=ended == 2 * options.count
            ),
        ]
    )
    print(text)
    return status


def _race(source: Path, dataset: Path, head_start_s: float) -> tuple[tuple[str, str], dict[str, str]]:
    """Two jobs, the second a moment later; how each ended, and the bytes of what they made."""
    first, second = settings(2, seed=int(1000 * head_start_s))
    one = start(str(source), str(dataset), first)
    time.sleep(head_start_s)
    other = start(str(source), str(dataset), second)
    ends = [finish(job) for job in (one, other)]
    return tuple("0" if not status else f"{status}: {line}" for status, line in ends), digest(dataset)  # type: ignore[return-value]
