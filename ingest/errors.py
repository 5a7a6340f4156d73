"""How the checks of this room speak: a reason and a sentence, turned into a `Rejection` in one place."""

from manifests.reasons import Reason


class IngestError(Exception):
    """A file cannot be accepted. `detail` says what was found, in numbers; it never quotes text of the header."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class GeometryError(Exception):
    """A geometry name or file that cannot be used."""

    exit_code = 2


class SourceError(Exception):
    """SOURCE cannot be used as it is."""

    exit_code = 2


class GuardError(Exception):
    """The process that parses and decodes could not be used, for a reason that is no file's."""

    exit_code = 1
