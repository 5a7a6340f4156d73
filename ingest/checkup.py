"""Every check on one file, one after the other, and what each found.

The functions are those that `ingest.convert` calls, in the order of precedence; a check that fails does not stop later
ones that can still run. What a check says is by allow-list: numbers, codes, device names, never text of the header.
"""

from typing import Any, Final, TypeVar

import numpy as np

from ingest.burned_in import check_annotation, check_margins
from ingest.checks import (
    check_dimensions,
    check_enough_frames,
    check_limits,
    check_meta,
    check_num_frames,
    check_photometric,
    check_pixel_data,
    check_syntax,
)
from ingest.convert import attempt, bright_is_high
from ingest.cross_check import cautions
from ingest.errors import IngestError
from ingest.fields import integer, items, text
from ingest.findings import NOT_REACHED, OK, WARNING, Check, Finding, Request, Said
from ingest.frames import PixelFormat, find_frames, pixel_format
from ingest.header import Header, parse_file
from ingest.identity import (
    PathIdentity,
    agreed_device,
    agreed_laterality,
    agreed_participant,
    check_image_kind,
    check_uid,
    identify,
    model_name,
    path_identity,
    read_path,
)
from ingest.intensity import check_content, check_repeats, retina_center_mm
from ingest.pixels import check_bits, decode_frames
from ingest.raster import check_parallel, frame_lines, plane_lines
from ingest.record import Caution, Facts, Identity, Rejection, ScanGeometry
from ingest.resample import plan_grid, plan_slow_axis
from ingest.spacing import check_groups, manifest_spacing, num_described, scan_geometry
from ingest.spacing_sources import describe_bscans, describe_pixels, winners
from ingest.syntaxes import NATIVE_SYNTAXES, Pixels, is_supported
from ingest.watch import UNWATCHED, Watch
from manifests.reasons import Reason
from shards.schema import Device, Laterality

SPACING_REASONS: Final = (Reason.SPACING_MISSING, Reason.SPACING_INVALID, Reason.SPACING_INCONSISTENT)
SCAN_REASONS: Final = (*SPACING_REASONS, Reason.NOT_RASTER, Reason.POSITIONS_NONMONOTONE)

UNNAMED: Final = PathIdentity(participant_id=None, device=None, protocol=None, laterality=None)
"""What a path says that was not looked at."""

Value = TypeVar("Value")


class NotReachedError(Exception):
    """A check that cannot run, because of what an earlier one found."""


