"""Good files of ten small B-scans in every transfer syntax, and the hands that damage them.

A `Case` is one damaged file, made when it is asked for. Header text that no result may quote is a canary.
"""

import dataclasses
import datetime
import struct
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import imagecodecs
import numpy as np
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag

from ingest.phantom.dicom import attach_fragments, attach_native, build_dataset, serialise
from ingest.phantom.header import HeaderSpec, Subject, Uids, protocol_header
from ingest.phantom.pixels import ENCODERS, Volume8
from ingest.phantom.protocols import (
    DEFLATED_LE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    JPEG_2000,
    JPEG_2000_LOSSLESS,
    JPEG_LS_LOSSLESS,
    PROTOCOLS,
    RLE_LOSSLESS,
    Protocol,
    true_spacing_mm,
)
from ingest.record import Limits
from manifests.plan import ManifestRow
from manifests.reasons import Reason

BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
JPEG_BASELINE: Final = "1.2.840.10008.1.2.4.50"
JPEG_EXTENDED: Final = "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS: Final = "1.2.840.10008.1.2.4.57"
JPEG_LOSSLESS_SV1: Final = "1.2.840.10008.1.2.4.70"
JPEG_LS_NEAR: Final = "1.2.840.10008.1.2.4.81"
HTJ2K_LOSSLESS: Final = "1.2.840.10008.1.2.4.201"

NATIVE: Final = (EXPLICIT_LE, IMPLICIT_LE, BIG_ENDIAN, DEFLATED_LE)
JPEG_2000S: Final = (JPEG_2000_LOSSLESS, JPEG_2000, HTJ2K_LOSSLESS)
JPEGS: Final = (JPEG_BASELINE, JPEG_EXTENDED, JPEG_LOSSLESS, JPEG_LOSSLESS_SV1, JPEG_LS_LOSSLESS, JPEG_LS_NEAR)
ENCAPSULATED: Final = (*JPEG_2000S, *JPEGS, RLE_LOSSLESS)
SYNTAXES: Final = (*NATIVE, *ENCAPSULATED)

SHORT: Final = {
    EXPLICIT_LE: "explicit",
    IMPLICIT_LE: "implicit",
    BIG_ENDIAN: "big_endian",
    DEFLATED_LE: "deflated",
    JPEG_2000_LOSSLESS: "j2k_lossless",
    JPEG_2000: "j2k_lossy",
    HTJ2K_LOSSLESS: "htj2k",
    JPEG_BASELINE: "jpeg_baseline",
    JPEG_EXTENDED: "jpeg_extended",
    JPEG_LOSSLESS: "jpeg_lossless",
    JPEG_LOSSLESS_SV1: "jpeg_sv1",
    JPEG_LS_LOSSLESS: "jpeg_ls",
    JPEG_LS_NEAR: "jpeg_ls_near",
    RLE_LOSSLESS: "rle",
}

SIDE: Final = 64
NUM_FRAMES: Final = 10
MIN_FRAMES: Final = 8
PARTICIPANT: Final = "4123"
CANARY: Final = "CANARY"
NAME: Final = "CANARY^JANE"

MACULA: Final = "maestro2_3d_macula_oct"
SPECTRALIS: Final = "spectralis_ppol_mac_hr_oct"
REVERSED: Final = "spectralis_mac_20x20_hs_octa"
TRITON: Final = "triton_3d_radial_oct"
TRITON_6X6: Final = "triton_macula_6x6_octa"
CIRRUS: Final = "cirrus_mac_oct"
CIRRUS_DISC: Final = "cirrus_disc_oct"
CIRRUS_6X6: Final = "cirrus_macula_6x6_octa"
RADIAL: Final = "spectralis_onh_rc_hr_oct"
RASTERS: Final = (MACULA, SPECTRALIS, REVERSED, TRITON, TRITON_6X6, CIRRUS, CIRRUS_DISC, CIRRUS_6X6)

ITEM: Final = b"\xfe\xff\x00\xe0"
SEQUENCE_END: Final = b"\xfe\xff\xdd\xe0\0\0\0\0"

Edit = Callable[[Dataset], object]
Fragments = list[bytes]


def _coded(name: str, **choices: Any) -> Callable[[Any], bytes]:
    return lambda frame: bytes(getattr(imagecodecs, name)(frame, **choices))


