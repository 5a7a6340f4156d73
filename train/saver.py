"""Saving beside the loop: it waits while the state is copied in memory; a thread does the rest, one save at a time."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

from train.copies import Copier, Copies
from train.errors import CheckpointError
from train.plan import Plan
from train.run_folder import RunFolder
from train.signals import Stop
from train.snapshot import Snapshot, publish_snapshot, take_snapshot
from train.step import TrainState
from train.tracking import Tracker

STOP_COPY_S: Final = 15.0
"""A stop waits for the run folder as long as it takes, and for a bucket so long: 25 s are all that is left for both."""

LOOK_S: Final = 0.2
"""A loop that waits for a save looks so often whether it was told to stop."""


@dataclass(slots=True, kw_only=True)
class _Job:
    """A save in flight. What went wrong is kept for the loop."""

    snapshot: Snapshot
    published: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread = field(default_factory=threading.Thread)
    error: Exception | None = None


@dataclass(slots=True, kw_only=True)
class Saver:
    """Saves one run. `held_s` is how long its loop has waited for that, the copy in memory included.

    Attributes:
        take: a snapshot of the state as it is; it may use the memory of the one that it is given.
        publish: writes a snapshot, and returns the folder of the checkpoint.
        after: what is done with each checkpoint, in this order.
        copier: that of them which must not be missing at the end.
        background: False does all of it in the time of the loop: the same bytes.
        say: told what a stop did not wait for, and what went wrong after something worse.
    """

    take: Callable[[Snapshot | None], Snapshot]
    publish: Callable[[Snapshot], Path]
    after: Sequence[Callable[[Path], None]] = ()
    copier: Copier | None = None
    background: bool = True
    say: Callable[[str], None] = lambda _sentence: None
    held_s: float = 0.0
    _job: _Job | None = None
    _spare: Snapshot | None = None
    _stop: Stop = field(default_factory=Stop)
    _deadline: float | None = None

    @contextmanager
    def running(self, stop: Stop) -> Iterator[None]:
        """While a loop runs, which `stop` ends. Afterwards nothing is in flight.

        Raises:
            CheckpointError: if the last save failed, or the copy of the last checkpoint.
        """
        self._stop = stop
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Exception):
                stop.set()  # Ctrl-C waits no longer than SIGTERM
            self._finish_after()
            raise
        self.finish()
        if self.copier:
            self.copier.check()

    def save(self, best: int | None = None) -> None:
        """Copy the state, and have it saved beside that of step `best`; when told to stop, wait until that is done.

        Raises:
            CheckpointError: if the save before failed, or this one where it is waited for.
        """
        self.finish()
        began = time.perf_counter()
        job = _Job(snapshot=replace(self.take(self._spare), spare=best))
        self._spare = None
        job.thread = threading.Thread(target=self._work, args=(job,), name="save", daemon=True)
        job.thread.start()
        self._job = job
        self.held_s += time.perf_counter() - began
        if not self.background or self._stop.is_set():
            self.finish()

    def finish(self) -> None:
        """Wait for the save in flight, if there is one.

        Raises:
            CheckpointError: if it failed.
        """
        job, began = self._job, time.perf_counter()
        if job is None:
            return
        while job.thread.is_alive() and not self._is_left(job):
            job.thread.join(LOOK_S)
        self._job, self._spare = None, job.snapshot
        self.held_s += time.perf_counter() - began
        if isinstance(job.error, CheckpointError):
            raise job.error
        if job.error is not None:
            raise CheckpointError(
                f"step {job.snapshot.step} could not be saved ({type(job.error).__name__}: {job.error}); resume from "
                "the checkpoint before it, if there is one."
            ) from job.error

    def forget_after(self, step: int) -> None:
        """The run went back: copies of later steps are of no run."""
        if self.copier:
            self.copier.forget_after(step)

    def _work(self, job: _Job) -> None:
        try:
            path = self.publish(job.snapshot)
            job.published.set()
            for act in self.after:
                act(path)
        except Exception as error:  # noqa: BLE001 - the loop raises it, whatever it is
            job.error = error

    def _is_left(self, job: _Job) -> bool:
        """Whether the run was told to stop, the checkpoint is safe here, and what follows it has had its time."""
        if not (self._stop.is_set() and job.published.is_set()):
            return False
        now = time.monotonic()
        self._deadline = self._deadline or now + STOP_COPY_S
        if now < self._deadline:
            return False
        self.say(
            f"step {job.snapshot.step} is saved in the run folder; its copy took longer than the {STOP_COPY_S:.0f} s "
            "that a stop has for it, and is left: resume in this folder, and the next save is copied again."
        )
        return True

    def _finish_after(self) -> None:
        try:
            self.finish()
        except CheckpointError as error:
            self.say(str(error))  # beside what ended the loop, which is raised


def open_saver(plan: Plan, run: RunFolder, state: TrainState, tracker: Tracker, say: Callable[[str], None]) -> Saver:
    """That of a run, as its recipe asks."""
    recipe = plan.recipe
    copies = Copies.of(recipe)
    copier = Copier(copies=copies, run=run, keep=recipe.checkpoint.keep, say=say) if copies else None
    return Saver(
        take=lambda spare: take_snapshot(state, recipe, dataset_sha256=plan.dataset_sha256, reuse=spare),
        publish=partial(publish_snapshot, run.checkpoints, keep=recipe.checkpoint.keep),
        after=[run.note_saved, *([copier] if copier else []), *([tracker.checkpoint] if recipe.log.artifacts else [])],
        copier=copier,
        background=recipe.checkpoint.background,
        say=say,
    )
