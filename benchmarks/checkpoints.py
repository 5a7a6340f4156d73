"""Saves that are killed, and checkpoints that are damaged: `python benchmarks/checkpoints.py` (docs/training.md).

A process saves one checkpoint after another beside its loop, copies each to another folder, and says which are done;
SIGKILL ends it at a random moment, and the next goes on from the newest that is whole, now and then without the run
folder, from the copies. Then the newest of three checkpoints is damaged, one way after another.
Exit status 1: a promise was broken.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from reliability.report import Promise, table, verdict

from shards.storage import locate
from train.checkpoint import FILES, STATE_FILE, load_state, newest_checkpoint
from train.config import Recipe
from train.copies import Copies, bring_newest
from train.device import open_device
from train.errors import CheckpointError
from train.recipe import parse_recipe
from train.run_folder import RunFolder
from train.saver import Saver
from train.snapshot import publish_snapshot, save_checkpoint, take_snapshot
from train.step import TrainState, start_state

KEEP: Final = 3
LOST: Final = 4
"""After one kill in so many the run folder is lost, too."""


def recipe(copies: str | None = None) -> Recipe:
    """A small encoder: 2 MB a checkpoint."""
    return parse_recipe(
        {
            "name": "checkpoints",
            "checkpoint": {"copies": copies},
            "data": {"grid": (8, 32, 32)},
            "model": {
                "patch": (2, 8, 8),
                "dim": 96,
                "head_dim": 16,
                "depth": 2,
                "predictor_dim": 32,
                "predictor_depth": 1,
            },
            "objective": {"num_visible": 16, "num_targets": 12},
        }
    )


def fresh_state() -> TrainState:
    """A state whose optimizer has its moments, as after a step."""
    state = start_state(recipe(), open_device("cpu", "fp32"))
    for weight in state.networks.learned_parameters():
        weight.grad = torch.zeros_like(weight)
    state.optimizer.step()
    mark(state)
    return state


@torch.no_grad()
def mark(state: TrainState) -> None:
    """Weights, in each file, that say which step they are of."""
    for network in (state.networks.context, state.networks.target, state.networks.predictor):
        network.get_parameter("mask_token").fill_(float(state.step))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """What a killed process had said, -1 for nothing, and what it was at."""

    said: int
    in_a_save: bool
    in_a_copy: bool


def save_for_ever(run: RunFolder, copies: Copies, state: TrainState, say: int) -> None:
    """Save a checkpoint a step, each with weights of its own, and say its step when it and its copy are done.

    Meanwhile the weights of the next step are there already.
    """
    saver = Saver(
        take=lambda spare: take_snapshot(state, recipe(), dataset_sha256="", reuse=spare),
        publish=lambda snapshot: publish_snapshot(run.checkpoints, snapshot, keep=KEEP),
        after=[lambda path: copies.push(path, "", KEEP)],
    )
    begun = state.step
    while True:
        state.step += 1
        mark(state)
        saver.save()
        if state.step > begun + 1:
            os.write(say, f"{state.step - 1}\n".encode())


def kill_once(run: RunFolder, copies: Copies, state: TrainState, place: float) -> Kill:
    """Fork a process that saves, and kill it after its first save: at a place from 0 to 1 of the time of another."""
    heard, say = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            os.close(heard)
            save_for_ever(run, copies, state, say)
        finally:
            os._exit(1)  # whatever happens, the rest of this script is not the child's
    os.close(say)
    with os.fdopen(heard) as said:
        first = said.readline()
        time.sleep(place * (time.monotonic() - began))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        steps = [int(line) for line in (first, *said) if line.endswith("\n")]
    return Kill(
        said=max(steps, default=-1),
        in_a_save=any(run.checkpoints.glob(".tmp-*")),
        in_a_copy=any(STATE_FILE not in files for files in copies.found().values()),
    )


def go_on(run: RunFolder, copies: Copies, state: TrainState) -> int:
    """Load the newest checkpoint that is whole, whose weights must be of one step; that step, or -1."""
    bring_newest(run, recipe(copies.place.path), "")
    newest = newest_checkpoint(run.checkpoints).checkpoint
    if newest is None:
        return -1
    load_state(newest, state, torch.device("cpu"))
    networks = (state.networks.context, state.networks.target, state.networks.predictor)
    marks = {one.get_parameter("mask_token")[0].item() for one in networks}
    if marks != {float(newest.step)}:
        raise AssertionError(f"the weights of step {newest.step} are those of steps {marks}")
    return newest.step


def run_kills(count: int, seed: int, folder: Path) -> list[Promise]:
    """Kill `count` saving processes, each going on from what the one before left; now and then from copies alone."""
    rng, state = random.Random(seed), fresh_state()
    run, copies = RunFolder(path=folder / "run"), Copies(place=locate(folder / "copies"))
    copies.push(save_checkpoint(run.checkpoints, state, recipe(), dataset_sha256="", keep=KEEP), "", KEEP)
    lost, loaded, kills = [], 0, []
    for number in range(count):
        before = state.step
        kills.append(kill_once(run, copies, state, rng.random()))
        if number % LOST == LOST - 1:
            shutil.rmtree(run.checkpoints)
            run.checkpoints.mkdir()
        found = go_on(run, copies, state)
        loaded += found >= 0
        lost.append(max(kills[-1].said, before) - found)
    in_saves, in_copies = sum(kill.in_a_save for kill in kills), sum(kill.in_a_copy for kill in kills)
    in_either = sum(kill.in_a_save or kill.in_a_copy for kill in kills)
    columns = ("kills", "in the middle of a save", "in the middle of a copy", "run folders lost", "checkpoints saved")
    print(table(columns, [(count, in_saves, in_copies, count // LOST, state.step)]))
    return [
        Promise(text="the newest whole checkpoint loads", found=f"{loaded} of {count}", kept=loaded == count),
        Promise(text="no save that was done is lost", found=str(max(lost)), kept=max(lost) <= 0),
        Promise(text="kills fell into saves or copies", found=str(in_either), kept=in_either > count // 10),
    ]


def damages(rng: random.Random) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Ways to damage a checkpoint, each with the file that is harmed."""
    while True:
        name = rng.choice((*FILES, STATE_FILE))
        place, how = rng.random(), rng.choice(("flipped", "cut", "missing", "empty", "of another step"))

        def harm(folder: Path, name: str = name, place: float = place, how: str = how) -> None:
            path = folder / name
            data = bytearray(path.read_bytes())
            if how == "flipped":
                data[int(place * len(data))] ^= 1 << int(8 * place)
                path.write_bytes(data)
            elif how == "cut":
                path.write_bytes(data[: int(place * len(data))])
            elif how == "missing":
                path.unlink()
            elif how == "empty":
                path.write_bytes(b"")
            else:
                shutil.copyfile(min(folder.parent.glob("step-*")) / name, path)

        yield f"{name} {how}", harm


