"""One eye: layer thicknesses, fovea, disc, vessels, fluid pockets, and what the label changes.

Eye coordinates are mm with the fovea at (0, 0): x to the right of the image, y downwards (inferior), so the disc
lies at x > 0 in a right eye and at x < 0 in a left one. Thicknesses are mm. Typical values follow normative OCT data
(total macular thickness about 335 um at 1 mm, 240 um at the fovea).
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from ingest.phantom.vessels import VesselTree, grow_vessels
from shards.schema import Laterality

Array = npt.NDArray[np.float32]

LAYERS: Final = ("RNFL", "GCL", "IPL", "INL", "OPL", "ONL", "ELM", "IS", "EZ", "OS", "RPE")
"""From the vitreous down to Bruch's membrane."""

INL: Final = LAYERS.index("INL")

THICKNESS_STEP_UM: Final = 30.0
"""Added to the inner nuclear layer per label step at strength 1: more than two voxels of a 12 um grid."""

POCKETS_PER_STEP: Final = 8
"""Fluid pockets about the fovea, and as many about the disc, per label step at strength 1."""

MAX_POCKETS: Final = 40
RESPONSE_SD: Final = 0.12
"""Eyes answer a little differently to the same label: relative standard deviation of the thickening."""

PARTICIPANT_SD: Final = 0.08
EYE_SD: Final = 0.04
COMMON_SD: Final = 0.035
"""Relative natural variation of thickness: per layer and participant, per layer and eye, all layers of a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What the label does to an eye: the only path from the label to the pixels."""

    thickness_um: float
    num_pockets: int


