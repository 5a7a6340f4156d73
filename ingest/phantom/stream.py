"""DICOM bytes that pydicom rightly refuses to write: parts of a file, put together by hand."""

import struct
import zlib
from typing import Final

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info

PREAMBLE: Final = b"\0" * 128 + b"DICM"
UNDEFINED: Final = 0xFFFFFFFF
PRIVATE_CREATOR: Final = struct.pack("<HH2sH", 0x0009, 0x0010, b"LO", 14) + b"FOVEA PHANTOM "
ZEROS_BYTES: Final = 1 << 24


def file_bytes(dataset: Dataset) -> bytes:
    """A file with the declared transfer syntax and an explicit-VR data set, whether or not they fit."""
    return PREAMBLE + meta_bytes(dataset.file_meta) + dataset_bytes(dataset)


def meta_bytes(meta: FileMetaDataset) -> bytes:
    """Group 0002 as it stands, complete or not."""
    meta.FileMetaInformationVersion = b"\0\1"
    meta.FileMetaInformationGroupLength = 0  # pydicom writes the true one, but only over one that is there
    buffer = DicomBytesIO()
    write_file_meta_info(buffer, meta, enforce_standard=False)
    return buffer.getvalue()


def dataset_bytes(dataset: Dataset) -> bytes:
    """A data set in explicit VR little endian, without file meta information."""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def split_at_private(dataset: Dataset) -> tuple[bytes, bytes]:
    """The bytes before and after the place where private group 0009 belongs."""
    before = Dataset({tag: dataset[tag] for tag in dataset.keys() if tag < 0x00090000})  # noqa: SIM118
    after = Dataset({tag: dataset[tag] for tag in dataset.keys() if tag >= 0x000A0000})  # noqa: SIM118
    return dataset_bytes(before), dataset_bytes(after)


def nested_sequences(depth: int) -> bytes:
    """A private element of sequences in sequences, all of undefined length."""
    open_sequence = struct.pack("<HH2sHL", 0x0009, 0x1010, b"SQ", 0, UNDEFINED)
    open_item = struct.pack("<HHL", 0xFFFE, 0xE000, UNDEFINED)
    close_item = struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
    close_sequence = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    return PRIVATE_CREATOR + (open_sequence + open_item) * depth + (close_item + close_sequence) * depth


def deflated_with_zeros(before: bytes, after: bytes, inflated_bytes: int) -> bytes:
    """A raw deflate stream with a private element of zeros between two parts: small here, huge when inflated.

    A full flush ends on a byte and forgets the past, so one compressed block of zeros can be repeated.
    """
    blocks = -(-inflated_bytes // ZEROS_BYTES)
    length = struct.pack("<HH2sHL", 0x0009, 0x1010, b"OB", 0, blocks * ZEROS_BYTES)
    head = _deflate(before + PRIVATE_CREATOR + length, zlib.Z_FULL_FLUSH)
    return head + _deflate(bytes(ZEROS_BYTES), zlib.Z_FULL_FLUSH) * blocks + _deflate(after, zlib.Z_FINISH)


def _deflate(data: bytes, flush: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush(flush)
