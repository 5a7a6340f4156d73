"""Whose eye this is, on which device, under which protocol: by the path and by the header, which must agree.

The path is matched by structure, never by one site's ids or one release's protocol names (AI-READI).
"""

import re
from dataclasses import dataclass
from typing import Final, cast

from pydicom.dataset import Dataset

from ingest.errors import IngestError
from ingest.fields import groups, text, texts
from ingest.record import Identity
from manifests.plan import ManifestRow
from manifests.reasons import Reason
from shards.schema import Device, Laterality

FILE_NAME: Final = re.compile(
    r"(?P<participant>\d{3,8})_(?P<protocol>[a-z0-9_]+?)_(?P<laterality>[lr])_(?P<uid>\d[\d.]*)(\.dcm|\.dicom)?",
    re.IGNORECASE,
)
PARTICIPANT: Final = re.compile(r"\d{3,8}")
UID: Final = re.compile(r"[0-9.]{1,64}")
REGION: Final = re.compile(r"(Macula|Optic Disc|Wide Field)(, \d+ x \d+( degrees)?)?")
REPEATED_SUFFIX: Final = re.compile(r"(_octa?)(_octa?)+$")

DEVICE_WORDS: Final[tuple[tuple[str, Device], ...]] = (
    ("spectralis", "heidelberg_spectralis"),
    ("heidelberg", "heidelberg_spectralis"),
    ("maestro", "topcon_maestro2"),
    ("triton", "topcon_triton"),
    ("cirrus", "zeiss_cirrus"),
)
MODELS: Final = ("Spectralis", "3DOCT-1Maestro2", "Maestro2", "Triton plus", "Triton", "Cirrus")
"""The model names that may leave: header text itself never does."""

OTHER_IMAGE_TYPES: Final = re.compile(r"EN[ _]?FACE|OCTA\b|ANGIO|FLOW|PROJECTION|THICKNESS|SUMMED")
OPT_SOP_CLASS: Final = "1.2.840.10008.5.1.4.1.1.77.1.5.4"


@dataclass(frozen=True, slots=True, kw_only=True)
class PathIdentity:
    """What a path says: `.../<device>/<participant>/<participant>_<protocol>_<l|r>_<uid>.dcm`. None: it does not."""

    participant_id: str | None
    device: Device | None
    protocol: str | None
    laterality: Laterality | None


def path_identity(path: str) -> PathIdentity:
    """Read a path relative to SOURCE by its structure.

    Raises:
        IngestError: PARTICIPANT_PATH_MISMATCH or DEVICE_PATH_MISMATCH when folder and file name disagree.
    """
    *folders, name = re.split(r"[/!]", path)
    match = FILE_NAME.fullmatch(name)
    parent = folders[-1] if folders and PARTICIPANT.fullmatch(folders[-1]) else None
    named = match["participant"] if match else None
    if parent and named and parent != named:
        raise IngestError(Reason.PARTICIPANT_PATH_MISMATCH, "folder and file name give different participants.")
    protocol = REPEATED_SUFFIX.sub(r"\1", match["protocol"].lower()) if match else None
    by_folder = next((device for folder in reversed(folders) if (device := _device(folder))), None)
    by_name = _device(protocol or "")
    if by_folder and by_name and by_folder != by_name:
        raise IngestError(Reason.DEVICE_PATH_MISMATCH, "folder and file name give different devices.")
    laterality = cast("Laterality", match["laterality"].upper()) if match else None
    return PathIdentity(
        participant_id=parent or named, device=by_folder or by_name, protocol=protocol, laterality=laterality
    )


def _device(words: str) -> Device | None:
    return next((device for word, device in DEVICE_WORDS if word in words.lower()), None)


def check_image_kind(dataset: Dataset) -> None:
    """Structural OCT B-scans only, by SOP class and image type (PS3.3 A.52), never by protocol name.

    Raises:
        IngestError: WRONG_SOP_CLASS or MODALITY_ENFACE_OR_OCTA.
    """
    if text(dataset, "SOPClassUID") != OPT_SOP_CLASS:
        raise IngestError(Reason.WRONG_SOP_CLASS, "the SOP class is not Ophthalmic Tomography Image Storage.")
    if any(OTHER_IMAGE_TYPES.search(word.upper()) for word in texts(dataset, "ImageType")):
        raise IngestError(Reason.MODALITY_ENFACE_OR_OCTA, "ImageType names an en face, flow or derived image.")
    if text(dataset, "Modality") not in {"OPT", None}:
        raise IngestError(Reason.MODALITY_ENFACE_OR_OCTA, "Modality is not OPT.")


