"""Damage in the pixel data: fragments, codestreams, lengths, grey levels. The header stays right."""

from typing import Final

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID

from ingest.phantom.case import (
    Case,
    Make,
    Outcome,
    by_bytes,
    by_case,
    by_dataset,
    by_fragments,
    fragments_dataset,
    native_dataset,
    one_file,
    raster_scan,
    way,
)
from ingest.phantom.dicom import attach_fragments, serialise
from ingest.phantom.pixels import encode_frames
from ingest.phantom.protocols import JPEG_2000_LOSSLESS, JPEG_LS_LOSSLESS
from ingest.phantom.stream import file_bytes
from manifests.reasons import Reason

MPEG4: Final = "1.2.840.10008.1.2.4.102"
SCRAMBLE_KEY: Final = 0x5A
JPEG_LS_FRAME: Final = b"\xff\xf7"


def _no_pixels(dataset: Dataset) -> None:
    del dataset.PixelData


def _video(case: Case, reason: str) -> Outcome:
    """A transfer syntax that no still-image decoder knows."""
    dataset = fragments_dataset(case, lambda fragments: fragments, JPEG_2000_LOSSLESS)
    dataset.file_meta.TransferSyntaxUID = UID(MPEG4)
    attach_fragments(dataset, [b"\0\0\0\x18ftypmp42" + bytes(500)], offset_table=False)
    return one_file(case, serialise(dataset), reason)


def _declared_otherwise(case: Case, reason: str) -> Outcome:
    """JPEG 2000 codestreams in a file that announces JPEG-LS."""
    dataset = fragments_dataset(case, lambda _: encode_frames(case.volume, JPEG_2000_LOSSLESS), JPEG_LS_LOSSLESS)
    return one_file(case, serialise(dataset), reason)


def _native_declared_compressed(case: Case, reason: str) -> Outcome:
    """Plain pixels in a file that announces JPEG 2000."""
    dataset = native_dataset(case)
    dataset.file_meta.TransferSyntaxUID = UID(JPEG_2000_LOSSLESS)
    return one_file(case, file_bytes(dataset), reason)


def _lost_fragment(fragments: list[bytes]) -> list[bytes]:
    return fragments[:-1]


def _lost_group(dataset: Dataset) -> None:
    """One item too few in the per-frame groups."""
    del dataset.PerFrameFunctionalGroupsSequence[-1]


def _scrambled(fragments: list[bytes]) -> list[bytes]:
    """Every byte of every codestream inverted by a key, as some vendors' exports are."""
    return [bytes(np.frombuffer(fragment, np.uint8) ^ SCRAMBLE_KEY) for fragment in fragments]


