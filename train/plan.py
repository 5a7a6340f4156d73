"""What a run is, decided before its first step: resolved recipe, samples that fit, and where to continue."""

from dataclasses import dataclass, replace

from shards.reader import Dataset
from shards.schema import SampleRow
from train.budget import fit_budget
from train.checkpoint import Checkpoint, forget_checkpoints, load_state, newest_checkpoint
from train.config import Recipe
from train.copies import bring_newest
from train.data import select
from train.device import Device
from train.errors import CheckpointError, RecipeError, RunFolderError
from train.probe import Labels, Probes, best_measure, plan_probes
from train.recipe import differences, resolve
from train.run_folder import RECIPE_FILE, RunFolder, placed_sha256
from train.step import TrainState


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A recipe and a dataset that were found to go together.

    `dropped` are keys with too little content, `best` is the column by which the best checkpoint is chosen, if any.
    """

    recipe: Recipe
    train: Dataset
    val: Dataset
    dropped: tuple[str, ...]
    dataset_sha256: str
    probes: Probes
    best: str | None


def plan_run(recipe: Recipe, dataset: Dataset, labels: Labels | None = None) -> Plan:
    """Resolve the recipe against the dataset, and check that its budgets can be filled.

    Args:
        recipe: as the user gave it.
        dataset: with all its splits.
        labels: of volumes by key, for the probe of the label; None: there is none.

    Raises:
        BudgetError: if too many samples are too small.
        RecipeError: if no training sample passes the recipe's filters, or `checkpoint.best` names a probe that there
            is not.
    """
    train, val = (select(dataset, recipe.data, split) for split in ("train", "val"))
    if not train.samples:
        raise RecipeError(f"{dataset.url} has no training sample that passes the recipe's `data` filters.")
    both = (*train.samples, *val.samples)
    geometry = dataset.info["geometry"]
    recipe = resolve(recipe, grid=geometry["size"], rows=both, geometry=geometry.get("name"))
    fitting, dropped = fit_budget(replace(dataset, samples=both), recipe)
    kept = {row.key for row in fitting.samples}
    train, val = _only(train, kept), _only(val, kept)
    probes = plan_probes(train, val, labels, recipe.validation.probe_volumes)
    return Plan(
        recipe=recipe,
        train=train,
        val=val,
        dropped=dropped,
        dataset_sha256=placed_sha256(both),
        probes=probes,
        best=best_measure(recipe, probes),
    )


def resume(run: RunFolder, state: TrainState, plan: Plan, device: Device) -> list[str]:
    """Continue from the newest whole checkpoint of the run folder and of its copies, if there is any.

    Returns:
        sentences for people: where it continues, and which checkpoints were passed over and why.

    Raises:
        CheckpointError: if there are checkpoints and none is whole, or the copies cannot be read.
        RunFolderError: if the run, or that of the copies, was trained on other samples, or by another recipe,
            whatever its `recipe.yaml` says now.
    """
    said = _bring(run, plan, device)
    newest = newest_checkpoint(run.checkpoints)
    said += [f"passed over a checkpoint: {reason}" for reason in newest.passed_over]
    checkpoint = newest.checkpoint
    if checkpoint is None:
        had_rows = bool(run.rows())
        check_not_lost(run)
        device.ranks.wait()
        if device.ranks.is_first:
            run.forget_after(-1)
        return [*said, *(["there is no checkpoint of what was done before: starting at step 0."] if had_rows else [])]
    if checkpoint.dataset_sha256 != plan.dataset_sha256:
        raise RunFolderError(
            f"{run.path} was trained on other samples than this dataset and these filters give, or on the same ones "
            "in other shards, which come in another order: resume it with its own dataset, or choose another --out."
        )
    if changed := differences(checkpoint.recipe, plan.recipe):
        raise RunFolderError(
            f"{checkpoint.path} is of another recipe ({'; '.join(changed)}), whatever {RECIPE_FILE} says: resume it "
            "with its own recipe, or choose another --out."
        )
    _put_back(checkpoint, run, state, device)
    if device.ranks.is_first:
        run.note_saved(checkpoint.path)
    return [*said, f"resumed at step {state.step} from {checkpoint.path}.", *_lacking_rows(run, checkpoint, plan)]


def _lacking_rows(run: RunFolder, checkpoint: Checkpoint, plan: Plan) -> list[str]:
    """What to say where there are no rows up to nearly the checkpoint's step: somebody removed them."""
    last = max((row["step"] for row in run.rows()), default=-1)
    due = max(checkpoint.recipe.log.every_steps, plan.recipe.log.every_steps)
    if checkpoint.step - last < due:
        return []
    there = f"ends with step {last}" if last >= 0 else "has no rows"
    return [f"{run.metrics} {there}: rows up to step {checkpoint.step} are missing, if log.every_steps was no more."]


def check_not_lost(run: RunFolder) -> None:
    """Whether a run folder without checkpoints had none.

    Raises:
        CheckpointError: if it had: starting anew would drop its rows, and what it learned.
    """
    summary = run.read_summary() or {}
    said = summary.get("step", 0) if summary.get("status") in {"finished", "stopped"} else 0  # of earlier versions
    step = run.saved_step() or said
    if step:
        raise CheckpointError(
            f"{run.path} was saved at step {step} and has no checkpoint any more: put {run.checkpoints} back, or start "
            "a new run in another folder."
        )


def _bring(run: RunFolder, plan: Plan, device: Device) -> list[str]:
    """The first rank brings what is newer in the copies; all wait for it."""
    if plan.recipe.checkpoint.copies is None:
        return []
    said = bring_newest(run, plan.recipe, plan.dataset_sha256) if device.ranks.is_first else []
    device.ranks.wait()
    return said


def go_back(run: RunFolder, state: TrainState, device: Device) -> bool:
    """Put the state back to the newest checkpoint from before the updates that were left out; False if there is none.

    Raises:
        CheckpointError: if there are such checkpoints and none is whole.
    """
    first_skipped = state.step - state.skipped_in_a_row
    checkpoint = newest_checkpoint(run.checkpoints, before=first_skipped + 1).checkpoint
    if checkpoint is None:
        return False
    _put_back(checkpoint, run, state, device)
    if device.ranks.is_first:
        forget_checkpoints(run.checkpoints, after=state.step)
    device.ranks.wait()
    return True


def _put_back(checkpoint: Checkpoint, run: RunFolder, state: TrainState, device: Device) -> None:
    """The state of a checkpoint, and the rows up to it; all ranks have read it when one goes on."""
    load_state(checkpoint, state, device.torch_device)
    if device.ranks.is_first:
        run.forget_after(state.step)
    device.ranks.wait()


def _only(dataset: Dataset, keys: set[str]) -> Dataset:
    samples: tuple[SampleRow, ...] = tuple(row for row in dataset.samples if row.key in keys)
    return replace(dataset, samples=samples)
