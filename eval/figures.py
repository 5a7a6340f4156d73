"""Pictures of scores and curves, as PNG bytes. They are drawn without pyplot: no window, no global state."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from eval.linear import Evaluation
from eval.metrics import Scores
from eval.probe import ProbeResult
from eval.tables import evaluations, short_name

INK: Final = "#22262b"
SOFT: Final = "#8b929a"
ACCENT: Final = "#2f6f73"
WARM: Final = "#c8694f"
LINE: Final = "#e2e0da"
PAPER: Final = "#fbfaf7"
DPI: Final = 160


def confusion_png(scores: Scores) -> bytes:
    """Who was called what: counts, and shades by the share of the true class."""
    table = np.array(scores.confusion)
    shares = table / np.maximum(1, table.sum(axis=1, keepdims=True))
    figure, axes = _figure(4.8, 4.2)
    axes.imshow(shares, cmap=LinearSegmentedColormap.from_list("share", ("#f1f3f0", ACCENT)), vmin=0, vmax=1)
    for (row, column), number in np.ndenumerate(table):
        shade = "white" if shares[row, column] > 0.6 else INK
        axes.text(column, row, str(number), ha="center", va="center", color=shade, fontsize=12)
    names = [short_name(name).replace(" ", "\n", 1) for name in scores.classes]
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("called")
    axes.set_ylabel("is")
    axes.spines[:].set_visible(False)
    return _png(figure)


def scores_png(result: ProbeResult) -> bytes:
    """Balanced accuracy of the encoder and of the baselines with 95% intervals, and the line of chance."""
    shown = {name: one for name, one in evaluations(result).items() if one}
    shown = {name: one for name, one in shown.items() if one.scores.balanced_accuracy.value is not None}
    figure, axes = _figure(9.6, 1.0 + 0.42 * len(shown))
    for place, (name, evaluation) in enumerate(reversed(shown.items())):
        _draw_interval(axes, place, evaluation, ACCENT if name.startswith("encoder") else SOFT)
    axes.axvline(result.chance, color=WARM, linewidth=1.2, linestyle=(0, (4, 3)), zorder=0)
    axes.text(result.chance, len(shown) - 0.45, " chance", color=WARM, fontsize=8, va="bottom")
    axes.set_yticks(range(len(shown)), list(reversed(shown)), fontsize=9)
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlim(0, 1)
    axes.set_xlabel("balanced accuracy of participants")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return _png(figure)


def _draw_interval(axes: Any, place: int, evaluation: Evaluation, colour: str) -> None:
    interval = evaluation.intervals.get("balanced_accuracy")
    if interval:
        axes.plot([interval.low, interval.high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
    axes.plot(evaluation.scores.balanced_accuracy.value, place, "o", color=colour, markersize=7)


def curve_png(rows: Sequence[Mapping[str, Any]], column: str, reference: str = "") -> bytes:
    """A column of `metrics.jsonl` by step, and a dashed one to compare it with; what is no finite number is skipped."""
    figure, axes = _figure(5.0, 2.5)
    axes.plot(*_points(rows, column), color=ACCENT, linewidth=1.6, marker="o", markersize=2.5)
    axes.plot(*_points(rows, reference), color=WARM, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_xlabel("step", fontsize=8)
    axes.grid(visible=True, color=LINE, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _points(rows: Sequence[Mapping[str, Any]], column: str) -> tuple[list[float], list[float]]:
    """Steps and values."""
    shown = [row for row in rows if is_number(row.get(column)) and is_number(row.get("step"))]
    return [row["step"] for row in shown], [row[column] for row in shown]


def is_number(value: object) -> bool:
    """A finite number that is no flag."""
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def write_probe_pictures(folder: Path, result: ProbeResult) -> tuple[Path, ...]:
    """`scores.png`, and a confusion matrix of each set of participants that was scored."""
    pictures = {"scores.png": scores_png(result)}
    if result.encoder.cv:
        pictures["confusion-cv.png"] = confusion_png(result.encoder.cv.scores)
    if result.encoder.test:
        pictures["confusion-test.png"] = confusion_png(result.encoder.test.scores)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    return tuple(folder / name for name in pictures)


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor(PAPER)
    axes.tick_params(colors=INK, labelsize=8)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.spines[:].set_color(SOFT)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