def _half_frame(fragments: list[bytes]) -> list[bytes]:
    """The middle B-scan stops half-way, without its end-of-image marker; item lengths are right."""
    half = fragments[len(fragments) // 2]
    return _with_middle(fragments, half[: len(half) // 2].rstrip(b"\xff\xd9"))


def broken_j2k(fragments: list[bytes]) -> list[bytes]:
    """The middle codestream keeps its first and last markers; the image size between them is nonsense."""
    stream = bytearray(fragments[len(fragments) // 2])
    size = int.from_bytes(stream[4:6], "big")
    stream[6 : 4 + size] = bytes(size - 2)
    return _with_middle(fragments, bytes(stream))


def _broken_jpeg_ls(fragments: list[bytes]) -> list[bytes]:
    """The middle codestream keeps its first and last markers; its frame header is nonsense."""
    stream = bytearray(fragments[len(fragments) // 2])
    start = stream.index(JPEG_LS_FRAME) + 4
    stream[start : start + 9] = bytes(9)
    return _with_middle(fragments, bytes(stream))


def _with_middle(fragments: list[bytes], fragment: bytes) -> list[bytes]:
    middle = len(fragments) // 2
    return [*fragments[:middle], fragment, *fragments[middle + 1 :]]


def _cut_in_fragment(case: Case) -> bytes:
    """The file ends inside the middle B-scan."""
    fragments = encode_frames(case.volume, JPEG_2000_LOSSLESS)
    data = serialise(fragments_dataset(case, lambda _: fragments, JPEG_2000_LOSSLESS))
    middle = fragments[case.middle]
    return data[: data.rindex(middle) + len(middle) // 2]


def _native_cut(case: Case) -> bytes:
    """Uncompressed pixels that end three and a half B-scans early: the file is shorter than it says."""
    frame = case.volume[0].size
    return serialise(native_dataset(case))[: -(3 * frame + frame // 2)]


def _native_length(extra_frames: int) -> Make:
    """Uncompressed pixels of another number of B-scans than declared, in an element whose length is right."""

    def edit(case: Case) -> bytes:
        dataset = native_dataset(case)
        frame = case.volume[0].size
        pixels = case.volume.tobytes()
        dataset.PixelData = pixels + pixels[:frame] if extra_frames > 0 else pixels[:-frame]
        dataset["PixelData"].VR = "OB"
        return serialise(dataset)

    return by_bytes(edit)


def _all_zero(case: Case) -> Case:
    return case.with_volume(np.zeros_like(case.volume))


def _constant_frames(case: Case) -> Case:
    """A fifth of the B-scans, about the centre, show one grey level."""
    count = -(-len(case.volume) // 5)
    volume = case.volume.copy()
    start = case.middle - count // 2
    volume[start : start + count] = 90
    return case.with_volume(volume)


def _saturated(case: Case, reason: str) -> Outcome:
    """Overexposed: a quarter of all voxels at the maximum. Accepted, with a warning."""
    threshold = max(float(np.quantile(case.volume, 0.75)), 1.0)
    bright = case.with_volume(np.minimum(case.volume * (255 / threshold), 255).astype(np.uint8))
    return one_file(bright, bright.encode(), reason)


GLYPHS: Final = {
    "D": ("1110", "1001", "1001", "1001", "1001", "1001", "1110"),
    "O": ("0110", "1001", "1001", "1001", "1001", "1001", "0110"),
    "E": ("1111", "1000", "1000", "1110", "1000", "1000", "1111"),
}


def _with_text(case: Case) -> Case:
    """A name in the upper margin of every B-scan, as some instruments print it; the header does not say so."""
    rows = ["0".join(GLYPHS[letter][row] for letter in "DOE") for row in range(7)]
    letters = np.array([[int(dot) for dot in row] for row in rows], dtype=bool)
    volume = case.volume.copy()
    volume[:, 3 : 3 + letters.shape[0], 5 : 5 + letters.shape[1]][:, letters] = 240
    return case.with_volume(volume)


PIXEL_WAYS: Final = (
    way("no_pixels", Reason.PIXELDATA_MISSING, by_dataset(_no_pixels)),
    way("video", Reason.TS_UNSUPPORTED, _video),
    way("cut_in_fragment", Reason.TRUNCATED_DATASET, by_bytes(_cut_in_fragment)),
    way("native_cut", Reason.PIXELDATA_LENGTH_MISMATCH, by_bytes(_native_cut)),
    way("native_long", Reason.PIXELDATA_LENGTH_MISMATCH, _native_length(1)),
    way("native_short", Reason.PIXELDATA_LENGTH_MISMATCH, _native_length(-1)),
    way("lost_fragment", Reason.NFRAMES_MISMATCH, by_fragments(_lost_fragment)),
    way("lost_group", Reason.NFRAMES_MISMATCH, by_dataset(_lost_group), raster_scan),
    way("declared_otherwise", Reason.TS_MISMATCH, _declared_otherwise),
    way("native_declared_compressed", Reason.TS_MISMATCH, _native_declared_compressed),
    way("scrambled", Reason.CODESTREAM_OBFUSCATED, by_fragments(_scrambled)),
    way("half_frame", Reason.FRAME_INCOMPLETE, by_fragments(_half_frame)),
    way("half_frame_jpeg_ls", Reason.FRAME_INCOMPLETE, by_fragments(_half_frame, JPEG_LS_LOSSLESS)),
    way("broken_frame", Reason.FRAME_UNDECODABLE, by_fragments(broken_j2k)),
    way("broken_frame_jpeg_ls", Reason.FRAME_UNDECODABLE, by_fragments(_broken_jpeg_ls, JPEG_LS_LOSSLESS)),
    way("all_zero", Reason.ALL_ZERO, by_case(_all_zero)),
    way("constant_frames", Reason.CONSTANT_FRAMES, by_case(_constant_frames)),
    way("burned_text", Reason.BURNED_IN_SUSPECT, by_case(_with_text)),
    way("saturated", None, _saturated),
)
