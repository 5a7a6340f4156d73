"""`fovea pretrain` in processes that meet faults, one after the other: `TELL HEAR`, two descriptors.

Each line of the standard input is a command, as JSON: the faults that are left, its arguments, and the file for what it
says. A process tells its number first, then that of each fault that comes; it goes on when the supervisor, who does
what comes from outside, has answered. Last comes `end` and its status. Processes are forked from this one, which has
imported what they need: that takes longer than their work.
"""

import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import gcsfs  # noqa: F401 - before the fork
import s3fs  # noqa: F401
import torch
import torch._dynamo  # what an optimizer imports

import shards.retries
import shards.storage
import train.attempts
import train.loop
import train.recorder
import train.step
from faults.plan import ENDING, Fault, How
from fovea.cli import main as fovea
from fovea.leave import leave_after

SILENCE_S = 1.0
"""Instead of 30: eight attempts at a silent store are ten seconds."""

ATTEMPTS = {How.LOSS: 1, How.GRADIENT: 1, How.TWO_STEPS: 4}


class Injector:
    """Stands between the loop and its steps."""

    def __init__(self, faults: list[Fault], tell: int, hear: int) -> None:
        self._left, self._tell, self._hear = faults, tell, hear
        self._ends = False
        self._at_validation: Fault | None = None
        self._spoiled: How | None = None
        self._attempts = 0
        self._too_large_at = math.inf
        self._try_step, self._evaluate, self._validate = (
            train.attempts.try_step, train.step.evaluate, train.recorder.validate,
        )  # fmt: skip

    def install(self) -> None:
        """Put ourselves in place, and make the store's clients impatient."""
        train.attempts.try_step, train.step.evaluate = self.try_step, self.evaluate
        train.recorder.validate = self.validate
        shards.storage.SILENCE_S = SILENCE_S
        train.recorder.save_masks = lambda path, *_, **__: path.write_bytes(b"")  # takes longer than many steps
        shards.retries.FIRST_DELAY_S, shards.retries.MAX_DELAY_S = 0.01, 0.1

    def try_step(self, state: Any, batches: Iterator[Any], recipe: Any, device: Any) -> Any:
        """An attempt at a step, with what is due then."""
        if self._left and self._left[0].step <= state.step + 1 and not (self._ends or self._attempts):
            self._bring(self._left.pop(0), recipe.train.global_batch)
        if self._attempts:
            self._attempts -= 1
            if self._spoiled is not How.GRADIENT:
                batches = (replace(one, context_BDHW=one.context_BDHW * math.nan) for one in batches)
        elif self._spoiled:
            self._spoiled = None
        return self._try_step(state, batches, recipe, device)

    def evaluate(self, networks: Any, batch: Any) -> Any:
        """A forward pass, in training one for which memory may be too small."""
        outcome = self._evaluate(networks, batch)
        if not networks.training:
            return outcome
        self._too_large_at -= len(batch.content_BN)
        if self._too_large_at < 0:
            self._too_large_at = math.inf
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if self._spoiled is How.GRADIENT:  # 0 in the loss; its root's slope there is infinite
            weight = next(iter(networks.context.parameters()))
            return replace(outcome, total_loss=outcome.total_loss + torch.sqrt(weight.sum() * 0))
        return outcome

    def validate(self, *arguments: Any) -> Any:
        """A validation, with a SIGTERM if one was to come here."""
        if self._at_validation and not self._ends:
            self._ends = True
            self._report(self._at_validation)
        return self._validate(*arguments)

    def _bring(self, fault: Fault, batch: int) -> None:
        if fault.how is How.IN_VALIDATION:
            self._at_validation = fault
            return
        self._ends = fault.how in ENDING
        self._report(fault)
        if fault.how in ATTEMPTS:
            self._spoiled, self._attempts = fault.how, ATTEMPTS[fault.how]
        if fault.how is How.FORWARD:
            self._too_large_at = int(fault.draw * batch)

    def _report(self, fault: Fault) -> None:
        os.write(self._tell, f"{fault.number}\n".encode())
        os.read(self._hear, 1)


def pretrain(command: dict[str, Any], tell: int, hear: int) -> None:
    """The command, with the faults in its way."""
    os.dup2(os.open(command["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.write(tell, f"{os.getpid()}\n".encode())
    os.read(hear, 1)
    faults = [Fault(**{**one, "how": How(one["how"])}) for one in command["faults"]]
    Injector(faults, tell, hear).install()
    sys.argv = ["fovea", "pretrain", *command["arguments"]]
    fovea()


def main() -> None:
    """Commands until there are no more."""
    tell, hear = map(int, sys.argv[1:])
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            leave_after(partial(pretrain, json.loads(line), tell, hear))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(tell, f"end {status}\n".encode())


if __name__ == "__main__":
    main()
