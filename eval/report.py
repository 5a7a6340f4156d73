"""One page about a whole run: files in and out, training, and what the encoder is worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from eval.figures import confusion_png, curve_png, is_number, scores_png
from eval.probe import ProbeResult
from eval.tables import class_table, p_value, score_table
from manifests.audit import AuditReport
from manifests.audit_html import label_join, reasons, totals, volumes
from manifests.page import Html, card, cards, figure, heading, join, page, pair, paragraph, table, title


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A PNG file and what it shows."""

    path: Path
    caption: str


def write_report(
    path: Path,
    *,
    audit: AuditReport,
    training: Sequence[Mapping[str, Any]],
    probe: ProbeResult,
    pictures: Sequence[Picture] = (),
    subtitle: str = "",
) -> None:
    """Write one self-contained HTML file.

    Args:
        path: where to.
        audit: of the dataset.
        training: the objects of `metrics.jsonl`, in order.
        probe: the probe on the encoder that was trained.
        pictures: PNG files to show at the end.
        subtitle: what this run was, in one line of text.
    """
    parts = [title("Fovea: from files to a score", subtitle or audit.url), _summary(training, probe)]
    parts += [heading("What went in and what came out"), totals(audit), reasons(audit), volumes(audit)]
    parts += [training_section(training), probe_section(probe), label_join(probe.audit)]
    parts += [_pictures(pictures)] if pictures else []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page("Fovea report", join(parts)), encoding="utf-8")


def _summary(training: Sequence[Mapping[str, Any]], probe: ProbeResult) -> Html:
    """The score, what luck gives, and how far the loss came."""
    cv = probe.encoder.cv
    said = str(cv.scores.balanced_accuracy) if cv else "none"
    interval = cv.intervals.get("balanced_accuracy") if cv else None
    sure = f"; 95% confidence interval {interval.low:.3f} to {interval.high:.3f}" if interval else ""
    luck = f"what luck gives; p = {p_value(cv)}" if p_value(cv) else "what luck gives"
    losses = [row["loss"] for row in split_rows(training, "train") if is_number(row.get("loss"))]
    items = [
        card(said, f"balanced accuracy of a linear probe, by participant{sure}"),
        card(f"{probe.chance:.3f}", luck),
    ]
    items += [card(f"{losses[0]:.3f} to {losses[-1]:.3f}", "training loss, from first to last")] if losses else []
    return cards(items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A column of `metrics.jsonl` to show; `reference` is the column that is drawn dashed beside it."""

    split: str
    column: str
    caption: str
    reference: str = ""


CONSTANT: Final = "dashed: a prediction that is constant"
CURVES: Final = (
    Curve(split="train", column="loss", caption=f"Training loss, by step ({CONSTANT})", reference="loss_trivial"),
    Curve(split="val", column="loss", caption=f"Validation loss, by step ({CONSTANT})", reference="loss_trivial"),
    Curve(split="val", column="cosine", caption=f"Validation cosine, by step ({CONSTANT})", reference="cosine_trivial"),
    Curve(
        split="val", column="rankme", caption="RankMe: dimensions that features of the validation split span, by step"
    ),
    Curve(split="train", column="target_context_distance", caption="Distance of target and context weights, by step"),
    Curve(split="train", column="grad_norm", caption="Gradient norm before clipping, by step"),
)


def training_section(rows: Sequence[Mapping[str, Any]]) -> Html:
    """The loss in training and on held-out volumes, the signs of collapse, and every alarm that was raised."""
    alarms = sorted({str(alarm) for row in rows for alarm in row.get("alarms", ())})
    parts = [heading("Training"), *(paragraph(f"Alarm in training: {alarm}.", "verdict bad") for alarm in alarms)]
    return join([*parts, pair(_curve(split_rows(rows, curve.split), curve) for curve in CURVES)])


def split_rows(rows: Sequence[Mapping[str, Any]], split: str) -> list[Mapping[str, Any]]:
    """The rows of `metrics.jsonl` about one split."""
    return [row for row in rows if row.get("split", "train") == split]


def _curve(rows: Sequence[Mapping[str, Any]], curve: Curve) -> Html:
    if not any(is_number(row.get(curve.column)) for row in rows):
        return paragraph(f"{curve.caption}: nothing was logged.", "lead")
    return figure(curve_png(rows, curve.column, curve.reference), curve.caption)


def probe_section(probe: ProbeResult) -> Html:
    """The score against chance and baselines, then everything behind it."""
    parts = [heading("What the encoder is worth")]
    parts += [paragraph(warning, "verdict bad") for warning in probe.warnings]
    parts += [paragraph(_reading(probe))]
    parts += [
        figure(scores_png(probe), "Balanced accuracy with 95% confidence intervals (bootstrap over participants)")
    ]
    parts += [table(*score_table(probe), "All scores, by participant")]
    named = {"cross-validated": probe.encoder.cv, "test split": probe.encoder.test}
    scored = {name: one for name, one in named.items() if one}
    parts += [pair(figure(confusion_png(one.scores), f"Participants, {name}") for name, one in scored.items())]
    parts += [table(*class_table(one.scores), f"By class, {name}") for name, one in scored.items()]
    return join(parts)


def _reading(probe: ProbeResult) -> str:
    """How the numbers were made, in words."""
    return (
        "A logistic regression on frozen features, with classes weighted equally, scored by participant: the mean over "
        "eyes and devices. Cross-validated: each participant is scored once, by a probe that never saw them. "
        f"Test split: one look, with C = {probe.encoder.strength:g} chosen by {probe.encoder.chosen_by}. "
        "Majority knows only how frequent the groups are; intensity knows six grey-level statistics of a volume. "
        "Brackets hold 95% confidence intervals; p is the share of shuffled labels with as good a balanced accuracy."
    )


def _pictures(pictures: Sequence[Picture]) -> Html:
    shown = [figure(picture.path.read_bytes(), picture.caption) for picture in pictures]
    return join([heading("Pictures"), *shown])
