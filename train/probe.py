"""A linear probe at each validation: what of device, eye and label can be read from the target's pooled features.

It is fitted on training volumes and scored on held-out ones, which are of other participants. The features are those
of `validate`: the mean of a volume's content tokens, layer-normed. At step 0 they are those of a random encoder. But
for the probe of the device they are relative to the mean of their device over the volumes that are fitted, as
`fovea probe` takes them: what makes devices differ is no property of an eye.

Shapes: V volumes, C features, K classes.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from shards.reader import Dataset
from shards.schema import Sample, SampleRow
from train.config import Recipe
from train.data import prepare
from train.device import Device
from train.discriminant import Discriminant, balanced_accuracy
from train.errors import RecipeError
from train.groups import by_groups
from train.objective import Networks, pooled_target
from train.run_folder import lines_sha256
from train.seeding import fold
from train.signals import Stop

MIN_FITTED: Final = 3  # training volumes of a class; with fewer there is no spread within it
DEVICE: Final = "device"
LABEL: Final = "label"

Labels = Mapping[str, str]
"""Sample key -> the class of its participant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one probe is asked. `fitted` and `scored` are places in the two sets of features, with the class of each."""

    name: str
    classes: tuple[str, ...]
    fitted: Tensor
    fitted_labels: Tensor
    scored: Tensor
    scored_labels: Tensor
    groups: Tensor | None  # of the scored: whose volumes share one answer

    @property
    def chance(self) -> float:
        """The balanced accuracy of any answer that ignores the features."""
        return 1 / len(self.classes)

    def score(self, fitted_VC: Tensor, scored_VC: Tensor) -> float | None:
        """Balanced accuracy on the held-out; None if a feature is not finite."""
        if not (fitted_VC.isfinite().all() and scored_VC.isfinite().all()):
            return None
        model = Discriminant.fit(fitted_VC[self.fitted], self.fitted_labels, len(self.classes))
        probabilities_VK = model.probabilities(scored_VC[self.scored])
        return balanced_accuracy(probabilities_VK, self.scored_labels, self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """The tasks of a run, the training volumes on which they are fitted, and why others cannot be asked.

    `labels_sha256` says of which labels the probe of the label is; None: there is none.
    """

    fitted: Dataset
    scored: Dataset
    tasks: tuple[Task, ...]
    refused: Mapping[str, str]
    labels_sha256: str | None

    def alike(self, name: str, rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The rows in which the probe of this name was asked the same; rows of a run without labels say nothing."""
        ours = self.labels_sha256
        return [row for row in rows if name != LABEL or ours is None or row.get("probe_label_sha256", ours) == ours]

    def scores(self, fitted_VC: Tensor, scored_VC: Tensor) -> dict[str, float | None]:
        """Columns of a row: each probe beside its chance."""
        columns: dict[str, float | None] = {}
        relative = self._relative(fitted_VC, scored_VC)
        for task in self.tasks:
            score = task.score(*((fitted_VC, scored_VC) if task.name == DEVICE else relative))
            columns |= {f"probe_{task.name}": score, f"probe_{task.name}_chance": task.chance}
        return columns

    def _relative(self, fitted_VC: Tensor, scored_VC: Tensor) -> tuple[Tensor, Tensor]:
        """Features less the mean of their device; of a device that is not fitted, less the mean of all."""
        names = sorted({row.device for row in self.fitted.samples})
        place = {name: number for number, name in enumerate(names)}
        of_fitted, of_scored = (
            torch.tensor([place.get(row.device, len(names)) for row in part.samples])
            for part in (self.fitted, self.scored)
        )
        means = [fitted_VC[of_fitted == number].mean(0) for number in range(len(names))]
        means_KC = torch.stack([*means, fitted_VC.mean(0)])
        return fitted_VC - means_KC[of_fitted], scored_VC - means_KC[of_scored]

    @property
    def unasked(self) -> dict[str, float | None]:
        """The columns of those that cannot be asked: never a number."""
        return {f"probe_{name}{suffix}": None for name in self.refused for suffix in ("", "_chance", "_start")}

    def describe(self) -> Iterator[str]:
        """What a person should know of them before the run starts."""
        if self.tasks:
            named = "; ".join(_sizes(task) for task in self.tasks)
            yield f"probes at each validation, fitted on {len(self.fitted.samples)} training volumes: {named}"
        for name, reason in self.refused.items():
            yield f"NO PROBE of {name}: {reason}"


