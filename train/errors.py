"""What can go wrong in training; each message says what was expected, what came, and what to do."""


class TrainError(Exception):
    """Base of this room's errors; `exit_code` is what a command ends with."""

    exit_code = 1


class RecipeError(TrainError):
    """A recipe, or an override of it, is not one that the trainer knows."""

    exit_code = 2


class RunFolderError(TrainError):
    """The run folder belongs to another recipe or dataset, or is not a run folder."""

    exit_code = 2


class BudgetError(TrainError):
    """Too many samples hold fewer content tokens than the recipe's static budgets need."""


class DeviceError(TrainError):
    """The device that the recipe asks for is not there."""

    exit_code = 2


class CheckpointError(TrainError):
    """No checkpoint could be read; training never starts from scratch instead."""


class NoCheckpointError(CheckpointError):
    """What was named as a run holds none."""

    exit_code = 2


class MemoryTooSmallError(TrainError):
    """The memory of this process's device is too small for what it was asked."""


class MicroBatchError(TrainError):
    """A micro-batch did not fit into memory, on some rank; nothing was changed by it."""


class RankError(TrainError):
    """Another process of the run has ended, or did not come in time; what it said is what went wrong."""


class ExportError(TrainError):
    """There is no place for an exported encoder."""

    exit_code = 2


class NonFiniteError(TrainError):
    """Too many updates in a row had a loss or a gradient that is not finite."""


class ValidationError(TrainError):
    """The validation loss is zero, not finite, or does not vary: it measures nothing."""


class TrainingStoppedError(TrainError):
    """SIGTERM arrived; a checkpoint was saved and the same command resumes the run."""

    exit_code = 143