class Checkup:
    """The checks of one file. Each method is a check, says what it found, and leaves it for later ones."""

    def __init__(self, request: Request, watch: Watch = UNWATCHED) -> None:
        self._request = request
        self._watch = watch
        self._parsed: Header | None = None
        self._by_path: PathIdentity | None = None
        self._participant_id: str | None = None
        self._device: Device | None = None
        self._side: Laterality | None = None
        self._identity: Identity | None = None
        self._num_frames: int | None = None
        self._fits = False
        self._layout: PixelFormat | None = None
        self._scan: ScanGeometry | Rejection | None = None
        self._stored: list[bytes] | None = None
        self._volume: Pixels | None = None
        self._has_signal = False

    def find(self, check: Check) -> Finding:
        """Run one check; a defect of ours is a finding too."""
        result = attempt(Facts(), lambda: self._run(check))
        if isinstance(result, Rejection):
            return Finding(check=check.name, outcome=result.reason.value, found=result.detail)
        said = Said(OK, result) if isinstance(result, str) else result
        return Finding(check=check.name, outcome=said.outcome, found=said.found)

    def _run(self, check: Check) -> str | Said:
        try:
            return check.run(self)
        except NotReachedError as error:
            return Said(NOT_REACHED, str(error))

    @property
    def _header(self) -> Header:
        return _need(self._parsed, "a header")

    @property
    def _named(self) -> PathIdentity:
        return self._by_path or UNNAMED

    def header(self) -> str:
        """File meta information and the data set up to the pixels."""
        self._parsed = parsed = parse_file(self._request.data, self._request.limits)
        size = f" in {parsed.pixel_offset} bytes" if parsed.pixel_offset else ""
        return f"{len(parsed.dataset)} elements{size} before the pixel data."

    def transfer_syntax(self) -> str:
        """What the file meta information declares."""
        syntax = self._header.transfer_syntax_uid
        known = syntax.name != str(syntax)
        return f"{syntax.name} ({syntax})." if known else "it is in no table of the standard."

    def image_kind(self) -> str:
        """SOP class, image type and modality."""
        check_image_kind(self._header.dataset)
        return "Ophthalmic Tomography Image Storage; the image type names no en face or flow image."

    def meta(self) -> str:
        """The SOP Instance UID, and whether the file meta information speaks of this data set."""
        uid = check_uid(self._header.dataset)
        check_meta(self._header, self._request.path)
        return f"a valid SOP Instance UID of {len(uid)} characters; the file meta information does not contradict it."

    def limits(self) -> str:
        """Frames and voxels against the limits, as declared."""
        limits = self._request.limits
        check_limits(self._header.dataset, limits)
        return f"at most {limits.max_frames} frames and {limits.max_voxels} voxels."

    def path(self) -> str:
        """What folders and file name say; without the header."""
        self._by_path = read_path(self._request.path)
        found = path_identity(self._request.path)
        said = {
            "participant": found.participant_id,
            "device": found.device,
            "protocol": found.protocol,
            "laterality": found.laterality,
        }
        listed = "a row of manifest.tsv lists it" if self._request.manifest else "no manifest.tsv lists it"
        words = [f"{name} {value or 'not named'}" for name, value in said.items()]
        return f"{', '.join(words)}; {listed}."

    def participant(self) -> str:
        """PatientID against the path."""
        self._participant_id = found = agreed_participant(self._header.dataset, self._named)
        return f"PatientID is {found}; {_agreement(self._named.participant_id)}."

    def device(self) -> str:
        """Manufacturer and model against the path."""
        dataset = self._header.dataset
        self._device = found = agreed_device(dataset, self._named)
        return f"the header names {found}, model {model_name(dataset) or 'unknown'}; {_agreement(self._named.device)}."

    def laterality(self) -> str:
        """ImageLaterality and every FrameLaterality against the path."""
        self._side = found = agreed_laterality(self._header.dataset, self._named)
        return f"{found} wherever the header says it; {_agreement(self._named.laterality)}."

    def identity(self) -> str:
        """The SOP Instance UID, and path and header as a whole."""
        dataset = self._header.dataset
        if self._named.conflicts or None in (self._by_path, self._participant_id, self._device, self._side):
            raise NotReachedError("path, participant, device and laterality come first.")
        self._identity = identify(dataset, self._request.path, self._request.manifest)
        return f"protocol {self._identity.protocol}, {self._identity.anatomic_region}."

    def pixel_data(self) -> str:
        """Whether there is a pixel data element."""
        check_pixel_data(self._header)
        return (
            f"{len(self._header.body or b'') - (self._header.pixel_offset or 0)} bytes from the pixel data element on."
        )

    def decoder(self) -> str:
        """Whether a decoder is pinned for the transfer syntax."""
        check_syntax(self._header)
        native = self._header.transfer_syntax_uid in NATIVE_SYNTAXES
        return "native pixels: none is needed." if native else "one is pinned; no other stands in for it."

    def frames(self) -> str:
        """NumberOfFrames."""
        self._num_frames = found = check_num_frames(self._header.dataset)
        return f"NumberOfFrames is {found}."

    def dimensions(self) -> str:
        """Rows, Columns, and the number of voxels."""
        dataset, limits = self._header.dataset, self._request.limits
        check_dimensions(dataset, limits)
        self._fits = True
        layout = pixel_format(self._header)
        voxels = layout.rows * layout.columns * (self._num_frames or 1)
        return f"{layout.rows} rows x {layout.columns} columns, {voxels} voxels of at most {limits.max_voxels}."

    def photometric(self) -> str:
        """Grey levels of one unsigned sample."""
        dataset = self._header.dataset
        check_photometric(dataset)
        if self._fits and self._num_frames:
            self._layout = pixel_format(self._header)
        bits = self._layout and f", {self._layout.bits_stored} of {self._layout.bits_allocated} bits"
        return f"{text(dataset, 'PhotometricInterpretation')}, one unsigned sample per pixel{bits or ''}."

    def bscans(self) -> str:
        """Enough B-scans for a volume."""
        found, limits = _need(self._num_frames, "a number of frames"), self._request.limits
        check_enough_frames(found, limits)
        return f"{found} B-scans, at least {limits.min_frames} are needed."

    def functional_groups(self) -> str:
        """One per-frame group for each frame, or none."""
        check_groups(self._header.dataset, _need(self._num_frames, "a number of frames"))
        num_groups = len(items(self._header.dataset, "PerFrameFunctionalGroupsSequence"))
        return f"{num_groups} per-frame groups for {self._num_frames} frames."

    def pixel_sources(self) -> str:
        """Where axial and lateral spacing stand, and which one counts."""
        return describe_pixels(*self._asked_for_sources("pixels"))

    def bscan_sources(self) -> str:
        """Where the distance between B-scans stands, and which one counts."""
        return describe_bscans(*self._asked_for_sources("bscans"))

    def spacing(self) -> str:
        """Spacing that is there, plausible, and the same wherever it stands."""
        scan = self._scanned(SPACING_REASONS)
        steps = " x ".join(f"{step:.6g}" for step in scan.spacing_mm)
        return f"{steps} mm (B-scan step, axial, lateral) from {scan.source.replace(';', ', ')}."

    def raster(self) -> str:
        """B-scans that run in one direction; looked at even when there is no spacing."""
        scan = self._scanned()
        if isinstance(scan, Rejection) and scan.reason is Reason.NOT_RASTER:
            raise IngestError(scan.reason, scan.detail)
        dataset, num_frames = self._header.dataset, _need(self._num_frames, "a number of frames")
        described = num_described(dataset, num_frames)
        planes, lines = plane_lines(dataset, described), frame_lines(dataset, described)
        check_parallel(planes)
        check_parallel(lines)
        counts = f"{len(planes or ())} plane positions, {len(lines or ())} lines on the localizer"
        return f"{counts}: {'all in one direction' if planes or lines else 'nothing speaks against a raster'}."

    def positions(self) -> str:
        """B-scans that neither repeat nor leave a gap."""
        scan = self._scanned((Reason.POSITIONS_NONMONOTONE,))
        rising = list(range(len(scan.order)))
        order = {tuple(rising): "in order", tuple(rising[::-1]): "in reverse"}.get(scan.order, "in another order")
        steps = f"steps of {scan.spacing_min_mm[0]:.4g} to {scan.spacing_max_mm[0]:.4g} mm"
        return f"{len(scan.order)} B-scans over {scan.positions_mm[-1]:.4g} mm, {steps}, stored {order}."

    def agreement(self) -> str | Said:
        """The spacing that was chosen against all else that is known: another source, the protocol, the manifest."""
        if not isinstance(self._scan, ScanGeometry):
            raise NotReachedError("it needs a scan.")
        scan, dataset, identity = self._scan, self._header.dataset, self._assumed_identity()
        shape = (len(scan.order), integer(dataset, "Rows") or 0, integer(dataset, "Columns") or 0)
        found = cautions(scan, shape, identity.protocol, manifest_spacing(self._request.manifest))
        extent = f"{scan.spacing_mm[0] * shape[0]:.3g} x {scan.spacing_mm[2] * shape[2]:.3g} mm"
        return _warned(found, f"the scan covers {extent}; nothing contradicts it.")

    def structure(self) -> str:
        """Every frame, whether the grid needs it or not: fragments, start and end markers, lengths."""
        layout = _need(self._layout, "frames, dimensions and a photometric interpretation")
        if not is_supported(self._header.transfer_syntax_uid) or not self._header.has_pixel_data:
            raise NotReachedError("it needs pixel data and a decoder.")
        self._stored = found = find_frames(self._header, layout, self._watch)
        sizes = [len(frame) for frame in found]
        return f"{len(found)} frames, each whole, of {min(sizes)} to {max(sizes)} bytes."

    def decoding(self) -> str:
        """The B-scans that the grid needs; all of them where the scan is not known."""
        stored, layout = _need(self._stored, "whole frames"), _need(self._layout, "a layout")
        wanted = self._wanted(len(stored))
        pixels = decode_frames(stored, wanted, layout, self._header.transfer_syntax_uid, self._watch)
        check_bits(pixels, layout)
        self._volume = bright_is_high(pixels, self._header, layout)
        needed = "the grid needs these" if isinstance(self._scan, ScanGeometry) else "without a scan, all"
        return f"{len(wanted)} of {len(stored)} B-scans decode to {layout.rows} x {layout.columns} ({needed})."

    def content(self) -> str | Said:
        """Grey levels: a signal, frames that differ, not overexposed."""
        volume, layout = _need(self._volume, "decoded B-scans"), _need(self._layout, "a layout")
        warned = check_content(volume, layout.bits_stored)
        check_repeats(_need(self._stored, "whole frames"))
        self._has_signal = True
        share = np.count_nonzero(volume == 2**layout.bits_stored - 1) / volume.size
        levels = f"grey levels {volume.min()} to {volume.max()}, mean {volume.mean():.1f}, {share:.1%} at the maximum."
        return _warned(warned, levels)

    def annotation(self) -> str:
        """Text burned into the pixels, by the header."""
        check_annotation(self._header.dataset)
        return "BurnedInAnnotation does not say YES."

    def margins(self) -> str:
        """Text burned into the pixels, by themselves."""
        check_margins(_need(self._volume, "decoded B-scans"), _need(self._layout, "a layout").bits_stored)
        return "no text-like strokes above or below the tissue."

    def grid(self) -> str:
        """What the geometry makes of the scan."""
        geometry, layout = self._request.geometry, _need(self._layout, "a layout")
        scan = self._scan if self._has_signal and isinstance(self._scan, ScanGeometry) else None
        native = (layout.num_frames, layout.rows, layout.columns)
        known, volume = _need(scan, "a scan with a signal"), _need(self._volume, "decoded B-scans")
        retina_mm = retina_center_mm(volume, known.spacing_mm[1])
        plan = plan_grid(known, native, geometry, retina_mm)
        cropped, padded = (
            " x ".join(f"{getattr(axis, name):.0%}" for axis in plan.axes) for name in ("cropped", "padded")
        )
        size, step = " x ".join(map(str, plan.size)), " x ".join(f"{one:.4g}" for one in plan.spacing_mm)
        return (
            f"{geometry.name}: {size} voxels of {step} mm, {cropped} of the scan cropped, {padded} of the grid padded, "
            f"retina at {retina_mm:.3f} mm."
        )

    def duplicates(self) -> str:
        """Only a job knows."""
        raise NotReachedError("only a job sees whether another file has the same SOP Instance UID.")

    def _scanned(self, reasons: tuple[Reason, ...] | None = None) -> Any:
        """Positions and spacing, looked at once; with `reasons`, only a scan or one of these is an answer.

        Raises:
            IngestError: one of `reasons`.
            NotReachedError: for any other, which is another check's.
        """
        if self._scan is None:
            self._scan = self._look_at_scan()
        if reasons is None or isinstance(self._scan, ScanGeometry):
            return self._scan
        if self._scan.reason in reasons:
            raise IngestError(self._scan.reason, self._scan.detail)
        raise NotReachedError(f"{self._scan.reason} comes first.")

    def _look_at_scan(self) -> ScanGeometry | Rejection:
        dataset, num_frames = self._header.dataset, _need(self._num_frames, "a number of frames")
        identity = self._assumed_identity()
        return attempt(Facts(), lambda: scan_geometry(dataset, num_frames, identity, self._request.manifest))

    def _assumed_identity(self) -> Identity:
        """Who it is, or what geometry needs of that: the device and the protocol, whose quirks count."""
        return self._identity or Identity(
            participant_id="",
            device=_need(self._device or self._named.device, "a device, whose quirks count"),
            manufacturer_model="",
            protocol=self._named.protocol or "unknown",
            anatomic_region="Unknown",
            laterality=self._side or "R",
            sop_instance_uid="",
        )

    def _asked_for_sources(self, kind: str) -> Any:
        scan = self._scanned()
        used = winners(scan.source).get(kind) if isinstance(scan, ScanGeometry) else None
        return self._header.dataset, _need(self._num_frames, "a number of frames"), self._request.manifest, used

    def _wanted(self, num_frames: int) -> tuple[int, ...]:
        if not isinstance(self._scan, ScanGeometry):
            return tuple(range(num_frames))
        slow = plan_slow_axis(self._scan, self._request.geometry)
        return self._scan.order[slow.first : slow.last]


def _need(value: Value | None, what: str) -> Value:
    if value is None:
        raise NotReachedError(f"it needs {what}.")
    return value


def _warned(found: tuple[Caution, ...], otherwise: str) -> str | Said:
    return Said(WARNING, " ".join(f"{one.reason}: {one.detail}" for one in found)) if found else otherwise


def _agreement(by_path: str | None) -> str:
    return "the path says so too" if by_path else "the path does not say"
