"""`fovea show`: one stored sample as a picture, or as a volume for other programs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fovea.places import on_this_machine

if TYPE_CHECKING:
    from shards.schema import Sample


def command(
    dataset: Annotated[str, typer.Argument(help="Path or URL of a dataset that `fovea ingest` made.")],
    key: Annotated[str, typer.Argument(help="Key of a sample: the first column of manifests/samples.csv.")],
    png: Annotated[
        Path | None,
        typer.Option(
            help="Write B-scans, en-face projection, axial profile and content box as a picture.",
            callback=on_this_machine,
        ),
    ] = None,
    nifti: Annotated[
        Path | None,
        typer.Option(help="Write the volume with its true spacing: .nii, .nii.gz or .nrrd.", callback=on_this_machine),
    ] = None,
) -> None:
    """Show one stored sample, after comparing its bytes with the committed sha256.

    Example: fovea show out/dataset 1001-topcon_maestro2-R-maestro2_3d_macula_oct-0a1b2c3d4e --png sample.png
    """
    if png is None and nifti is None:
        raise typer.BadParameter("say what to write: --png FILE, --nifti FILE, or both.")
    from fovea.console import say
    from shards.reader import open_dataset, read_sample

    opened = open_dataset(dataset)
    sample = read_sample(opened, opened.find(key))
    if png is not None:
        _write_png(sample, png)
        say(f"wrote {png}")
    if nifti is not None:
        _write_volume(sample, nifti)
        say(f"wrote {nifti}")


def _write_png(sample: "Sample", path: Path) -> None:
    from ingest.picture import sample_figure

    sample_figure(sample, path)


def _write_volume(sample: "Sample", path: Path) -> None:
    from ingest.export import VOLUME_SUFFIXES, export_volume

    if not path.name.endswith(VOLUME_SUFFIXES):
        raise typer.BadParameter(f"--nifti {path}: the name must end in {', '.join(VOLUME_SUFFIXES)}.")
    export_volume(sample, path)
