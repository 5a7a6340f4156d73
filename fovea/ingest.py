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
    append: Annotated[
        bool, typer.Option("--append", help="Take files in that DATASET lacks, as new shards; what is there stays.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list, translate and reckon: time, workers, bytes, cost.")
    ] = False,
    prices: Annotated[str | None, typer.Option(help="YAML file of prices for --dry-run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Turn a cohort of OCT DICOMs into verified shards with manifests; every input gets a row.

    Any option of Apache Beam is passed on; without --runner all cores of this machine are used.

    Example: fovea ingest cohort/ dataset/ --geometry block6 --direct_num_workers=4
    """
    from beam_jobs.launch import run_ingest
    from beam_jobs.options import beam_options, make_job
    from fovea.console import is_terminal, print_json
    from fovea.dry_run import report_estimate
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
    if dry_run:
        report_estimate(job, beam_options(context.args), prices, as_json=as_json)
        return
    progress = is_terminal() and not as_json
    options = beam_options(context.args)
    with stoppable(f"{dataset} is not finished; run the same command again to go on."):
        result = run_ingest(job, options, progress=progress, retry_rejected=retry_rejected, append=append)
    if as_json:
        print_json(_summary(result, retry_rejected, append))
    else:
        _report(dataset, result, retry_rejected, append)
    if not result.dataset["counts"]["samples"] and not ((retry_rejected or append) and result.already_complete):
        raise NothingAcceptedError(dataset)


class NothingAcceptedError(Exception):
    """A job that ended well and accepted nothing."""

    exit_code = 1

    def __init__(self, dataset: str) -> None:
        super().__init__(f"no file was accepted: {dataset}/manifests/rejected.csv says why, file by file.")


def _summary(result: Any, retry_rejected: bool, append: bool) -> dict[str, Any]:
    from beam_jobs.summary import summarise

    summary = {"dataset": result.dataset, "counters": result.counters, "seconds": result.seconds}
    summary["summary"] = summarise(result.measured, result.seconds).to_json()
    if append:
        return summary | {"appended": _appended(result)}
    return summary | {"retried": result.retryable} if retry_rejected else summary


def _appended(result: Any) -> dict[str, int]:
    """What this run took in: inputs, samples, and files that are in conflict with what stays."""
    if result.already_complete:
        return {"inputs": 0, "samples": 0, "conflicts": 0}
    last = result.dataset["appended"][-1]
    before, now = (
        info["counts"]["by_reason"].get("DUP_SOP_UID_CONFLICT", 0) for info in (result.earlier, result.dataset)
    )
    return {"inputs": last["inputs"], "samples": last["samples"], "conflicts": now - before}


def _report(dataset: str, result: Any, retry_rejected: bool, append: bool) -> None:
    from fovea.console import print_table, say

    counts = result.dataset["counts"]
    if line := _first_line(dataset, result, retry_rejected, append):
        say(line)
    outcome = ("accepted", "rejected", "duplicate", "excluded")
    print_table("Input files", ["files in", *outcome], [[counts["inputs"], *(counts[name] for name in outcome)]])
    if counts["by_reason"] and result.already_complete:
        print_table("Reasons", ["reason", "files"], list(counts["by_reason"].items()))
    if counts["samples"]:
        say(f"{counts['samples']} samples in {counts['shards']} shards; {result.content_line}")
    if not result.already_complete:
        _report_run(result)
    say(f"Next: fovea verify {dataset}; fovea audit {dataset}")


def _report_run(result: Any) -> None:
    """What was rejected where, how fast it went, where the time went, and which files were slow."""
    from beam_jobs.summary import summarise
    from fovea.console import print_table, say

    summary = summarise(result.measured, result.seconds)
    rate = summary.rate
    if summary.rejected:
        rows = [(row.reason, row.device, row.files) for row in summary.rejected]
        print_table("Not accepted", ["reason", "device", "files"], rows)
    stages = [
        (row.stage, f"{row.seconds:.1f}", f"{row.share:.0%}", row.number, f"{row.mean_ms:.0f}", row.max_ms)
        for row in summary.stages
    ]
    print_table("Workers' time", ["stage", "seconds", "share", "times", "ms each", "ms most"], stages)
    if summary.slowest:
        slow = [
            (file.row, sum(file.milliseconds.values()), ", ".join(f"{k} {v}" for k, v in file.milliseconds.items()))
            for file in summary.slowest
        ]
        print_table("Slowest files", ["row of sources.csv", "ms", "of them"], slow)
    megabytes = result.counters.get("bytes_written", 0) / 1e6
    say(
        f"{result.seconds:.1f} s, {megabytes:.0f} MB written; {rate.volumes_per_s:.2f} volumes/s and "
        f"{rate.megabytes_per_s:.1f} MB/s read; {rate.busy_workers:.1f} workers busy on average, "
        f"{rate.volumes_per_worker_s:.2f} volumes/s and {rate.megabytes_per_worker_s:.1f} MB/s each."
    )


def _first_line(dataset: str, result: Any, retry_rejected: bool, append: bool) -> str | None:
    """What became of a dataset that was complete before; None of a new one."""
    if append:
        return _append_line(dataset, result)
    if retry_rejected and result.already_complete:
        return f"{dataset}: nothing to retry; no input has a reason that may pass."
    if result.already_complete:
        hint = f" ({result.retryable} inputs may be retried: --retry-rejected)" if result.retryable else ""
        return f"{dataset} is complete already, and SOURCE has not changed: nothing to do{hint}."
    if result.earlier:
        before, now = (info["counts"]["samples"] for info in (result.earlier, result.dataset))
        return f"{dataset}: {result.retryable} inputs retried; {before} samples before, {now} now."
    return None


def _append_line(dataset: str, result: Any) -> str:
    if result.already_complete:
        return f"{dataset}: nothing to append; SOURCE has no file that it lacks."
    done = _appended(result)
    line = f"{dataset}: {done['inputs']} inputs appended with {done['samples']} samples; what was there is as it was."
    if not done["conflicts"]:
        return line
    return f"{line} {done['conflicts']} new files have the SOP Instance UID of another and other bytes: not taken."
