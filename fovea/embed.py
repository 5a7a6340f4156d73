"""`fovea embed`: a vector for every volume of a dataset."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fovea.places import on_this_machine


class Which(StrEnum):
    """The two encoders of a checkpoint."""

    target = "target"
    context = "context"


class Choice(StrEnum):
    """The two checkpoints of a run that have a name."""

    newest = "newest"
    best = "best"


def command(
    *,
    run: Annotated[Path, typer.Option(help="Run folder of `fovea pretrain`, or one of its checkpoints.")],
    data: Annotated[str, typer.Option(help="Path or URL of a dataset that `fovea ingest` made.")],
    out: Annotated[Path, typer.Option(help="Where to write the zarr store.", callback=on_this_machine)],
    checkpoint: Annotated[
        Choice, typer.Option(help="Of a run folder: the newest, or the best by a probe (`fovea pretrain --labels`).")
    ] = Choice.newest,
    which: Annotated[Which, typer.Option(help="The EMA target, or the context encoder.")] = Which.target,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or xla.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace other embeddings at --out.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the machine-readable result.")] = False,
) -> None:
    """Run the frozen encoder over every volume, and write one vector each to a zarr store.

    Example: fovea embed --run out/run --data out/dataset --out out/embeddings.zarr
    """
    from eval.embed import EmbedJob, embed
    from fovea.console import is_terminal, print_json, say
    from fovea.version import __version__

    job = EmbedJob(
        run=run,
        dataset=data,
        out=out,
        choice=checkpoint.value,
        which=which.value,
        device=device,
        force=force,
        code_version=__version__,
    )
    embeddings = embed(job, progress=_progress if is_terminal() else None)
    num_volumes, dim = embeddings.features.shape
    if json:
        print_json({"out": str(out), "num_volumes": num_volumes, "dim": dim, **embeddings.attributes})
    else:
        step = embeddings.attributes["checkpoint_step"]
        say(f"{out}: {num_volumes} volumes as vectors of {dim} numbers, by the {which} encoder of step {step}")


def _progress(done: int, total: int) -> None:
    """Rewrite one line of the terminal."""
    sys.stderr.write(f"\r\x1b[K{done} of {total} volumes" + ("\n" if done == total else ""))
    sys.stderr.flush()
