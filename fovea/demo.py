"""`fovea demo`: the whole way, from synthetic DICOMs to a scored model, on a laptop."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fovea.places import on_this_machine

if TYPE_CHECKING:
    from eval.probe import ProbeResult
    from manifests.audit import AuditReport

MARK: Final = ".fovea-demo"
RECIPE: Final = "cpu-small"
AGAIN: Final = "the same command begins anew."


class DemoFolderError(Exception):
    """`--out` holds something that the demo did not write."""

    exit_code = 2


def command(
    out: Annotated[
        Path, typer.Option(help="Where everything goes; an earlier demo there is replaced.", callback=on_this_machine)
    ] = Path("out/demo"),
    participants: Annotated[int, typer.Option(min=12, help="How many to invent.")] = 24,
    signal: Annotated[
        float, typer.Option(min=0.0, help="Strength of the label's mark on the pixels; 0 is none.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the cohort and of the training.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Synthetic cohort -> dataset -> audit -> tiny pretraining -> probe -> report, in a few minutes.

    Example: fovea demo --out out/demo
    """
    from fovea.console import print_json

    _claim(out)
    seconds: dict[str, float] = {}
    with _Stage("1/6 invent a cohort", "phantom", seconds):
        _phantom(out, participants, signal, seed)
    with _Stage("2/6 ingest: DICOMs to shards", "ingest", seconds):
        dataset = _ingest(out)
    with _Stage("3/6 verify and audit every byte and row", "verify", seconds):
        report = _verify_and_audit(out)
    with _Stage(f"4/6 pretrain, recipe {RECIPE}", "pretrain", seconds):
        summary = _pretrain(out, seed)
    with _Stage("5/6 embed and probe", "probe", seconds):
        probe = _probe(out, seed)
    with _Stage("6/6 pictures and report", "report", seconds):
        pictures = _report(out, report, probe)
    result = {"counts": dataset["counts"], "training": summary, "probe": probe.to_json(), "seconds": seconds}
    (out / "demo.json").write_text(json.dumps(result, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if as_json:
        print_json(result)
    else:
        _print(out, dataset["counts"], probe, pictures, seconds)


class _Stage:
    """Says what is going on, and keeps how long it took."""

    def __init__(self, title: str, name: str, seconds: dict[str, float]) -> None:
        self._title, self._name, self._seconds = title, name, seconds

    def __enter__(self) -> None:
        from fovea.console import note

        note(f"{self._title} ...")
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] = round(time.monotonic() - self._started, 1)


def _claim(out: Path) -> None:
    """Replace an earlier demo; never anything else."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARK).exists())):
        raise DemoFolderError(f"{out} holds something that no demo wrote: give another --out.")
    try:
        if out.exists():
            shutil.rmtree(out)
        out.mkdir(parents=True)
        (out / MARK).write_text("A folder of `fovea demo`; the next demo replaces it.\n", encoding="utf-8")
    except OSError as error:
        raise DemoFolderError(f"{out} cannot be written ({error.strerror}): give another --out.") from error


def _phantom(out: Path, participants: int, signal: float, seed: int) -> None:
    from fovea.stop import stoppable
    from ingest.phantom.cohort import write_cohort
    from ingest.phantom.plan import CohortSpec

    spec = CohortSpec(participants=participants, corrupt=0.1, signal=signal, small=True, seed=seed)
    with stoppable(AGAIN):
        write_cohort(out / "cohort", spec)


def _ingest(out: Path) -> Mapping[str, Any]:
    from beam_jobs.launch import run_ingest
    from beam_jobs.options import beam_options, make_job
    from fovea.console import is_terminal
    from fovea.stop import stoppable

    job = make_job(str(out / "cohort"), str(out / "dataset"), geometry="block6")
    with stoppable(AGAIN):
        return run_ingest(job, beam_options([]), progress=is_terminal()).dataset


def _verify_and_audit(out: Path) -> "AuditReport":
    from manifests.audit import audit
    from manifests.audit_html import write_audit_html
    from shards.errors import DatasetCorruptError
    from shards.verify import verify

    problems = verify(str(out / "dataset")).problems
    report = audit(str(out / "dataset"))
    if problems or report.problems:
        raise DatasetCorruptError(f"{out / 'dataset'} is not as it should be: {[*problems, *report.problems][0]}")
    write_audit_html(out / "audit.html", report)
    return report


def _pretrain(out: Path, seed: int) -> Mapping[str, Any]:
    from shards.reader import open_dataset
    from train.errors import TrainingStoppedError
    from train.loop import pretrain
    from train.recipe import load_recipe

    recipe = load_recipe(RECIPE, [f"train.seed={seed}"])
    try:
        return pretrain(recipe, open_dataset(str(out / "dataset")), out / "run", _listener(recipe.train.max_steps))
    except TrainingStoppedError as error:  # which says that the same command resumes: that of a demo does not
        raise TrainingStoppedError(f"stopped by SIGTERM: {AGAIN}") from error


def _listener(max_steps: int) -> Any:
    from fovea.console import note
    from fovea.pretrain import Rows
    from train.recorder import Listener

    return Listener(row=Rows(max_steps, note), say=note)


def _probe(out: Path, seed: int) -> "ProbeResult":
    from eval.embed import EmbedJob, embed
    from eval.figures import write_probe_pictures
    from eval.probe import run_probe
    from fovea.version import __version__
    from manifests.cohort import load_participants

    store = out / "embeddings.zarr"
    job = EmbedJob(run=out / "run", dataset=str(out / "dataset"), out=store, code_version=__version__)
    participants = load_participants(str(out / "cohort/participants.tsv"))
    result = run_probe(embed(job), participants, seed=seed)
    write_probe_pictures(out / "probe", result)
    return result


def _report(out: Path, report: "AuditReport", probe: "ProbeResult") -> list[Path]:
    from eval.report import Picture, write_report
    from ingest.picture import sample_figure
    from shards.reader import open_dataset, read_sample

    dataset = open_dataset(str(out / "dataset"))
    first = {row.device: row for row in reversed(dataset.samples)}
    pictures = []
    for device, row in sorted(first.items()):
        path = out / "pictures" / f"{device}.png"
        path.parent.mkdir(exist_ok=True)
        sample_figure(read_sample(dataset, row), path)
        pictures.append(Picture(path=path, caption=f"{row.key}, as it lies in {row.shard}"))
    pictures += [
        Picture(path=path, caption=f"training: {path.stem}") for path in sorted((out / "run/media").glob("*.png"))
    ]
    rows = [json.loads(line) for line in (out / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    subtitle = "fovea demo: a synthetic cohort; nobody's eyes are in it"
    write_report(out / "report.html", audit=report, training=rows, probe=probe, pictures=pictures, subtitle=subtitle)
    return [picture.path for picture in pictures]


def _print(
    out: Path, counts: Mapping[str, Any], probe: "ProbeResult", pictures: list[Path], seconds: Mapping[str, float]
) -> None:
    from eval.tables import score_table
    from fovea.console import print_table, say

    outcome = ("accepted", "rejected", "duplicate", "excluded")
    print_table("Files in = accepted + rejected + duplicate + excluded", ["files in", *outcome], [
        [counts["inputs"], *(counts[name] for name in outcome)]
    ])  # fmt: skip
    print_table("Rejections by reason", ["reason", "files"], list(counts["by_reason"].items()))
    print_table("Training", *_curve(out))
    print_table("Linear probe, by participant", *score_table(probe))
    say(f"{counts['samples']} samples in {counts['shards']} shards; " + _took(seconds))
    for name, path in (
        ("dataset", out / "dataset"),
        ("report", out / "report.html"),
        ("audit", out / "audit.html"),
        ("pictures", pictures[0].parent if pictures else out),
        ("training", out / "run"),
    ):
        say(f"{name:<9}{path}")


def _curve(out: Path) -> tuple[list[str], list[list[object]]]:
    """A few rows of the training curve: the loss beside what a constant prediction would score."""
    rows = [json.loads(line) for line in (out / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    train = [row for row in rows if row["split"] == "train"]
    shown = train[:: max(1, len(train) // 6)] + train[-1:]
    columns = ["step", "loss", "loss_trivial", "cosine", "feature_std", "rankme", "target_context_distance"]
    return columns, [[_short(row.get(name)) for name in columns] for row in shown]


def _short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def _took(seconds: Mapping[str, float]) -> str:
    return f"{sum(seconds.values()):.0f} s in all (" + ", ".join(f"{k} {v:.0f}" for k, v in seconds.items()) + ")."
