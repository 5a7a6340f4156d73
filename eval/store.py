"""Embeddings on disk: a zarr v3 group that any zarr reader opens, with no pickled object in it.

    EMB.zarr/features   float32 [N, dim]
    EMB.zarr/intensity  float32 [N, 6]   mean, std, min, max, p01, p99 of the grey levels, for a baseline
    EMB.zarr/key, participant_id, ...    strings [N]

Its attributes say which encoder, which dataset and which code made it, and the hash of what is in it: a chunk that is
missing would be read as zeros.
"""

import hashlib
import json
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
from eval.place import check_writable

FORMAT: Final = "fovea-embeddings-1"
HASH: Final = "arrays_sha256"
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

    An earlier store is replaced if it has the same attributes, or with `force`; if `path` is a link, where it points.

    Raises:
        EmbeddingsError: if `path` holds anything else.
        PlaceError: if nothing can be written there.
    """
    check_replaceable(path, embeddings.attributes, force=force)
    path = path.resolve()
    stem = f".{path.name}.{uuid.uuid4().hex}"
    temporary, replaced = path.with_name(f"{stem}.new"), path.with_name(f"{stem}.old")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(temporary, embeddings)
        _put(temporary, path, replaced)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def _put(temporary: Path, path: Path, replaced: Path) -> None:
    """Give a store its name; the earlier one has it again if that fails."""
    if path.exists():
        path.rename(replaced)
    try:
        temporary.rename(path)
    except OSError:
        if replaced.exists():
            replaced.rename(path)
        raise


def check_replaceable(path: Path, attributes: Mapping[str, Any], *, force: bool) -> None:
    """Stop before the work is done, not after it.

    Raises:
        EmbeddingsError: if `path` is something else than embeddings, or holds those of another run.
        PlaceError: if nothing can be written there.
    """
    check_writable(path, beside=True)
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
    group = zarr.open_group(path, mode="w-", zarr_format=3, attributes=_attributes(embeddings))
    group.create_array("features", data=np.ascontiguousarray(embeddings.features, np.float32))
    group.create_array("intensity", data=np.ascontiguousarray(embeddings.intensity, np.float32))
    for name, values in embeddings.columns.items():
        column = group.create_array(name, shape=(len(values),), dtype=str)
        column[:] = np.array(values, dtype=np.dtypes.StringDType())


def _attributes(embeddings: Embeddings) -> dict[str, Any]:
    return {"format": FORMAT, **embeddings.attributes, HASH: _sha256(embeddings)}


def _sha256(embeddings: Embeddings) -> str:
    """Of all arrays, whatever their chunks."""
    digest = hashlib.sha256(
        json.dumps({name: list(cells) for name, cells in sorted(embeddings.columns.items())}).encode()
    )
    for matrix in (embeddings.features, embeddings.intensity):
        digest.update(f"{matrix.shape}".encode())
        digest.update(np.ascontiguousarray(matrix, "<f4").data)
    return digest.hexdigest()


def read_attributes(path: Path) -> dict[str, Any]:
    """What a store says of itself.

    Raises:
        EmbeddingsError: if there is no store of this format.
    """
    return _own_attributes(_open(path))


def _own_attributes(group: zarr.Group) -> dict[str, Any]:
    return {name: value for name, value in group.attrs.items() if name not in ("format", HASH)}


def read_embeddings(path: Path) -> Embeddings:
    """Open a store.

    Raises:
        EmbeddingsError: if there is no store of this format, or it is not as it was written.
    """
    group = _open(path)
    try:
        found = _read(group)
    except Exception as error:  # codecs of zarr have exceptions of their own, and plain RuntimeErrors
        raise EmbeddingsError(f"{path} is damaged ({error}): make it again with `fovea embed`.") from error
    if group.attrs.get(HASH) != _sha256(found):
        raise EmbeddingsError(f"{path} is not as it was written: make it again with `fovea embed`.")
    return found


def _read(group: zarr.Group) -> Embeddings:
    missing = [name for name in ("features", "intensity", *TEXT_COLUMNS) if name not in group]
    if missing:
        raise EmbeddingsError(f"it lacks {', '.join(missing)}")
    return Embeddings(
        features=_array(group, "features"),
        intensity=_array(group, "intensity"),
        columns={name: tuple(str(value) for value in _array(group, name)) for name in TEXT_COLUMNS},
        attributes=_own_attributes(group),
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
