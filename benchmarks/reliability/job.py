"""Whole ingest jobs over damaged trees: every input must end as exactly one row."""

import argparse
import csv
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ingest.source import discover
from reliability.mutation import mutation
from reliability.report import OUT, Promise, counted, none_of, verdict

GEOMETRY = "target_spacing_mm: [0.2, 0.08, 0.08]\nsize: [16, 64, 64]\n"
"""A small grid: what is tried here is the accounting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """What went in, and the rows that came out."""

    inputs: Counter[str]
    rows: tuple[dict[str, str], ...]
    seconds: float

    @property
    def reasons(self) -> Counter[str]:
        return Counter(row["reason"] or row["status"] for row in self.rows)

    def promises(self) -> Iterator[Promise]:
        found = Counter(row["path"] for row in self.rows)
        text = f"{len(self.rows)} rows for {self.inputs.total()} inputs"
        yield Promise(text="exactly one row each", found=text, kept=found == self.inputs)
        yield none_of("UNKNOWN_ERROR", self.reasons["UNKNOWN_ERROR"])
        statuses = Counter(row["status"] for row in self.rows)
        kept = all((row["status"] == "accepted") != bool(row["reason"]) for row in self.rows)
        text = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
        yield Promise(text="a reason exactly where a file is not accepted", found=text, kept=kept)

    def print(self) -> int:
        """Counts by outcome and the promises; returns the exit status."""
        print(counted("outcome", self.reasons))
        text, status = verdict(self.promises())
        print(text)
        ended = sum("ended with" in row["detail"] or "ran out of its time" in row["detail"] for row in self.rows)
        print(f"Deaths of a guarded process, each one row: {ended}. The job took {self.seconds:.0f} s.\n")
        return status


def ingest_tree(source: Path, name: str, processes: int) -> Accounts:
    """Run the whole job on a folder; a job that fails raises.

    The inputs are what discovery finds, and members of archives, and nothing that the job says itself.
    """
    from beam_jobs.launch import run_ingest  # takes seconds to import, which no process of another target needs
    from beam_jobs.options import beam_options, make_job

    scratch = OUT / name
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    (scratch / "small.yaml").write_text(GEOMETRY, encoding="utf-8")
    found = discover(str(source))
    inputs = Counter([entry.path for entry in found.entries] + [settled.path for settled in found.settled])
    started = time.perf_counter()
    job = make_job(str(source), str(scratch / "dataset"), geometry=str(scratch / "small.yaml"))
    run_ingest(job, beam_options([], num_workers=processes))
    seconds = time.perf_counter() - started
    with (scratch / "dataset/manifests/sources.csv").open(newline="", encoding="utf-8") as file:
        return Accounts(inputs=inputs, rows=tuple(csv.DictReader(file)), seconds=seconds)


def write_tree(root: Path, count: int, campaign: int) -> None:
    """The first mutations, each under a SOP Instance UID of its own, where the cohort has its files."""
    shutil.rmtree(root, ignore_errors=True)
    for number in range(count):
        found = mutation(number, campaign, fresh=True)
        path = root / found.seed.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(found.data)


def run(options: argparse.Namespace) -> int:
    """Mutations through the whole job."""
    root = OUT / "tree"
    write_tree(root, options.count, options.seed)
    accounts = ingest_tree(root, "job", options.processes)
    print(f"{options.count} mutations, campaign {options.seed}, through one job of {options.processes} processes.\n")
    status = accounts.print()
    if accounts.inputs.total() != options.count:
        print(f"The tree has {accounts.inputs.total()} inputs, not {options.count}.")
        return 1
    return status
