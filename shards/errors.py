"""What can go wrong with a dataset on disk or in a bucket."""


class ShardError(Exception):
    """Base of this room's errors; `exit_code` is what a command ends with."""

    exit_code = 1


class SchemaError(ShardError):
    """A row, a sample or a `dataset.json` is not what the schema promises."""


class DatasetNotFoundError(ShardError):
    """There is nothing at the place that was named."""

    exit_code = 2


class AddressError(ShardError):
    """An address whose kind of storage is not known, or needs a package that is not installed."""

    exit_code = 2


class DatasetIncompleteError(ShardError):
    """The dataset has no valid `_SUCCESS`: it was never finished, or was changed since."""


class DatasetCorruptError(ShardError):
    """Bytes differ from what was committed."""


class DatasetUnreadableError(ShardError):
    """The file system refused: permissions, credentials, network, or a failing disk."""


class ReaderDiedError(ShardError):
    """A process that reads for a training run was killed."""


class UnknownKeyError(ShardError):
    """A sample key that the dataset does not hold."""

    exit_code = 2


class UnknownSelectionError(ShardError):
    """A split, device, protocol or region that cannot match any sample."""

    exit_code = 2
