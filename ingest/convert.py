"""One file in, one `VolumeRecord` or one `Rejection` out: the composition of this room."""

import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import PurePath
from typing import BinaryIO, Final, TypeVar

import numpy as np
from pydicom.config import disable_value_validation

from ingest.burned_in import check_annotation, check_margins
from ingest.checks import check_header
from ingest.errors import IngestError
from ingest.facts import known_facts, path_facts
from ingest.fields import text
from ingest.frames import PixelFormat, find_frames, pixel_format
from ingest.geometry import Geometry
from ingest.header import Header, parse_file, read_header
from ingest.intensity import check_content, check_repeats, content_statistics, retina_center_mm
from ingest.pixels import check_bits, decode_frames
from ingest.record import Facts, Limits, Probed, Rejection, VolumeRecord
from ingest.resample import plan_grid, plan_slow_axis, resample
from ingest.syntaxes import Pixels
from ingest.watch import UNWATCHED, Watch
from ingest.window import MoreNeededError, Window
from manifests.plan import ManifestRow
from manifests.reasons import Reason
from shards.schema import content_token_mask

DEFAULT_LIMITS: Final = Limits()
FIRST_HEAD_BYTES: Final = 2**16
"""Most headers end within this; one of 512 B-scans takes about 300 kB."""
HEAD_GROWTH: Final = 3

Result = TypeVar("Result")


def probe_file(
    stream: BinaryIO, path: str, manifest: ManifestRow | None, limits: Limits = DEFAULT_LIMITS
) -> Probed | Rejection:
    """Check a header without reading pixels.

    Args:
        stream: the file, or ranges of it.
        path: relative to SOURCE; participant and device are read from it too.
        manifest: the file's row of `manifest.tsv`, if there is one.
        limits: what no true scan exceeds.
    """
    return probe_growing(stream, lambda head, complete: probe_head(head, complete, path, manifest, limits))


def probe_growing(stream: BinaryIO, judge: Callable[[bytes, bool], Probed | Rejection | None]) -> Probed | Rejection:
    """Hand the first part of a file to `judge`, and more for as long as the header goes on behind it."""
    head = b""
    while True:
        wanted = HEAD_GROWTH * len(head) or FIRST_HEAD_BYTES
        more = stream.read(wanted)
        head += more
        result = judge(head, len(more) < wanted)
        if result is not None:
            return result


def probe_head(
    head: bytes | memoryview, complete: bool, path: str, manifest: ManifestRow | None, limits: Limits = DEFAULT_LIMITS
) -> Probed | Rejection | None:
    """Check the header in the first part of a file (`complete`: all of it); None when it goes on behind that."""
    window = Window(head, complete=complete, limit=limits.max_header_bytes)
    with without_warnings():
        try:
            header = attempt(path_facts(path), lambda: read_header(window, limits))
        except MoreNeededError:
            return None
        return header if isinstance(header, Rejection) else _judge(header, path, manifest, limits)


def convert_file(
    data: bytes | memoryview,
    path: str,
    manifest: ManifestRow | None,
    geometry: Geometry,
    limits: Limits = DEFAULT_LIMITS,
    watch: Watch = UNWATCHED,
) -> VolumeRecord | Rejection:
    """Check, decode and resample a file that was read whole; see `probe_file`. `watch` hears of every stage."""
    watch.begin("parse", path_facts(path))
    with without_warnings():
        header = attempt(path_facts(path), lambda: parse_file(data, limits))
        if isinstance(header, Rejection):
            return _after_the_header(header, probe_head(data, True, path, manifest, limits))
        probed = _judge(header, path, manifest, limits)
        if isinstance(probed, Rejection):
            return probed
        watch.begin("frames", probed.facts)
        return attempt(probed.facts, lambda: _convert(header, probed, geometry, watch))


def _after_the_header(failed: Rejection, probed: Probed | Rejection | None) -> Rejection:
    """A file that ends too early, or does not inflate: what its header says comes first, if it can be read."""
    if isinstance(probed, Probed):
        return replace(failed, facts=probed.facts)
    return failed if probed is None else min(failed, probed, key=lambda found: found.reason.precedence)


@contextmanager
def without_warnings() -> Iterator[None]:
    """No warnings of pydicom's on the terminal: they may quote the header, and what matters has a reason code."""
    with warnings.catch_warnings(), disable_value_validation():
        warnings.simplefilter("ignore")
        yield


def _judge(header: Header, path: str, manifest: ManifestRow | None, limits: Limits) -> Probed | Rejection:
    facts = known_facts(header, path, manifest)
    return attempt(facts, lambda: check_header(header, path, manifest, limits))


def attempt(facts: Facts, work: Callable[[], Result]) -> Result | Rejection:
    """The one place where a failed check becomes data. A defect of ours costs one file, and says so."""
    try:
        return work()
    except MoreNeededError:
        raise
    except IngestError as error:
        return Rejection(reason=error.reason, detail=error.detail, facts=facts)
    except MemoryError:
        return Rejection(reason=Reason.PARSE_LIMIT_EXCEEDED, detail="it takes more memory than any scan.", facts=facts)
    except Exception as error:  # noqa: BLE001 - DESIGN section 4: every input has a row, also when we are wrong
        last = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__} at {PurePath(last.filename).name}:{last.lineno}."
        return Rejection(reason=Reason.UNKNOWN_ERROR, detail=detail, facts=facts)


def _convert(header: Header, probed: Probed, geometry: Geometry, watch: Watch) -> VolumeRecord:
    clock = _Clock()
    layout = pixel_format(header)
    frames = find_frames(header, layout, watch)
    slow = plan_slow_axis(probed.scan, geometry)
    wanted = probed.scan.order[slow.first : slow.last]
    decoded = decode_frames(frames, wanted, layout, header.transfer_syntax_uid, watch)
    check_bits(decoded, layout)
    volume = bright_is_high(decoded, header, layout)
    clock.lap("decode")
    watch.begin("resample", probed.facts)
    found = check_content(volume, layout.bits_stored)
    check_repeats(frames)
    check_annotation(header.dataset)
    check_margins(volume, layout.bits_stored)
    native = (layout.num_frames, layout.rows, layout.columns)
    retina_mm = retina_center_mm(volume, probed.scan.spacing_mm[1])
    grid = plan_grid(probed.scan, native, geometry, retina_mm)
    target = resample(volume, grid)
    statistics = content_statistics(target, grid.content_box)
    clock.lap("resample")
    return VolumeRecord(
        probed=probed,
        volume=target,
        native_shape=native,
        spacing_mm=grid.spacing_mm,
        geometry=geometry.name,
        retina_center_mm=retina_mm,
        content_box=grid.content_box,
        content_tokens=int(content_token_mask(grid.content_box, grid.size).sum()),
        cropped_fraction=(grid.axes[0].cropped, grid.axes[1].cropped, grid.axes[2].cropped),
        padded_fraction=(grid.axes[0].padded, grid.axes[1].padded, grid.axes[2].padded),
        num_frames_decoded=len(wanted),
        intensity=statistics,
        cautions=(*probed.cautions, *found),
        seconds=clock.seconds,
    )


def bright_is_high(pixels: Pixels, header: Header, layout: PixelFormat) -> Pixels:
    """Bright is high: MONOCHROME1 stores it the other way (PS3.3 C.7.6.3.1.2)."""
    if text(header.dataset, "PhotometricInterpretation") != "MONOCHROME1":
        return pixels
    return np.asarray(2**layout.bits_stored - 1 - pixels, dtype=pixels.dtype)


class _Clock:
    """Seconds by stage, for counters."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now
