"""Whose eye this is, on which device, under which protocol: by the path and by the header, which must agree.

The path is matched by structure, never by one site's ids or one release's protocol names (AI-READI).
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final, cast

from pydicom.dataset import Dataset

from ingest.errors import IngestError
from ingest.faults import Faults
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
DATE: Final = re.compile(r"(19|20)[0-9]{2}((0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])?)?")
"""A year, a month or a day: the folder of a visit. The number of a participant may look so too."""
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
    """What a path says: `.../<device>/<participant>/<participant>_<protocol>_<l|r>_<uid>.dcm`. None: it does not.

    `others` are more folders that may be the participant's, when the file name does not say whose it is. What folder
    and file name disagree on is None, and in `conflicts`.
    """

    participant_id: str | None
    device: Device | None
    protocol: str | None
    laterality: Laterality | None
    others: tuple[str, ...] = ()
    conflicts: tuple[IngestError, ...] = ()


def path_identity(path: str) -> PathIdentity:
    """Read a path relative to SOURCE by its structure.

    Raises:
        IngestError: PARTICIPANT_PATH_MISMATCH or DEVICE_PATH_MISMATCH when folder and file name disagree.
    """
    found = read_path(path)
    Faults(found.conflicts).raise_first()
    return found


def read_path(path: str) -> PathIdentity:
    """What `path_identity` reads; that folder and file name disagree is a part of the answer."""
    *folders, name = re.split(r"[/!]", path)
    by_folder = next((device for folder in reversed(folders) if (device := _device(folder))), None)
    match = FILE_NAME.fullmatch(name)
    if match is None:
        numbers = _participants(folders)
        return PathIdentity(
            participant_id=next(iter(numbers), None),
            device=by_folder,
            protocol=None,
            laterality=None,
            others=numbers[1:],
        )
    by_name = _device(match["protocol"])
    conflicts = tuple(_conflicts(folders, match["participant"], {by_folder, by_name} - {None}))
    reasons = {conflict.reason for conflict in conflicts}
    return PathIdentity(
        participant_id=None if Reason.PARTICIPANT_PATH_MISMATCH in reasons else match["participant"],
        device=None if Reason.DEVICE_PATH_MISMATCH in reasons else by_folder or by_name,
        protocol=known_protocol(match["protocol"]),
        laterality=cast("Laterality", match["laterality"].upper()),
        conflicts=conflicts,
    )


def _conflicts(folders: list[str], participant: str, devices: Collection[object]) -> Iterator[IngestError]:
    if _is_of_another(folders, participant):
        yield IngestError(Reason.PARTICIPANT_PATH_MISMATCH, "folder and file name give different participants.")
    if len(devices) > 1:
        yield IngestError(Reason.DEVICE_PATH_MISMATCH, "folder and file name give different devices.")


def _is_of_another(folders: list[str], participant: str) -> bool:
    """Whether a file named after a participant lies in the folder of another, folders of dates between them or not."""
    nearest = next((folder for folder in reversed(folders) if not DATE.fullmatch(folder)), "")
    return participant not in folders and bool(PARTICIPANT.fullmatch(nearest))


def _participants(folders: list[str]) -> tuple[str, ...]:
    """The folders that may be the participant's, the likeliest first: the parent, unless that may be a date."""
    numbers = [folder for folder in reversed(folders) if PARTICIPANT.fullmatch(folder)]
    if not numbers or numbers[0] != folders[-1]:
        return ()
    if not DATE.fullmatch(numbers[0]):
        return (numbers[0],)
    return tuple(sorted(numbers, key=lambda number: bool(DATE.fullmatch(number))))


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
        IngestError: META_HEADER_INVALID without a SOP Instance UID, PARTICIPANT_PATH_MISMATCH, DEVICE_PATH_MISMATCH,
            LATERALITY_MISSING_OR_CONFLICT: of all that apply, the first in the order of the reason codes.
    """
    by_path = read_path(path)
    faults = Faults(by_path.conflicts)
    with faults.collect():
        uid = check_uid(dataset)
    with faults.collect():
        participant_id = agreed_participant(dataset, by_path)
    with faults.collect():
        device = agreed_device(dataset, by_path)
    with faults.collect():
        laterality = agreed_laterality(dataset, by_path)
    with faults.collect():
        model = model_name(dataset)
    faults.raise_first()
    return Identity(
        participant_id=participant_id,
        device=device,
        manufacturer_model=model or UNKNOWN,
        protocol=by_path.protocol or UNKNOWN,
        anatomic_region=anatomic_region(by_path.protocol, manifest),
        laterality=laterality,
        sop_instance_uid=uid,
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
    if by_path.participant_id and by_header not in {by_path.participant_id, *by_path.others}:
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
    """ImageLaterality and every FrameLaterality (PS3.3 C.8.17.7, C.7.6.16.2.8), which must be that of the path.

    Raises:
        IngestError: LATERALITY_MISSING_OR_CONFLICT.
    """
    found = {word for keyword in ("ImageLaterality", "Laterality") for word in texts(dataset, keyword)}
    for _, _, item in groups(dataset, "FrameAnatomySequence"):
        found.update(texts(item, "FrameLaterality"))
    found.discard("")
    if fault := _laterality_fault(found, by_path.laterality):
        raise IngestError(Reason.LATERALITY_MISSING_OR_CONFLICT, fault)
    return cast("Laterality", found.pop())


def _laterality_fault(by_header: set[str], by_path: Laterality | None) -> str | None:
    if not by_header:
        return "the header gives no laterality."
    if not by_header <= {"R", "L"}:
        return "a laterality in the header is neither R nor L."
    if len(by_header) > 1:
        return "the header gives both lateralities, R and L."
    return None if by_path in {None, *by_header} else "header and name give different lateralities."


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
