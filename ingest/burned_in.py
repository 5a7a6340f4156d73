"""Text burned into the pixels may name a person (PS3.3 C.7.6.1.1.1, BurnedInAnnotation; PS3.15 E.3.1).

The header's word is believed when it says YES; when it says NO or nothing, the margins are looked at.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from ingest.errors import IngestError
from ingest.fields import raw
from manifests.reasons import Reason
from shards.schema import Volume

MARGIN_SHARE: Final = 1 / 8
"""Of the rows, above and below: vitreous and sclera lie there, and that is where instruments write."""
STILL_SHARE: Final = 0.1
"""Of full scale: what is drawn stays the same from B-scan to B-scan, lossy codecs aside; speckle never does."""
BRIGHT_SHARE: Final = 0.5
MIN_PIXELS: Final = 20
"""Three letters of five by seven dots have about fifty."""
MIN_STROKES: Final = 3
MIN_ROWS: Final = 4
"""A row of text crosses several strokes, and several such rows make a letter; a frame or a rule has one a row."""


def check_annotation(dataset: Dataset) -> None:
    """Believe a header that says so.

    Raises:
        IngestError: BURNED_IN_SUSPECT.
    """
    if str(raw(dataset, "BurnedInAnnotation") or "").strip().upper() == "YES":
        raise IngestError(Reason.BURNED_IN_SUSPECT, "BurnedInAnnotation is YES.")


def check_margins(frames: Volume, bits_stored: int) -> None:
    """Look for bright strokes above or below the tissue that are the same in all B-scans.

    Args:
        frames: decoded B-scans `[D, H, W]`.
        bits_stored: full scale is `2**bits_stored - 1`.

    Raises:
        IngestError: BURNED_IN_SUSPECT.
    """
    height = int(frames.shape[1] * MARGIN_SHARE)
    full = 2**bits_stored - 1
    for name, margin in (("upper", frames[:, :height]), ("lower", frames[:, frames.shape[1] - height :])):
        if height and _has_text(margin, full):
            raise IngestError(Reason.BURNED_IN_SUSPECT, f"text-like strokes in the {name} margin of all B-scans.")


def _has_text(margin: Volume, full: int) -> bool:
    low, high = margin.min(axis=0).astype(np.int64), margin.max(axis=0).astype(np.int64)
    drawn = (low >= BRIGHT_SHARE * full) & (high - low <= STILL_SHARE * full)
    if np.count_nonzero(drawn) < MIN_PIXELS:
        return False
    return int(np.count_nonzero(_strokes(drawn) >= MIN_STROKES)) >= MIN_ROWS


def _strokes(drawn: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Separate runs of drawn pixels in each row."""
    starts = drawn[:, 1:] & ~drawn[:, :-1]
    return np.asarray(np.count_nonzero(starts, axis=1) + drawn[:, 0], dtype=np.int64)
