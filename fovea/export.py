"""`fovea export`: an encoder that others can use without fovea."""

from pathlib import Path
from typing import Annotated

import typer

from fovea.embed import Choice, Which
from fovea.places import on_this_machine


def command(
    *,
    run: Annotated[Path, typer.Option(help="Run folder of `fovea pretrain`, or one of its checkpoints.")],
    out: Annotated[Path, typer.Option(help="A new folder for it.", callback=on_this_machine)],
    checkpoint: Annotated[
        Choice, typer.Option(help="Of a run folder: the newest, or the best by a probe (`fovea pretrain --labels`).")
    ] = Choice.newest,
    which: Annotated[Which, typer.Option(help="The EMA target, or the context encoder.")] = Which.target,
    json: Annotated[bool, typer.Option("--json", help="Print the machine-readable result.")] = False,
) -> None:
    """Write an encoder's weights, its configuration, and the code that runs it with torch alone.

    Example: fovea export --run out/run --out out/encoder
    """
    from fovea.console import print_json, say
    from fovea.version import __version__
    from train.export import export

    config = export(run, out, which=which.value, choice=checkpoint.value, version=__version__)
    if json:
        print_json({"out": str(out), **config})
    else:
        say(f"{out}: the {which} encoder of step {config['step']}; {out / 'README.md'} shows how to use it")
