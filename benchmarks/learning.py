"""Does it learn? Probes of pretrained encoders, random ones and raw pixels: `python benchmarks/learning.py`.

192 phantom participants with a volume of full size each, half of them held out by study group; axial positions
jitter, because the grid is centred on the scan and not on the retina. `cpu-small`, with the sizes in `SIZES`, is
trained on the one half; linear probes are fitted on that half and scored on the other (docs/training.md). All of it
is done once for each of `COHORTS`, and the held-out people of all are counted together, too.
"""

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from figures import ROOT, put, table
from learning_features import COMPONENTS, Repeating, causes, components, features, known_share, profiles, repeating
from learning_retakes import RETAKES, retakes
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ingest.phantom.plan import CohortSpec
from manifests.cohort import STUDY_GROUPS
from shards.reader import Dataset, iterate, open_dataset
from train.checkpoint import load_encoder, open_checkpoint
from train.diagnostics import rankme
from train.discriminant import Discriminant
from train.encoder import Encoder
from train.loop import pretrain
from train.objective import build_encoder
from train.recipe import load_recipe

SEEDS: Final = (0, 1, 2)
COHORTS: Final = (2, 3)
"""Seeds of the eyes. Recipe, signal and probe were chosen on those of seed 1."""
PEOPLE: Final = 192
DEVICE: Final = "topcon_maestro2"
SIZES: Final = (
    "model.depth=6", "model.predictor_depth=3", "objective.num_visible=448", "objective.num_targets=352",
    "model.patch=[8, 8, 16]", "train.device=cpu", "log.wandb=false",
    "validation.every_steps=250", "checkpoint.every_steps=100", "log.every_steps=10", "log.images_every_steps=1000",
)  # fmt: skip
GEOMETRY: Final = "target_spacing_mm: [0.09375, 0.003, 0.015625]\nanchor: center\n"
"""The middle 1.15 mm of the depth of `block6`, at twice its resolution: tokens are 48 um deep, about a layer."""
RANDOM: Final = "random encoder"
PENALTIES: Final = np.logspace(-1, 5, 13)
RESAMPLES: Final = 2000
CONFIDENCE: Final = (2.5, 97.5)

