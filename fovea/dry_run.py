"""What `fovea ingest --dry-run` prints."""

from typing import Any


def report_estimate(job: Any, options: Any, prices: str | None, *, as_json: bool) -> None:
    """Reckon and print; nothing is written to DATASET."""
    from beam_jobs.estimate import Prices, estimate
    from fovea.console import print_json, say

    found = estimate(job, options, Prices.load(prices))
    if as_json:
        print_json(found.describe())
        return
    for line in _lines(found):
        say(line)


def _lines(found: Any) -> list[str]:
    inputs, fleet, graph = found.inputs, found.fleet, found.graph
    where = f"{fleet.workers} x {fleet.machine.name}" if fleet.machine else "this machine"
    cost = "no bill that fovea knows of" if found.dollars is None else f"about {found.dollars:.2f} US dollars"
    name, share, other = found.geometry.name, found.content_share, found.content_share_block6
    steps = f"{len(graph.steps)} steps: {', '.join(graph.steps)}"
    size = f"{inputs.files} files, archives {inputs.archives}, {inputs.bytes / 1e9:.2f} GB"
    rate = f"{fleet.threads} volumes at a time on each: about {found.volumes_an_hour:.0f} volumes/hour"
    hours = f"{found.worker_hours:.2f} worker hours, {found.hours:.2f} hours in all"
    return [
        f"Nothing was written and nothing was sent. {fleet.runner}, {steps}.",
        f"Job graph: {graph.bytes / 1e6:.2f} MB (Dataflow's limit is 20 MB).",
        f"Inputs: {size}; about {inputs.volumes} volumes; {inputs.other_files} other files.",
        f"Fleet: {where}, {rate}.",
        f"Time: about {hours}, if every volume is of full size.",
        f"Out: up to {found.bytes_out / 1e9:.2f} GB. Cost: {cost}.",
        f"{name}: {share:.0%} of the voxels will be content (block6: {other:.0%}).",
    ]
