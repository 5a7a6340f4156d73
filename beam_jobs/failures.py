"""What failed, in one sentence: Beam wraps whatever a worker raised in an exception of the runner's choice."""

import re
from collections.abc import Iterator
from typing import Final

from beam_jobs.dataflow import what_service_said

OWN_ERRORS: Final = {
    "JobError", "GuardError", "SourceError", "CohortError", "GeometryError", "StoreError", "PassingFaultError",
    "ShortFileError",
    "ContentConflictError",
}  # fmt: skip
RUNNING: Final = " [while running"
STEP: Final = re.compile(r"\[while running '(\w+)")
RAISED: Final = re.compile(r"Traceback \(most recent call last\):\n(?:[ \t].*\n)+(?P<kind>[\w.]+)(?:: (?P<said>.*))?")
"""The end of a worker's traceback; what stands further down may be a file's."""


def what_failed(error: Exception) -> str:
    """What a worker said, if it is our own sentence; of others, which may quote a file, the kind and the step."""
    for known in _chain(error):
        if type(known).__name__ in OWN_ERRORS:
            return str(known).partition(RUNNING)[0]
        if said := what_service_said(known):
            return said
    raised = [*RAISED.finditer(str(error))]
    kind = raised[-1]["kind"].rpartition(".")[2] if raised else type(error).__name__
    if raised and kind in OWN_ERRORS:
        return str(raised[-1]["said"]).partition(RUNNING)[0]
    steps = STEP.findall(str(error))
    return f"{kind}{f' in the step {steps[-1]}' if steps else ''}; --debug shows the rest."


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
