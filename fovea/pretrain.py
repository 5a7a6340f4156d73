"""`fovea pretrain`: a run folder from a recipe and a dataset."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fovea.places import on_this_machine


def command(
    values: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="The same as --set KEY=VALUE; W&B's agent gives a trial's so."),
    ] = None,
    *,
    recipe: Annotated[str, typer.Option(help="Name of a shipped recipe, or a .yaml file.")],
    data: Annotated[str, typer.Option(help="Path or URL of a dataset that `fovea ingest` made.")],
    out: Annotated[
        Path,
        typer.Option(help="Run folder: a new one, or the one of this recipe to resume.", callback=on_this_machine),
    ],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key of the recipe, e.g. train.max_steps=200.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON; progress goes to stderr.")] = False,
) -> None:
    """Train an encoder on a dataset, or resume the run in --out.

    As a trial of a W&B sweep its run folder is below --out, named as W&B's run is.

    Example: fovea pretrain --recipe cpu-small --data out/dataset --out out/run --set train.max_steps=200
    """
    from train.recipe import load_recipe

    chosen = load_recipe(recipe, [*(set_ or []), *(values or [])])

    from fovea.console import print_json, say
    from shards.reader import open_dataset
    from train.loop import pretrain
    from train.ranks import Ranks
    from train.recorder import Listener
    from train.tracking import trial

    out /= trial() or ""
    speak = _whisper if json else say
    summary = pretrain(chosen, open_dataset(data), out, Listener(row=Rows(chosen.train.max_steps, speak), say=speak))
    if not Ranks.from_environment().is_first:
        return
    if json:
        print_json({"out": str(out), **summary})
    else:
        _report(out, summary)


class Rows:
    """Shows rows: one line that is rewritten on a terminal, plain lines otherwise."""

    def __init__(self, max_steps: int, speak: Any) -> None:
        from fovea.console import is_terminal

        self._max_steps = max_steps
        self._speak = speak
        self._rewrite = is_terminal()

    def __call__(self, row: Mapping[str, Any]) -> None:
        line = _line(row, self._max_steps)
        if row["split"] == "val" or row["alarms"] or not self._rewrite:
            self._speak(("\r\x1b[K" if self._rewrite else "") + line)
        else:
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()


def _line(row: Mapping[str, Any], max_steps: int) -> str:
    """The numbers that matter, each beside what a constant prediction scores."""
    what = "validation" if row["split"] == "val" else "train"
    parts = [
        f"step {row['step']:>5}/{max_steps} {what:<10}",
        f"loss {_number(row['loss'], 4)} (constant {_number(row['loss_trivial'], 4)})",
        f"cosine {_number(row['cosine'], 3)} (constant {_number(row['cosine_trivial'], 3)})",
        f"spread {_number(row['feature_std'], 2)}",
        f"rank {_number(row['rankme'], 1)}",
    ]
    if row["split"] == "train":
        parts.append(f"{row['volumes_per_s']:.2f} volumes/s, {100 * row['data_wait']:.0f}% waiting for data")
    return "  ".join(parts + [f"ALARM: {alarm}" for alarm in row["alarms"]])


def _number(value: float | None, digits: int) -> str:
    return "not finite" if value is None else f"{value:.{digits}f}"


def _whisper(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")


def _report(out: Path, summary: Mapping[str, Any]) -> None:
    from fovea.console import say

    say(f"{summary['status']} after {summary['step']} steps, {summary['samples']} samples, {summary['seconds']:.0f} s.")
    if summary["validation"] != "none":
        first, last = summary["validation"]["first"], summary["validation"]["last"]
        say(f"validation loss {first['loss']:.4f} -> {last['loss']:.4f}, cosine {last['cosine']:.3f}")
    say(f"Pictures in {out / 'media'}, measures in {out / 'metrics.jsonl'}.")
