"""`--append` of a tenth more files: what is there stays as it is, and the totals are right."""

import argparse
import json
import os
import shutil
from pathlib import Path

from reliability.report import Promise, table, verdict

from durability.cohorts import digest, fresh, make_cohort
from durability.jobs import Setting, run
from shards.reader import open_dataset
from shards.verify import verify

ONE: Setting = Setting(name="2 processes", options=("--direct_num_workers=2",))


def run_target(options: argparse.Namespace) -> int:
    """Nine tenths of a cohort's files, then the last tenth, in as many rounds as there are."""
    folder = fresh("growth")
    whole = make_cohort(folder / "cohort", participants=options.participants, volumes=10, corrupt=0.1)
    files = sorted(path for path in whole.rglob("*.dcm"))
    later, source = files[::10], folder / "source"
    shutil.copytree(whole, source, ignore=lambda where, names: [n for n in names if Path(where, n) in set(later)])
    dataset = folder / "dataset"
    run(str(source), str(dataset), ONE)
    before, shards = digest(dataset), _shards(dataset)
    for file in later:
        shutil.copyfile(file, source / file.relative_to(whole))
    run(str(source), str(dataset), ONE, "--append")
    run(str(whole), str(folder / "at-once"), ONE)
    return _report(dataset, folder / "at-once", before, shards)


def _shards(dataset: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in dataset.glob("shards/*.tar")}


def _report(dataset: Path, at_once: Path, before: dict[str, str], shards: dict[str, int]) -> int:
    after, now = digest(dataset), _shards(dataset)
    same = sum(after.get(f"shards/{name}") == before[f"shards/{name}"] and now[name] == shards[name] for name in shards)
    grown, once = (open_dataset(os.fspath(place)) for place in (dataset, at_once))
    counts, expected = (json.loads((place / "dataset.json").read_bytes())["counts"] for place in (dataset, at_once))
    rows = [(name, counts[name], expected[name]) for name in ("inputs", "accepted", "rejected", "duplicate", "samples")]
    print(table(("count", "grown", "in one job"), rows))
    equal = {row.key: row.sha256 for row in grown.samples} == {row.key: row.sha256 for row in once.samples}
    text, status = verdict(
        [
            Promise(
                text="shards that were there: same bytes, same mtime",
                found=f"{same} of {len(shards)}",
                kept=same == len(shards),
            ),
            Promise(text="new shards", found=str(len(now) - len(shards)), kept=len(now) > len(shards)),
            Promise(text="totals as in one job", found=str(counts["inputs"]), kept=all(a == b for _, a, b in rows)),
            Promise(text="the same samples as in one job", found="yes" if equal else "no", kept=equal),
            Promise(
                text="`fovea verify`",
                found="clean" if not verify(str(dataset)).problems else "problems",
                kept=not verify(str(dataset)).problems,
            ),
        ]
    )
    print(text)
    return status
