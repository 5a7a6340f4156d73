"""Writes Ophthalmic Tomography Image files (DICOM PS3.3 A.52.4) from any pixels and a `HeaderSpec`."""

import io
import math
import os
from pathlib import Path
from typing import Final

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence
from pydicom.uid import UID, generate_uid
from pydicom.valuerep import DSfloat, format_number_as_ds

from ingest.phantom.errors import PhantomHeaderError
from ingest.phantom.header import FrameGeometry, HeaderSpec
from ingest.phantom.pixels import Volume8, encode_frames
from ingest.phantom.protocols import JPEG_2000, NATIVE

OPT_SOP_CLASS: Final = "1.2.840.10008.5.1.4.1.1.77.1.5.4"
PHOTOGRAPHY_SOP_CLASS: Final = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
IMPLEMENTATION_UID: Final = str(generate_uid(entropy_srcs=["fovea", "phantom", "implementation"]))
DIMENSION_UID: Final = str(generate_uid(entropy_srcs=["fovea", "phantom", "dimension"]))

MACULA: Final = ("82859000", "SCT", "Macula lutea")
DISC: Final = ("24498008", "SCT", "Optic nerve head")
RETINA: Final = ("5665001", "SCT", "Retina")


def encode_dicom(volume: Volume8, header: HeaderSpec) -> bytes:
    """A whole DICOM file.

    Args:
        volume: uint8 `[D, H, W]`, B-scans in stored order.
        header: what the file says about them, one frame geometry per B-scan.

    Raises:
        PhantomHeaderError: if the number of frame geometries is not the number of B-scans, or the transfer syntax
            has no encoder here.
    """
    dataset = build_dataset(volume, header)
    if header.transfer_syntax in NATIVE:
        attach_native(dataset, volume)
    else:
        attach_fragments(dataset, encode_frames(volume, header.transfer_syntax), offset_table=header.offset_table)
    return serialise(dataset)