def effect_of(label: int, signal: float) -> Effect:
    """The effect of a label 0-3 at a strength; strength 0 is the same for every label: none."""
    return Effect(
        thickness_um=THICKNESS_STEP_UM * label * signal,
        num_pockets=min(MAX_POCKETS, round(POCKETS_PER_STEP * label * signal)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pockets:
    """Dark ellipsoids: centre x, y, lateral and axial half-axes, each `[N]` mm."""

    x: Array
    y: Array
    lateral: Array
    axial: Array

    def first(self, count: int) -> "Pockets":
        """The first `count`: all are always drawn, so that the random stream is the same for every label."""
        return Pockets(x=self.x[:count], y=self.y[:count], lateral=self.lateral[:count], axial=self.axial[:count])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Eye:
    """Everything about an eye that its scans share."""

    laterality: Laterality
    layer_scale: Array = field(repr=False)
    pit_width_mm: float
    disc_x_mm: float
    disc_y_mm: float
    disc_radius_mm: float
    cup_radius_mm: float
    cup_depth_mm: float
    choroid_mm: float
    curvature_mm: float
    thickening_mm: float
    vessels: VesselTree = field(repr=False)
    fovea_pockets: Pockets = field(repr=False)
    disc_pockets: Pockets = field(repr=False)

    @property
    def side(self) -> int:
        """+1 when the disc is to the right of the fovea."""
        return 1 if self.laterality == "R" else -1


def make_eye(seed: int, participant: int, laterality: Laterality, effect: Effect) -> Eye:
    """Draw an eye. The streams depend on seed, participant and side only, never on the label."""
    side = 1 if laterality == "R" else -1
    person = np.random.default_rng([seed, participant, 11])
    rng = np.random.default_rng([seed, participant, 13, side + 1])
    common = person.normal(0, COMMON_SD)
    per_layer = person.normal(0, PARTICIPANT_SD, len(LAYERS)) + rng.normal(0, EYE_SD, len(LAYERS))
    disc_x = side * (4.5 + 0.15 * rng.normal())
    disc_y = -0.35 + 0.12 * rng.normal()
    response = 1 + RESPONSE_SD * float(np.clip(rng.normal(), -2.5, 2.5))
    return Eye(
        laterality=laterality,
        layer_scale=np.exp(common + per_layer).astype(np.float32),
        pit_width_mm=float(0.5 * np.exp(person.normal(0, 0.1))),
        disc_x_mm=disc_x,
        disc_y_mm=disc_y,
        disc_radius_mm=float(0.85 + 0.07 * person.normal()),
        cup_radius_mm=float(0.48 + 0.05 * person.normal()),
        cup_depth_mm=float(np.clip(0.34 + 0.06 * person.normal(), 0.2, 0.5)),
        choroid_mm=float(np.clip(0.29 + 0.05 * person.normal(), 0.18, 0.42)),
        curvature_mm=float(np.clip(18 + 3 * person.normal(), 12, 26)),
        thickening_mm=effect.thickness_um * 1e-3 * response,
        vessels=grow_vessels(rng, (disc_x, disc_y), side),
        fovea_pockets=_draw_pockets(rng, (0.0, 0.0), (0.5, 2.4)).first(effect.num_pockets),
        disc_pockets=_draw_pockets(rng, (disc_x, disc_y), (1.3, 2.8)).first(effect.num_pockets),
    )


def _draw_pockets(rng: np.random.Generator, center: tuple[float, float], ring: tuple[float, float]) -> Pockets:
    """Pockets in a ring about a centre, 0.3-0.5 mm wide and 60-120 um tall."""
    radius = rng.uniform(*ring, MAX_POCKETS)
    angle = rng.uniform(0, 2 * np.pi, MAX_POCKETS)
    return Pockets(
        x=(center[0] + radius * np.cos(angle)).astype(np.float32),
        y=(center[1] + radius * np.sin(angle)).astype(np.float32),
        lateral=rng.uniform(0.15, 0.25, MAX_POCKETS).astype(np.float32),
        axial=rng.uniform(0.03, 0.06, MAX_POCKETS).astype(np.float32),
    )


def disc_weight(eye: Eye, x: Array, y: Array) -> Array:
    """1 inside the optic disc, 0 outside, soft over about 0.1 mm."""
    distance = _disc_distance(eye, x, y)
    outside = np.exp(np.clip((distance - eye.disc_radius_mm) / 0.06, -40, 40))
    return np.asarray(1 / (1 + outside), dtype=np.float32)


def layer_thickness(eye: Eye, x: Array, y: Array) -> Array:
    """Thickness of each layer.

    Args:
        eye: the eye.
        x: lateral eye coordinate, any shape S.
        y: slow eye coordinate, same shape.

    Returns:
        float32 `[11, *S]` mm, in the order of `LAYERS`. The first is negative in a deep cup, where the inner
        limiting membrane lies below Bruch's membrane.
    """
    r = np.hypot(x, y)
    in_disc = disc_weight(eye, x, y)
    layers = np.stack([*_inner_um(eye, x, y, r), *_outer_um(r)]) * 1e-3
    scale = eye.layer_scale.reshape(-1, *([1] * x.ndim))
    layers = layers * scale
    layers[INL] += eye.thickening_mm * (1 - 0.8 * _bump(r, 0.4))
    layers *= 1 - in_disc
    layers[0] += in_disc * _rim_mm(eye, x, y)
    return np.asarray(layers, dtype=np.float32)


def _inner_um(eye: Eye, x: Array, y: Array, r: Array) -> list[Array]:
    """RNFL, GCL, IPL, INL, OPL: they thin out into the foveal pit; the RNFL thickens towards the disc."""
    pit = 1 - _bump(r, eye.pit_width_mm)
    distance = _disc_distance(eye, x, y)
    dx, dy = x - eye.disc_x_mm, y - eye.disc_y_mm
    arcuate = 0.35 + 0.65 * (dy * dy) / (dx * dx + dy * dy + 1e-6)
    bundle = 130 * arcuate * np.exp(-np.maximum(distance - eye.disc_radius_mm, 0) / 1.6)
    rnfl = pit * (8 + 12 * (1 - _bump(r, 1.5)) + bundle)
    gcl = pit * (16 + 36 * np.exp(-(((r - 1.1) / 1.1) ** 2)))
    ipl = pit * (24 + 16 * np.exp(-(((r - 1.0) / 1.2) ** 2)))
    inl = 34 * (0.15 + 0.85 * (1 - _bump(r, 0.4)))
    opl = 26 * (0.6 + 0.4 * pit)
    return [rnfl, gcl, ipl, inl, opl]


def _outer_um(r: Array) -> list[Array]:
    """ONL, ELM, inner segments, ellipsoid zone, outer segments, RPE: the fovea is all cones."""
    flat = np.ones_like(r)
    onl = 64 + 44 * _bump(r, 0.8)
    return [onl, 7 * flat, 22 * flat, 15 * flat, 22 + 14 * _bump(r, 0.5), 24 * flat]


def _rim_mm(eye: Eye, x: Array, y: Array) -> Array:
    """Height of nerve tissue over Bruch's membrane opening: a rim of 0.33 mm about the cup."""
    distance = _disc_distance(eye, x, y)
    return np.asarray(0.33 - eye.cup_depth_mm * np.exp(-((distance / eye.cup_radius_mm) ** 3)), dtype=np.float32)


def _disc_distance(eye: Eye, x: Array, y: Array) -> Array:
    """Distance to the disc's centre, the disc being a tenth taller than wide."""
    return np.asarray(np.hypot((x - eye.disc_x_mm) * 1.05, (y - eye.disc_y_mm) * 0.95))


def _bump(r: Array, width: float) -> Array:
    return np.asarray(np.exp(-((r / width) ** 2)), dtype=np.float32)
