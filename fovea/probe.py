"""`fovea probe`: how much of the label is in the embeddings."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fovea.places import on_this_machine

if TYPE_CHECKING:
    from eval.probe import ProbeResult


def command(
    embeddings: Annotated[Path, typer.Argument(help="The zarr store that `fovea embed` wrote.")],
    labels: Annotated[
        str | None, typer.Option(help="participants.tsv; without it, the study groups stored with the embeddings.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for probe.json and pictures.", callback=on_this_machine)
    ] = None,
    allow_unmatched: Annotated[
        bool, typer.Option("--allow-unmatched", help="Go on although labels and volumes do not meet.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of folds, resampling and permutations.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the machine-readable result.")] = False,
) -> None:
    """Fit a linear probe on frozen features, and score it by participant against chance and trivial baselines.

    Example: fovea probe out/embeddings.zarr --labels out/cohort/participants.tsv --out out/probe
    """
    from eval.place import check_writable
    from eval.probe import run_probe
    from eval.store import read_embeddings
    from fovea.console import say
    from fovea.labels import load_labels

    if out:
        check_writable(out)
    participants = load_labels(labels) if labels is not None else None
    result = run_probe(read_embeddings(embeddings), participants, allow_unmatched=allow_unmatched, seed=seed)
    try:
        _print(result, json=json)
    finally:  # also if whoever reads the table has left
        if out:
            _write(out.resolve(), result)
    if out and not json:
        say(f"{out / 'probe.json'} and the pictures beside it hold the rest")


def _write(out: Path, result: "ProbeResult") -> None:
    import json

    from eval.figures import write_probe_pictures

    write_probe_pictures(out, result)
    (out / "probe.json").write_text(json.dumps(result.to_json(), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _print(result: "ProbeResult", *, json: bool) -> None:
    from eval.tables import class_table, confusion_table, score_table
    from fovea.console import print_json, print_table, say
    from fovea.labels import print_join

    if json:
        print_json(result.to_json())
        return
    print_join(result.audit)
    print_table("Linear probe, by participant", *score_table(result))
    if result.encoder.cv:
        print_table("By class, cross-validated", *class_table(result.encoder.cv.scores))
        print_table("Is (row) and was called (column), cross-validated", *confusion_table(result.encoder.cv.scores))
    for warning in result.warnings:
        say(f"WARNING: {warning}")
