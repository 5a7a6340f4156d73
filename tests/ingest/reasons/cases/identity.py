"""Faults of what a file says it is: class of image, participant, device, eye."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Final

from pydicom.dataset import Dataset
from pydicom.uid import UID

from manifests.reasons import Reason

from .build import (
    CIRRUS,
    MACULA,
    NAME,
    RASTERS,
    SPECTRALIS,
    SYNTAXES,
    TRITON,
    Case,
    Edit,
    Seed,
    both,
    by_edit,
    put_text,
    without,
)

OTHER_CLASSES: Final = {
    "ophthalmic_photography_8": "1.2.840.10008.5.1.4.1.1.77.1.5.1",
    "ophthalmic_photography_16": "1.2.840.10008.5.1.4.1.1.77.1.5.2",
    "stereometric": "1.2.840.10008.5.1.4.1.1.77.1.5.3",
    "wide_field": "1.2.840.10008.5.1.4.1.1.77.1.5.5",
    "wide_field_3d": "1.2.840.10008.5.1.4.1.1.77.1.5.6",
    "oct_en_face": "1.2.840.10008.5.1.4.1.1.77.1.5.7",
    "oct_bscan_analysis": "1.2.840.10008.5.1.4.1.1.77.1.5.8",
    "ct": "1.2.840.10008.5.1.4.1.1.2",
    "enhanced_ct": "1.2.840.10008.5.1.4.1.1.2.1",
    "mr": "1.2.840.10008.5.1.4.1.1.4",
    "secondary_capture": "1.2.840.10008.5.1.4.1.1.7",
    "multiframe_capture": "1.2.840.10008.5.1.4.1.1.7.2",
    "encapsulated_pdf": "1.2.840.10008.5.1.4.1.1.104.1",
    "segmentation": "1.2.840.10008.5.1.4.1.1.66.4",
    "height_map": "1.2.840.10008.5.1.4.1.1.77.1.5.4.1",
    "surface": "1.2.840.10008.5.1.4.1.1.66.5",
    "raw_data": "1.2.840.10008.5.1.4.1.1.66",
    "axial_measurements": "1.2.840.10008.5.1.4.1.1.78.7",
    "intravascular_oct": "1.2.840.10008.5.1.4.1.1.14.1",
    "directory": "1.2.840.10008.1.3.10",
    "private": "1.2.276.0.99.4.1",
}


def _turn(place: int) -> Seed:
    """Protocols and transfer syntaxes in turn, at different periods."""
    return Seed(name=RASTERS[place % len(RASTERS)], syntax=SYNTAXES[place % len(SYNTAXES)])


def _sop_class(uid: str) -> Edit:
    def edit(dataset: Dataset) -> None:
        dataset.SOPClassUID = UID(uid)
        dataset.file_meta.MediaStorageSOPClassUID = UID(uid)

    return edit


def wrong_classes() -> Iterator[Case]:
    for place, (name, uid) in enumerate(OTHER_CLASSES.items()):
        yield by_edit(Reason.WRONG_SOP_CLASS, name, _sop_class(uid), _turn(place))


def _image_type(*values: str) -> Edit:
    return put_text("ImageType", "\\".join(values))


def other_images() -> Iterator[Case]:
    reason = Reason.MODALITY_ENFACE_OR_OCTA
    words = ("ENFACE", "EN FACE", "EN_FACE", "enface", "OCTA", "ANGIO", "ANGIOGRAPHY", "FLOW", "FLOW_DENSITY")
    words += ("PROJECTION IMAGE", "THICKNESS_MAP", "SUMMED_VOXEL", "OCT_ANGIO")
    for place, word in enumerate(words):
        values = ("DERIVED", "PRIMARY", word) if place % 2 else ("ORIGINAL", "PRIMARY", "VOLUME", word)
        yield by_edit(reason, f"type_{word}", _image_type(*values), _turn(place))
    for place, word in enumerate(("OP", "OPTENF", "OPTBSV", "OPM", "OAM", "OCT", "OT", "SC", "XC", "US", "opt")):
        yield by_edit(reason, f"modality_{word}", put_text("Modality", word), _turn(place + 3))


def _at(place: int, path: Callable[[Seed], str]) -> tuple[Seed, str]:
    seed = _turn(place)
    return seed, path(seed)


def _folder(participant: str) -> Callable[[Seed], str]:
    return lambda seed: f"retinal_oct/structural_oct/{seed.protocol.device}/{participant}/{seed.file_name}"


def participants() -> Iterator[Case]:
    reason = Reason.PARTICIPANT_PATH_MISMATCH
    texts = {
        "other": "4124",
        "other_site": "7123",
        "leading_zero": "04123",
        "more_digits": "41230",
        "fewer_digits": "412",
        "two_digits": "41",
        "empty": "",
        "blanks": "    ",
        "letters": NAME,
        "prefixed": "AIREADI-4123",
        "suffixed": "4123A",
        "decimal": "4123.0",
        "signed": "+4123",
        "two_lines": "4123\n",
        "spaced": "4 123",
        "nine_digits": "412341234",
        "anonymous": "ANONYMOUS",
    }
    for place, (name, value) in enumerate(texts.items()):
        yield by_edit(reason, f"id_{name}", put_text("PatientID", value), _turn(place))
    yield by_edit(reason, "id_absent", without("PatientID"), _turn(3))
    for place, other in enumerate(("4124", "7001", "123456", "7001/2023", "7001/2023/20230531")):
        seed, path = _at(place, _folder(other))
        yield Case(reason=reason, name=f"folder_{other}", seed=seed, make=seed.encode, path=path)
    for place, folder in enumerate(("1001", "70012", "7001/2023", "2023")):
        seed = dataclasses.replace(_turn(place), num_frames=9)
        known = folder.partition("/")[0]
        bare = {"protocol": None, "laterality": None, "anatomic_region": None, "participant_id": known}
        path = f"{seed.protocol.device}/{folder}/image.dcm"
        yield Case(reason=reason, name=f"plain_name_in_{folder}", seed=seed, make=seed.encode, path=path, known=bare)


MAKERS: Final = {
    "spectralis": ("Heidelberg Engineering", "Spectralis", SPECTRALIS),
    "maestro": ("Topcon", "3DOCT-1Maestro2", MACULA),
    "triton": ("Topcon", "Triton plus", TRITON),
    "cirrus": ("Carl Zeiss Meditec", "CIRRUS HD-OCT 5000", CIRRUS),
}
MODELS: Final = {"spectralis": "Spectralis", "maestro": "3DOCT-1Maestro2", "triton": "Triton plus", "cirrus": "Cirrus"}


def _made_by(manufacturer: str, model: str) -> Edit:
    return both(put_text("Manufacturer", manufacturer), put_text("ManufacturerModelName", model))


def devices() -> Iterator[Case]:
    reason = Reason.DEVICE_PATH_MISMATCH
    place = 0
    for path_says, (_, _, protocol) in MAKERS.items():
        for header_says, (manufacturer, model, _) in MAKERS.items():
            if path_says == header_says:
                continue
            seed = Seed(name=protocol, syntax=SYNTAXES[place % len(SYNTAXES)])
            place += 1
            known = {"manufacturer_model": MODELS[header_says]}
            name = f"{header_says}_in_{path_says}"
            yield by_edit(reason, name, _made_by(manufacturer, model), seed, known=known)
    strangers = {
        "nidek": ("NIDEK", "RS-3000"),
        "optovue": ("Optovue", "RTVue XR"),
        "canon": ("CANON", "OCT-A1"),
        "zeiss_of_another_kind": ("Carl Zeiss Meditec", "PLEX Elite 9000"),
        "words": (NAME, "CANARY"),
        "empty": ("", ""),
        "blank": ("  ", "  "),
    }
    for name, words in strangers.items():
        place += 1
        yield by_edit(reason, name, _made_by(*words), _turn(place), known={"manufacturer_model": None})
    nobody = without("Manufacturer", "ManufacturerModelName")
    yield by_edit(reason, "nobody", nobody, _turn(2), known={"manufacturer_model": None})
    for folder, protocol in (("zeiss_cirrus", MACULA), ("topcon_triton", SPECTRALIS), ("topcon_maestro2", CIRRUS)):
        seed = Seed(name=protocol)
        path = f"retinal_oct/structural_oct/{folder}/4123/{seed.file_name}"
        known = {"device": None}
        yield Case(reason=reason, name=f"{protocol}_in_{folder}", seed=seed, make=seed.encode, path=path, known=known)


def _frame_eyes(*eyes: str) -> Edit:
    """Laterality in the per-frame groups, for the first so many B-scans."""

    def edit(dataset: Dataset) -> None:
        for group, eye in zip(dataset.PerFrameFunctionalGroupsSequence, eyes, strict=False):
            anatomy = Dataset()
            anatomy.FrameLaterality = eye
            group.FrameAnatomySequence = [anatomy]

    return edit


def _shared_eye(eye: str) -> Edit:
    def edit(dataset: Dataset) -> None:
        dataset.SharedFunctionalGroupsSequence[0].FrameAnatomySequence[0].FrameLaterality = eye

    return edit


def _no_eye(dataset: Dataset) -> None:
    del dataset.ImageLaterality
    del dataset.SharedFunctionalGroupsSequence[0].FrameAnatomySequence


def _empty_eye(dataset: Dataset) -> None:
    dataset.ImageLaterality = ""
    _shared_eye("")(dataset)


def _nameless(seed: Seed) -> str:
    return str(PurePosixPath(seed.path).parent / "image.dcm")


def eyes() -> Iterator[Case]:
    reason = Reason.LATERALITY_MISSING_OR_CONFLICT
    faults: dict[str, Edit] = {
        "header_says_right": both(put_text("ImageLaterality", "R"), _shared_eye("R")),
        "image_right_frames_left": put_text("ImageLaterality", "R"),
        "image_left_frames_right": _shared_eye("R"),
        "first_frame_right": _frame_eyes("R"),
        "last_frame_right": _frame_eyes(*"LLLLLLLLLR"),
        "half_of_the_frames_right": _frame_eyes(*"LLLLLRRRRR"),
        "every_second_frame_right": _frame_eyes(*"LRLRLRLRLR"),
        "a_frame_of_both": _frame_eyes("B"),
        "both_eyes": put_text("ImageLaterality", "B"),
        "unpaired": put_text("ImageLaterality", "U"),
        "word": put_text("ImageLaterality", "LEFT"),
        "latin": put_text("ImageLaterality", "OS"),
        "two_values": put_text("ImageLaterality", "L\\R"),
        "lower_case": both(put_text("ImageLaterality", "l"), _shared_eye("l")),
        "digit": put_text("ImageLaterality", "1"),
        "name": put_text("ImageLaterality", NAME),
        "series_right": put_text("Laterality", "R", "CS"),
    }
    for place, (name, edit) in enumerate(faults.items()):
        yield by_edit(reason, name, edit, _turn(place))
    swapped = {"laterality": "R"}
    for place in (2, 5, 9, 11):
        seed = _turn(place)
        path = "_r_".join(seed.path.rsplit("_l_", 1))
        yield Case(reason=reason, name="name_says_right", seed=seed, make=seed.encode, path=path, known=swapped)
    nameless = {"protocol": None, "laterality": None, "anatomic_region": None}
    for place, (name, edit) in enumerate((("nowhere", _no_eye), ("empty", _empty_eye), ("nowhere", _no_eye))):
        seed = _turn(place * 4)
        yield by_edit(reason, name, edit, seed, path=_nameless(seed), known=nameless)
    for name, edit in (("conflict", _frame_eyes("R")), ("both", put_text("ImageLaterality", "B"))):
        seed = _turn(7)
        yield by_edit(reason, f"nameless_{name}", edit, seed, path=_nameless(seed), known=nameless)


CASES: Final = (*wrong_classes(), *other_images(), *participants(), *devices(), *eyes())
