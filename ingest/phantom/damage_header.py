"""Damage in the header: identity, image attributes, spacing, positions. The pixels stay whole."""

import dataclasses
from collections.abc import Callable
from typing import Final

import numpy as np
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID

from ingest.phantom.case import (
    Case,
    Make,
    Outcome,
    by_case,
    by_dataset,
    dataset_of,
    native_dataset,
    one_file,
    positioned_scan,
    raster_scan,
    way,
)
from ingest.phantom.dicom import serialise
from ingest.phantom.header import MANUFACTURERS, MODELS, FrameGeometry
from ingest.phantom.manifest import NOT_REPORTED
from ingest.phantom.protocols import Protocol
from manifests.reasons import Reason
from shards.schema import Device

OPHTHALMIC_PHOTOGRAPHY: Final = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
OTHER_DEVICE: Final[dict[Device, Device]] = {
    "heidelberg_spectralis": "zeiss_cirrus",
    "topcon_maestro2": "heidelberg_spectralis",
    "topcon_triton": "zeiss_cirrus",
    "zeiss_cirrus": "topcon_triton",
}
GAP_STEPS: Final = 4
"""A jump of five steps where one is due: plainly over the limit of three."""


def _wrong_sop_class(dataset: Dataset) -> None:
    dataset.SOPClassUID = UID(OPHTHALMIC_PHOTOGRAPHY)
    dataset.file_meta.MediaStorageSOPClassUID = UID(OPHTHALMIC_PHOTOGRAPHY)


def _image_type(value: str) -> Callable[[Dataset], None]:
    def edit(dataset: Dataset) -> None:
        dataset.ImageType = ["DERIVED", "PRIMARY", value]

    return edit


def _other_participant(case: Case, reason: str) -> Outcome:
    """The header names somebody else than the folder, the file name and the manifest do."""
    digits = case.header.participant_id
    other = digits[0] + f"{(int(digits[1:]) + 137) % 1000:03d}"
    return one_file(case, case.with_header(participant_id=other).encode(), reason)


def _other_device(case: Case, reason: str) -> Outcome:
    """Manufacturer and model of another company."""
    dataset = dataset_of(case)
    other = OTHER_DEVICE[case.header.device]
    dataset.Manufacturer, dataset.ManufacturerModelName = MANUFACTURERS[other], MODELS[other][0]
    return one_file(case, serialise(dataset), reason)


def _other_eye(case: Case, reason: str) -> Outcome:
    """The header names the other eye than the file name and the manifest do."""
    other = "L" if case.header.laterality == "R" else "R"
    payload = case.with_header(laterality=other).encode()
    return one_file(case, payload, reason)


def _no_eye(case: Case, reason: str) -> Outcome:
    """No laterality anywhere: header, file name or manifest."""
    dataset = dataset_of(case)
    del dataset.ImageLaterality
    del dataset.SharedFunctionalGroupsSequence[0].FrameAnatomySequence[0].FrameLaterality
    side = f"_{case.header.laterality.lower()}_"
    nameless = dataclasses.replace(case, path="_".join(case.path.rsplit(side, 1)))
    return one_file(nameless, serialise(dataset), reason, laterality="")


def _number_of_frames(value: int | None) -> Callable[[Dataset], None]:
    def edit(dataset: Dataset) -> None:
        dataset.NumberOfFrames = value

    return edit


def _no_rows(dataset: Dataset) -> None:
    dataset.Rows = 0


def _color(case: Case, reason: str) -> Outcome:
    """Three samples per pixel, honestly written: no B-scan is in colour."""
    dataset = native_dataset(case)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.PixelData = np.repeat(case.volume[..., None], 3, axis=-1).tobytes()
    dataset["PixelData"].VR = "OB"
    return one_file(case, serialise(dataset), reason)


def _few_frames(case: Case, reason: str) -> Outcome:
    """Four B-scans, complete in themselves."""
    few = case.with_header(frames=tuple(case.header.frames[:4])).with_volume(case.volume[:4])
    return one_file(few, few.encode(), reason, number_of_frames="4")


def _measures(dataset: Dataset) -> list[Dataset]:
    shared = dataset.SharedFunctionalGroupsSequence[0]
    groups = [shared] if "PixelMeasuresSequence" in shared else list(dataset.PerFrameFunctionalGroupsSequence)
    return [group.PixelMeasuresSequence[0] for group in groups]


def _no_pixel_spacing(dataset: Dataset) -> None:
    for measures in _measures(dataset):
        del measures.PixelSpacing


def _no_bscan_step(dataset: Dataset) -> None:
    """Nothing says how far B-scans lie apart."""
    for measures in _measures(dataset):
        del measures.SliceThickness
    for group in dataset.PerFrameFunctionalGroupsSequence:
        for keyword in ("PlanePositionSequence", "OphthalmicFrameLocationSequence"):
            if keyword in group:
                delattr(group, keyword)


