"""The checks of a header, in the order of their precedence."""

from dataclasses import replace
from pathlib import PurePosixPath
from typing import Final

from pydicom.dataset import Dataset

from ingest.cross_check import cautions
from ingest.errors import IngestError
from ingest.facts import known_facts
from ingest.fields import integer, items, raw, text
from ingest.header import Header
from ingest.identity import check_image_kind, check_uid, identify
from ingest.record import Limits, Probed
from ingest.spacing import manifest_spacing, scan_geometry
from ingest.syntaxes import is_supported
from manifests.plan import ManifestRow
from manifests.reasons import Reason

PHOTOMETRIC: Final = ("MONOCHROME1", "MONOCHROME2")
READ_LATER: Final = (
    *("ImageType", "Modality", "PatientID", "Manufacturer", "ManufacturerModelName", "ImageLaterality", "Laterality"),
    *("PhotometricInterpretation", "BurnedInAnnotation", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)
GROUPS: Final = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


def check_header(header: Header, path: str, manifest: ManifestRow | None, limits: Limits) -> Probed:
    """Everything that can be known before pixels are read.

    Raises:
        IngestError: with the first reason that applies, in the order of the reason codes.
    """
    dataset = header.dataset
    check_uid(dataset)
    check_meta(header, path)
    check_limits(dataset, limits)
    check_readable(dataset)
    check_image_kind(dataset)
    identity = identify(dataset, path, manifest)
    check_pixel_data(header)
    check_syntax(header)
    num_frames = check_num_frames(dataset)
    check_dimensions(dataset, limits)
    check_photometric(dataset)
    check_enough_frames(num_frames, limits)
    scan = scan_geometry(dataset, num_frames, identity, manifest)
    facts = replace(
        known_facts(header, path, manifest),
        participant_id=identity.participant_id,
        device=identity.device,
        protocol=identity.protocol,
        anatomic_region=identity.anatomic_region,
        laterality=identity.laterality,
        spacing_d_mm=scan.spacing_mm[0],
        spacing_h_mm=scan.spacing_mm[1],
        spacing_w_mm=scan.spacing_mm[2],
        spacing_source=scan.source,
    )
    shape = (num_frames, integer(dataset, "Rows") or 0, integer(dataset, "Columns") or 0)
    notes = cautions(scan, shape, identity.protocol, manifest_spacing(manifest))
    return Probed(identity=identity, scan=scan, facts=facts, cautions=notes)


def check_pixel_data(header: Header) -> None:
    """Raises PIXELDATA_MISSING."""
    if not header.has_pixel_data:
        raise IngestError(Reason.PIXELDATA_MISSING, "there is no pixel data element.")


def check_syntax(header: Header) -> None:
    """Raises TS_UNSUPPORTED."""
    if not is_supported(header.transfer_syntax_uid):
        raise IngestError(Reason.TS_UNSUPPORTED, "no decoder for its transfer syntax.")


def check_enough_frames(num_frames: int, limits: Limits) -> None:
    """Raises TOO_FEW_FRAMES."""
    if num_frames < limits.min_frames:
        raise IngestError(Reason.TOO_FEW_FRAMES, f"{num_frames} B-scans, at least {limits.min_frames} are needed.")


def check_meta(header: Header, path: str) -> None:
    """The file meta information must speak of this data set (PS3.10 section 7.1).

    A UID that only the file meta information has otherwise is forgiven when the file's name confirms the data set's:
    tools that replace UIDs forget it.

    Raises:
        IngestError: META_HEADER_INVALID.
    """
    pairs = (("MediaStorageSOPClassUID", "SOPClassUID"), ("MediaStorageSOPInstanceUID", "SOPInstanceUID"))
    for of_meta, of_dataset in pairs:
        meta, own = text(header.meta, of_meta), text(header.dataset, of_dataset)
        if meta and own and meta != own and own not in PurePosixPath(path).name:
            raise IngestError(Reason.META_HEADER_INVALID, f"{of_meta} is not the {of_dataset} of the data set.")


def check_limits(dataset: Dataset, limits: Limits) -> None:
    """No more frames and voxels than any scan has; raises PARSE_LIMIT_EXCEEDED."""
    frames, rows, columns = (integer(dataset, name) or 0 for name in ("NumberOfFrames", "Rows", "Columns"))
    if frames > limits.max_frames:
        raise IngestError(Reason.PARSE_LIMIT_EXCEEDED, f"over {limits.max_frames} frames are declared.")
    if max(frames, 1) * rows * columns > limits.max_voxels:
        raise IngestError(Reason.PARSE_LIMIT_EXCEEDED, f"over {limits.max_voxels} voxels are declared.")


def check_readable(dataset: Dataset) -> None:
    """Values that any later check reads, also those behind the pixels' decoding; raises PARSER_CRASH."""
    for keyword in READ_LATER:
        raw(dataset, keyword)
    for keyword in GROUPS:
        items(dataset, keyword)


def check_num_frames(dataset: Dataset) -> int:
    """The declared number; raises NFRAMES_INVALID."""
    declared = integer(dataset, "NumberOfFrames")
    if declared is None or declared < 1:
        raise IngestError(Reason.NFRAMES_INVALID, "NumberOfFrames is not a positive whole number.")
    return declared


def check_dimensions(dataset: Dataset, limits: Limits) -> None:
    """Raises DIMENSIONS_INVALID."""
    rows, columns = integer(dataset, "Rows") or 0, integer(dataset, "Columns") or 0
    if not (1 < rows <= limits.max_edge and 1 < columns <= limits.max_edge):
        raise IngestError(Reason.DIMENSIONS_INVALID, f"{rows} rows x {columns} columns.")


def check_photometric(dataset: Dataset) -> None:
    """Raises PHOTOMETRIC_UNSUPPORTED."""
    if text(dataset, "PhotometricInterpretation") not in PHOTOMETRIC:
        raise IngestError(Reason.PHOTOMETRIC_UNSUPPORTED, "PhotometricInterpretation is not MONOCHROME1 or 2.")
    samples, bits = integer(dataset, "SamplesPerPixel"), integer(dataset, "BitsAllocated")
    if samples != 1:
        raise IngestError(Reason.PHOTOMETRIC_UNSUPPORTED, f"{samples or 'an unknown number of'} samples per pixel.")
    stored = integer(dataset, "BitsStored")
    if bits not in {8, 16} or not 1 <= (bits if stored is None else stored) <= bits:
        raise IngestError(Reason.PHOTOMETRIC_UNSUPPORTED, "BitsAllocated is not 8 or 16, or BitsStored exceeds it.")
    high = integer(dataset, "HighBit")
    if high is not None and high != (bits if stored is None else stored) - 1:
        raise IngestError(Reason.PHOTOMETRIC_UNSUPPORTED, "HighBit is not BitsStored - 1.")
    if integer(dataset, "PixelRepresentation") not in {0, None}:
        raise IngestError(Reason.PHOTOMETRIC_UNSUPPORTED, "pixels are signed.")
