"""`fovea ingest`: DICOMs in, shards out."""

from dataclasses import replace
from typing import Annotated, Any

import typer

CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def command(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="Folder, gs:// or s3:// URL that holds the cohort.")],
    dataset: Annotated[str, typer.Argument(help="Where the dataset goes: a new folder or URL.")],
    geometry: Annotated[str, typer.Option(help="methods, block6, fit, or a YAML file.")] = "methods",
    labels: Annotated[str | None, typer.Option(help="participants.tsv; by default the one in SOURCE.")] = None,
    devices: Annotated[list[str] | None, typer.Option(help="Only these, e.g. triton,cirrus.")] = None,
    participant_metadata: Annotated[bool, typer.Option(help="Write site, group and age into samples.")] = True,
    shard_mb: Annotated[int, typer.Option(min=1, help="Target size of a shard in MiB.")] = 256,
    retry_rejected: Annotated[
        bool, typer.Option("--retry-rejected", help="Redo inputs that were missing, unreadable, or met a defect.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Turn a cohort of OCT DICOMs into verified shards with manifests; every input gets a row.

    Any option of Apache Beam is passed on; without --runner all cores of this machine are used.

    Example: fovea ingest cohort/ dataset/ --geometry block6 --direct_num_workers=4
    """
    from beam_jobs.launch import run_ingest
    from beam_jobs.options import beam_options, make_job
    from fovea.console import is_terminal, print_json
    from fovea.stop import stoppable

    job = make_job(
        source,
        dataset,
        geometry=geometry,
        labels=labels,
        devices=devices or [],
        participant_metadata=participant_metadata,
    )
    job = replace(job, target_shard_bytes=shard_mb * 2**20)
    progress = is_terminal() and not as_json
    options = beam_options(context.args)
    with stoppable(f"{dataset} is not finished; run the same command again to go on."):
        result = run_ingest(job, options, progress=progress, retry_rejected=retry_rejected)
    if as_json:
        print_json(_summary(result, retry_rejected))
    else:
        _report(dataset, result, retry_rejected)
    if not result.dataset["counts"]["samples"] and not (retry_rejected and result.already_complete):
        raise NothingAcceptedError(dataset)


class NothingAcceptedError(Exception):
    """A job that ended well and accepted nothing."""

    exit_code = 1

    def __init__(self, dataset: str) -> None:
        super().__init__(f"no file was accepted: {dataset}/manifests/rejected.csv says why, file by file.")


def _summary(result: Any, retry_rejected: bool) -> dict[str, Any]:
    summary = {"dataset": result.dataset, "counters": result.counters, "seconds": result.seconds}
    return summary | {"retried": result.retryable} if retry_rejected else summary


def _report(dataset: str, result: Any, retry_rejected: bool) -> None:
    from fovea.console import print_table, say

    counts = result.dataset["counts"]
    if line := _first_line(dataset, result, retry_rejected):
        say(line)
    outcome = ("accepted", "rejected", "duplicate", "excluded")
    print_table("Input files", ["files in", *outcome], [[counts["inputs"], *(counts[name] for name in outcome)]])
    if counts["by_reason"]:
        print_table("Reasons", ["reason", "files"], list(counts["by_reason"].items()))
    if counts["samples"]:
        say(f"{counts['samples']} samples in {counts['shards']} shards; {result.content_line}")
    if not result.already_complete:
        megabytes = result.counters.get("bytes_written", 0) / 1e6
        say(f"{result.seconds:.1f} s, {megabytes:.0f} MB written, {result.run['workers']} workers.")
    say(f"Next: fovea verify {dataset}; fovea audit {dataset}")


def _first_line(dataset: str, result: Any, retry_rejected: bool) -> str | None:
    """What became of a dataset that was complete before; None of a new one."""
    if retry_rejected and result.already_complete:
        return f"{dataset}: nothing to retry; no input has a reason that may pass."
    if result.already_complete:
        hint = f" ({result.retryable} inputs may be retried: --retry-rejected)" if result.retryable else ""
        return f"{dataset} is complete already, and SOURCE has not changed: nothing to do{hint}."
    if result.earlier:
        before, now = (info["counts"]["samples"] for info in (result.earlier, result.dataset))
        return f"{dataset}: {result.retryable} inputs retried; {before} samples before, {now} now."
    return None
