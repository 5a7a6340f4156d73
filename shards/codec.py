"""A sample as two members of a plain USTAR file: the same samples give the same bytes, everywhere."""

import hashlib
import io
import json
import math
import re
import tarfile
from types import TracebackType
from typing import BinaryIO, Final, Self, cast

import numpy as np
import numpy.typing as npt

from shards.errors import SchemaError
from shards.schema import META_SUFFIX, VOLUME_SUFFIX, Sample, SampleMeta, SampleRow, Volume

Payload = bytes | bytearray | memoryview

NPY_PREFIX_BYTES: Final = 10
"""Magic, version 1.0, and two bytes for the length of the header."""

NPY_HEADER: Final = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<dtype>\|u1|<u2)', 'fortran_order': False, "
    rb"'shape': \((?P<shape>[1-9]\d{0,5}, [1-9]\d{0,5}, [1-9]\d{0,5})\), \} *\n",
    re.DOTALL,
)
"""The only headers that `encode_volume`, and `numpy.save` for such an array, write (numpy.lib.format)."""


class ShardWriter:
    """Writes one shard, a USTAR file that stock `webdataset` reads.

    Time, owner and mode are constants, so that the bytes depend on the samples alone.

    ```python
    with open(path, "wb") as file, ShardWriter(file, "train-topcon_triton-00000.tar") as writer:
        rows = [writer.add(sample) for sample in samples_in_key_order]
    ```
    """

    def __init__(self, fileobj: BinaryIO, shard: str) -> None:
        """Start a shard at the beginning of `fileobj`, which stays open when the writer closes."""
        self._tar = tarfile.open(fileobj=fileobj, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by __exit__
        self._shard = shard
        self._position = 0
        self._last_key = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write the end of the archive, but never after an error: half a shard must not look like a whole one."""
        if kind is None:
            self._tar.close()

    def add(self, sample: Sample) -> SampleRow:
        """Append the two members of a sample and say where they lie.

        Raises:
            SchemaError: if keys do not increase, which the fixed order of bytes and `webdataset` both need.
        """
        if sample.key <= self._last_key:
            raise SchemaError(
                f"{self._shard}: {sample.key!r} comes after {self._last_key!r}; add samples in increasing key order."
            )
        self._last_key = sample.key
        meta = sample.meta.to_json()
        volume = encode_volume(sample.volume)
        meta_offset = self._append(sample.key + META_SUFFIX, meta)
        volume_offset = self._append(sample.key + VOLUME_SUFFIX, volume)
        return _row(
            sample.meta,
            shard=self._shard,
            volume_offset=volume_offset,
            volume_bytes=len(volume),
            meta_offset=meta_offset,
            meta_bytes=len(meta),
            sha256=sample_sha256(volume, meta),
        )

    def _append(self, name: str, payload: bytes) -> int:
        """Write a member; returns the offset of its payload."""
        info = tarfile.TarInfo(name)
        info.size = len(payload)
        info.mode = 0o644
        try:
            self._tar.addfile(info, io.BytesIO(payload))
        except ValueError as error:
            raise SchemaError(f"{self._shard}: {name!r} does not fit a USTAR header: {error}.") from error
        offset = self._position + tarfile.BLOCKSIZE
        self._position = offset + math.ceil(len(payload) / tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        return offset


def _row(meta: SampleMeta, *, shard: str, sha256: str, **places: int) -> SampleRow:
    spacing_d_mm, spacing_h_mm, spacing_w_mm = meta.spacing_mm
    return SampleRow(
        key=meta.key,
        shard=shard,
        split=meta.split,
        device=meta.device,
        protocol=meta.protocol,
        anatomic_region=meta.anatomic_region,
        laterality=meta.laterality,
        participant_id=meta.participant_id,
        clinical_site=meta.clinical_site,
        study_group=meta.study_group,
        age=meta.age,
        content_tokens=meta.content_tokens,
        spacing_d_mm=spacing_d_mm,
        spacing_h_mm=spacing_h_mm,
        spacing_w_mm=spacing_w_mm,
        sha256=sha256,
        **places,
    )


def sample_sha256(volume_payload: Payload, meta_payload: Payload) -> str:
    """Hash of a sample: the bytes of `volume.npy`, then those of `meta.json`."""
    digest = hashlib.sha256(volume_payload)
    digest.update(meta_payload)
    return digest.hexdigest()


def encode_volume(volume: Volume) -> bytes:
    """A volume `[D, H, W]` as `.npy` 1.0: C order, uint8 or little-endian uint16.

    Raises:
        SchemaError: if the array is not a uint8 or uint16 volume.
    """
    dtype = volume.dtype.newbyteorder("<")
    if volume.ndim != 3 or 0 in volume.shape or dtype not in (np.dtype("|u1"), np.dtype("<u2")):
        raise SchemaError(f"a stored volume is uint8 or uint16 [D, H, W], not {volume.dtype} {volume.shape}.")
    plain = np.ascontiguousarray(volume, dtype=dtype)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(plain))
    return b"".join((header.getvalue(), plain.data))


def decode_volume(payload: Payload) -> Volume:
    """The volume `[D, H, W]` in `.npy` bytes: a view of `payload`, writable when that is. Never unpickles.

    The header is matched, not evaluated: numpy's parser answers damage with a dozen kinds of exception.

    Raises:
        SchemaError: if the bytes are not exactly one C-order uint8 or uint16 volume.
    """
    start = NPY_PREFIX_BYTES + int.from_bytes(payload[NPY_PREFIX_BYTES - 2 : NPY_PREFIX_BYTES], "little")
    header = bytes(payload[:start])
    match = NPY_HEADER.fullmatch(header)
    if match is None:
        raise SchemaError(
            f"volume.npy must be uint8 or uint16 [D, H, W] in C order, npy 1.0; its header is {header[:96]!r}."
        )
    dtype = np.dtype(match["dtype"].decode())
    shape = tuple(int(size) for size in match["shape"].split(b", "))
    expected = start + math.prod(shape) * dtype.itemsize
    if len(payload) != expected:
        raise SchemaError(f"volume.npy has {len(payload)} bytes; shape {shape} of {dtype} takes {expected}.")
    flat: npt.NDArray[np.uint8] = np.frombuffer(payload, np.uint8, offset=start)
    return cast("Volume", flat.view(dtype).reshape(shape))


def decode_meta(payload: Payload) -> SampleMeta:
    """The metadata in `meta.json` bytes.

    Raises:
        SchemaError: if they are not JSON, or do not fit the schema.
    """
    try:
        values = json.loads(bytes(payload))
    except ValueError as error:
        raise SchemaError(f"meta.json is not JSON: {error}.") from error
    if not isinstance(values, dict):
        raise SchemaError(f"meta.json holds a {type(values).__name__}, expected an object.")
    return SampleMeta.from_mapping(values)
