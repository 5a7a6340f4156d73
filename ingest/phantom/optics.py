"""What the instrument makes of the tissue: layer brightness, speckle, noise floor, compression to grey levels.

Brightness is written in grey levels of a Spectralis-like display (0-255) and is linear intensity `exp(level / SLOPE)`:
so the picture is the logarithm of (signal + noise floor) x speckle, as in an instrument.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from shards.schema import Device

Array = npt.NDArray[np.float32]

SLOPE: Final = 38.0
"""Grey levels per neper of intensity: 255 levels are 29 dB, a usual display range."""

LAYER_LEVELS: Final = (172.0, 112.0, 126.0, 82.0, 112.0, 64.0, 96.0, 80.0, 190.0, 148.0, 200.0)
"""Grey level of each layer of `anatomy.LAYERS`, measured on real Spectralis B-scans."""

NERVE_LEVEL: Final = 138.0
DEEP_LEVEL: Final = 104.0
"""Just below Bruch's membrane; from there the signal fades."""

VESSEL_SHADOW_LEVELS: Final = 62.0
FLUID_LEVEL: Final = 18.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Optics:
    """A device's look.

    `looks` is the number of independent speckle patterns averaged; `floor_level` the grey level of empty vitreous;
    `deep_slope` how many grey levels choroid and sclera lose per mm; `offset` and `contrast` act on the final picture.
    """

    looks: float
    floor_level: float
    deep_slope: float
    contrast: float
    offset: float


OPTICS: Final[MappingProxyType[Device, Optics]] = MappingProxyType(
    {
        "heidelberg_spectralis": Optics(looks=6.0, floor_level=6.0, deep_slope=290, contrast=1.05, offset=-4),
        "topcon_maestro2": Optics(looks=3.6, floor_level=34.0, deep_slope=260, contrast=0.95, offset=4),
        "topcon_triton": Optics(looks=4.2, floor_level=30.0, deep_slope=150, contrast=0.95, offset=2),
        "zeiss_cirrus": Optics(looks=3.0, floor_level=30.0, deep_slope=270, contrast=0.9, offset=8),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquisition:
    """How well this scan went: gain (grey levels added to the signal) and speckle looks of the device."""

    optics: Optics
    gain: float


def draw_acquisition(rng: np.random.Generator, device: Device) -> Acquisition:
    """Signal strength varies between scans by some grey levels."""
    return Acquisition(optics=OPTICS[device], gain=float(np.clip(4 * rng.normal(), -8, 8)))


def intensity(level: Array) -> Array:
    """Linear intensity of a grey level."""
    return np.asarray(np.exp(level * np.float32(1 / SLOPE)))


def speckle(rng: np.random.Generator, looks: float, shape: tuple[int, int]) -> Array:
    """Speckle of mean 1, correlated between neighbouring A-scans.

    Averaging three A-scans by (1, 2, 1)/4 is worth 8/3 looks; the rest comes from the gamma distribution.

    Args:
        rng: the frame's own stream.
        looks: independent patterns averaged; relative variance is 1 / looks.
        shape: (rows, columns).

    Returns:
        float32 `[rows, columns]`.
    """
    order = np.float32(looks * 3 / 8)
    raw = rng.standard_gamma(order, (shape[0], shape[1] + 2), dtype=np.float32)
    summed = raw[:, :-2] + 2 * raw[:, 1:-1] + raw[:, 2:]
    return np.asarray(summed / (4 * order) + np.float32(1e-4), dtype=np.float32)


def compress(signal: Array, noise: Array, acquisition: Acquisition) -> npt.NDArray[np.uint8]:
    """Grey levels of a B-scan: log of (signal + floor) x speckle, windowed to 8 bits."""
    optics = acquisition.optics
    floor = np.float32(np.exp(optics.floor_level / SLOPE))
    gain = np.float32(np.exp(acquisition.gain / SLOPE))
    level = np.float32(SLOPE * optics.contrast) * np.log((signal * gain + floor) * noise) + np.float32(optics.offset)
    return np.asarray(np.clip(level, 0, 255).astype(np.uint8))
