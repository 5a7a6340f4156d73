"""A stored sample as a file that image viewers open: NIfTI or NRRD, with its true spacing."""

from pathlib import Path
from typing import Final

import SimpleITK as sitk

from shards.schema import Sample

VOLUME_SUFFIXES: Final = (".nii", ".nii.gz", ".nrrd")


def export_volume(sample: Sample, path: Path) -> None:
    """Write the volume in stored units; the suffix decides the format.

    A volume is `[D, H, W]` and an ITK image `(x, y, z)`, so x is W (A-scans, lateral), y is H (axial, into the
    tissue) and z is D (B-scans), with spacing in mm in the same reversed order. The origin is the centre of the
    first voxel and the axes are those of the grid: a dataset does not hold where in the eye a scan lay.

    Raises:
        RuntimeError: from SimpleITK, if the file cannot be written.
    """
    image = sitk.GetImageFromArray(sample.volume)
    image.SetSpacing(tuple(reversed(sample.meta.spacing_mm)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=path.suffix in {".gz", ".nrrd"})
