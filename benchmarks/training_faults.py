"""One training run, a hundred faults: `python benchmarks/training_faults.py` (docs/training.md).

`fovea pretrain` reads a small dataset from two emulators of buckets, in turn without and with reader processes. Faults
come by plan; whenever the process ends before the run does, the same command is started again. Then every byte of the
last checkpoint is compared with that of a run in which nothing happened. Exit status 1: a promise was broken.
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from unittest import mock

import torch
from faults.buckets import buckets
from faults.plan import KIND_OF, Fault, num_steps, plan_faults
from faults.supervisor import Found, Supervisor
from figures import ROOT, put
from reliability.report import Promise, none_of, table, verdict

import train.loop
from fovea.leave import leave_after
from shards.reader import open_dataset
from tests.conftest import build_sample, commit_dataset
from train.config import Recipe
from train.feed import Feed
from train.objective import Batch
from train.recipe import parse_recipe, recipe_text
from train.run_folder import RunFolder

SHAPE: Final = (8, 32, 32)
BATCH: Final = 4
STOP_S: Final = 25.0
MEASURED_BY_CLOCK: Final = frozenset({"volumes_per_s", "tflops", "data_wait", "peak_memory_bytes"})


def small_recipe(steps: int, micro_batch: int = BATCH) -> Recipe:
    """Steps of hundredths of a second, whose every part takes part: shifts, noise, stochastic depth."""
    network = {"patch": (2, 8, 8), "dim": 32, "head_dim": 16, "depth": 2, "predictor_dim": 16, "predictor_depth": 1}
    return parse_recipe(
        {
            "name": "faults",
            "data": {"grid": SHAPE},
            "model": {**network, "drop_path": 0.2},
            "objective": {"num_visible": 16, "num_targets": 12},
            "augment": {"shift_voxels": (1, 4, 4), "noise": 0.1},
            "optim": {"lr": 1e-3, "ema_start": 0.9},
            "train": {
                "max_steps": steps, "global_batch": BATCH, "micro_batch": micro_batch, "device": "cpu",
                "precision": "fp32", "max_nonfinite": 2,
            },
            "validation": {"every_steps": 10},
            "checkpoint": {"every_steps": 5, "keep": 3},
            "log": {"every_steps": 1, "images_every_steps": 10 * steps, "wandb": False},
        }
    )  # fmt: skip


class CutFeed(Feed):
    """Cuts the batch of each step as another run did."""

    micro_batches: Mapping[int, int] = {}

    def __init__(self, *arguments: Any, step: int, **keywords: Any) -> None:
        super().__init__(*arguments, step=step, **keywords)
        self._next_step = step + 1

    def step_batches(self) -> Iterator[Batch]:
        """The next step's."""
        self.micro_batch = self.micro_batches.get(self._next_step, self.micro_batch)
        self._next_step += 1
        return super().step_batches()


def run_quietly(dataset: Path, out: Path, steps: int, micro_batches: Mapping[int, int]) -> RunFolder:
    """The run in which nothing happens, from a disk, in this process."""
    with mock.patch.object(train.loop, "Feed", CutFeed), mock.patch.object(CutFeed, "micro_batches", micro_batches):
        train.loop.pretrain(small_recipe(steps), open_dataset(dataset), out)
    return RunFolder(path=out)


def rows_of(run: RunFolder) -> list[dict[str, Any]]:
    """What was measured, without what a clock measures."""
    return [{name: row[name] for name in row if name not in MEASURED_BY_CLOCK} for row in run.rows()]


def last_weights(run: RunFolder) -> tuple[str, dict[str, bytes]]:
    """The name of the last checkpoint, and its tensors' files."""
    last = max(run.checkpoints.glob("step-*"))
    return last.name, {path.name: path.read_bytes() for path in sorted(last.glob("*.safetensors"))}


def losses(run: RunFolder) -> list[float]:
    """Of every row."""
    return [row["loss"] for row in run.rows()]


