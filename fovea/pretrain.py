"""`fovea pretrain`: a run folder from a recipe and a dataset."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fovea.places import on_this_machine

if TYPE_CHECKING:
    from shards.reader import Dataset
    from train.config import Recipe

PROBES: Final = ("label", "device", "laterality")


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
    labels: Annotated[
        str | None, typer.Option(help="participants.tsv, for a probe at each validation; nothing learns from it.")
    ] = None,
    allow_unmatched: Annotated[
        bool, typer.Option("--allow-unmatched", help="Go on although labels and volumes do not meet.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON; progress goes to stderr.")] = False,
) -> None:
    """Train an encoder on a dataset, or resume the run in --out.

    With --labels the checkpoint that scores best on them stays, too: `fovea embed --checkpoint best` takes it.
    As a trial of a W&B sweep its run folder is below --out, named as W&B's run is.

    Example: fovea pretrain --recipe cpu-small --data out/dataset --out out/run --set train.max_steps=200
    """
    from train.recipe import load_recipe

    chosen = load_recipe(recipe, [*(set_ or []), *(values or [])])

    from fovea.console import lasting, note, print_json, say
    from shards.reader import open_dataset
    from train.loop import pretrain
    from train.ranks import Ranks
    from train.recorder import Listener
    from train.tracking import trial

    out /= trial() or ""
    speak, dataset, is_first = lasting(note if json else say), open_dataset(data), Ranks.from_environment().is_first
    known = _join(labels, dataset, chosen, allow_unmatched, show=is_first and not json) if labels is not None else None
    listener = Listener(row=lasting(Rows(chosen.train.max_steps, speak)), say=speak)
    summary = pretrain(chosen, dataset, out, listener, labels=known)
    if not is_first:
        return
    if json:
        print_json({"out": str(out), **summary})
    else:
        _report(out, summary, speak)


def _join(labels: str, dataset: "Dataset", recipe: "Recipe", allow_unmatched: bool, *, show: bool) -> Mapping[str, str]:
    """The study group of each volume that the recipe's filters let pass, joined and audited as `fovea probe` does."""
    from fovea.labels import load_labels, print_join
    from manifests.cohort import STUDY_GROUPS, join_labels

    wanted = recipe.data
    volumes = dataset.select(devices=wanted.devices, protocols=wanted.protocols, regions=wanted.regions).samples
    if not volumes:
        return {}  # `pretrain` says so: the labels are not to blame
    chosen, scanned = ({row.participant_id for row in rows} for rows in (volumes, dataset.samples))
    people = load_labels(labels)
    asked = {person: row for person, row in people.items() if person in chosen or person not in scanned}
    join = join_labels(volumes, asked)  # whose scans the filters leave out is no gap in the labels
    if show:
        print_join(join.audit)
    join.audit.check(allow_unmatched)
    return {key: STUDY_GROUPS[label] for key, label in join.labels.items()}


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
    parts += [_probe(row, name) for name in PROBES if row.get(f"probe_{name}") is not None]
    return "  ".join(parts + [f"ALARM: {alarm}" for alarm in row["alarms"]])


def _probe(row: Mapping[str, Any], name: str) -> str:
    """A probe's balanced accuracy beside that of a random encoder, once there is another, and chance."""
    start, chance = row.get(f"probe_{name}_start"), f"chance {row[f'probe_{name}_chance']:.2f}"
    began = f"at the start {start:.2f}, " if row["step"] > 0 and start is not None else ""
    return f"probe {name} {row[f'probe_{name}']:.2f} ({began}{chance})"


def _number(value: float | None, digits: int) -> str:
    return "not finite" if value is None else f"{value:.{digits}f}"


def _report(out: Path, summary: Mapping[str, Any], say: Callable[[str], None]) -> None:
    say(f"{summary['status']} after {summary['step']} steps, {summary['samples']} samples, {summary['seconds']:.0f} s.")
    if summary["validation"] != "none":
        first, last = summary["validation"]["first"], summary["validation"]["last"]
        say(f"validation loss {first['loss']:.4f} -> {last['loss']:.4f}, cosine {last['cosine']:.3f}")
    if best := summary["best"]:
        say(f"best checkpoint: step {best['step']}, {best['measure']} {best['value']:.2f} (--checkpoint best)")
    say(f"Pictures in {out / 'media'}, measures in {out / 'metrics.jsonl'}.")
