"""The audit as a page for people: what went in, what came out, and why the rest did not."""

from collections.abc import Mapping
from pathlib import Path

from manifests.audit import STATUSES, AuditReport, ProtocolSummary, Range
from manifests.cohort import JoinAudit, JoinCount
from manifests.errors import PageError
from manifests.offenders import Offenders, RejectedOf
from manifests.page import Html, bar, card, cards, heading, join, page, paragraph, table, title
from manifests.reasons import Reason


def write_audit_html(path: Path, report: AuditReport, labels: JoinAudit | None = None) -> None:
    """One self-contained file.

    Raises:
        PageError: if `path` cannot be written.
    """
    parts = [title("Dataset audit", f"{report.url} · geometry {report.geometry} · fovea {report.code_version}")]
    parts += [totals(report), reasons(report), volumes(report), offenders(report.offenders)]
    parts += [label_join(labels)] if labels else []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page("Dataset audit", join(parts)), encoding="utf-8")
    except OSError as error:
        raise PageError(f"the page {path} cannot be written ({error.strerror}): name another file.") from error


def totals(report: AuditReport) -> Html:
    """The equation, the verdict and the splits."""
    samples = sum(split.num_samples for split in report.by_split)
    people = sum(split.num_participants for split in report.by_split)
    numbers = [
        card(str(report.num_files), "input files, each with one row"),
        card(str(samples), f"volumes in {report.num_shards} shards"),
        card(str(people), "participants, each in one split" if report.adds_up else "participants"),
    ]
    parts = [cards(numbers), bar([(status, report.by_status[status]) for status in STATUSES]), verdict(report)]
    return join([*parts, _splits(report)])


def verdict(report: AuditReport) -> Html:
    """Whether the books balance, and every problem if they do not."""
    if report.adds_up:
        return paragraph(f"{report.equation}. Every table agrees.", "verdict")
    problems = table(["Problem"], [[problem] for problem in report.problems])
    return join([paragraph(f"{report.equation}. The accounting does not add up:", "verdict bad"), problems])


def _splits(report: AuditReport) -> Html:
    devices = sorted({device for split in report.by_split for device in split.by_device})
    rows = [
        [
            split.split,
            split.num_participants,
            split.num_samples,
            *(split.by_device.get(device, 0) for device in devices),
        ]
        for split in report.by_split
    ]
    return table(["Split", "Participants", "Volumes", *devices], rows)


def reasons(report: AuditReport) -> Html:
    """Why files are not in the shards, by device and site, and what can be done."""
    parts = [heading("Why a file is not in the shards")]
    if not report.by_reason:
        return join([*parts, paragraph("Every file was accepted.")])
    counts: dict[str, int] = {}
    for count in report.by_reason:
        counts[count.reason] = counts.get(count.reason, 0) + count.num_files
    meanings = [
        [reason, number, *_meaning(reason)] for reason, number in sorted(counts.items(), key=lambda one: -one[1])
    ]
    where = [[count.reason, count.status, count.device, count.site, count.num_files] for count in report.by_reason]
    parts += [table(["Reason", "Files", "Meaning", "What to do"], meanings)]
    parts += [table(["Reason", "Status", "Device", "Site", "Files"], where, "By device and site")]
    if report.by_warning:
        warnings = [[code, number, *_meaning(code)] for code, number in report.by_warning.items()]
        parts += [table(["Warning", "Files", "Meaning", "What to do"], warnings, "Accepted with a warning")]
    return join(parts)


def _meaning(code: str) -> tuple[str, str]:
    known = Reason.__members__.get(code)
    return (known.info.meaning, known.info.hint) if known else ("not a known code", "")


def volumes(report: AuditReport) -> Html:
    """Native spacing and shape of what was accepted, by protocol."""
    columns = ["Protocol", "Volumes", "B-scan step (mm)", "Axial (mm)", "Lateral (mm)", "Shapes", "Spacing from"]
    rows = [_protocol_row(protocol) for protocol in report.protocols]
    parts = [heading("Spacing and shape of the accepted volumes")]
    parts += [
        paragraph("Native spacing: median, and the range where it varies. Shape: B-scans x rows x columns.", "lead")
    ]
    parts += [table(columns, rows)]
    if report.other_files:
        others = ", ".join(
            f"{number} {extension or 'without extension'}" for extension, number in report.other_files.items()
        )
        parts += [paragraph(f"Other files, counted and not read: {others}.", "lead")]
    return join(parts)


def _protocol_row(summary: ProtocolSummary) -> list[object]:
    return [
        summary.protocol,
        summary.num_files,
        _range(summary.spacing_d_mm),
        _range(summary.spacing_h_mm),
        _range(summary.spacing_w_mm),
        _counted(summary.shapes),
        _counted(summary.spacing_sources),
    ]


def _range(values: Range | None) -> str:
    if values is None:
        return "not recorded"
    low, middle, high = (f"{value:.4g}" for value in values)
    return middle if low == high else f"{middle} ({low} to {high})"


def _counted(counts: Mapping[str, int]) -> str:
    """The values, and how often each occurs where there are several."""
    names = [name.replace(";", ", ") for name in counts]
    if len(names) == 1:
        return names[0]
    shown = [f"{name} ({number})" for name, number in list(zip(names, counts.values(), strict=True))[:4]]
    return "; ".join(shown) + (f"; {len(counts) - 4} more" if len(counts) > 4 else "")


def offenders(worst: Offenders) -> Html:
    """Where to look first."""
    parts = [heading("The worst offenders")]
    if not (worst.participants or worst.protocols or worst.spacing):
        return join([*parts, paragraph("Nothing was rejected, and every spacing is that of its protocol.")])
    if worst.participants:
        rows = [[one.participant_id, *_rejected(one)] for one in worst.participants]
        parts += [table(["Participant", "Rejected", "Files", "Reasons"], rows, "Most rejected files")]
    if worst.protocols:
        shares = [[one.device, one.protocol, f"{one.share:.0%}", *_rejected(one)] for one in worst.protocols]
        columns = ["Device", "Protocol", "Share", "Rejected", "Files", "Reasons"]
        parts += [table(columns, shares, "Highest share rejected")]
    if worst.spacing:
        columns = ["Sample", "Axis", "Spacing (mm)", "Median (mm)", "Ratio"]
        far = [
            [one.key, one.axis, f"{one.spacing_mm:.4g}", f"{one.median_mm:.4g}", f"{one.ratio:.3f}"]
            for one in worst.spacing
        ]
        parts += [table(columns, far, "Accepted, with the spacing furthest from the protocol's median")]
    return join(parts)


def _rejected(one: RejectedOf) -> list[object]:
    reasons = ", ".join(f"{reason} ({number})" for reason, number in one.reasons.items())
    return [one.num_rejected, one.num_files, reasons]


def label_join(labels: JoinAudit) -> Html:
    """Who has a label, who has OCT, who has both."""
    columns = ["", "Labelled", "With OCT", "Both", "Label, no OCT", "OCT, no label"]
    parts = [heading("Labels"), paragraph(f"{labels.match_rate:.1%} of the participants with OCT have a label.")]
    parts += [table(columns, [_join_row("all", labels.total)])]
    for caption, groups in (
        ("By site", labels.by_site),
        ("By device", labels.by_device),
        ("By split", labels.by_split),
    ):
        parts += [table(columns, [_join_row(name, count) for name, count in groups.items()], caption)]
    return join(parts)


def _join_row(name: str, count: JoinCount) -> list[object]:
    return [name, count.labelled, count.with_oct, count.matched, count.labelled_without_oct, count.oct_without_label]
