"""Which faults come, how, and at which step: a seed fixes them."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

APART: Final = 3
"""Steps from one fault to the next."""


class Kind(StrEnum):
    """What a fault is."""

    NON_FINITE = "non-finite"
    OUT_OF_MEMORY = "out of memory"
    TRUNCATED = "truncated shard"
    STALLED = "stalled bucket"
    SIGTERM = "SIGTERM"


class How(StrEnum):
    """In which way; the first three are the run's own, the others come from outside."""

    LOSS = "the loss of one attempt"
    GRADIENT = "the gradient of one attempt, its loss is finite"
    TWO_STEPS = "two steps on end, tried twice: the run goes back"
    FORWARD = "in the forward pass of one micro-batch"
    CUT_ANSWER = "the connection breaks in the middle of a read"
    SHORT_ANSWER = "half of a read, as if it were all"
    CUT_OBJECT = "the object is cut until the run has failed"
    SILENT_ANSWER = "one read is never answered"
    SILENT_BUCKET = "nothing is answered until the run has failed"
    ANY_MOMENT = "at any moment"
    IN_VALIDATION = "in a validation"
    IN_SILENCE = "while nothing is answered"


KIND_OF: Final[Mapping[How, Kind]] = {
    How.LOSS: Kind.NON_FINITE,
    How.GRADIENT: Kind.NON_FINITE,
    How.TWO_STEPS: Kind.NON_FINITE,
    How.FORWARD: Kind.OUT_OF_MEMORY,
    How.CUT_ANSWER: Kind.TRUNCATED,
    How.SHORT_ANSWER: Kind.TRUNCATED,
    How.CUT_OBJECT: Kind.TRUNCATED,
    How.SILENT_ANSWER: Kind.STALLED,
    How.SILENT_BUCKET: Kind.STALLED,
    How.ANY_MOMENT: Kind.SIGTERM,
    How.IN_VALIDATION: Kind.SIGTERM,
    How.IN_SILENCE: Kind.SIGTERM,
}
ENDING: Final = frozenset({How.CUT_OBJECT, How.SILENT_BUCKET, How.ANY_MOMENT, How.IN_VALIDATION, How.IN_SILENCE})
"""After these the process ends; until it has, no other fault comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """`draw` in [0, 1) decides what is left to decide: a moment, a shard, a micro-batch."""

    number: int
    how: How
    step: int
    draw: float


def plan_faults(count: int, seed: int) -> list[Fault]:
    """As many of each kind, in all their ways, in a random order, from step 2 on.

    Args:
        count: of faults, a multiple of the kinds.
        seed: of the order and the draws.
    """
    hows = [how for kind in Kind for how in _ways(kind, count // len(Kind))]
    rng = random.Random(seed)
    rng.shuffle(hows)
    return [Fault(number=n, how=how, step=2 + n * APART, draw=rng.random()) for n, how in enumerate(hows)]


def _ways(kind: Kind, count: int) -> Sequence[How]:
    ways = [how for how, of in KIND_OF.items() if of is kind]
    return [ways[number % len(ways)] for number in range(count)]


def num_steps(faults: Sequence[Fault]) -> int:
    """Steps of a run that has room for all of them, and for a while after the last."""
    return faults[-1].step + 20
