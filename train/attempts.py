"""A step of the run, whatever comes between: memory that is too small, numbers that are not finite.

Steps are pure functions of the state and their number, so one that failed is done again with the same samples, masks
and noise, and what passed leaves no trace in the weights.
"""

from collections.abc import Callable
from dataclasses import dataclass

from train.config import Recipe
from train.device import Device
from train.errors import MicroBatchError, TrainError
from train.feed import Feed
from train.step import StepResult, TrainState, skip_step, try_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepper:
    """Makes the steps of one run."""

    state: TrainState
    feed: Feed
    recipe: Recipe
    device: Device
    say: Callable[[str], None]

    def step(self) -> StepResult:
        """The next step. Where memory is too small the micro-batch is halved until the process ends; the batch stays.

        An update that is not finite is computed once more: a bit that flipped does not come back. What is not finite
        again is left out, and counted.

        Raises:
            NonFiniteError: after `train.max_nonfinite` such updates in a row.
            TrainError: if a micro-batch of one volume does not fit.
        """
        result = self._fitting()
        if not result.applied:
            self.say(
                f"step {self.state.step + 1}: the update is not finite (loss {result.summary['loss']}): once more."
            )
            self.feed.go_to(self.state.step)
            result = self._fitting()
        if not result.applied:
            self.say(f"step {self.state.step + 1} is left out: its update is not finite.")
            skip_step(self.state, self.recipe, result)
        return result

    def _fitting(self) -> StepResult:
        while True:
            try:
                return try_step(self.state, self.feed.step_batches(), self.recipe, self.device)
            except MicroBatchError as error:
                said = str(error)
            self._halve(said)  # here nothing holds the batch that did not fit any more

    def _halve(self, said: str) -> None:
        if self.feed.micro_batch == 1:
            raise TrainError(
                f"a micro-batch of one volume does not fit into memory ({said}): raise data.pool, lower "
                "objective.num_visible, choose a smaller model.preset, or a larger device."
            )
        self.device.free_memory()
        self.feed.micro_batch //= 2
        self.feed.go_to(self.state.step)
        self.say(
            f"step {self.state.step + 1}: {said}; from here on train.micro_batch is {self.feed.micro_batch}, and the "
            f"global batch of {self.recipe.train.global_batch} stays."
        )
