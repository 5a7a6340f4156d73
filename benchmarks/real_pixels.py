"""Real Spectralis B-scans through the ingest of one file: `python benchmarks/real_pixels.py FOLDER_OF_NPZ OUT`.

Each `.npz` holds `volume` uint8 `[B-scan, row, column]` and `layers8`, eight retinal surfaces in pixel rows. The B-scan
step is not recorded and assumed to be 0.25 mm, the lateral spacing 0.011 mm; the axial spacing is 0.0039 mm. For each
file a PNG shows source B-scans and resampled ones at the same place, with the surfaces drawn on both.
"""

import datetime
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt

from ingest.convert import convert_file
from ingest.geometry import BLOCK6
from ingest.phantom.dicom import encode_dicom
from ingest.phantom.header import HeaderSpec, Uids, plane_frames
from ingest.record import VolumeRecord

STEP_MM = 0.25
SPACING_MM = (0.0039, 0.011)
STRETCH = 2.5  # pictures only: the retina is thin


def wrap(volume: npt.NDArray[np.uint8], name: str) -> bytes:
    """A Spectralis DICOM around real pixels, at their true shape."""
    num_frames, _, columns = volume.shape
    slow = (np.arange(num_frames) * STEP_MM).tolist()
    header = HeaderSpec(
        participant_id="1234",
        device="heidelberg_spectralis",
        protocol="spectralis_ppol_mac_hr_oct",
        anatomic_region="Macula",
        laterality="R",
        model="Spectralis",
        uids=Uids.from_entropy("real pixels", name),
        acquired=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
        spacing_mm=SPACING_MM,
        frames=plane_frames(slow, columns * SPACING_MM[1]),
    )
    return encode_dicom(volume, header)


def surfaces_on_grid(layers: npt.NDArray[np.float32], record: VolumeRecord, bscan: int) -> npt.NDArray[np.float64]:
    """Surfaces `[8, column]` of a source B-scan in voxel coordinates of the grid.

    D and W are centred on the scan; H on the recorded retina, clamped to the scan.
    """
    axial, lateral = record.spacing_mm[1], record.spacing_mm[2]
    block = axial * record.volume.shape[1]
    extent = record.native_shape[1] * SPACING_MM[0]
    center = extent / 2 if block >= extent else min(max(record.retina_center_mm, block / 2), extent - block / 2)
    top = center - block / 2
    rows = ((layers[:, bscan] + 0.5) * SPACING_MM[0] - top) / axial - 0.5
    left = record.native_shape[2] * SPACING_MM[1] / 2 - lateral * record.volume.shape[2] / 2
    columns = (np.arange(record.volume.shape[2]) + 0.5) * lateral + left
    source = (np.arange(layers.shape[2]) + 0.5) * SPACING_MM[1]
    return np.stack([np.interp(columns, source, row, left=np.nan, right=np.nan) for row in rows])


def grid_slice(record: VolumeRecord, bscan: int) -> int:
    """The grid's B-scan nearest to a source B-scan."""
    middle = (record.native_shape[0] - 1) / 2
    offset_mm = (bscan - middle) * STEP_MM
    return round(offset_mm / record.spacing_mm[0] + (record.volume.shape[0] - 1) / 2)


def draw(source: npt.NDArray[np.uint8], layers: Any, record: VolumeRecord, path: Path) -> None:
    """Source and resampled B-scans one above the other."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    chosen = (2, 5, 8)
    figure, axes = plt.subplots(2, len(chosen), figsize=(15, 8), layout="constrained")
    for column, bscan in enumerate(chosen):
        axes[0, column].imshow(source[bscan], cmap="gray", aspect=STRETCH * SPACING_MM[0] / SPACING_MM[1])
        axes[0, column].plot(layers[:, bscan].T, linewidth=0.6)
        axes[0, column].set_title(f"source B-scan {bscan}, {source.shape[1]} x {source.shape[2]}")
        place = grid_slice(record, bscan)
        axes[1, column].imshow(
            record.volume[place], cmap="gray", aspect=STRETCH * record.spacing_mm[1] / record.spacing_mm[2]
        )
        axes[1, column].plot(surfaces_on_grid(layers, record, bscan).T, linewidth=0.6)
        axes[1, column].set_title(f"block6 B-scan {place}, 384 x 384")
    figure.savefig(path, dpi=70)
    plt.close(figure)


def main(folder: str, out: str) -> None:
    """Every `.npz` with surfaces in FOLDER; a picture each in OUT."""
    Path(out).mkdir(parents=True, exist_ok=True)
    for path in sorted(Path(folder).glob("*subj*.npz")):
        with np.load(path, allow_pickle=False) as data:
            volume, layers = data["volume"], data["layers8"]
        record = convert_file(wrap(volume, path.stem), f"1234/{path.stem}", None, BLOCK6)
        assert isinstance(record, VolumeRecord), record
        draw(volume, layers, record, Path(out) / f"{path.stem}.png")
        print(path.stem, volume.shape, "content", record.content_box, "retina", record.retina_center_mm, "mm")


if __name__ == "__main__":
    main(*sys.argv[1:3])
