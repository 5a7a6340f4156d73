"""One rank of a run on the tiny recipe, started by torchrun: `OUT DATASET VALUES`, VALUES as JSON sections of it.

With `stop_after`, a number of steps, the process ends there as by `kill -9`; `labels` are by key. With
`silent_after` the second rank's data come no more after so many, and it is told to stop while it waits for them. With
`short_after` its memory is too small after so many, with `gone_after` it alone is killed, and `odd` are sections that
it alone was given. `slow_copies`: a sum is given up after so many seconds, and a copy
takes so many. `OUT/held-RANK`: how many numbers of weights and moments it
holds; `OUT-said-RANK`: what ended it.
"""

import json
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import torch

import shards.loader
import train.attempts
import train.copies
import train.ranks
import train.recorder
from fovea.leave import leave_after
from shards.reader import open_dataset
from tests.train.conftest import tiny
from train.errors import TrainError
from train.loop import pretrain
from train.sharding import local


def held_by(state):
    """How many numbers of weights and moments this rank holds."""
    moments = [value for one in state.optimizer.state.values() for value in one.values()]
    return sum(local(tensor).numel() for tensor in (*state.networks.parameters(), *moments))


def too_small(*_):
    raise torch.OutOfMemoryError("no more memory")


def make_slow(silence_s, copy_s):
    train.ranks.SILENCE = timedelta(seconds=silence_s)
    real = train.copies.Copies.push

    def push(*arguments):
        time.sleep(copy_s)
        real(*arguments)

    train.copies.Copies.push = push


def main() -> None:
    out, dataset, values = sys.argv[1:]
    sections = json.loads(values)
    names = ("stop_after", "silent_after", "short_after", "gone_after", "slow_copies", "labels", "odd")
    stop_after, silent_after, short_after, gone_after, slow_copies, labels, odd = (
        sections.pop(name, None) for name in names
    )
    if slow_copies:
        make_slow(*slow_copies)
    ours = odd or {} if os.environ["RANK"] == "1" else {}
    real = train.attempts.try_step

    def step_then_die(state, *arguments):
        if state.step == short_after and os.environ["RANK"] == "1":
            state.networks.predictor.register_forward_pre_hook(too_small)
        result = real(state, *arguments)
        (Path(out) / f"held-{os.environ['RANK']}").write_text(str(held_by(state)))
        if state.step == stop_after:
            os._exit(9)
        if state.step == gone_after and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        if state.step == silent_after and os.environ["RANK"] == "1":
            shards.loader.read_sample = lambda *_: time.sleep(60)
            threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        return result

    train.attempts.try_step = step_then_die
    train.recorder.save_masks = lambda path, *_, **__: path.write_bytes(b"")
    train.recorder.save_components = lambda path, *_, **__: path.write_bytes(b"")
    torch.set_num_threads(1)
    try:
        pretrain(tiny(**(sections | ours)), open_dataset(dataset), Path(out), labels=labels)
    except TrainError as error:
        said = f"{type(error).__name__}: {error}"
        Path(f"{out}-said-{os.environ['RANK']}").write_text(said)
        raise


if __name__ == "__main__":
    leave_after(main)
