"""`fovea verify`: is every byte of a dataset as it was committed?"""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from shards.schema import ShardRow
    from shards.verify import VerifyReport


def command(
    dataset: Annotated[str, typer.Argument(help="Path or URL of a dataset that `fovea ingest` made.")],
    json: Annotated[bool, typer.Option("--json", help="Print the machine-readable result.")] = False,
) -> None:
    """Hash a dataset again, from _SUCCESS down to every sample, and compare with what was committed.

    Exits with 0 only if every byte is as committed, 1 if not, 2 if there is no dataset.

    Example: fovea verify out/dataset
    """
    from fovea.console import is_terminal
    from shards.verify import verify

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
