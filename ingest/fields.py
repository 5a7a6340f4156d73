"""Typed reads of a data set by keyword: absent is None, and a value that cannot be read is an `IngestError`.

pydicom converts values when they are read, so a damaged value shows here and not in the parse.
"""

import math
from collections.abc import Iterator, Sequence

from pydicom.dataset import Dataset

from ingest.errors import IngestError
from manifests.reasons import Reason


def raw(dataset: Dataset, keyword: str) -> object | None:
    """The value of an element; None when it is absent or empty.

    Raises:
        IngestError: PARSER_CRASH when pydicom cannot convert the value.
    """
    try:
        value = dataset.get(keyword)
    except RecursionError as error:
        raise IngestError(Reason.PARSE_LIMIT_EXCEEDED, f"{keyword}: nested too deep.") from error
    except Exception as error:
        raise IngestError(Reason.PARSER_CRASH, f"{keyword}: the parser raised {type(error).__name__}.") from error
    return None if value is None or value == "" else value


def text(dataset: Dataset, keyword: str) -> str | None:
    """One text value, stripped; the first of several."""
    words = texts(dataset, keyword)
    return words[0] if words else None


def texts(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """All text values, stripped."""
    value = raw(dataset, keyword)
    if value is None:
        return ()
    many = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else (value,)
    return tuple(word.strip(" \x00") for word in map(str, many))


def integer(dataset: Dataset, keyword: str) -> int | None:
    """A whole number, of any size; None when it is absent or is none."""
    try:
        value = raw(dataset, keyword)
        return None if value is None else int(str(value))
    except (ValueError, IngestError):
        return None


def numbers(dataset: Dataset, keyword: str) -> tuple[float, ...] | None:
    """Decimal values, as they stand: they may be NaN, infinite or negative. None when absent.

    Raises:
        IngestError: SPACING_INVALID when a value is not a number at all.
    """
    value = raw_number(dataset, keyword)
    if value is None:
        return None
    many = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else (value,)
    try:
        return tuple(math.nan if item in {None, ""} else float(str(item)) for item in many)
    except (TypeError, ValueError) as error:
        raise IngestError(Reason.SPACING_INVALID, f"{keyword} is not a number.") from error


def raw_number(dataset: Dataset, keyword: str) -> object | None:
    """Like `raw`, for geometry: what cannot be converted is an invalid spacing."""
    try:
        return raw(dataset, keyword)
    except IngestError as error:
        if error.reason is Reason.PARSER_CRASH:
            raise IngestError(Reason.SPACING_INVALID, f"{keyword} is not a number.") from error
        raise


def items(dataset: Dataset, keyword: str) -> Sequence[Dataset]:
    """The items of a sequence; none when it is absent."""
    value = raw(dataset, keyword)
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise IngestError(Reason.PARSER_CRASH, f"{keyword} is not a sequence.")
    return value


def first_item(dataset: Dataset | None, keyword: str) -> Dataset | None:
    """The first item of a sequence."""
    found = items(dataset, keyword) if dataset is not None else ()
    return found[0] if found else None


def groups(dataset: Dataset, macro: str) -> Iterator[tuple[str, int | None, Dataset]]:
    """Every item of a functional group macro: `(where, frame, item)`, per-frame first (PS3.3 C.7.6.16)."""
    for frame, group in enumerate(items(dataset, "PerFrameFunctionalGroupsSequence")):
        item = first_item(group, macro)
        if item is not None:
            yield "perframe", frame, item
    shared = first_item(dataset, "SharedFunctionalGroupsSequence")
    item = first_item(shared, macro)
    if item is not None:
        yield "shared", None, item