Drawn = np.ndarray | slice
EVERYONE: Final = slice(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What probes make of held-out participants; arrays are `[S, P]`, a row for each of S seeds, `labels` is `[P]`.

    `right` says whom a classifier got right, `numbers` what a ridge regression takes their label for: labels are the
    study groups in order, and each adds as much to a layer. `rank` is the RankMe of the features, `known` the share of
    their variance that `causes` explain, `again` what of them is `repeating` in each of `RETAKES`, if that was asked;
    means over seeds.
    """

    name: str
    right: np.ndarray
    numbers: np.ndarray
    labels: np.ndarray
    rank: float
    known: float
    again: tuple[Repeating, ...] = ()

    def accuracy(self, drawn: Drawn = EVERYONE) -> float:
        """Balanced over classes, mean over seeds."""
        right, labels = self.right[:, drawn], self.labels[drawn]
        return float(np.mean([right[:, labels == label].mean() for label in np.unique(labels)]))

    def explained(self, drawn: Drawn = EVERYONE) -> float:
        """Share of the labels' variance that the regression explains (R2), mean over seeds."""
        labels = self.labels[drawn]
        missed = ((self.numbers[:, drawn] - labels) ** 2).sum(1).mean()
        return float(1 - missed / ((labels - labels.mean()) ** 2).sum())

    def resampled(self, measure: "Measure") -> np.ndarray:
        """A measure of participants drawn with replacement within their class."""
        return np.array([measure(self, drawn) for drawn in self._draws()])

    def _draws(self) -> Iterator[np.ndarray]:
        """The same for all seeds and all features."""
        rng = np.random.default_rng(0)
        members = [np.flatnonzero(self.labels == label) for label in np.unique(self.labels)]
        return (np.concatenate([rng.choice(group, len(group)) for group in members]) for _ in range(RESAMPLES))


Measure = Callable[[Held, Drawn], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """The eyes of one seed: who was held out of them, by features, and the runs that were trained on the others."""

    eyes: int
    held: list[Held]
    runs: list[Path]


def main() -> None:
    """Make what is missing under --out, train what is not trained yet, probe, and write the page."""
    arguments = parse()
    cohorts = [study(eyes, arguments) for eyes in arguments.eyes]
    everyone = joined(cohorts)
    text = "\n".join([score_table(everyone), cohort_table(cohorts), retake_table(everyone), course_table(cohorts)])
    print(text)
    if arguments.write:
        put("learning", text, ROOT / "docs/training.md")


def study(eyes: int, arguments: argparse.Namespace) -> Cohort:
    """The whole of it for one cohort."""
    folder: Path = arguments.out / f"eyes-{eyes}"
    dataset = open_dataset(str(make_dataset(folder, eyes, arguments)))
    runs = [train(folder, dataset, seed, arguments) for seed in SEEDS[: arguments.seeds]]
    recipe = open_checkpoint(runs[0]).recipe
    samples = list(iterate(dataset))
    unseen = [sample for sample in samples if sample.meta.split == "val"]
    found = causes(labels_of(dataset), recipe, samples)
    encoders: dict[str, list[Encoder]] = {
        "context encoder": [load_encoder(run, which="context")[0] for run in runs],
        "target encoder": [load_encoder(run, which="target")[0] for run in runs],
        RANDOM: [build_encoder(recipe, seed=seed) for seed in SEEDS[: len(runs)]],
    }
    held = []
    anew = retakes(folder, cohort_spec(eyes, arguments), unseen)
    is_unseen = np.array([sample.meta.split == "val" for sample in samples])
    for name, some in encoders.items():
        sets = [features(one, recipe, samples) for one in some]
        again = [
            [repeating(one[is_unseen], features(encoder, recipe, taken)) for taken in anew.values()]
            for encoder, one in zip(some, sets, strict=True)
        ]
        held.append(held_out(name, dataset, sets, found, again))
    others = {
        f"raw pixels, {COMPONENTS} principal components": components(dataset, recipe, samples),
        "mean and spread of grey levels": found[:, 2:],
        "mean A-scan, aligned at the lower edge": profiles(recipe, samples),
    }
    held += [held_out(name, dataset, [one], found) for name, one in others.items()]
    return Cohort(eyes=eyes, held=held, runs=runs)


def joined(cohorts: Sequence[Cohort]) -> list[Held]:
    """The held-out people of all cohorts as one, by features."""
    return [
        Held(
            name=parts[0].name,
            right=np.concatenate([part.right for part in parts], axis=1),
            numbers=np.concatenate([part.numbers for part in parts], axis=1),
            labels=np.concatenate([part.labels for part in parts]),
            rank=float(np.mean([part.rank for part in parts])),
            known=float(np.mean([part.known for part in parts])),
            again=_means([part.again for part in parts]),
        )
        for parts in zip(*(cohort.held for cohort in cohorts), strict=True)
    ]


def _means(found: Sequence[Sequence[Repeating]]) -> tuple[Repeating, ...]:
    """Of each number of each retake; nothing of none."""
    return tuple(Repeating(*np.mean(same, axis=0).tolist()) for same in zip(*found, strict=True))


def make_dataset(folder: Path, eyes: int, arguments: argparse.Namespace) -> Path:
    """The cohort with half of each study group held out, and its shards."""
    cohort, dataset = folder / "cohort", folder / "dataset"
    if (dataset / "_SUCCESS").exists():
        return dataset
    if not (cohort / "truth.csv").exists():  # the last file of it
        fovea("phantom", cohort, "--participants", PEOPLE, "--volumes", 1, "--devices", DEVICE,
              "--signal", arguments.signal, "--seed", eyes)  # fmt: skip
    hold_out_half(cohort / "participants.tsv")
    geometry = folder / "scan.yaml"
    geometry.write_text(GEOMETRY)
    fovea("ingest", cohort, dataset, "--geometry", geometry)
    return dataset


def cohort_spec(eyes: int, arguments: argparse.Namespace) -> CohortSpec:
    """What `make_dataset` asks `fovea phantom` for."""
    return CohortSpec(
        participants=PEOPLE, volumes_per_participant=1, devices=(DEVICE,), signal=arguments.signal, seed=eyes
    )


def hold_out_half(path: Path) -> None:
    """Every second participant of each study group goes to `val`, the others to `train`."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for group in STUDY_GROUPS:
        for place, row in enumerate(row for row in rows if row["study_group"] == group):
            row["recommended_split"] = ("train", "val")[place % 2]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def fovea(*words: object) -> None:
    """Run the command as a user would."""
    subprocess.run([sys.executable, "-m", "fovea", *map(str, words)], check=True, stdout=sys.stderr)


def train(folder: Path, dataset: Dataset, seed: int, arguments: argparse.Namespace) -> Path:
    """A run of the recipe, or what is there of it continued."""
    out = folder / f"run-{seed}"
    overrides = [*SIZES, *arguments.set, f"train.max_steps={arguments.steps}", f"train.seed={seed}"]
    labels = {row.key: row.study_group or "" for row in dataset.samples}
    pretrain(load_recipe("cpu-small", overrides), dataset, out, labels=labels)
    print(f"{out} is trained", file=sys.stderr, flush=True)
    return out


def held_out(
    name: str,
    dataset: Dataset,
    sets: Sequence[np.ndarray],
    found: np.ndarray,
    again: Sequence[Sequence[Repeating]] = (),
) -> Held:
    """Fit on the training half for each set of features, and look at the other half: a volume of each participant."""
    labels = labels_of(dataset)
    is_train = np.array([row.split == "train" for row in dataset.samples])
    seen, unseen = [one[is_train] for one in sets], [one[~is_train] for one in sets]
    calls = [classify(fitted, labels[is_train], scored) for fitted, scored in zip(seen, unseen, strict=True)]
    numbers = [regress(fitted, labels[is_train], scored) for fitted, scored in zip(seen, unseen, strict=True)]
    return Held(
        name=name,
        right=np.array(calls) == labels[~is_train],
        numbers=np.array(numbers),
        labels=labels[~is_train],
        rank=float(np.mean([rankme(torch.from_numpy(one)) for one in unseen])),
        known=float(np.mean([known_share(one, found[~is_train]) for one in unseen])),
        again=_means(again),
    )


def labels_of(dataset: Dataset) -> np.ndarray:
    """The study group of each volume as its place in order, `[N]`."""
    return np.array([STUDY_GROUPS.index(row.study_group or "") for row in dataset.samples])


def classify(fitted: np.ndarray, labels: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """The class of each scored row, by the probe that a run shows at each validation."""
    model = Discriminant.fit(torch.from_numpy(fitted), torch.from_numpy(labels), len(STUDY_GROUPS))
    return model.probabilities(torch.from_numpy(scored)).argmax(1).numpy()


def regress(fitted: np.ndarray, labels: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """The label of each scored row as a number, by ridge regression."""
    model = make_pipeline(StandardScaler(), RidgeCV(alphas=PENALTIES)).fit(fitted, labels)
    return np.asarray(model.predict(scored))


def score_table(held: Sequence[Held]) -> str:
    """A row for each set of features, each beside the random encoder on the same participants."""
    random = next(one for one in held if one.name == RANDOM)
    rows = []
    for one in held:
        shown = [cell for measure in (Held.accuracy, Held.explained) for cell in _beside(one, random, measure)]
        rows.append((one.name, len(one.right), *shown, f"{one.known:.2f}", f"{one.rank:.1f}"))
    more = "more than a random encoder"
    accuracy = f"balanced accuracy of {len(random.labels)} held out"
    head = ["features", "seeds", accuracy, more, "R2 of the label as a number", more]
    head += ["known", "RankMe"]
    return table(head, [*rows, ("chance", "", "0.250", "", "0.000", *[""] * 3)])


def _beside(one: Held, other: Held, measure: Measure) -> tuple[str, str]:
    """A measure, and how much more it is than another's of the same participants; both with their intervals."""
    value, drawn = measure(one, EVERYONE), one.resampled(measure)
    if one is other:
        return f"{value:.3f} ({_interval(drawn)})", ""
    more = f"{value - measure(other, EVERYONE):+.3f} ({_interval(drawn - other.resampled(measure))})"
    return f"{value:.3f} ({_interval(drawn)})", more


def _interval(values: np.ndarray) -> str:
    low, high = np.percentile(values, CONFIDENCE)
    return f"{low:.3f} to {high:.3f}"


def cohort_table(cohorts: Sequence[Cohort]) -> str:
    """The accuracy of each cohort by itself, beside the random encoder's there."""
    cells = []
    for cohort in cohorts:
        random = next(one for one in cohort.held if one.name == RANDOM)
        cells.append([_beside(one, random, Held.accuracy) for one in cohort.held])
    names = [one.name for one in cohorts[0].held]
    rows = [(name, *(cell for part in parts for cell in part)) for name, *parts in zip(names, *cells, strict=True)]
    each = [(f"eyes of seed {cohort.eyes}, {len(cohort.held[0].labels)} held out", "more") for cohort in cohorts]
    return table(["features", *(cell for pair in each for cell in pair)], rows)


def retake_table(held: Sequence[Held]) -> str:
    """What of the features of each encoder is there again when the eyes of held-out people are taken once more."""
    rows = [
        (one.name, len(one.right), f"{one.rank:.1f}", *(cell for again in one.again for cell in _cells(again)))
        for one in held if one.again
    ]  # fmt: skip
    columns = (f"{what} {name}" for name in RETAKES for what in ("share", "directions", "RankMe"))
    return table(["features", "seeds", "RankMe", *columns], rows)


def _cells(again: Repeating) -> tuple[str, str, str]:
    return f"{again.share:.3f}", f"{again.directions:.1f}", f"{again.rank:.1f}"


def course_table(cohorts: Sequence[Cohort]) -> str:
    """What the validations of each run said."""
    rows = []
    for eyes, seed, run in ((one.eyes, *pair) for one in cohorts for pair in enumerate(one.runs)):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        rows += [
            (eyes, seed, row["step"], *(f"{row[name]:.3f}" for name in ("loss", "loss_trivial", "cosine")),
             f"{row['rankme']:.1f}", f"{row['probe_label']:.3f}", ", ".join(row["alarms"]))
            for row in lines if row["split"] == "val"
        ]  # fmt: skip
    return table(
        ["eyes", "seed", "step", "loss", "of a constant", "cosine", "RankMe", "probe of the label", "alarms"], rows
    )


def parse() -> argparse.Namespace:
    """Command line; the signal was fixed here before anything was trained on these cohorts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "out/learning", help="a run here goes on where it stopped")
    parser.add_argument("--eyes", type=int, nargs="+", default=COHORTS, help="seeds of the cohorts")
    parser.add_argument("--signal", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=len(SEEDS), choices=range(1, len(SEEDS) + 1))
    parser.add_argument("--set", action="append", default=[], help="a key of the recipe")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/training.md")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    return arguments


if __name__ == "__main__":
    main()