def write_dicom(path: str | os.PathLike[str], volume: Volume8, header: HeaderSpec) -> None:
    """`encode_dicom` into a file, whose folder is made if needed."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(encode_dicom(volume, header))


def attach_native(dataset: Dataset, volume: Volume8) -> None:
    """Uncompressed pixels, padded to an even length."""
    values = volume.tobytes()
    dataset.PixelData = values + b"\0" * (len(values) % 2)
    dataset["PixelData"].VR = "OB"


def attach_fragments(dataset: Dataset, fragments: list[bytes], *, offset_table: bool) -> None:
    """Encapsulated pixels, one fragment per B-scan."""
    dataset.PixelData = encapsulate(fragments, has_bot=offset_table)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True


def serialise(dataset: Dataset) -> bytes:
    """The bytes of a file: preamble, file meta information, data set."""
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def build_dataset(volume: Volume8, header: HeaderSpec) -> Dataset:
    """The data set without PixelData."""
    if volume.ndim != 3 or volume.dtype != np.uint8:
        raise PhantomHeaderError(f"pixels must be uint8 [D, H, W]; these are {volume.dtype} {volume.shape}.")
    if len(volume) != len(header.frames):
        raise PhantomHeaderError(f"{len(volume)} B-scans need as many frame geometries, not {len(header.frames)}.")
    dataset = Dataset()
    dataset.file_meta = _file_meta(header)
    for part in (
        _patient_and_study(header),
        _series_and_equipment(header),
        _image(volume, header),
        _acquisition(header),
        _functional_groups(header),
    ):
        dataset.update(part)
    return dataset


def _file_meta(header: HeaderSpec) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(OPT_SOP_CLASS)
    meta.MediaStorageSOPInstanceUID = UID(header.uids.sop_instance)
    meta.TransferSyntaxUID = UID(header.transfer_syntax)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    meta.ImplementationVersionName = "FOVEA_PHANTOM"
    return meta


def _patient_and_study(header: HeaderSpec) -> Dataset:
    """Patient and General Study modules (C.7.1.1, C.7.2.1). The sex is always M, as in the cohort."""
    part = Dataset()
    part.PatientName = "PHANTOM^OCT"
    part.PatientID = header.participant_id
    part.PatientBirthDate = ""
    part.PatientSex = "M"
    part.StudyInstanceUID = header.uids.study
    part.StudyDate = f"{header.acquired:%Y%m%d}"
    part.StudyTime = f"{header.acquired:%H%M%S}"
    part.ReferringPhysicianName = ""
    part.StudyID = "1"
    part.AccessionNumber = ""
    return part


def _series_and_equipment(header: HeaderSpec) -> Dataset:
    """Series, Frame of Reference, Synchronization, General and Enhanced Equipment."""
    part = Dataset()
    part.Modality = "OPT"
    part.SeriesInstanceUID = header.uids.series
    part.SeriesNumber = header.instance_number
    part.SeriesDescription = header.anatomic_region
    part.ProtocolName = header.protocol
    part.FrameOfReferenceUID = header.uids.frame_of_reference
    part.PositionReferenceIndicator = ""
    part.SynchronizationFrameOfReferenceUID = generate_uid(entropy_srcs=[header.uids.study, "synchronization"])
    part.SynchronizationTrigger = "NO TRIGGER"
    part.AcquisitionTimeSynchronized = "N"
    part.Manufacturer = header.manufacturer
    part.ManufacturerModelName = header.model
    part.DeviceSerialNumber = "900001"
    part.SoftwareVersions = "phantom 1"
    return part


def _image(volume: Volume8, header: HeaderSpec) -> Dataset:
    """Image Pixel, Multi-frame Dimension, Ophthalmic Tomography Image and SOP Common modules."""
    part = Dataset()
    part.SOPClassUID = OPT_SOP_CLASS
    part.SOPInstanceUID = header.uids.sop_instance
    part.ImageType = ["ORIGINAL", "PRIMARY"]
    part.InstanceNumber = header.instance_number
    part.ContentDate, part.ContentTime = f"{header.acquired:%Y%m%d}", f"{header.acquired:%H%M%S}"
    part.AcquisitionDateTime = f"{header.acquired:%Y%m%d%H%M%S}"
    part.AcquisitionNumber = header.instance_number
    part.NumberOfFrames, part.Rows, part.Columns = volume.shape
    part.SamplesPerPixel = 1
    part.PhotometricInterpretation = "MONOCHROME2"
    part.PixelRepresentation = 0
    part.BitsAllocated, part.BitsStored, part.HighBit = 8, 8, 7
    part.ConcatenationFrameOffsetNumber = 0
    part.InConcatenationNumber, part.InConcatenationTotalNumber = 1, 1
    part.PresentationLUTShape = "IDENTITY"
    part.BurnedInAnnotation = "NO"
    part.LossyImageCompression = "00"
    if header.transfer_syntax == JPEG_2000:
        part.LossyImageCompression = "01"
        part.LossyImageCompressionRatio = 4.0
        part.LossyImageCompressionMethod = "ISO_15444_1"
    organization = Dataset()
    organization.DimensionOrganizationUID = DIMENSION_UID
    index = Dataset()
    index.DimensionOrganizationUID = DIMENSION_UID
    index.DimensionIndexPointer = 0x00209057
    index.FunctionalGroupPointer = 0x00209111
    part.DimensionOrganizationSequence = Sequence([organization])
    part.DimensionIndexSequence = Sequence([index])
    return part


def _acquisition(header: HeaderSpec) -> Dataset:
    """Acquisition Context, Ophthalmic Tomography Acquisition Parameters and Parameters, Ocular Region Imaged."""
    part = Dataset()
    part.AcquisitionContextSequence = Sequence()
    part.AcquisitionDuration = 2.0
    part.AxialLengthOfTheEye = None
    part.HorizontalFieldOfView = None
    part.RefractiveStateSequence = Sequence()
    part.EmmetropicMagnification = None
    part.IntraOcularPressure = None
    part.PupilDilated = ""
    part.AcquisitionDeviceTypeCodeSequence = Sequence(
        [_code("392012008", "SCT", "Optical Coherence Tomography Scanner")]
    )
    part.LightPathFilterTypeStackCodeSequence = Sequence()
    part.DetectorType = "CCD"
    part.IlluminationWaveLength = 870.0
    part.IlluminationPower = 1200.0
    part.IlluminationBandwidth = 50.0
    part.DepthSpatialResolution = 7.0
    part.MaximumDepthDistortion = 1.0
    part.AlongScanSpatialResolution = 14.0
    part.MaximumAlongScanDistortion = 1.0
    part.AcrossScanSpatialResolution = 14.0
    part.MaximumAcrossScanDistortion = 1.0
    part.ImageLaterality = header.laterality
    part.AnatomicRegionSequence = Sequence([_region(header)])
    return part


def _functional_groups(header: HeaderSpec) -> Dataset:
    """Shared and per-frame groups (A.52.4.4); pixel measures are shared unless B-scans differ."""
    shared = Dataset()
    if header.shared_measures:
        shared.PixelMeasuresSequence = Sequence([_measures(header, header.spacing_mm)])
    shared.ReferencedImageSequence = Sequence([_reference(header)])
    shared.FrameAnatomySequence = Sequence([_frame_anatomy(header)])
    orientations = {frame.orientation for frame in header.frames}
    one_orientation = len(orientations) == 1
    if one_orientation and None not in orientations:
        shared.PlaneOrientationSequence = Sequence([_orientation(header.frames[0])])
    part = Dataset()
    part.SharedFunctionalGroupsSequence = Sequence([shared])
    part.PerFrameFunctionalGroupsSequence = Sequence(
        [_frame_groups(header, frame, own_orientation=not one_orientation) for frame in header.frames]
    )
    return part


def _frame_groups(header: HeaderSpec, frame: FrameGeometry, *, own_orientation: bool) -> Dataset:
    group = Dataset()
    content = Dataset()
    content.FrameAcquisitionDateTime = f"{header.acquired:%Y%m%d%H%M%S}"
    content.FrameReferenceDateTime = f"{header.acquired:%Y%m%d%H%M%S}"
    content.FrameAcquisitionDuration = 20.0
    content.StackID = "1"
    content.InStackPositionNumber = frame.stack_position
    content.DimensionIndexValues = frame.stack_position
    group.FrameContentSequence = Sequence([content])
    if frame.pixel_spacing_mm is not None:
        group.PixelMeasuresSequence = Sequence([_measures(header, frame.pixel_spacing_mm)])
    if frame.position_mm is not None or header.empty_plane_position:
        plane = Dataset()
        plane.ImagePositionPatient = _ds(frame.position_mm) if frame.position_mm is not None else None
        group.PlanePositionSequence = Sequence([plane])
    if frame.orientation is not None and own_orientation:
        group.PlaneOrientationSequence = Sequence([_orientation(frame)])
    if frame.location_px is not None:
        group.OphthalmicFrameLocationSequence = Sequence([_location(header, frame.location_px)])
    return group


def _measures(header: HeaderSpec, spacing_mm: tuple[float, float]) -> Dataset:
    measures = Dataset()
    measures.PixelSpacing = _ds(spacing_mm)
    if header.slice_thickness_mm is not None:
        measures.SliceThickness = _ds((header.slice_thickness_mm,))[0]
    if header.spacing_between_slices_mm is not None:
        measures.SpacingBetweenSlices = _ds((header.spacing_between_slices_mm,))[0]
    return measures


def _orientation(frame: FrameGeometry) -> Dataset:
    plane = Dataset()
    plane.ImageOrientationPatient = _ds(frame.orientation or ())
    return plane


def _reference(header: HeaderSpec) -> Dataset:
    """The localizer photograph, which is another file (C.7.6.16.2.5)."""
    reference = Dataset()
    reference.ReferencedSOPClassUID = PHOTOGRAPHY_SOP_CLASS
    reference.ReferencedSOPInstanceUID = header.uids.localizer
    reference.PurposeOfReferenceCodeSequence = Sequence([_code("121311", "DCM", "Localizer")])
    return reference


def _location(header: HeaderSpec, location_px: tuple[float, float, float, float]) -> Dataset:
    """Where the B-scan lies on the localizer (C.8.17.10.1)."""
    location = _reference(header)
    location.ReferenceCoordinates = list(location_px)
    location.OphthalmicImageOrientation = "LINEAR"
    return location


def _frame_anatomy(header: HeaderSpec) -> Dataset:
    anatomy = Dataset()
    anatomy.FrameLaterality = header.laterality
    anatomy.AnatomicRegionSequence = Sequence([_region(header)])
    return anatomy


def _region(header: HeaderSpec) -> Dataset:
    """The structure that the protocol's region text means."""
    if header.anatomic_region.startswith("Macula"):
        return _code(*MACULA)
    return _code(*(DISC if header.anatomic_region.startswith("Optic Disc") else RETINA))


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _ds(values: tuple[float, ...]) -> list[DSfloat]:
    """Decimal strings of at most 16 characters (PS3.5 6.2), which is 1e-6 mm and better for lengths under 1 m."""
    for value in values:
        if not math.isfinite(value):
            raise PhantomHeaderError(f"a decimal string cannot hold {value}.")
    return [DSfloat(format_number_as_ds(float(value))) for value in values]
