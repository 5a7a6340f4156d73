"""Which requests fail and how: a share of them, by a seed, so that a failing test can be run again."""

import random
import threading
from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    TOO_MANY = "429"
    SERVER_ERROR = "500"
    UNAVAILABLE = "503"
    RESET = "reset"
    LOST_ANSWER = "lost answer"
    """The store does what it was asked, and the connection is reset before it says so."""
    STALL = "stall"
    CUT = "cut"
    """Half of the body, under a Content-Length of the whole."""
    SHORT = "short"
    """Half of the body of a download, under a Content-Length of that half: only who knows the size can tell."""


STATUS_FAULTS = frozenset({Fault.TOO_MANY, Fault.SERVER_ERROR, Fault.UNAVAILABLE})
QUICK_FAULTS = tuple(fault for fault in Fault if fault is not Fault.STALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`share` of all requests get one of `faults`, in an order that `seed` fixes."""

    share: float = 0.0
    faults: tuple[Fault, ...] = QUICK_FAULTS
    seed: int = 0


class Dice:
    """Draws for one request after the other, from any thread."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._random = random.Random(plan.seed)
        self._lock = threading.Lock()

    def draw(self) -> Fault | None:
        with self._lock:
            chance, fault = self._random.random(), self._random.choice(self._plan.faults)
        return fault if chance < self._plan.share else None
