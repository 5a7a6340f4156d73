"""Bounded retries of one request to a store: what may pass is tried again, everything else is said at once."""

import random
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from shards.errors import ShardError

Result = TypeVar("Result")

MAX_ATTEMPTS: Final = 8
"""Of one request. A store that fails one request in ten fails eight in a row once in a hundred million."""

FIRST_DELAY_S: Final = 0.25
MAX_DELAY_S: Final = 16.0
"""Delays double up to this: eight attempts wait for half a minute at most; a runner retries what takes longer."""

PASSING_STATUS: Final = frozenset({408, 429, 500, 502, 503, 504})
PASSING_CODES: Final = frozenset({
    "BadDigest", "ConditionalRequestConflict", "IncompleteBody", "InternalError", "OperationAborted", "RequestTimeout",
    "ServiceUnavailable", "SlowDown", "XAmzContentSHA256Mismatch",
})  # fmt: skip
"""Of S3: some of them come with a status in the 400s."""

PASSING_TYPES: Final = frozenset({
    "aiohttp.client_exceptions.ClientError",
    "aiohttp.http_exceptions.BadStatusLine",
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.FlexibleChecksumError",
    "botocore.exceptions.HTTPClientError",
    "botocore.exceptions.ResponseParserError",
    "botocore.parsers.ResponseParserError",
    "gcsfs.retry.ChecksumError",
    "google.auth.exceptions.TransportError",
    "requests.exceptions.ConnectionError",
    "requests.exceptions.Timeout",
})  # fmt: skip
"""By name, so that no store's client is imported to ask what its exceptions are."""

CLIENT_MODULES: Final = ("aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "requests", "s3fs", "urllib3")


class StoreError(ShardError, OSError):
    """A store did not do what it was asked, after every attempt that made sense."""


class PassingFaultError(StoreError):
    """An answer that another attempt may mend, such as a body that ends too soon."""


class ShortFileError(StoreError):
    """A file ends before what was asked of it; `bytes` are what it has."""

    def __init__(self, sentence: str, has_bytes: int = 0) -> None:
        super().__init__(sentence)
        self.bytes = has_bytes


def retrying(work: Callable[[], Result], name: str) -> Result:
    """What `work` returns, tried up to `MAX_ATTEMPTS` times while its faults may pass.

    Args:
        work: one request; it must be safe to repeat.
        name: of the file, for the error.

    Raises:
        FileNotFoundError, FileExistsError, PermissionError: as the store said, at once.
        StoreError: what else the store said, at once if it cannot pass, else after the last attempt.
    """
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - every client has its own exceptions; what is not passing is raised
            told = _translated(error, name)
            if not is_passing(error):
                raise told from (None if told is error else error)
            last = error
        if attempt < MAX_ATTEMPTS:
            time.sleep(_delay_s(attempt))
    raise StoreError(f"{name}: {MAX_ATTEMPTS} attempts failed, the last with {_said(last)}.") from last


def _delay_s(attempt: int) -> float:
    """Exponential, with jitter so that a thousand workers do not come back at once; it changes no byte."""
    return min(FIRST_DELAY_S * 2.0 ** (attempt - 1), MAX_DELAY_S) * random.uniform(0.5, 1.0)


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed later: too many requests, server errors, lost connections, short bodies."""
    if isinstance(error, (FileNotFoundError, PermissionError, FileExistsError)):
        return False
    if isinstance(error, (PassingFaultError, ConnectionError, TimeoutError)):
        return True
    if any(PASSING_TYPES & _type_names(one) for one in _chain(error)):
        return True
    return status_of(error) in PASSING_STATUS or _code_of(error) in PASSING_CODES


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an exception of gcsfs, s3fs or botocore."""
    for one in _chain(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:  # aiohttp gives its own complaints about a body a code in the 400s
            status = None if type(one).__module__.startswith("aiohttp") else getattr(one, "code", None)
        if isinstance(status, int | str) and str(status).isdigit():
            return int(status)
    return None


def _code_of(error: BaseException) -> str | None:
    for one in _chain(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code"))
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _type_names(error: BaseException) -> set[str]:
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}


def _translated(error: Exception, name: str) -> Exception:
    """Ours and plain ones of the system stay; a store client's become a sentence; defects stay what they are."""
    if isinstance(error, (ShardError, FileNotFoundError, FileExistsError, PermissionError)):
        return error
    if status_of(error) in {401, 403} or str(error).startswith("Forbidden"):
        return PermissionError(13, "the store refused: check the credentials and their rights", name)
    from_client = any(kind.__module__.startswith(CLIENT_MODULES) for kind in type(error).__mro__)
    if from_client or isinstance(error, OSError) or str(error).startswith("Bad Request"):
        return StoreError(f"{name}: the store answered {_said(error)}.")
    return error


def _said(error: BaseException) -> str:
    """In one line: the status and what came with it."""
    status = status_of(error)
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{status}: {text}" if status and str(status) not in text else f"{type(error).__name__}: {text}"
