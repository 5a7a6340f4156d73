"""What can go wrong with the tables that say what happened."""


class ManifestError(Exception):
    """Base of this room's errors; `exit_code` is what a command ends with."""

    exit_code = 1


class CohortError(ManifestError):
    """A participants file cannot be used as it stands: a column, an id or a value is not as documented."""

    exit_code = 2


class JoinError(CohortError):
    """Labels and volumes do not meet for too many participants, or for a whole site."""

    exit_code = 1


class AuditError(ManifestError):
    """A dataset's tables cannot be read as tables: one is missing, or has other columns or values."""


class NoDatasetError(AuditError):
    """There is nothing where the dataset should be, or that place cannot be opened."""

    exit_code = 2


class PageError(AuditError):
    """The page cannot be written where it was asked for."""

    exit_code = 2
