"""Saves that are killed, and checkpoints that are damaged: `python benchmarks/checkpoints.py` (docs/training.md).

A process saves one checkpoint after another and says each that is done; SIGKILL ends it at a random moment, and the
next goes on from the newest that is whole. Then the newest of three checkpoints is damaged, one way after another.
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
from pathlib import Path
from typing import Final

import torch
from reliability.report import Promise, table, verdict

from train.checkpoint import FILES, STATE_FILE, load_state, newest_checkpoint
from train.config import Recipe
from train.device import open_device
from train.errors import CheckpointError
from train.recipe import parse_recipe
from train.snapshot import save_checkpoint
from train.step import TrainState, start_state

KEEP: Final = 3
LONGEST_S: Final = 0.25
"""A save takes some hundredths of a second, so that most kills fall into one."""


def recipe() -> Recipe:
    """A small encoder: 2 MB a checkpoint."""
    return parse_recipe(
        {
            "name": "checkpoints",
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


def save_for_ever(folder: Path, state: TrainState, say: int) -> None:
    """Save a checkpoint a step, each with weights of its own, and say its step when it is done."""
    while True:
        state.step += 1
        mark(state)
        save_checkpoint(folder, state, recipe(), dataset_sha256="", keep=KEEP)
        os.write(say, f"{state.step}\n".encode())


def kill_once(folder: Path, state: TrainState, after_s: float) -> tuple[int, int, bool]:
    """Steps said and found, and whether the kill fell into a save."""
    heard, say = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(heard)
            save_for_ever(folder, state, say)
        finally:
            os._exit(1)  # whatever happens, the rest of this script is not the child's
    os.close(say)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(heard) as said:
        steps = [int(line) for line in said if line.endswith("\n")]
    in_a_save = any(folder.glob(".tmp-*"))
    newest = newest_checkpoint(folder).checkpoint
    found = newest.step if newest else -1
    if newest:
        load_state(newest, state, torch.device("cpu"))
        if state.networks.context.mask_token[0].item() != found:
            raise AssertionError(f"the weights of step {found} are those of another step")
    return max(steps, default=state.step), found, in_a_save


def run_kills(count: int, seed: int, folder: Path) -> list[Promise]:
    """Kill `count` saving processes, each going on from what the one before left."""
    rng, state = random.Random(seed), fresh_state()
    save_checkpoint(folder, state, recipe(), dataset_sha256="", keep=KEEP)
    lost, in_saves, loaded = [], 0, 0
    for _ in range(count):
        said, found, in_a_save = kill_once(folder, state, rng.uniform(0.0, LONGEST_S))
        lost.append(said - found)
        loaded += found >= 0
        in_saves += in_a_save
    print(table(("kills", "in the middle of a save", "checkpoints saved"), [(count, in_saves, state.step)]))
    return [
        Promise(text="the newest whole checkpoint loads", found=f"{loaded} of {count}", kept=loaded == count),
        Promise(text="no save that was done is lost", found=str(max(lost)), kept=max(lost) <= 0),
        Promise(text="kills fell into saves", found=str(in_saves), kept=in_saves > count // 10),
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
