"""CSV manifests as typed rows: only what a reader of shards needs, with nothing but the standard library."""

import csv
import dataclasses
import io
import types
import typing
from collections.abc import Sequence
from typing import Any, Final, TypeVar

from shards.errors import SchemaError

Row = TypeVar("Row")

INERT_MARK: Final = "'"
"""Put before a text cell that a spreadsheet would run, and before one that starts with it: take one off and the text
is back. `manifests.store` says which."""


def parse_rows(name: str, data: bytes, row_type: type[Row]) -> tuple[Row, ...]:
    """The rows of a CSV manifest, each cell converted to the type of its column; an empty cell is None or "".

    Raises:
        SchemaError: if the columns are not those of `row_type`, or a cell does not convert.
    """
    kinds = typing.get_type_hints(row_type)
    columns = [field.name for field in dataclasses.fields(typing.cast("Any", row_type))]
    lines = csv.reader(io.StringIO(data.decode("utf-8", "replace"), newline=""))
    try:
        header = next(lines, [])
        if header != columns:
            raise SchemaError(f"{name} has the columns {', '.join(header)}; expected {', '.join(columns)}.")
        return tuple(_row(f"{name} line {lines.line_num}", cells, row_type, kinds) for cells in lines)
    except csv.Error as error:
        raise SchemaError(f"{name} line {lines.line_num}: {error}.") from error


def _row(where: str, cells: Sequence[str], row_type: type[Row], kinds: dict[str, Any]) -> Row:
    if len(cells) != len(kinds):
        raise SchemaError(f"{where} has {len(cells)} cells, expected {len(kinds)}.")
    try:
        return row_type(**{name: _value(cell, kind) for cell, (name, kind) in zip(cells, kinds.items(), strict=True)})
    except ValueError as error:
        raise SchemaError(f"{where}: {error}.") from error


def _value(cell: str, kind: Any) -> Any:
    if isinstance(kind, types.UnionType):
        kind = next(option for option in typing.get_args(kind) if option is not types.NoneType)
        if cell == "":
            return None
    if kind is not str:
        return kind(cell)
    return cell.removeprefix(INERT_MARK)
