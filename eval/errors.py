"""What can go wrong between a checkpoint and its score."""


class EvalError(Exception):
    """Base of this room's errors; `exit_code` is what a command ends with."""

    exit_code = 1


class EmbeddingsError(EvalError):
    """The embeddings cannot be written there, or are not embeddings."""

    exit_code = 2


class PlaceError(EvalError):
    """A result cannot be written where it was asked for."""

    exit_code = 2


class ProbeError(EvalError):
    """The embeddings and labels cannot be probed: too few participants, classes or features."""


class LabelsMissingError(ProbeError):
    """Neither the embeddings nor the command line say which group a participant is in."""

    exit_code = 2
