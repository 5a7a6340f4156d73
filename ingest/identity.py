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
    r"(?P<participant>[0-9]{3,8})_(?P<protocol>.+?)_(?P<laterality>[lr])_(?P<uid>[0-9][0-9.]*?)"
    r"( ?\([0-9]+\))?(\.dcm|\.dicom)? ?",
    re.IGNORECASE | re.DOTALL,
)
PARTICIPANT: Final = re.compile(r"[0-9]{3,8}")
UID: Final = re.compile(r"[0-9.]{1,64}")
REGION: Final = re.compile(r"(Macula|Optic Disc|Wide Field)(, [0-9]{1,2} x [0-9]{1,2}( degrees)?)?")
REPEATED_SUFFIX: Final = re.compile(r"(_octa?)(_octa?)+$")

PROTOCOL_WORDS: Final = frozenset({
    # devices
    "spectralis", "heidelberg", "maestro", "maestro2", "topcon", "triton", "cirrus", "zeiss",
    # where
    "mac", "macula", "macular", "fovea", "foveal", "onh", "optic", "nerve", "head", "disc", "disk", "retina", "retinal",
    "posterior", "pole", "ppol", "wide", "widefield", "wf", "uwf", "glaucoma", "gmpe", "rnfl", "gcc", "gcl", "choroid",
    # how
    "oct", "octa", "angio", "angiography", "structural", "structure", "bscan", "scan", "volume", "vol", "cube", "dense",
    "raster", "radial", "star", "circle", "circular", "rc", "ring", "line", "lines", "cross", "single", "multi", "hd",
    "hr", "hs", "sd", "ss", "edi", "high", "low", "res", "resolution", "speed", "fast", "mm", "deg", "degrees",
})  # fmt: skip
PROTOCOL_PATTERN: Final = re.compile(
    r"([1-9][0-9]{0,2}|1024|1536)x([1-9][0-9]{0,2}|1024|1536)(mm|deg)?|[23]d|[1-9][0-9]?lines?"
)
"""Sizes (20x20, 512x128, 6x6mm), 3d, 5line: too short and too few digits for a date, a serial number or a phone."""
UNKNOWN: Final = "unknown"

DEVICE_WORDS: Final[tuple[tuple[str, Device], ...]] = (
    ("spectralis", "heidelberg_spectralis"),
    ("heidelberg", "heidelberg_spectralis"),
    ("maestro", "topcon_maestro2"),
    ("triton", "topcon_triton"),
    ("cirrus", "zeiss_cirrus"),
)
MAKERS: Final = ("heidelberg", "topcon", "zeiss")
"""The first words of our device names, and words of Manufacturer."""

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
    protocol = known_protocol(match["protocol"]) if match else None
    by_folder = next((device for folder in reversed(folders) if (device := _device(folder))), None)
    by_name = _device(match["protocol"]) if match else None
    if by_folder and by_name and by_folder != by_name:
        raise IngestError(Reason.DEVICE_PATH_MISMATCH, "folder and file name give different devices.")
    laterality = cast("Laterality", match["laterality"].upper()) if match else None
    return PathIdentity(
        participant_id=parent or named, device=by_folder or by_name, protocol=protocol, laterality=laterality
    )


def known_protocol(words: str) -> str:
    """What a protocol's name may say in a key and in `meta.json`: words of scanning, and nothing else.

    Names drift between releases and sites, so that a list of whole names would lose good scans; but a name is typed
    by people, and what is not a word of scanning may be a name or a date.
    """
    kept = [word for word in words.lower().split("_") if word in PROTOCOL_WORDS or PROTOCOL_PATTERN.fullmatch(word)]
    return REPEATED_SUFFIX.sub(r"\1", "_".join(kept)) or UNKNOWN


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
    participant_id = agreed_participant(dataset, by_path)
    device = agreed_device(dataset, by_path)
    laterality = agreed_laterality(dataset, by_path)
    return Identity(
        participant_id=participant_id,
        device=device,
        manufacturer_model=model_name(dataset) or UNKNOWN,
        protocol=by_path.protocol or UNKNOWN,
        anatomic_region=anatomic_region(by_path.protocol, manifest),
        laterality=laterality,
        sop_instance_uid=check_uid(dataset),
    )


def check_uid(dataset: Dataset) -> str:
    """The SOP Instance UID.

    Raises:
        IngestError: META_HEADER_INVALID without a valid one.
    """
    uid = "".join(texts(dataset, "SOPInstanceUID")[:1])
    if not UID.fullmatch(uid) or len(texts(dataset, "SOPInstanceUID")) != 1:
        raise IngestError(Reason.META_HEADER_INVALID, "there is no valid SOPInstanceUID.")
    return uid


def agreed_participant(dataset: Dataset, by_path: PathIdentity) -> str:
    """PatientID, which must be the participant of the path; raises PARTICIPANT_PATH_MISMATCH."""
    by_header = text(dataset, "PatientID")
    if not by_header or not PARTICIPANT.fullmatch(by_header) or len(texts(dataset, "PatientID")) != 1:
        raise IngestError(Reason.PARTICIPANT_PATH_MISMATCH, "PatientID is missing or is not a participant number.")
    if by_path.participant_id not in {None, by_header}:
        raise IngestError(Reason.PARTICIPANT_PATH_MISMATCH, "PatientID is not the participant of the path.")
    return by_header


def agreed_device(dataset: Dataset, by_path: PathIdentity) -> Device:
    """The device of model and maker, which must be that of the path; raises DEVICE_PATH_MISMATCH."""
    words = " ".join(texts(dataset, "ManufacturerModelName") + texts(dataset, "Manufacturer"))
    maker = next((maker for maker in MAKERS if maker in words.lower()), None)
    by_header = _device(words) or (by_path.device if maker and (by_path.device or "").startswith(maker) else None)
    if by_header is None:
        raise IngestError(Reason.DEVICE_PATH_MISMATCH, "the header names no device that fovea knows.")
    if maker and not by_header.startswith(maker):
        raise IngestError(Reason.DEVICE_PATH_MISMATCH, f"the header names {by_header}, and {maker} as its maker.")
    if by_path.device not in {None, by_header}:
        raise IngestError(Reason.DEVICE_PATH_MISMATCH, f"the path says {by_path.device}, the header {by_header}.")
    return by_header


def agreed_laterality(dataset: Dataset, by_path: PathIdentity) -> Laterality:
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
