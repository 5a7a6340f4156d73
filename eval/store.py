"""Embeddings on disk: a zarr v3 group that any zarr reader opens, with no pickled object in it.

    EMB.zarr/features   float32 [N, dim]
    EMB.zarr/intensity  float32 [N, 6]   mean, std, min, max, p01, p99 of the grey levels, for a baseline
    EMB.zarr/key, participant_id, ...    strings [N]

Its attributes say which encoder, which dataset and which code made it.
"""

import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import zarr

from eval.errors import EmbeddingsError

FORMAT: Final = "fovea-embeddings-1"
INTENSITY_COLUMNS: Final = ("mean", "std", "min", "max", "p01", "p99")

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedVolume:
    """The text columns of one row; None where they are empty."""

    key: str
    participant_id: str
    clinical_site: str | None
    study_group: str | None
    device: str
    laterality: str
    protocol: str
    split: str


TEXT_COLUMNS: Final = tuple(column.name for column in fields(EmbeddedVolume))


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """N volumes as vectors: `features` [N, dim], `intensity` [N, 6], text columns of N; an empty text is unknown."""

    features: Matrix = field(repr=False)
    intensity: Matrix = field(repr=False)
    columns: Mapping[str, tuple[str, ...]] = field(repr=False)
    attributes: Mapping[str, Any]

    def __post_init__(self) -> None:
        lengths = {len(self.features), len(self.intensity), *(len(column) for column in self.columns.values())}
        if len(lengths) != 1 or set(self.columns) != set(TEXT_COLUMNS):
            raise EmbeddingsError(f"embeddings need the columns {', '.join(TEXT_COLUMNS)}, all of one length.")
        if len(set(self.columns["key"])) != len(self.features):
            raise EmbeddingsError("embeddings hold a sample key twice.")
        if not np.isfinite(self.features).all():
            bad = int(np.count_nonzero(~np.isfinite(self.features).all(axis=1)))
            raise EmbeddingsError(
                f"{bad} of {len(self.features)} feature vectors are not finite: the encoder diverged."
            )

    def volumes(self) -> tuple[EmbeddedVolume, ...]:
        """The columns, row by row."""
        rows = zip(*(self.columns[name] for name in TEXT_COLUMNS), strict=True)
        return tuple(_volume(dict(zip(TEXT_COLUMNS, row, strict=True))) for row in rows)


def _volume(cells: Mapping[str, str]) -> EmbeddedVolume:
    known: dict[str, Any] = {name: cell or None for name, cell in cells.items()}
    return EmbeddedVolume(**known)


def write_embeddings(path: Path, embeddings: Embeddings, *, force: bool = False) -> None:
    """Write to a temporary name beside `path`, then rename: nobody sees half a store.

    An earlier store is replaced if it has the same attributes, or with `force`.

    Raises:
        EmbeddingsError: if `path` holds anything else.
    """
    check_replaceable(path, embeddings.attributes, force=force)
    stem = f".{path.name}.{uuid.uuid4().hex}"
    temporary, replaced = path.with_name(f"{stem}.new"), path.with_name(f"{stem}.old")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(temporary, embeddings)
        if path.exists():
            path.rename(replaced)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def check_replaceable(path: Path, attributes: Mapping[str, Any], *, force: bool) -> None:
    """Stop before the work is done, not after it.

    Raises:
        EmbeddingsError: if `path` is something else than embeddings, or holds those of another run.
    """
    if not path.exists():
        return
    try:
        found = read_attributes(path)
    except EmbeddingsError as error:
        raise EmbeddingsError(f"{path} exists and holds no embeddings: choose another --out.") from error
    differing = sorted(name for name in {*found, *attributes} if found.get(name) != attributes.get(name))
    if differing and not force:
        raise EmbeddingsError(
            f"{path} holds other embeddings ({', '.join(differing)} differ): choose another --out, or pass --force."
        )


def _write(path: Path, embeddings: Embeddings) -> None:
    group = zarr.open_group(path, mode="w-", zarr_format=3, attributes={"format": FORMAT, **embeddings.attributes})
    group.create_array("features", data=np.ascontiguousarray(embeddings.features, np.float32))
    group.create_array("intensity", data=np.ascontiguousarray(embeddings.intensity, np.float32))
    for name, values in embeddings.columns.items():
        column = group.create_array(name, shape=(len(values),), dtype=str)
        column[:] = np.array(values, dtype=np.dtypes.StringDType())


def read_attributes(path: Path) -> dict[str, Any]:
    """What a store says of itself.

    Raises:
        EmbeddingsError: if there is no store of this format.
    """
    group = _open(path)
    return {name: value for name, value in group.attrs.items() if name != "format"}


def read_embeddings(path: Path) -> Embeddings:
    """Open a store.

    Raises:
        EmbeddingsError: if there is no store of this format, or an array is missing or does not fit.
    """
    group = _open(path)
    missing = [name for name in ("features", "intensity", *TEXT_COLUMNS) if name not in group]
    if missing:
        raise EmbeddingsError(f"{path} lacks {', '.join(missing)}: make it again with `fovea embed`.")
    return Embeddings(
        features=_array(group, "features"),
        intensity=_array(group, "intensity"),
        columns={name: tuple(str(value) for value in _array(group, name)) for name in TEXT_COLUMNS},
        attributes=read_attributes(path),
    )


def _open(path: Path) -> zarr.Group:
    try:
        group = zarr.open_group(path, mode="r")
    except (FileNotFoundError, ValueError) as error:
        raise EmbeddingsError(f"{path} is not a zarr group: make one with `fovea embed`.") from error
    if group.attrs.get("format") != FORMAT:
        raise EmbeddingsError(f"{path} is a zarr group, but holds no embeddings of format {FORMAT}.")
    return group


def _array(group: zarr.Group, name: str) -> npt.NDArray[Any]:
    return np.asarray(cast("zarr.Array[Any]", group[name])[:])
