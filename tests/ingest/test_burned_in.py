"""Text in the margin is suspected; tissue, frames, rules and saturation are not."""

from typing import Any

import numpy as np
import pytest

from ingest.burned_in import check_margins
from ingest.errors import IngestError
from ingest.phantom.protocols import PROTOCOLS
from manifests.reasons import Reason

RASTERS = [name for name, protocol in PROTOCOLS.items() if protocol.raster]


def letters(volume: Any, row: int, column: int, level: int) -> Any:
    """`H H` in five by seven dots, in every B-scan."""
    glyph = np.array([[1, 0, 0, 0, 1]] * 3 + [[1, 1, 1, 1, 1]] + [[1, 0, 0, 0, 1]] * 3, dtype=bool)
    out = volume.copy()
    for shift in (0, 8):
        out[:, row : row + 7, column + shift : column + shift + 5][:, glyph] = level
    return out


@pytest.mark.parametrize("name", RASTERS)
@pytest.mark.parametrize(("row", "column"), [(2, 3), (2, 100), (118, 50)])
def test_letters_in_a_margin_are_suspected(scan: Any, name: str, row: int, column: int) -> None:
    with pytest.raises(IngestError) as caught:
        check_margins(letters(scan(name).volume, row, column, 220), 8)
    assert caught.value.reason is Reason.BURNED_IN_SUSPECT


def test_letters_that_a_lossy_codec_blurred_are_suspected(scan: Any) -> None:
    noisy = letters(scan(RASTERS[0]).volume, 3, 20, 230).astype(int)
    noisy[:, :12] += np.random.default_rng(1).integers(-8, 9, noisy[:, :12].shape)
    with pytest.raises(IngestError):
        check_margins(np.clip(noisy, 0, 255).astype(np.uint8), 8)


def test_letters_in_sixteen_bits_are_suspected(scan: Any) -> None:
    volume = scan(RASTERS[0]).volume.astype(np.uint16) * 16
    check_margins(volume, 12)
    with pytest.raises(IngestError):
        check_margins(letters(volume, 3, 20, 4000), 12)


@pytest.mark.parametrize("name", RASTERS)
def test_tissue_is_no_text(scan: Any, name: str) -> None:
    check_margins(scan(name).volume, 8)


def test_frames_rules_and_overexposure_are_no_text(scan: Any) -> None:
    volume = scan(RASTERS[0]).volume
    framed, ruled, bright = volume.copy(), volume.copy(), volume.copy()
    framed[:, [0, -1]] = framed[:, :, [0]] = framed[:, :, [-1]] = 255
    ruled[:, 5] = 200
    bright[:, :16] = 255
    for harmless in (framed, ruled, bright):
        check_margins(harmless, 8)
