"""How large the label's effect on the true anatomy is, measured on layer surfaces before any optics."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ingest.phantom.anatomy import INL, LAYERS, Eye, disc_weight, effect_of, layer_thickness, make_eye
from ingest.phantom.participants import STUDY_GROUPS

FIELD_MM: Final = 3.0
"""Half the side of the square about the fovea over which thickness is averaged."""

NUM_INNER: Final = LAYERS.index("OPL") + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectSize:
    """Thickness by label, um, and Cohen's d of one label step (pooled standard deviation between participants)."""

    layer_means_um: tuple[float, ...]
    layer_sd_um: float
    layer_d_per_step: float
    inner_retina_means_um: tuple[float, ...]
    inner_retina_sd_um: float
    inner_retina_d_per_step: float


def measure_effect(*, signal: float = 1.0, people_per_label: int = 100, seed: int = 0) -> EffectSize:
    """Thickness of the inner nuclear layer and of the inner retina (RNFL to OPL) in participants of each label.

    Both eyes of a participant are averaged, over 6 x 6 mm about the fovea without the disc.
    """
    side = np.linspace(-FIELD_MM, FIELD_MM, 25, dtype=np.float32)
    x, y = np.meshgrid(side, side)
    labels = range(len(STUDY_GROUPS))
    values = np.array(
        [
            [_thickness(seed, label * people_per_label + k, label, signal, (x, y)) for k in range(people_per_label)]
            for label in labels
        ]
    )
    means, sd = values.mean(axis=1), np.sqrt(values.var(axis=1, ddof=1).mean(axis=0))
    steps = np.diff(means, axis=0).mean(axis=0) / sd
    return EffectSize(
        layer_means_um=tuple(round(float(v), 1) for v in means[:, 0]),
        layer_sd_um=round(float(sd[0]), 2),
        layer_d_per_step=round(float(steps[0]), 2),
        inner_retina_means_um=tuple(round(float(v), 1) for v in means[:, 1]),
        inner_retina_sd_um=round(float(sd[1]), 2),
        inner_retina_d_per_step=round(float(steps[1]), 2),
    )


def _thickness(
    seed: int, participant: int, label: int, signal: float, grid: tuple[npt.NDArray[np.float32], ...]
) -> npt.NDArray[np.float64]:
    """(inner nuclear layer, inner retina) of one participant, um, mean of both eyes."""
    effect = effect_of(label, signal)
    eyes = [make_eye(seed, participant, side, effect) for side in ("R", "L")]
    return np.asarray(np.mean([_eye_thickness(eye, *grid) for eye in eyes], axis=0), dtype=np.float64)


def _eye_thickness(eye: Eye, x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> tuple[float, float]:
    thickness = 1e3 * layer_thickness(eye, x, y)
    outside = disc_weight(eye, x, y) < 0.05
    return float(thickness[INL][outside].mean()), float(thickness[:NUM_INNER].sum(axis=0)[outside].mean())
