"""One rank of a run on the tiny recipe, started by torchrun: `OUT DATASET VALUES`, VALUES as JSON sections of it.

With `stop_after`, a number of steps, the process ends there as by `kill -9`; `labels` are by key. With
`silent_after` the second rank's data come no more after so many, and it is told to stop while it waits for them.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch

import shards.loader
import train.attempts
import train.recorder
from fovea.leave import leave_after
from shards.reader import open_dataset
from tests.train.conftest import tiny
from train.loop import pretrain


def main() -> None:
    out, dataset, values = sys.argv[1:]
    sections = json.loads(values)
    stop_after, silent_after, labels = (sections.pop(name, None) for name in ("stop_after", "silent_after", "labels"))
    real = train.attempts.try_step

    def step_then_die(state, *arguments):
        result = real(state, *arguments)
        if state.step == stop_after:
            os._exit(9)
        if state.step == silent_after and os.environ["RANK"] == "1":
            shards.loader.read_sample = lambda *_: time.sleep(60)
            threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        return result

    train.attempts.try_step = step_then_die
    train.recorder.save_masks = lambda path, *_, **__: path.write_bytes(b"")
    train.recorder.save_components = lambda path, *_, **__: path.write_bytes(b"")
    torch.set_num_threads(1)
    pretrain(tiny(**sections), open_dataset(dataset), Path(out), labels=labels)


if __name__ == "__main__":
    leave_after(main)
