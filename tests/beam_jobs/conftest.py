"""A cohort in which every word that could name a person is a canary, to be looked for in all that a job writes."""

import datetime
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag

from ingest.phantom.dicom import attach_native, build_dataset, serialise
from ingest.phantom.header import HeaderSpec, Subject, Uids, protocol_header, topcon_uid
from ingest.phantom.pixels import Volume8
from ingest.phantom.protocols import PROTOCOLS

CANARY: Final = "QZXCANARY7"
CANARY_UID: Final = "1.2.826.0.1.777000777000777"
SERIAL: Final = "SN90887766"
ACQUIRED: Final = datetime.datetime(2019, 3, 17, 9, 41, 53, tzinfo=datetime.UTC)
POISON: Final = 251

TEXT_TAGS: Final = {
    "AE": 0x00080054, "AS": 0x00101010, "CS": 0x00080068, "DA": 0x00100030, "DS": 0x00101030, "DT": 0x00189701,
    "IS": 0x00201002, "LO": 0x00080080, "LT": 0x001021B0, "PN": 0x00100010, "SH": 0x00080050, "ST": 0x00080081,
    "TM": 0x00080030, "UC": 0x00080119, "UI": 0x00200200, "UR": 0x00081190, "UT": 0x0040A160,
}  # fmt: skip
"""One element of each text VR (PS3.5 6.2); UN is a private one. The canary is no valid value of most of them."""

SHORT: Final = {*TEXT_TAGS, "ZZ"} - {"UC", "UR", "UT"}
WRITTEN_AS_LO: Final[dict[BaseTag, str]] = {}


def canary_of(vr: str) -> str:
    return CANARY_UID if vr == "UI" else CANARY


def poison(dataset: Dataset) -> None:
    """The canary in every text VR: here, in private tags, and in a nested sequence of both."""
    add_text(dataset)
    inner, middle = Dataset(), Dataset()
    add_text(inner)
    middle.add(DataElement(Tag(0x00081140), "SQ", Sequence([inner])))
    dataset.add(DataElement(Tag(0x00321064), "SQ", Sequence([middle])))


def add_text(dataset: Dataset) -> None:
    block = dataset.private_block(0x0011, CANARY, create=True)
    for place, (vr, tag) in enumerate(TEXT_TAGS.items()):
        put(dataset, Tag(tag), vr, canary_of(vr))
        put(dataset, block.get_tag(place), vr, canary_of(vr))
    put(dataset, block.get_tag(0x80), "UN", CANARY)


def put(dataset: Dataset, tag: BaseTag, vr: str, text: str) -> None:
    """Any text under any VR: as LO, which pydicom writes as it comes, until `as_declared` says the VR."""
    WRITTEN_AS_LO[tag] = vr
    dataset.add(DataElement(tag, "LO" if vr in SHORT else vr, text.encode() if vr == "UN" else text))


def as_declared(data: bytes) -> bytes:
    """The file with the VRs that `put` was asked for; all of them have a length of two bytes (PS3.5 7.1.2)."""
    for tag, vr in WRITTEN_AS_LO.items():
        if vr in SHORT:
            place = struct.pack("<HH", tag.group, tag.element)
            data = data.replace(place + b"LO", place + vr.encode())
    return data


def poison_all(dataset: Dataset) -> None:
    """Top level, every functional group, and the elements that fovea reads and that may hold more than one word."""
    poison(dataset)
    for group in (*dataset.SharedFunctionalGroupsSequence, *dataset.PerFrameFunctionalGroupsSequence[:2]):
        macros = [element.value[0] for element in group if element.VR == "SQ" and element.value]
        for part in macros:
            add_text(part)
        poison(group)
    dataset.ManufacturerModelName = f"{dataset.ManufacturerModelName} {CANARY}"
    dataset.Manufacturer = f"{dataset.Manufacturer} {CANARY}"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "", CANARY]
    dataset.DeviceSerialNumber = SERIAL
    dataset.AnatomicRegionSequence[0].CodeMeaning = CANARY