def identify(dataset: Dataset, path: str, manifest: ManifestRow | None) -> Identity:
    """Agree path and header.

    Raises:
        IngestError: PARTICIPANT_PATH_MISMATCH, DEVICE_PATH_MISMATCH, LATERALITY_MISSING_OR_CONFLICT, or
            META_HEADER_INVALID without a SOP Instance UID.
    """
    by_path = path_identity(path)
    participant_id = _participant(dataset, by_path)
    device = _agreed_device(dataset, by_path)
    laterality = _laterality(dataset, by_path)
    uid = text(dataset, "SOPInstanceUID") or ""
    if not UID.fullmatch(uid):
        raise IngestError(Reason.META_HEADER_INVALID, "there is no valid SOPInstanceUID.")
    return Identity(
        participant_id=participant_id,
        device=device,
        manufacturer_model=model_name(dataset) or "unknown",
        protocol=by_path.protocol or "unknown",
        anatomic_region=anatomic_region(by_path.protocol, manifest),
        laterality=laterality,
        sop_instance_uid=uid,
    )


def _participant(dataset: Dataset, by_path: PathIdentity) -> str:
    by_header = text(dataset, "PatientID")
    if not by_header or not PARTICIPANT.fullmatch(by_header):
        raise IngestError(Reason.PARTICIPANT_PATH_MISMATCH, "PatientID is missing or is not a participant number.")
    if by_path.participant_id not in {None, by_header}:
        raise IngestError(Reason.PARTICIPANT_PATH_MISMATCH, "PatientID is not the participant of the path.")
    return by_header


def _agreed_device(dataset: Dataset, by_path: PathIdentity) -> Device:
    words = " ".join(texts(dataset, "ManufacturerModelName") + texts(dataset, "Manufacturer"))
    by_header = _device(words)
    if by_header is None:
        raise IngestError(Reason.DEVICE_PATH_MISMATCH, "the header names no device that fovea knows.")
    if by_path.device not in {None, by_header}:
        raise IngestError(Reason.DEVICE_PATH_MISMATCH, f"the path says {by_path.device}, the header {by_header}.")
    return by_header


def _laterality(dataset: Dataset, by_path: PathIdentity) -> Laterality:
    """ImageLaterality and every FrameLaterality (PS3.3 C.8.17.7, C.7.6.16.2.8)."""
    found = {word for keyword in ("ImageLaterality", "Laterality") if (word := text(dataset, keyword))}
    for _, _, item in groups(dataset, "FrameAnatomySequence"):
        found.add(text(item, "FrameLaterality") or "")
    found.discard("")
    if not found:
        raise IngestError(Reason.LATERALITY_MISSING_OR_CONFLICT, "the header gives no laterality.")
    if len(found | ({by_path.laterality} - {None})) > 1 or not found <= {"R", "L"}:
        raise IngestError(Reason.LATERALITY_MISSING_OR_CONFLICT, "header and name give different lateralities.")
    return cast("Laterality", found.pop())


def model_name(dataset: Dataset) -> str | None:
    """The device's model by allow-list; None when the header names no known one."""
    words = (text(dataset, "ManufacturerModelName") or text(dataset, "Manufacturer") or "").lower()
    return next((model for model in MODELS if model.lower() in words), None)


def anatomic_region(protocol: str | None, manifest: ManifestRow | None) -> str:
    """`Macula`, `Optic Disc` or `Wide Field`, as the manifest says, else as the protocol's words say."""
    listed = manifest.anatomic_region if manifest else None
    if listed and REGION.fullmatch(listed):
        return listed
    words = protocol or ""
    if "disc" in words or "onh" in words or "radial" in words:
        return "Optic Disc"
    if "wide" in words:
        return "Wide Field"
    return "Macula" if "mac" in words else "Unknown"