def _axial_spacing(axial: str) -> Make:
    """An axial spacing that parses as a number, or nearly, and cannot be one; the manifest repeats it."""

    def make(case: Case, reason: str) -> Outcome:
        dataset = dataset_of(case)
        for measures in _measures(dataset):
            lateral = str(measures.PixelSpacing[1])
            values = [axial, lateral]
            # pydicom would rightly refuse to write these.
            measures["PixelSpacing"] = DataElement("PixelSpacing", "DS", values, validation_mode=config.IGNORE)
        cell = f"[{axial}, {case.header.spacing_mm[1]:.9g}]"
        return one_file(case, serialise(dataset), reason, pixel_spacing=cell)

    return make


def _spacing_disagrees(case: Case) -> Case:
    """Every second B-scan says that its A-scans lie a tenth further apart."""
    axial, lateral = case.header.spacing_mm
    frames = tuple(
        dataclasses.replace(frame, pixel_spacing_mm=(axial, lateral * (1.1 if index % 2 else 1.0)))
        for index, frame in enumerate(case.header.frames)
    )
    return case.with_header(frames=frames)


def _repeated_position(case: Case) -> Case:
    """Two neighbouring B-scans at one place."""
    frames = list(case.header.frames)
    source = frames[case.middle]
    target = frames[case.middle + 1]
    frames[case.middle + 1] = dataclasses.replace(
        target, position_mm=source.position_mm, location_px=source.location_px
    )
    return case.with_header(frames=tuple(frames))


def _position_gap(case: Case) -> Case:
    """The later half of the B-scans lies four steps further on."""
    frames = case.header.frames
    moved = (_moved(frame, frames) for frame in frames[case.middle :])
    return case.with_header(frames=(*frames[: case.middle], *moved))


def _moved(frame: FrameGeometry, frames: tuple[FrameGeometry, ...]) -> FrameGeometry:
    first, second = frames[0], frames[1]
    if frame.position_mm is not None and first.position_mm is not None and second.position_mm is not None:
        x, y, z = frame.position_mm
        step = second.position_mm[2] - first.position_mm[2]
        return dataclasses.replace(frame, position_mm=(x, y, z + GAP_STEPS * step))
    if frame.location_px is not None and first.location_px is not None and second.location_px is not None:
        row1, column1, row2, column2 = frame.location_px
        shift = GAP_STEPS * (second.location_px[0] - first.location_px[0])
        return dataclasses.replace(frame, location_px=(row1 + shift, column1, row2 + shift, column2))
    return frame


def _burned_in(dataset: Dataset) -> None:
    dataset.BurnedInAnnotation = "YES"


def _fixed_field(protocol: Protocol) -> bool:
    """Scans whose B-scan step nothing but the header tells: on Cirrus the known field of view would stand in."""
    return protocol.raster and protocol.device != "zeiss_cirrus"


IDENTITY_WAYS: Final = (
    way("wrong_sop_class", Reason.WRONG_SOP_CLASS, by_dataset(_wrong_sop_class)),
    way("enface_image", Reason.MODALITY_ENFACE_OR_OCTA, by_dataset(_image_type("ENFACE"))),
    way("flow_image", Reason.MODALITY_ENFACE_OR_OCTA, by_dataset(_image_type("FLOW"))),
    way("other_participant", Reason.PARTICIPANT_PATH_MISMATCH, _other_participant),
    way("other_device", Reason.DEVICE_PATH_MISMATCH, _other_device),
    way("other_eye", Reason.LATERALITY_MISSING_OR_CONFLICT, _other_eye),
    way("no_eye", Reason.LATERALITY_MISSING_OR_CONFLICT, _no_eye),
    way("burned_in", Reason.BURNED_IN_SUSPECT, by_dataset(_burned_in)),
)

IMAGE_WAYS: Final = (
    way("frames_zero", Reason.NFRAMES_INVALID, by_dataset(_number_of_frames(0))),
    way("frames_empty", Reason.NFRAMES_INVALID, by_dataset(_number_of_frames(None))),
    way("rows_zero", Reason.DIMENSIONS_INVALID, by_dataset(_no_rows)),
    way("color", Reason.PHOTOMETRIC_UNSUPPORTED, _color),
    way("few_frames", Reason.TOO_FEW_FRAMES, _few_frames),
)

GEOMETRY_WAYS: Final = (
    way(
        "no_pixel_spacing",
        Reason.SPACING_MISSING,
        by_dataset(_no_pixel_spacing, pixel_spacing=NOT_REPORTED),
        raster_scan,
    ),
    way(
        "no_bscan_step", Reason.SPACING_MISSING, by_dataset(_no_bscan_step, slice_thickness=NOT_REPORTED), _fixed_field
    ),
    *(
        way(f"spacing_{name}", Reason.SPACING_INVALID, _axial_spacing(value), raster_scan)
        for name, value in (("nan", "NaN"), ("inf", "inf"), ("negative", "-0.01"), ("zero", "0"), ("huge", "1000000"))
    ),
    way("spacing_disagrees", Reason.SPACING_INCONSISTENT, by_case(_spacing_disagrees), raster_scan),
    way("position_repeated", Reason.POSITIONS_NONMONOTONE, by_case(_repeated_position), positioned_scan),
    way("position_gap", Reason.POSITIONS_NONMONOTONE, by_case(_position_gap), positioned_scan),
)
