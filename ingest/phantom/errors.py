"""What can go wrong when a synthetic cohort is asked for."""


class PhantomError(Exception):
    """Base of this room's errors; `exit_code` is what a command ends with."""

    exit_code = 1


class PhantomUsageError(PhantomError):
    """A cohort that cannot be written as asked: a number, a device, or the folder is wrong."""

    exit_code = 2


class PhantomHeaderError(PhantomError):
    """Pixels and header do not describe the same volume."""
