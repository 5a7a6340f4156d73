"""Does an encoder learn what it was not told? `python benchmarks/learning.py` writes the table of docs/training.md.

192 people of one device (maestro2, three protocols), one volume each; 96 of them are held out. The label thickens one
layer; its strength is fixed below. The retina lies at a random depth, because the grid is centred on the scan. The
same linear probe, fitted on the training half and scored on the other, is put on the features of the run's target, of
its context encoder, of the encoder that the run began with, and on principal components of the voxels.
"""

import argparse
import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from figures import ROOT, machine, put, table

from eval.linear import Cohort, Evaluation, probe
from manifests.cohort import STUDY_GROUPS
from shards.reader import Dataset, iterate, open_dataset
from train.checkpoint import CHECKPOINTS, load_encoder, newest_checkpoint
from train.config import Recipe
from train.data import prepare
from train.encoder import Encoder
from train.features import pooled_features
from train.objective import build_networks

PEOPLE: Final = 192
SIGNAL: Final = 0.5
"""Half of the default: 15 um of one layer a label step. Chosen by what a random encoder scores, before any run."""
GRID: Final = "target_spacing_mm: [0.09375, 0.005989583333333333, 0.015625]\nanchor: center\n"
"""`block6`, but centred on the scan."""
COMPONENTS: Final = (8, 16, 32, 64, 95)
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Balanced accuracy of held-out participants, with its bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def make_dataset(out: Path, seed: int) -> str:
    """Cohort and dataset, unless they are there: half of each study group is held out as `val`."""
    dataset = out / "dataset"
    if (dataset / "_SUCCESS").exists():
        return str(dataset)
    people = ["--participants", str(PEOPLE), "--volumes", "1", "--devices", "maestro2", "--signal", str(SIGNAL)]
    _fovea("phantom", str(out / "cohort"), *people, "--small", "--seed", str(seed))
    _hold_out_half(out / "cohort/participants.tsv")
    grid = out / "jitter6.yaml"
    grid.write_text(GRID, encoding="utf-8")
    _fovea("ingest", str(out / "cohort"), str(dataset), "--geometry", str(grid))
    return str(dataset)


def _fovea(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "fovea", *words], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


def _hold_out_half(path: Path) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    seen = dict.fromkeys(STUDY_GROUPS, 0)
    for row in sorted(rows, key=lambda one: one["person_id"]):
        row["recommended_split"] = ("train", "val")[seen[row["study_group"]] % 2]
        seen[row["study_group"]] += 1
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def score(dataset: Dataset, features: Matrix) -> Score:
    """The probe of `fovea probe`, which calls what was held out `test`; C is chosen within the training half."""
    rows = dataset.samples
    cohort = Cohort(
        features=features,
        labels=np.array([STUDY_GROUPS.index(str(row.study_group)) for row in rows], np.int64),
        participants=tuple(row.participant_id for row in rows),
        splits=tuple("train" if row.split == "train" else "test" for row in rows),
        devices=tuple(row.protocol for row in rows),
        classes=STUDY_GROUPS,
    )
    found = probe(cohort).test
    assert isinstance(found, Evaluation)
    value, interval = found.scores.balanced_accuracy.value, found.intervals["balanced_accuracy"]
    assert value is not None
    return Score(value=value, low=interval.low, high=interval.high)


def encoded(encoder: Encoder, recipe: Recipe, dataset: Dataset) -> Matrix:
    """Features `[N, C]` as `fovea embed` makes them."""
    features = [pooled_features(encoder, recipe, [sample], torch.device("cpu")).numpy() for sample in iterate(dataset)]
    return np.concatenate(features).astype(np.float64)


def components(recipe: Recipe, dataset: Dataset) -> dict[int, Matrix]:
    """Principal components of the voxels that the encoder sees, fitted on the training half: by their number."""
    samples = iterate(dataset)
    voxels = np.stack([prepare([one], recipe, torch.device("cpu")).x_BDHW.numpy().ravel() for one in samples])
    is_train = np.array([row.split == "train" for row in dataset.samples])
    voxels -= voxels[is_train].mean(0)
    values, vectors = np.linalg.eigh((voxels[is_train] @ voxels[is_train].T).astype(np.float64))
    along = voxels @ (voxels[is_train].T @ vectors[:, ::-1].astype(np.float32))
    scaled = along / np.sqrt(np.maximum(values[::-1], 1e-6))
    return {count: scaled[:, :count].astype(np.float64) for count in COMPONENTS}


def run_seed(out: Path, data: str, seed: int, settings: list[str]) -> dict[str, Any]:
    """One pretraining run and its probes."""
    run = out / f"run-{seed}"
    words = [word for one in (f"train.seed={seed}", *settings) for word in ("--set", one)]
    _fovea("pretrain", "--recipe", "cpu-small", "--data", data, "--out", str(run), *words)
    checkpoint = newest_checkpoint(run / CHECKPOINTS).checkpoint
    assert checkpoint is not None
    dataset, recipe = open_dataset(data), checkpoint.recipe
    summary = json.loads((run / "summary.json").read_text())
    encoders = {which: load_encoder(run, which=which)[0] for which in ("target", "context")}
    encoders["random"] = build_networks(recipe).target.eval()
    scores = {name: score(dataset, encoded(encoder, recipe, dataset)) for name, encoder in encoders.items()}
    best = max((score(dataset, found) for found in components(recipe, dataset).values()), key=lambda one: one.value)
    return {"seed": seed, "summary": summary, "scores": {**scores, "components": best}}


def main() -> None:
    """Run the seeds, print the table and put it into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "out/learning")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--cohort-seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    data = make_dataset(options.out, options.cohort_seed)
    rows = [_row(run_seed(options.out, data, seed, options.set)) for seed in options.seeds]
    head = ("seed", "minutes", "target", "context", "random encoder", "best of PCA", "validation cosine", "RankMe")
    text = table(head, rows)
    print(text)
    if options.seeds == [0, 1, 2] and not options.set:
        put("learning", f"{text}\n{machine()}.\n", ROOT / "docs/training.md")


def _row(found: dict[str, Any]) -> tuple[object, ...]:
    scores, summary = found["scores"], found["summary"]
    first, last = summary["validation"]["first"], summary["validation"]["last"]
    return (
        found["seed"],
        f"{summary['seconds'] / 60:.1f}",
        *(scores[name] for name in ("target", "context", "random", "components")),
        f"{first['cosine']:.2f} to {last['cosine']:.2f}",
        f"{first['rankme']:.1f} to {last['rankme']:.1f}",
    )


if __name__ == "__main__":
    main()
