"""Why a file was not accepted: the reason codes, in order of precedence within a stage.

An earlier stage wins (discover < probe < plan < pack); within a stage, an earlier code.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

Stage = Literal["discover", "probe", "plan", "pack"]
Severity = Literal["reject", "quarantine", "warn", "info"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonInfo:
    """What a code means and what a person can do about it."""

    stage: Stage
    severity: Severity
    retryable: bool
    meaning: str
    hint: str


class Reason(StrEnum):
    """One primary code per file that was not accepted."""

    IO_UNREADABLE = "IO_UNREADABLE"
    FILE_MISSING = "FILE_MISSING"
    OUTSIDE_FILTER = "OUTSIDE_FILTER"
    EMPTY_FILE = "EMPTY_FILE"
    ZIP_INVALID_OR_TRUNCATED = "ZIP_INVALID_OR_TRUNCATED"
    ZIP_UNSAFE = "ZIP_UNSAFE"
    NOT_DICOM = "NOT_DICOM"
    META_HEADER_INVALID = "META_HEADER_INVALID"
    PARSE_LIMIT_EXCEEDED = "PARSE_LIMIT_EXCEEDED"
    PARSER_CRASH = "PARSER_CRASH"
    WRONG_SOP_CLASS = "WRONG_SOP_CLASS"
    MODALITY_ENFACE_OR_OCTA = "MODALITY_ENFACE_OR_OCTA"
    PARTICIPANT_PATH_MISMATCH = "PARTICIPANT_PATH_MISMATCH"
    DEVICE_PATH_MISMATCH = "DEVICE_PATH_MISMATCH"
    LATERALITY_MISSING_OR_CONFLICT = "LATERALITY_MISSING_OR_CONFLICT"
    PIXELDATA_MISSING = "PIXELDATA_MISSING"
    TS_UNSUPPORTED = "TS_UNSUPPORTED"
    NFRAMES_INVALID = "NFRAMES_INVALID"
    DIMENSIONS_INVALID = "DIMENSIONS_INVALID"
    PHOTOMETRIC_UNSUPPORTED = "PHOTOMETRIC_UNSUPPORTED"
    TOO_FEW_FRAMES = "TOO_FEW_FRAMES"
    SPACING_MISSING = "SPACING_MISSING"
    SPACING_INVALID = "SPACING_INVALID"
    SPACING_INCONSISTENT = "SPACING_INCONSISTENT"
    NOT_RASTER = "NOT_RASTER"
    POSITIONS_NONMONOTONE = "POSITIONS_NONMONOTONE"
    DUP_SOP_UID_IDENTICAL = "DUP_SOP_UID_IDENTICAL"
    DUP_SOP_UID_CONFLICT = "DUP_SOP_UID_CONFLICT"
    TRUNCATED_DATASET = "TRUNCATED_DATASET"
    PIXELDATA_LENGTH_MISMATCH = "PIXELDATA_LENGTH_MISMATCH"
    NFRAMES_MISMATCH = "NFRAMES_MISMATCH"
    TS_MISMATCH = "TS_MISMATCH"
    CODESTREAM_OBFUSCATED = "CODESTREAM_OBFUSCATED"
    FRAME_INCOMPLETE = "FRAME_INCOMPLETE"
    FRAME_UNDECODABLE = "FRAME_UNDECODABLE"
    ALL_ZERO = "ALL_ZERO"
    CONSTANT_FRAMES = "CONSTANT_FRAMES"
    SATURATED = "SATURATED"
    BURNED_IN_SUSPECT = "BURNED_IN_SUSPECT"
    UNKNOWN_ERROR = "UNKNOWN_ERROR"

    @property
    def info(self) -> ReasonInfo:
        """Stage, severity, whether a retry can help, meaning and hint."""
        return REASONS[self]

    @property
    def precedence(self) -> int:
        """Smaller wins when several codes apply to a file."""
        return list(Reason).index(self)


REASONS: Final[dict[Reason, ReasonInfo]] = {
    Reason.IO_UNREADABLE: ReasonInfo(
        stage="discover",
        severity="reject",
        retryable=True,
        meaning="the store would not give the bytes; never counted as corrupt",
        hint="Check the credentials and the network, then run the job again: the file is retried.",
    ),
    Reason.FILE_MISSING: ReasonInfo(
        stage="discover",
        severity="reject",
        retryable=True,
        meaning="listed in the manifest, not found",
        hint="Restore the file, or take its line out of manifest.tsv, then run the job again.",
    ),
    Reason.OUTSIDE_FILTER: ReasonInfo(
        stage="discover",
        severity="info",
        retryable=False,
        meaning="valid as far as looked at, outside the job's filters (status excluded)",
        hint="Nothing to do: widen --devices to take it in; an archive is no volume, its members have their own rows.",
    ),
    Reason.EMPTY_FILE: ReasonInfo(
        stage="probe",
        severity="reject",
        retryable=False,
        meaning="zero bytes",
        hint="Copy the file again from its source.",
    ),
    Reason.ZIP_INVALID_OR_TRUNCATED: ReasonInfo(
        stage="probe",
        severity="reject",
        retryable=False,
        meaning="the archive or a member cannot be read to its end",
        hint="Copy the archive again and test it with `unzip -t`.",
    ),
    Reason.ZIP_UNSAFE: ReasonInfo(
        stage="probe",
        severity="quarantine",
        retryable=False,
        meaning="traversal, link, bomb, nested or encrypted member",
        hint="Unpack the archive by hand in a safe place, and ingest the folder.",
    ),
    Reason.NOT_DICOM: ReasonInfo(
        stage="probe",
        severity="reject",
        retryable=False,
        meaning="no DICM marker and no parsable data set",
        hint="Remove the file, or export it again as DICOM.",
    ),
    Reason.META_HEADER_INVALID: ReasonInfo(
        stage="probe",
        severity="reject",
        retryable=False,
        meaning="file meta information missing or contradictory",
        hint="Export the file again as DICOM Part 10, with its file meta information.",
    ),
    Reason.PARSE_LIMIT_EXCEEDED: ReasonInfo(
        stage="probe",
        severity="quarantine",
        retryable=False,
        meaning="nesting, inflated size, frames, voxels or time over the limit",
        hint="Look at the file by hand; a true scan stays far below every limit.",
    ),
    Reason.PARSER_CRASH: ReasonInfo(
        stage="probe",
        severity="quarantine",
        retryable=False,
        meaning="the parser died or raised outside its contract",
        hint="Keep the file and report it: the parser broke its contract.",
    ),
    Reason.WRONG_SOP_CLASS: ReasonInfo(
        stage="probe",
        severity="reject",
        retryable=False,
        meaning="not Ophthalmic Tomography Image Storage",
        hint="Nothing to do if it is no OCT; else export it as Ophthalmic Tomography Image Storage.",
    ),
    Reason.MODALITY_ENFACE_OR_OCTA: ReasonInfo(
        stage="probe",
        severity="reject",
        retryable=False,
        meaning="an en face or flow image by image type, not by name",
        hint="Nothing to do: en face and flow images are no structural volumes.",
    ),
    Reason.PARTICIPANT_PATH_MISMATCH: ReasonInfo(
        stage="probe",
        severity="quarantine",
        retryable=False,
        meaning="PatientID disagrees with the path",
        hint="Find out whose scan it is before it is used.",
    ),
    Reason.DEVICE_PATH_MISMATCH: ReasonInfo(
        stage="probe",
        severity="quarantine",
        retryable=False,
        meaning="manufacturer or model disagrees with the path",
        hint="Find out which device made it, and move it to that device's folder.",
    ),
    Reason.LATERALITY_MISSING_OR_CONFLICT: ReasonInfo(
        stage="probe",
        severity="quarantine",
        retryable=False,
        meaning="no laterality, or header and name disagree",
        hint="Find out which eye it is, and correct the header or the name.",
    ),
    Reason.PIXELDATA_MISSING: ReasonInfo(
        stage="probe",
        severity="reject",
        retryable=False,
        meaning="no (7FE0,0010)",
        hint="Copy or export the file again: it holds no pixels.",
    ),
    Reason.TS_UNSUPPORTED: ReasonInfo(
        stage="probe",
        severity="reject",
        retryable=False,
        meaning="no decoder for the transfer syntax",
        hint="Transcode the file to a supported transfer syntax, e.g. JPEG 2000 lossless.",
    ),
    Reason.NFRAMES_INVALID: ReasonInfo(
        stage="probe",
        severity="reject",
        retryable=False,
        meaning="NumberOfFrames empty, zero or not a number",
        hint="Export the file again: NumberOfFrames must be a positive whole number.",
    ),
    Reason.DIMENSIONS_INVALID: ReasonInfo(
        stage="probe",
        severity="reject",
        retryable=False,
        meaning="Rows or Columns zero or implausible",
        hint="Export the file again: Rows and Columns must be those of the B-scans.",
    ),
    Reason.PHOTOMETRIC_UNSUPPORTED: ReasonInfo(
        stage="probe",
        severity="reject",
        retryable=False,
        meaning="not MONOCHROME2/1 or wrong samples per pixel",
        hint="Export the file again as MONOCHROME2 with one sample per pixel.",
    ),
    Reason.TOO_FEW_FRAMES: ReasonInfo(
        stage="probe",
        severity="reject",
        retryable=False,
        meaning="fewer B-scans than the limit (default 8)",
        hint="Nothing to do: line scans are not volumes (the limit is eight B-scans).",
    ),
    Reason.SPACING_MISSING: ReasonInfo(
        stage="probe",
        severity="reject",
        retryable=False,
        meaning="no source gives a spacing for an axis",
        hint="Export the file again with its PixelMeasuresSequence; fovea never assumes a spacing.",
    ),
    Reason.SPACING_INVALID: ReasonInfo(
        stage="probe",
        severity="reject",
        retryable=False,
        meaning="not finite, <= 0 or outside plausible limits",
        hint="Export the file again: every spacing must be a plausible number of millimetres.",
    ),
    Reason.SPACING_INCONSISTENT: ReasonInfo(
        stage="probe",
        severity="quarantine",
        retryable=False,
        meaning="frames or sources disagree beyond the tolerance",
        hint="Look at the file by hand: its frames or its sources disagree about the spacing.",
    ),
    Reason.NOT_RASTER: ReasonInfo(
        stage="probe",
        severity="reject",
        retryable=False,
        meaning="radial or circular scan: not a volume",
        hint="Nothing to do: radial and circular scans are not volumes.",
    ),
    Reason.POSITIONS_NONMONOTONE: ReasonInfo(
        stage="probe",
        severity="quarantine",
        retryable=False,
        meaning="positions repeat, or a gap is over three steps",
        hint="Look at the file by hand: B-scans repeat a position or leave a gap.",
    ),
    Reason.DUP_SOP_UID_IDENTICAL: ReasonInfo(
        stage="plan",
        severity="info",
        retryable=False,
        meaning="same bytes as an accepted file (status duplicate)",
        hint="Nothing to do: the same bytes were accepted under another path.",
    ),
    Reason.DUP_SOP_UID_CONFLICT: ReasonInfo(
        stage="plan",
        severity="quarantine",
        retryable=False,
        meaning="same SOP Instance UID, different valid content",
        hint="Find out which of the files with this SOP Instance UID is the true one, and remove the others.",
    ),
    Reason.TRUNCATED_DATASET: ReasonInfo(
        stage="pack",
        severity="reject",
        retryable=False,
        meaning="the data set ends before its declared end",
        hint="Copy the file again: it ends too early.",
    ),
    Reason.PIXELDATA_LENGTH_MISMATCH: ReasonInfo(
        stage="pack",
        severity="reject",
        retryable=False,
        meaning="native pixel data shorter or longer than declared",
        hint="Copy or export the file again: its pixel data is not as long as declared.",
    ),
    Reason.NFRAMES_MISMATCH: ReasonInfo(
        stage="pack",
        severity="reject",
        retryable=False,
        meaning="fragments or functional groups disagree with NumberOfFrames",
        hint="Export the file again: its frames and NumberOfFrames disagree.",
    ),
    Reason.TS_MISMATCH: ReasonInfo(
        stage="pack",
        severity="reject",
        retryable=False,
        meaning="the bytes are not in the declared transfer syntax",
        hint="Export the file again: its bytes are not in the transfer syntax that it declares.",
    ),
    Reason.CODESTREAM_OBFUSCATED: ReasonInfo(
        stage="pack",
        severity="reject",
        retryable=False,
        meaning="scrambled vendor codestream",
        hint="Ask the vendor for an export in plain JPEG 2000.",
    ),
    Reason.FRAME_INCOMPLETE: ReasonInfo(
        stage="pack",
        severity="reject",
        retryable=False,
        meaning="a frame without its end marker",
        hint="Copy or export the file again: a frame was cut.",
    ),
    Reason.FRAME_UNDECODABLE: ReasonInfo(
        stage="pack",
        severity="reject",
        retryable=False,
        meaning="the decoder refused a frame, crashed or ran out of its limits",
        hint="Copy or export the file again: a frame is damaged.",
    ),
    Reason.ALL_ZERO: ReasonInfo(
        stage="pack",
        severity="reject",
        retryable=False,
        meaning="no signal at all",
        hint="Scan or export again: there is no signal.",
    ),
    Reason.CONSTANT_FRAMES: ReasonInfo(
        stage="pack",
        severity="quarantine",
        retryable=False,
        meaning="more than a tenth of the frames are constant or identical",
        hint="Look at the file by hand: many B-scans are blank or copies.",
    ),
    Reason.SATURATED: ReasonInfo(
        stage="pack",
        severity="warn",
        retryable=False,
        meaning="more than a tenth of the voxels at the maximum",
        hint="The file is used; look at the exposure if it matters to you.",
    ),
    Reason.BURNED_IN_SUSPECT: ReasonInfo(
        stage="pack",
        severity="quarantine",
        retryable=False,
        meaning="BurnedInAnnotation YES or text-like structure in the margin",
        hint="Look for text in the pixels before the file is used.",
    ),
    Reason.UNKNOWN_ERROR: ReasonInfo(
        stage="pack",
        severity="quarantine",
        retryable=True,
        meaning="a defect of ours: must be 0 in every test and benchmark",
        hint="A defect of fovea: please report the path and the detail; a re-run retries it.",
    ),
}