def plan_probes(train: Dataset, val: Dataset, labels: Labels | None, limit: int) -> Probes:
    """Decide from rows alone what can be asked.

    Args:
        train: to fit on; a subset of `limit` volumes that depends on keys only, those with a label first.
        val: to score on, all of it.
        labels: by sample key; volumes without one are left out of that probe. None: there is no such probe.
        limit: 0 switches all probes off.
    """

    def turn(row: SampleRow) -> tuple[bool, int]:
        return labels is not None and row.key not in labels, fold(0, "probe", row.key)

    chosen = sorted(train.samples, key=turn)[:limit]
    fitted = replace(train, samples=tuple(sorted(chosen, key=lambda row: row.key)))
    asked: dict[str, Callable[[SampleRow], str | None]] = {
        DEVICE: lambda row: row.device,
        "laterality": lambda row: row.laterality,
    }
    if labels is not None:
        asked[LABEL] = lambda row: labels.get(row.key)
    found = {name: _task(name, fitted.samples, val.samples, class_of) for name, class_of in asked.items()}
    if not limit or not val.samples:
        found = {}
    known = labels or {}
    used = (f"{row.key} {known[row.key]}\n" for row in (*fitted.samples, *val.samples) if row.key in known)
    return Probes(
        fitted=fitted,
        scored=val,
        tasks=tuple(one for one in found.values() if isinstance(one, Task)),
        refused={name: one for name, one in found.items() if isinstance(one, str)},
        labels_sha256=lines_sha256(sorted(used)) if isinstance(found.get(LABEL), Task) else None,
    )


def best_measure(recipe: Recipe, probes: Probes) -> str | None:
    """The column by which the best checkpoint is chosen, None if none is. A loss never is: a JEPA's does not tell.

    Raises:
        RecipeError: if `checkpoint.best` names a probe that this run does not have.
    """
    name, there = recipe.checkpoint.best, [task.name for task in probes.tasks]
    if name is None:
        name = LABEL if LABEL in there else "none"
    if name == "none":
        return None
    if name not in there:
        why = probes.refused.get(name, "validation.probe_volumes is 0, nothing is held out, or --labels is missing")
        raise RecipeError(f"checkpoint.best is {name}, and there is no such probe ({why}): choose another, or none.")
    return f"probe_{name}"


@torch.no_grad()
def encode(networks: Networks, dataset: Dataset, recipe: Recipe, device: Device, stop: Stop | None = None) -> Tensor:
    """The target's features of every volume, shared out over ranks: float64 `[V, C]` on the CPU of each.

    Raises:
        StopRequestedError: on all ranks, if one is asked to stop.
        TrainError: if one volume does not fit into memory.
    """
    stop = stop or Stop()
    ranks, total = device.ranks, len(dataset.samples)
    none = torch.zeros(0, networks.target.dim, device=device.torch_device)
    networks.eval()

    def pooled(samples: Sequence[Sample]) -> Tensor:
        prepared = prepare(samples, recipe, device.torch_device)
        inputs = (device.spread(x) for x in (prepared.x_BDHW, prepared.content_BN, prepared.spacing_B3))
        with device.autocast():
            found = pooled_target(networks, *inputs)
        device.send_off()
        return found

    with stop.agreed(ranks):
        vectors = by_groups(dataset, recipe.train.micro_batch, device, pooled, stop)
    networks.train()
    return ranks.gather(torch.cat([none, *vectors]), total).cpu().double()


def _task(
    name: str, fitted: Sequence[SampleRow], scored: Sequence[SampleRow], class_of: Callable[[SampleRow], str | None]
) -> Task | str:
    """The task over the classes that can be both learnt and scored, or why there is none."""
    known = Counter(one for row in fitted if (one := class_of(row)) is not None)
    held_out = {class_of(row) for row in scored}
    classes = tuple(sorted(one for one, count in known.items() if count >= MIN_FITTED and one in held_out))
    if len(classes) < 2:
        counts = ", ".join(f"{one} {count}" for one, count in sorted(known.items())) or "none"
        return (
            f"it needs two classes with {MIN_FITTED} training volumes each and a held-out one; there are {counts} to "
            f"fit, and of {len(held_out - {None})} classes to score."
        )
    fitted_at, fitted_labels = _places(fitted, classes, class_of)
    scored_at, scored_labels = _places(scored, classes, class_of)
    people = [scored[place].participant_id for place in scored_at]
    order = {person: number for number, person in enumerate(dict.fromkeys(people))}
    return Task(
        name=name,
        classes=classes,
        fitted=torch.tensor(fitted_at),
        fitted_labels=torch.tensor(fitted_labels),
        scored=torch.tensor(scored_at),
        scored_labels=torch.tensor(scored_labels),
        groups=torch.tensor([order[person] for person in people]) if name == LABEL else None,
    )


def _places(
    rows: Sequence[SampleRow], classes: Sequence[str], class_of: Callable[[SampleRow], str | None]
) -> tuple[list[int], list[int]]:
    """Which rows are of one of the classes, and of which."""
    named = [(place, class_of(row)) for place, row in enumerate(rows)]
    found = [(place, classes.index(one)) for place, one in named if one in classes]
    return [place for place, _ in found], [label for _, label in found]


def _sizes(task: Task) -> str:
    groups = task.groups
    scored = f"{len(task.scored)} held-out volumes" if groups is None else f"{int(groups.max()) + 1} participants"
    return f"{task.name} ({len(task.classes)} classes, scored on {scored})"