MORE_ENCODERS: Final[Mapping[str, Callable[[Any], bytes]]] = {
    **ENCODERS,
    JPEG_BASELINE: _coded("jpeg8_encode", level=95),
    JPEG_EXTENDED: _coded("jpeg8_encode", level=90),
    JPEG_LOSSLESS: _coded("ljpeg_encode"),
    JPEG_LOSSLESS_SV1: _coded("ljpeg_encode"),
    JPEG_LS_NEAR: _coded("jpegls_encode", level=2),
    HTJ2K_LOSSLESS: _coded("htj2k_encode"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """A good small file of a protocol in a transfer syntax."""

    name: str = MACULA
    syntax: str = EXPLICIT_LE
    num_frames: int = NUM_FRAMES

    @property
    def protocol(self) -> Protocol:
        full = PROTOCOLS[self.name]
        axial = full.rows * full.axial_spacing_mm / SIDE
        return dataclasses.replace(
            full, num_frames=self.num_frames, rows=SIDE, columns=SIDE, axial_spacing_mm=axial, spans_ends=False
        )

    @property
    def header(self) -> HeaderSpec:
        protocol = self.protocol
        model = {"zeiss_cirrus": "Cirrus", "topcon_triton": "Triton", "topcon_maestro2": "Maestro2"}
        subject = Subject(
            participant_id=PARTICIPANT,
            laterality="L",
            model=model.get(protocol.device, "Spectralis"),
            uids=Uids.from_entropy("reasons", self.name),
            acquired=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
        )
        return protocol_header(protocol, subject, self.syntax)

    @property
    def file_name(self) -> str:
        return f"{PARTICIPANT}_{self.name}_l_{self.header.uids.sop_instance}.dcm"

    @property
    def path(self) -> str:
        return f"retinal_oct/structural_oct/{self.protocol.device}/{PARTICIPANT}/{self.file_name}"

    @property
    def volume(self) -> Volume8:
        return tissue(self.num_frames)

    @property
    def is_good(self) -> bool:
        """A radial scan, or one of few frames, is refused as it is."""
        return self.protocol.raster and self.num_frames >= MIN_FRAMES

    @property
    def label(self) -> str:
        return f"{SHORT.get(self.syntax, self.syntax)}-{self.name.partition('_')[0]}"

    def fragments(self, volume: Volume8 | None = None) -> Fragments:
        if volume is None:
            return list(_good_fragments(self.syntax, self.num_frames))
        return [MORE_ENCODERS[self.syntax](np.ascontiguousarray(frame)) for frame in volume]

    def dataset(self, volume: Volume8 | None = None) -> Dataset:
        """The whole data set, pixels included."""
        pixels = self.volume if volume is None else volume
        dataset = build_dataset(self.volume, self.header)
        dataset.PatientName = NAME
        if self.syntax in NATIVE:
            attach_native(dataset, pixels)
        else:
            attach_fragments(dataset, self.fragments(volume), offset_table=True)
        _write_verbatim(dataset, implicit=self.syntax == IMPLICIT_LE, little=self.syntax != BIG_ENDIAN)
        return dataset

    def encode(self, volume: Volume8 | None = None) -> bytes:
        return serialise(self.dataset(volume))


def _write_verbatim(dataset: Dataset, *, implicit: bool, little: bool) -> None:
    """Have pydicom write raw elements as they stand: it does so where the encoding is the original one."""
    dataset.set_original_encoding(implicit, little, dataset._character_set)
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                _write_verbatim(item, implicit=implicit, little=little)


@cache
def tissue(num_frames: int) -> Volume8:
    """A bright band with grain; no two B-scans are equal."""
    rng = np.random.default_rng(5)
    depth = np.exp(-(((np.arange(SIDE) - SIDE / 2) / (SIDE / 8)) ** 2))
    grain = rng.normal(0, 12, (num_frames, SIDE, SIDE))
    return np.clip(20 + 150 * depth[None, :, None] + grain, 1, 250).astype(np.uint8)


@cache
def _good_fragments(syntax: str, num_frames: int) -> tuple[bytes, ...]:
    return tuple(MORE_ENCODERS[syntax](np.ascontiguousarray(frame)) for frame in tissue(num_frames))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One damaged file: what it must be called, and which facts of it differ from the good file's.

    `known` are the facts that differ from the good file's, None where nobody can know them. `parsed` tells whether
    the header could be read; by default the reason does.
    """

    reason: Reason
    name: str
    seed: Seed
    make: Callable[[], bytes] = field(repr=False)
    path: str | None = None
    manifest: ManifestRow | None = None
    limits: Limits = field(default_factory=Limits)
    known: Mapping[str, object] = field(default_factory=dict)
    parsed: bool | None = None

    def data(self) -> bytes:
        """The file; pydicom warns of what is done to it, and rightly so."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.make()

    @property
    def where(self) -> str:
        return self.seed.path if self.path is None else self.path

    @property
    def label(self) -> str:
        return f"{self.reason.value}-{self.name}-{self.seed.label}"

    @property
    def facts(self) -> dict[str, object]:
        """What the row must say; a spacing that is not named may be missing before the `pack` stage."""
        parsed = self.reason not in UNPARSED if self.parsed is None else self.parsed
        said = path_facts(self.seed) | (header_facts(self.seed) if parsed else dict.fromkeys(HEADER_FACTS))
        if self.reason.info.stage == "pack":
            said |= spacing_facts(self.seed)
        return said | self.known


UNPARSED: Final = (Reason.EMPTY_FILE, Reason.NOT_DICOM, Reason.META_HEADER_INVALID)
"""Reasons of files without a header."""
HEADER_FACTS: Final = (
    *("manufacturer_model", "anatomic_region", "num_frames", "rows", "columns", "transfer_syntax_uid"),
    "sop_instance_uid",
)
NOT_PARSED: Final[Mapping[str, object]] = dict.fromkeys(
    (*HEADER_FACTS, "spacing_d_mm", "spacing_h_mm", "spacing_w_mm", "spacing_source")
)


def path_facts(seed: Seed) -> dict[str, object]:
    """What the path of a good file says."""
    device = seed.protocol.device
    return {"participant_id": PARTICIPANT, "device": device, "protocol": seed.name, "laterality": "L"}


def header_facts(seed: Seed) -> dict[str, object]:
    """What the header of a good file says."""
    return {
        "manufacturer_model": seed.header.model,
        "anatomic_region": seed.protocol.region.partition(",")[0],
        "num_frames": seed.num_frames,
        "rows": SIDE,
        "columns": SIDE,
        "transfer_syntax_uid": seed.syntax,
        "sop_instance_uid": seed.header.uids.sop_instance,
    }


def spacing_facts(seed: Seed) -> dict[str, object]:
    """The spacing that a good file has."""
    step, axial, lateral = true_spacing_mm(seed.protocol)
    return {"spacing_d_mm": step, "spacing_h_mm": axial, "spacing_w_mm": lateral}


def by_edit(reason: Reason, name: str, edit: Edit, seed: Seed | None = None, **more: Any) -> Case:
    """Damage in the data set's elements."""
    seed = seed or Seed()

    def make() -> bytes:
        dataset = seed.dataset()
        edit(dataset)
        return serialise(dataset)

    return Case(reason=reason, name=name, seed=seed, make=make, **more)


def by_bytes(reason: Reason, name: str, edit: Callable[[bytes], bytes], seed: Seed | None = None, **more: Any) -> Case:
    """Damage in the bytes of the file."""
    seed = seed or Seed()
    return Case(reason=reason, name=name, seed=seed, make=lambda: edit(seed.encode()), **more)


def by_volume(reason: Reason, name: str, edit: Callable[[Volume8], Any], seed: Seed, **more: Any) -> Case:
    """Damage in the grey levels, before they are encoded."""

    def make() -> bytes:
        return seed.encode(np.ascontiguousarray(edit(seed.volume.copy()), dtype=np.uint8))

    return Case(reason=reason, name=name, seed=seed, make=make, **more)


def by_fragments(
    reason: Reason, name: str, edit: Callable[[Fragments], Iterable[bytes]], seed: Seed, **more: Any
) -> Case:
    """Damage in the compressed B-scans; item lengths and offset table are right."""

    def attach(dataset: Dataset) -> None:
        dataset.PixelData = encapsulate(list(edit(seed.fragments())), has_bot=False)

    return by_edit(reason, name, attach, seed, **more)


def seeds(names: Iterable[str] = RASTERS, syntaxes: Iterable[str] = SYNTAXES) -> list[Seed]:
    """As many seeds as there are transfer syntaxes, with the protocols in turn."""
    many = list(names)
    return [Seed(name=many[place % len(many)], syntax=syntax) for place, syntax in enumerate(syntaxes)]


def put(dataset: Dataset, keyword: str, value: bytes, vr: str | None = None) -> None:
    """Write an element's bytes as they stand, whether or not they make sense."""
    tag = Tag(keyword)
    implicit, little = dataset.original_encoding
    dataset._dict[tag] = RawDataElement(
        tag, vr or dictionary_VR(tag), len(value), value, 0, bool(implicit), little is not False, True
    )


def put_text(keyword: str, value: str, vr: str | None = None) -> Edit:
    """An edit that writes text, padded to an even length."""
    raw = value.encode()
    return lambda dataset: put(dataset, keyword, raw + b" " * (len(raw) % 2), vr)


def put_numbers(keyword: str, *values: int, form: str = "H", vr: str | None = None) -> Edit:
    """An edit that writes binary numbers in the byte order of the file."""

    def edit(dataset: Dataset) -> None:
        order = ">" if dataset.original_encoding[1] is False else "<"
        put(dataset, keyword, struct.pack(f"{order}{len(values)}{form}", *values), vr)

    return edit


def without(*keywords: str) -> Edit:
    """An edit that removes elements."""

    def edit(dataset: Dataset) -> None:
        for keyword in keywords:
            if keyword in dataset:
                delattr(dataset, keyword)

    return edit


def both(*edits: Edit) -> Edit:
    """Several edits, one after the other."""

    def edit(dataset: Dataset) -> None:
        for one in edits:
            one(dataset)

    return edit


def per_frame(dataset: Dataset, macro: str) -> list[Dataset]:
    """The items of a macro in the per-frame groups."""
    return [group[macro][0] for group in dataset.PerFrameFunctionalGroupsSequence if macro in group]


def measures(dataset: Dataset) -> list[Dataset]:
    """Every PixelMeasuresSequence item, shared or per frame."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    found = [shared.PixelMeasuresSequence[0]] if "PixelMeasuresSequence" in shared else []
    return found + per_frame(dataset, "PixelMeasuresSequence")
