"""What ends an ingest job."""


class JobError(Exception):
    """The work failed."""

    exit_code = 1


class JobOptionError(Exception):
    """The job cannot start as it was asked for."""

    exit_code = 2
