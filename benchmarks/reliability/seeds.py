"""Small good files to damage: every transfer syntax that fovea decodes, as written by every device."""

import dataclasses
import datetime
import io
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate_extended
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
)

from ingest.phantom.dicom import attach_fragments, build_dataset
from ingest.phantom.header import MODELS, HeaderSpec, Subject, Uids, protocol_header
from ingest.phantom.protocols import PROTOCOLS, Protocol
from reliability.encoders import ENCODERS, encode
from shards.schema import DEVICES

NATIVE: Final = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
SYNTAXES: Final[tuple[UID, ...]] = (*NATIVE, *ENCODERS)

NUM_FRAMES: Final = 10
SIDE: Final = 64
SLOW_MM: Final = 6.0
"""Ten B-scans over 12 mm would be over a millimetre apart, which is no volume."""

PREAMBLE_BYTES: Final = 132
UID_DIGITS: Final = 7

Volume = npt.NDArray[Any]
"""uint8 or uint16 `[D, H, W]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """A good file in two parts: preamble with file meta information, and the data set, inflated."""

    name: str
    path: str
    syntax: UID
    sop_instance_uid: str
    meta: bytes = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def deflated(self) -> bool:
        return self.syntax == DeflatedExplicitVRLittleEndian

    @property
    def data(self) -> bytes:
        return self.assemble(self.meta, self.body)

    def assemble(self, meta: bytes, body: bytes) -> bytes:
        """The file of these two parts, deflated where the transfer syntax asks for it."""
        return meta + (deflate(body) if self.deflated else body)

    def fresh(self, number: int) -> "Seed":
        """The same scan under a SOP Instance UID of its own, as long as the old one."""
        uid = f"{self.sop_instance_uid[:-UID_DIGITS]}{number:0{UID_DIGITS}d}"
        old, new = self.sop_instance_uid.encode(), uid.encode()
        return dataclasses.replace(
            self,
            path=self.path.replace(self.sop_instance_uid, uid),
            sop_instance_uid=uid,
            meta=self.meta.replace(old, new),
            body=self.body.replace(old, new),
        )


def deflate(body: bytes) -> bytes:
    """A raw deflate stream of even length (PS3.5 A.5)."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(body) + packer.flush()
    return packed + b"\0" * (len(packed) % 2)


def split(data: bytes, syntax: UID) -> tuple[bytes, bytes]:
    """Preamble with file meta information, and the data set behind it, inflated."""
    (length,) = struct.unpack_from("<L", data, PREAMBLE_BYTES + 8)
    end = PREAMBLE_BYTES + 12 + length
    meta, body = data[:end], data[end:]
    if syntax == DeflatedExplicitVRLittleEndian:
        body = zlib.decompressobj(-zlib.MAX_WBITS).decompress(body)
    return meta, body