def run_damages(count: int, seed: int, folder: Path) -> list[Promise]:
    """Damage the newest of three checkpoints, `count` times."""
    state = fresh_state()
    rng = random.Random(seed)
    wrong, found = [], Counter[str]()
    ways = damages(rng)
    for number in range(count):
        place = folder / f"{number}"
        for step in (1, 2, 3):
            state.step = step
            mark(state)
            save_checkpoint(place, state, recipe(), dataset_sha256="")
        what, harm = next(ways)
        harm(place / "step-00000003")
        found[what.partition(" ")[2]] += 1
        if not _falls_back(place, what.partition(" ")[0]):
            wrong.append(what)
        shutil.rmtree(place)
    print(table(("damage", "checkpoints"), sorted(found.items())))
    fell = f"{count - len(wrong)} of {count}" + (f", not {wrong[0]}" if wrong else "")
    return [Promise(text="the one before is taken, and the damage named", found=fell, kept=not wrong)]


def _falls_back(place: Path, name: str) -> bool:
    try:
        newest = newest_checkpoint(place)
    except CheckpointError:
        return False
    said = newest.passed_over[0] if len(newest.passed_over) == 1 else ""
    names = FILES if name == STATE_FILE else (name,)  # a record of another step is found by the files it tells of
    named = "step-00000003" in said and any(one in said for one in (*names, name))
    return named and newest.checkpoint is not None and newest.checkpoint.step == 2


def run(kills: int, damaged: int, seed: int) -> int:
    """Both, in a folder of their own."""
    torch.set_num_threads(1)  # so that the process may be forked
    with tempfile.TemporaryDirectory() as folder:
        promises = [
            *run_kills(kills, seed, Path(folder) / "kills"),
            *run_damages(damaged, seed, Path(folder) / "damages"),
        ]
    text, status = verdict(promises)
    print(text)
    return status


def main() -> int:
    """Both, as often as asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--damaged", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    return run(options.kills, options.damaged, options.seed)


if __name__ == "__main__":
    sys.exit(main())