def compare(disturbed: RunFolder, same: RunFolder, uncut: RunFolder, steps: int) -> list[Promise]:
    """The run with faults, the quiet one of the same micro-batches, and the quiet one whose batches are whole."""
    (name, files), (_, expected) = last_weights(disturbed), last_weights(same)
    equal = sum(files[file] == data for file, data in expected.items())
    found, wanted = rows_of(disturbed), rows_of(same)
    trained = [row["step"] for row in found if row["split"] == "train"]
    apart = max(abs(one - other) / other for one, other in zip(losses(disturbed), losses(uncut), strict=False))
    summary = disturbed.read_summary() or {}
    return [
        Promise(
            text="the run is finished, at its last step",
            found=f"{summary['status']}, {name}",
            kept=(summary["status"], name) == ("finished", f"step-{steps:08d}"),
        ),
        Promise(
            text="files of the last checkpoint equal, byte for byte, to those of a quiet run of the same micro-batches",
            found=f"{equal} of {len(expected)}",
            kept=equal == len(expected),
        ),
        Promise(text="each step has one row", found=f"{len(trained)}", kept=trained == list(range(1, steps + 1))),
        Promise(
            text="rows equal to those of that run, also of validations",
            found=f"{sum(one == other for one, other in zip(found, wanted, strict=False))} of {len(wanted)}",
            kept=found == wanted,
        ),
        none_of("updates left out", summary["skipped"]),
        Promise(
            text="losses as of a quiet run of whole batches, to 1%", found=f"{100 * apart:.1g}%", kept=apart < 0.01
        ),
    ]


def judge(faults: Sequence[Fault], found: Found, unmet: int) -> list[Promise]:
    """How the processes ended."""
    met = found.came.total() - unmet
    return [
        Promise(text="faults that came", found=f"{met} of {len(faults)}", kept=met == len(faults)),
        Promise(
            text="processes that ended with 0, 1 or 143, and with one sentence if not with 0",
            found=f"{found.ends.total() - len(found.untidy)} of {found.ends.total()}",
            kept=not found.untidy and set(found.ends) <= {"0", "1", "143"},
        ),
        Promise(
            text=f"SIGTERM to the end of the process, at most {STOP_S:.0f} s",
            found=f"{max(found.stops_s):.1f} s",
            kept=max(found.stops_s) <= STOP_S,
        ),
    ]


def report(faults: Sequence[Fault], found: Found, promises: Sequence[Promise]) -> tuple[str, int]:
    """Tables of what came and what became of it, and the exit status."""
    ways = Counter(fault.how for fault in faults)
    rows = [(KIND_OF[how], how, ways[how]) for how in KIND_OF if ways[how]]
    text, status = verdict(promises)
    ends = table(("exit code", "processes"), sorted(found.ends.items()))
    return "\n".join((table(("fault", "how", "times"), rows), ends, text)), status


def run(count: int, seed: int, protocols: Sequence[str] = ("gs", "s3")) -> tuple[str, int]:
    """As many faults, and the report."""
    torch.set_num_threads(1)
    faults = plan_faults(count, seed)
    steps = num_steps(faults)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = folder / "dataset"
        commit_dataset(dataset, (build_sample(number, SHAPE) for number in range(20)))
        recipe = folder / "recipe.yaml"
        recipe.write_text(recipe_text(small_recipe(steps)))
        with buckets(protocols, dataset) as stores:
            found = Supervisor(faults=faults, buckets=stores, recipe=recipe, out=folder / "run").run()
            unmet = sum(len(store.proxy.armed) for store in stores)
        disturbed = RunFolder(path=folder / "run")
        cuts = {row["step"]: row["micro_batch"] for row in disturbed.rows() if row["split"] == "train"}
        same, uncut = (run_quietly(dataset, folder / f"{n}", steps, one) for n, one in enumerate((cuts, {})))
        promises = [*judge(faults, found, unmet), *compare(disturbed, same, uncut, steps)]
    for line in found.untidy:
        print(line, file=sys.stderr)
    return report(faults, found, promises)


def main() -> None:
    """All of it; with --write into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/training.md")
    options = parser.parse_args()
    text, status = run(options.count, options.seed)
    print(text)
    if options.write:
        put("faults", text, ROOT / "docs/training.md")
    sys.exit(status)


if __name__ == "__main__":
    leave_after(main)