def texture(shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Smooth tissue with grain: enough signal for every check, made in a millisecond."""
    rng = np.random.default_rng(5)
    depth = np.exp(-(((np.arange(shape[1]) - shape[1] / 2) / (shape[1] / 8)) ** 2))
    tissue = 20 + 150 * depth[None, :, None] + rng.normal(0, 12, shape)
    return np.asarray(np.clip(tissue, 1, 250), dtype=np.uint8)


def reduced(protocol: Protocol, num_frames: int = NUM_FRAMES, side: int = SIDE) -> Protocol:
    """The protocol in a few small B-scans, over its field of view, but for one that is too wide for so few."""
    return dataclasses.replace(
        protocol,
        num_frames=num_frames,
        rows=side,
        columns=side,
        axial_spacing_mm=protocol.rows * protocol.axial_spacing_mm / side,
        fov_slow_mm=min(SLOW_MM, protocol.fov_slow_mm),
    )


def header_of(protocol: Protocol, syntax: UID, number: int) -> HeaderSpec:
    """The header of the seed with this number."""
    models = MODELS[protocol.device]
    subject = Subject(
        participant_id=f"{(1, 4, 7)[number % 3]}{number:03d}",
        laterality="L" if number % 2 else "R",
        model=models[number % len(models)],
        uids=Uids.from_entropy("fovea reliability", str(number)),
        acquired=datetime.datetime(2020, 1, 1, 9, tzinfo=datetime.UTC),
    )
    return protocol_header(protocol, subject, syntax, offset_table=number % 3 != 0)


def attach(dataset: Dataset, volume: Volume, syntax: UID, *, offset_table: bool = True) -> None:
    """Pixels in any of the transfer syntaxes."""
    if syntax in ENCODERS:
        attach_fragments(dataset, encode(volume, syntax), offset_table=offset_table)
        return
    swapped = volume.byteswap() if syntax == ExplicitVRBigEndian else volume
    values = swapped.tobytes()
    dataset.PixelData = values + b"\0" * (len(values) % 2)
    dataset["PixelData"].VR = "OB" if volume.itemsize == 1 else "OW"


def write(dataset: Dataset) -> bytes:
    """The bytes of a file."""
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def dataset_of(volume: Volume, header: HeaderSpec) -> Dataset:
    """A good data set with its pixels; 16-bit ones are 12 bits deep."""
    dataset = build_dataset(volume.astype(np.uint8) if volume.itemsize > 1 else volume, header)
    if volume.itemsize > 1:
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    attach(dataset, volume, UID(header.transfer_syntax), offset_table=header.offset_table)
    return dataset


Edit = Callable[[Dataset, Volume], None]


def make_seed(protocol: Protocol, syntax: UID, number: int, *, deep: bool = False, edit: Edit | None = None) -> Seed:
    """One good file; `deep` for 12 bits, `edit` for an oddity that good files have."""
    header = header_of(protocol, syntax, number)
    volume: Volume = texture(protocol.shape)
    if deep:
        volume = volume.astype(np.uint16) * 16
    dataset = dataset_of(volume, header)
    if edit:
        edit(dataset, volume)
    meta, body = split(write(dataset), syntax)
    side, uid = header.laterality.lower(), header.uids.sop_instance
    name = f"{header.participant_id}_{protocol.name}_{side}_{uid}.dcm"
    return Seed(
        name=f"{number:02d}-{protocol.device.split('_')[-1]}-{syntax.keyword}",
        path=f"retinal_oct/structural_oct/{protocol.device}/{header.participant_id}/{name}",
        syntax=syntax,
        sop_instance_uid=uid,
        meta=meta,
        body=body,
    )


def _two_fragments(dataset: Dataset, volume: Volume) -> None:
    """Each B-scan in two fragments, which only the offset table or the start markers can join."""
    fragments = encode(volume, UID(dataset.file_meta.TransferSyntaxUID))
    dataset.PixelData = _items([b"", *(part for whole in fragments for part in _halves(whole))])


def _halves(fragment: bytes) -> tuple[bytes, bytes]:
    middle = len(fragment) // 4 * 2
    return fragment[:middle], fragment[middle:]


def _items(values: Sequence[bytes]) -> bytes:
    even = [value + b"\0" * (len(value) % 2) for value in values]
    return b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(value)) + value for value in even)


def _extended_offsets(dataset: Dataset, volume: Volume) -> None:
    fragments = encode(volume, UID(dataset.file_meta.TransferSyntaxUID))
    values = encapsulate_extended(fragments)
    dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = values


def _trailing_padding(dataset: Dataset, _: Volume) -> None:
    dataset.DataSetTrailingPadding = bytes(64)


def _inverted(dataset: Dataset, volume: Volume) -> None:
    dataset.PhotometricInterpretation = "MONOCHROME1"
    attach(dataset, 255 - volume, UID(dataset.file_meta.TransferSyntaxUID))


def _undefined_lengths(dataset: Dataset, _: Volume) -> None:
    """Sequences and items that end with a mark."""
    for element in dataset:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
                _undefined_lengths(item, _)


def _private_elements(dataset: Dataset, _: Volume) -> None:
    block = dataset.private_block(0x0011, "FOVEA PHANTOM", create=True)
    block.add_new(0x01, "UN", bytes(range(200)))
    block.add_new(0x02, "LO", "private text")


ODDITIES: Final[tuple[tuple[UID, bool, Edit | None], ...]] = (
    (ExplicitVRLittleEndian, True, None),
    (ExplicitVRBigEndian, True, None),
    (JPEG2000Lossless, True, None),
    (JPEGLSLossless, True, None),
    (RLELossless, True, None),
    (JPEGExtended12Bit, True, None),
    (JPEG2000Lossless, False, _two_fragments),
    (JPEGLSLossless, False, _extended_offsets),
    (ExplicitVRLittleEndian, False, _trailing_padding),
    (ImplicitVRLittleEndian, False, _inverted),
    (ExplicitVRLittleEndian, False, _undefined_lengths),
    (ImplicitVRLittleEndian, False, _private_elements),
)
"""16-bit pixels, and what else good files do: (transfer syntax, 12 bits deep, edit)."""


def rasters(device: str) -> list[Protocol]:
    """The raster protocols of a device."""
    return [protocol for protocol in PROTOCOLS.values() if protocol.device == device and protocol.raster]


@cache
def all_seeds() -> tuple[Seed, ...]:
    """Every transfer syntax on every device, protocols in turn, and then the oddities: 76 files of about 50 kB."""
    pairs = [(device, syntax) for syntax in SYNTAXES for device in DEVICES]
    plain = [
        make_seed(reduced(_in_turn(device, number)), syntax, number) for number, (device, syntax) in enumerate(pairs)
    ]
    odd = [
        make_seed(reduced(_in_turn(DEVICES[number % 4], number)), syntax, number, deep=deep, edit=edit)
        for number, (syntax, deep, edit) in enumerate(ODDITIES, start=len(plain))
    ]
    return (*plain, *odd)


def _in_turn(device: str, number: int) -> Protocol:
    known = rasters(device)
    return known[number // len(DEVICES) % len(known)]
