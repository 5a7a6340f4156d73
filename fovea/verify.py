"""`fovea verify`: is every byte of a dataset as it was committed?"""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from beam_jobs.repair import Repaired
    from shards.schema import ShardRow
    from shards.verify import VerifyReport


def command(
    dataset: Annotated[str, typer.Argument(help="Path or URL of a dataset that `fovea ingest` made.")],
    source: Annotated[
        str | None, typer.Argument(help="With --repair: the cohort that the dataset was made of.")
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Make again what is damaged, and only that.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the machine-readable result.")] = False,
) -> None:
    """Hash a dataset again, from _SUCCESS down to every sample, and compare with what was committed.

    Exits with 0 only if every byte is as committed (after --repair: is so again), 1 if not, 2 if there is no dataset.

    Example: fovea verify out/dataset; fovea verify out/dataset cohort/ --repair
    """
    from fovea.console import is_terminal
    from shards.verify import verify

    if repair:
        _repair(dataset, source, json=json)
        return
    if source is not None:
        raise typer.BadParameter("SOURCE is for --repair; without it only DATASET is read.")
    report = verify(dataset, on_shard=_Progress() if is_terminal() else None)
    _print(report, dataset, json=json)
    if report.problems:
        raise typer.Exit(1)


class _Progress:
    """Rewrites one line of the terminal after each shard."""

    def __init__(self) -> None:
        self._num_shards = 0
        self._bytes = 0

    def __call__(self, row: "ShardRow") -> None:
        self._num_shards += 1
        self._bytes += row.bytes
        sys.stderr.write(f"\r\x1b[K{self._num_shards} shards, {self._bytes / 1e6:.0f} MB, {row.shard}")
        sys.stderr.flush()


def _print(report: "VerifyReport", dataset: str, *, json: bool) -> None:
    import dataclasses

    from fovea.console import is_terminal, print_json, say

    if is_terminal():
        sys.stderr.write("\r\x1b[K")
    if json:
        print_json({"dataset": dataset, "ok": not report.problems, **dataclasses.asdict(report)})
        return
    for problem in report.problems:
        say(f"{problem.file}: {problem.what}")
    looked_at = f"{report.num_shards} shards, {report.num_samples} samples, {report.bytes / 1e6:.1f} MB"
    verdict = f"{len(report.problems)} problems" if report.problems else "every byte is as committed"
    say(f"{dataset}: {looked_at}: {verdict}")


def _repair(dataset: str, source: str | None, *, json: bool) -> None:
    import dataclasses

    from beam_jobs.repair import repair
    from fovea.console import is_terminal, print_json

    done = repair(dataset, source, on_shard=_Progress() if is_terminal() else None)
    if is_terminal():
        sys.stderr.write("\r\x1b[K")
    if json:
        print_json({"dataset": dataset, "ok": not done.left, **dataclasses.asdict(done)})
    else:
        _tell(done, dataset)
    if done.left:
        raise typer.Exit(1)


def _tell(done: "Repaired", dataset: str) -> None:
    from fovea.console import say

    for name in done.made_again:
        say(f"{name}: made again, as it was committed")
    for name in done.removed:
        say(f"{name}: removed, it was no part of the dataset")
    for problem in done.left:
        say(f"{problem.file}: {problem.what}")
    if done.left:
        say(f"{dataset}: {len(done.left)} problems are left")
    elif done.made_again or done.removed:
        say(f"{dataset}: every byte is as committed again")
    else:
        say(f"{dataset}: nothing to repair; every byte is as committed")