class Source:
    """A cohort on disk in which every word that could name a person is the canary."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.secrets: set[str] = {CANARY, CANARY_UID, SERIAL, f"{ACQUIRED:%Y%m%d}"}
        self.expected: dict[str, str] = {}

    def add(
        self,
        reason: str,
        edit: Callable[[Dataset], object] = bool,
        *,
        protocol: str = "maestro2_3d_macula_oct",
        participant: str = "4123",
        volume: Callable[[Volume8], object] = id,
        damage: Callable[[bytes], bytes] = bytes,
    ) -> tuple[str, bytes]:
        """One file, and the reason that it must get."""
        number = len(self.expected)
        header = self._header(protocol, participant, number)
        pixels = np.random.default_rng(number).integers(1, 250, PROTOCOLS[protocol].small().shape, dtype=np.uint8)
        volume(pixels)
        dataset = build_dataset(pixels, header)
        self._remember(dataset)
        poison_all(dataset)
        edit(dataset)
        attach_native(dataset, pixels)
        name = f"{participant}_{CANARY}_{protocol}_l_{header.uids.sop_instance}.dcm"
        path = f"{CANARY}/retinal_oct/structural_oct/{header.device}/{participant}/{name}"
        data = damage(as_declared(serialise(dataset)))
        self.write(path, data)
        self.expected[path] = reason
        return path, data

    def write(self, path: str, data: bytes) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(data)

    def _header(self, name: str, participant: str, number: int) -> HeaderSpec:
        uids = Uids.from_entropy("privacy", str(number))
        subject = Subject(
            participant_id=participant,
            laterality="L",
            model="Maestro2" if name.startswith("maestro2") else "Triton",
            uids=Uids(
                study=uids.study,
                series=uids.series,
                sop_instance=topcon_uid(SERIAL.removeprefix("SN"), ACQUIRED, number + 1),
                frame_of_reference=uids.frame_of_reference,
                localizer=uids.localizer,
            ),
            acquired=ACQUIRED,
        )
        return protocol_header(PROTOCOLS[name].small(), subject)

    def _remember(self, dataset: Dataset) -> None:
        """Every UID of the header that is not one of the standard's."""
        for element in dataset.iterall():
            if element.VR == "UI" and not str(element.value).startswith("1.2.840.10008."):
                self.secrets.add(str(element.value))

    def leaks(self, data: bytes | str) -> set[str]:
        """The secrets that some bytes hold, in any case, as UTF-8 or as UTF-16."""
        text = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
        text = text.lower()
        found = {one for one in self.secrets if one.lower().encode() in text}
        return found | {one for one in self.secrets if one.lower().encode("utf-16-le") in text}

    def archive(self, name: str, reason: str, members: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            for member, data in members.items():
                file.writestr(member, data)
                self.expected[f"{name}!{member}"] = "ZIP_UNSAFE" if reason == "ZIP_UNSAFE" else ""
        self.write(name, buffer.getvalue())
        self.expected[name] = reason
        return buffer.getvalue()


def named(keyword: str, text: str, vr: str | None = None) -> Callable[[Dataset], None]:
    """An element that fovea reads, with the canary in it."""

    def edit(dataset: Dataset) -> None:
        tag = Tag(keyword)
        put(dataset, tag, vr or dataset[tag].VR, text)

    return edit


def measured(keyword: str, text: str) -> Callable[[Dataset], None]:
    def edit(dataset: Dataset) -> None:
        measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        put(measures, Tag(keyword), "DS", text)

    return edit


def uid_of_text(data: bytes) -> bytes:
    """The SOP Instance UID begins with the canary."""
    place = data.index(struct.pack("<HH", 8, 0x18) + b"UI") + 8
    return data[:place] + CANARY.encode() + data[place + len(CANARY) :]


def begins_with_poison(volume: Volume8) -> None:
    volume[:, 0, 0], volume[:, 0, 1] = POISON, 7


def build_source(root: Path) -> Source:
    """Accepted files, files that are rejected for as many reasons as quote something, and archives."""
    source = Source(root)
    for number in range(6):
        protocol = ("maestro2_3d_macula_oct", "triton_macula_6x6_octa")[number % 2]
        source.add("", protocol=protocol, participant=str(4123 + number))
    source.add("WRONG_SOP_CLASS", named("SOPClassUID", CANARY_UID))
    source.add("MODALITY_ENFACE_OR_OCTA", named("Modality", CANARY))
    source.add("PARTICIPANT_PATH_MISMATCH", named("PatientID", CANARY))
    source.add(
        "DEVICE_PATH_MISMATCH", lambda d: [named(k, CANARY)(d) for k in ("Manufacturer", "ManufacturerModelName")]
    )
    source.add("LATERALITY_MISSING_OR_CONFLICT", named("ImageLaterality", CANARY))
    source.add("NFRAMES_INVALID", named("NumberOfFrames", CANARY))
    source.add("PHOTOMETRIC_UNSUPPORTED", named("PhotometricInterpretation", CANARY))
    source.add("SPACING_INVALID", measured("PixelSpacing", f"{CANARY}\\{CANARY}"))
    source.add("BURNED_IN_SUSPECT", named("BurnedInAnnotation", "YES"))
    source.add("PARSER_CRASH", named("ImageType", CANARY, "ZZ"))
    source.add("META_HEADER_INVALID", damage=uid_of_text)
    source.add("TRUNCATED_DATASET", damage=lambda data: data[: data.index(CANARY.encode(), 2000) + 4])
    source.add("NOT_DICOM", damage=lambda _: CANARY.encode() * 99)
    source.add("PIXELDATA_LENGTH_MISMATCH", damage=lambda data: data[:-2000])
    source.add("UNKNOWN_ERROR", volume=begins_with_poison)
    latin = "ISO_IR 100"  # as long as the canary, whose name no codec has
    swap = (latin.encode(), CANARY.encode())
    source.add("", lambda d: setattr(d, "SpecificCharacterSet", latin), damage=lambda data: data.replace(*swap))
    _, good = source.add("", participant="4130")
    _, zipped = source.add("", participant="4132")
    for path in [path for path in source.expected if "/4132/" in path]:
        (root / path).unlink()
        del source.expected[path]
    source.archive(f"{CANARY}.zip", "OUTSIDE_FILTER", {f"{CANARY}/4132/{CANARY}.dcm": zipped})
    unsafe = source.archive(f"{CANARY}/unsafe.zip", "ZIP_UNSAFE", {f"../{CANARY}.dcm": good})
    source.write(f"{CANARY}/cut.zip", unsafe[:-9])
    source.expected[f"{CANARY}/cut.zip"] = "ZIP_INVALID_OR_TRUNCATED"
    missing = f"retinal_oct/{CANARY}/gone.dcm"
    source.expected[missing] = "FILE_MISSING"
    lines = f"person_id\tmanufacturer\tanatomic_region\tfilepath\n1\t{CANARY}\t{CANARY}\t/{missing}\n"
    source.write("manifest.tsv", lines.encode())
    source.write(f"notes.{CANARY}", CANARY.encode())
    source.write("participants.tsv", participants())
    return source


def participants() -> bytes:
    """Two thirds train, one third val; a column that nobody asked for holds the canary."""
    rows = ["person_id\tclinical_site\tstudy_group\tage\trecommended_split\tname\tstudy_visit_date"]
    for number in range(4123, 4133):
        split = "val" if number % 3 == 0 else "train"
        rows.append(f"{number}\tUCSD\thealthy\t61\t{split}\t{CANARY}\t{ACQUIRED:%Y%m%d}")
    return "\n".join(rows).encode()


@pytest.fixture(scope="session")
def canaries(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Read only: some thirty files, accepted and rejected, loose and in archives."""
    return build_source(tmp_path_factory.mktemp("privacy") / "source")


@pytest.fixture
def few_canaries(tmp_path: Path) -> Source:
    """An empty source, to be filled with the files of one test."""
    return Source(tmp_path / "source")
