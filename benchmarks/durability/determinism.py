"""The same input, whatever the runner, the workers, the order of the listing and the hash seed: the same bytes."""

import argparse
from pathlib import Path

from reliability.report import Promise, table, verdict

from durability.cohorts import digest, fresh, make_cohort
from durability.jobs import Setting, run, settings


def run_target(options: argparse.Namespace) -> int:
    """One job for each setting; prints who differed."""
    folder = fresh("determinism")
    source = make_cohort(folder / "cohort")
    found = {number: _hashes(source, folder, one) for number, one in enumerate(settings(options.count, options.seed))}
    names = [one.name for one in settings(options.count, options.seed)]
    first = found[0]
    different = [number for number, hashes in found.items() if hashes != first]
    print(table(("runner", "jobs"), [(name, names.count(name)) for name in dict.fromkeys(names)]))
    shards = sum(name.startswith("shards/") for name in first)
    text, status = verdict(
        [
            Promise(
                text=f"{len(found)} datasets of equal bytes",
                found=f"{len(found) - len(different)} equal: {len(first)} files, {shards} of them shards",
                kept=not different and shards > 1,
            )
        ]
    )
    print(text)
    return status


def _hashes(source: Path, folder: Path, setting: Setting) -> dict[str, str]:
    dataset = folder / "dataset"
    fresh("determinism/dataset").rmdir()
    run(str(source), str(dataset), setting)
    return digest(dataset)
