"""Resampling against a float64 oracle, against SimpleITK in physical space, and for what it must keep or remove."""

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.errors import GeometryError
from ingest.geometry import BLOCK6, FIT, GEOMETRIES, METHODS, Geometry, load_geometry
from ingest.record import ScanGeometry
from ingest.resample import AxisPlan, plan_axis, plan_grid, resample

Floats = npt.NDArray[np.float64]


def scan(positions: Floats, axial: float, lateral: float) -> ScanGeometry:
    step = float(np.median(np.diff(positions)))
    return ScanGeometry(
        order=tuple(range(len(positions))),
        positions_mm=tuple(float(p) for p in positions),
        spacing_mm=(step, axial, lateral),
        spacing_min_mm=(step, axial, lateral),
        spacing_max_mm=(step, axial, lateral),
        source="test",
    )


def tent_weights(source: Floats, target: Floats, step: float) -> Floats:
    """The filter written down a second time, plainly: dense, float64."""
    edges = np.concatenate(
        [[1.5 * source[0] - 0.5 * source[1]], (source[1:] + source[:-1]) / 2, [1.5 * source[-1] - 0.5 * source[-2]]]
    )
    weights = np.zeros((len(target), len(source)))
    for row, center in enumerate(target):
        right = min(max(int(np.searchsorted(source, center)), 1), len(source) - 1)
        gap = source[right] - source[right - 1]
        if step <= gap:
            share = min(max((center - source[right - 1]) / gap, 0.0), 1.0)
            weights[row, right - 1], weights[row, right] = 1 - share, share
        else:
            weights[row] = np.clip(1 - np.abs(source - center) / step, 0, None) * np.diff(edges)
            weights[row] /= weights[row].sum()
    return weights


def dense(axis: AxisPlan) -> Floats:
    return axis.weights.toarray() / 2**15


small = Geometry(name="small", target_spacing_mm=(0.2, 0.02, 0.05), size=(8, 32, 32))


@pytest.mark.parametrize("geometry", [small, Geometry(name="fit", target_spacing_mm=None, size=(8, 32, 32))])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integer_arithmetic_stays_within_half_a_level_of_float64(geometry: Geometry, dtype: type) -> None:
    rng = np.random.default_rng(0)
    native = (11, 70, 50)
    frames = rng.integers(0, np.iinfo(dtype).max, native).astype(dtype)
    positions = np.cumsum(rng.uniform(0.1, 0.2, native[0]))
    plan = plan_grid(scan(positions, 0.011, 0.033), native, geometry, retina_mm=0.4)
    d, h, w = plan.axes
    found = resample(frames[d.first : d.last], plan)
    box = frames[d.first : d.last, h.first : h.last, w.first : w.last].astype(np.float64)
    oracle = np.einsum("ai,bj,ck,ijk->abc", dense(d), dense(h), dense(w), box, optimize=True)
    content = found[d.start : d.stop, h.start : h.stop, w.start : w.stop]
    assert np.abs(content - oracle).max() < 0.5 + 0.05
    outside = found.copy()
    outside[d.start : d.stop, h.start : h.stop, w.start : w.stop] = 0
    assert not outside.any()


@given(
    gaps=st.lists(st.floats(0.01, 0.3), min_size=8, max_size=40),
    step=st.floats(0.01, 0.5),
    count=st.integers(4, 40),
)
@settings(max_examples=60, deadline=None)
def test_weights_are_the_plain_filter_and_sum_to_one(gaps: list[float], step: float, count: int) -> None:
    source = np.cumsum(gaps)
    target = (source[0] + source[-1]) / 2 + (np.arange(count) - (count - 1) / 2) * step
    axis = plan_axis(source, target, step)
    weights = np.zeros((axis.stop - axis.start, len(source)))
    weights[:, axis.first : axis.last] = dense(axis)[:, : axis.last - axis.first]
    assert np.allclose(weights, tent_weights(source, target[axis.start : axis.stop], step), atol=len(source) * 2**-15)
    assert np.array_equal(np.asarray(axis.weights.sum(axis=1)).ravel(), np.full(len(weights), 2**15))


def test_constant_stays_constant_and_a_ramp_stays_a_ramp_on_uneven_positions() -> None:
    positions = np.array([0.0, 0.1, 0.25, 0.3, 0.5, 0.62, 0.7, 0.9, 1.0])
    grid = Geometry(name="fine", target_spacing_mm=(0.05, 0.02, 0.05), size=(16, 32, 32))
    native = (9, 40, 40)
    plan = plan_grid(scan(positions, 0.02, 0.05), native, grid, retina_mm=0.4)
    d = plan.axes[0]
    assert np.all(resample(np.full(native, 93, np.uint8)[d.first : d.last], plan)[plan.axes[0].start] <= 93)
    ramp = np.broadcast_to((positions * 200)[:, None, None], native).astype(np.uint16)
    found = resample(ramp[d.first : d.last], plan)
    centers = 0.5 + (np.arange(16) - 7.5) * 0.05
    rows = slice(plan.axes[1].start, plan.axes[1].stop)
    assert np.allclose(found[:, rows, 16].mean(axis=1), centers * 200, atol=1.5)


def test_downsampling_is_anti_aliased() -> None:
    """A tone of 0.43 cycles a sample folds into the layers when it is only picked or interpolated."""
    rows, ratio = 640, 5
    tone = np.broadcast_to(127 + 100 * np.cos(2 * np.pi * 0.43 * np.arange(rows))[None, :, None], (9, rows, 16))
    grid = Geometry(name="axial", target_spacing_mm=(0.1, 0.004 * ratio, 0.05), size=(8, 128, 16))
    plan = plan_grid(scan(np.arange(9) * 0.1, 0.004, 0.05), (9, rows, 16), grid, retina_mm=1.28)
    d, h, _ = plan.axes
    found = resample(tone[d.first : d.last].astype(np.uint8), plan)[4, h.start + 2 : h.stop - 2, 8].astype(float)
    plain = tone[4, ::ratio, 8]
    assert plain.std() > 60
    assert found.std() < 0.02 * plain.std()


def test_physical_space_agrees_with_simpleitk() -> None:
    """A smooth volume, upsampled: where plain linear interpolation is right, both must give the same tissue."""
    native = (12, 60, 40)
    d, h, w = np.meshgrid(*(np.linspace(0, 3, edge) for edge in native), indexing="ij")
    volume = (120 + 40 * np.sin(d) + 40 * np.cos(h) + 30 * np.sin(w)).astype(np.uint8)
    spacing = (0.25, 0.02, 0.1)
    grid = Geometry(name="up", target_spacing_mm=(0.1, 0.0125, 0.05), size=(24, 64, 64), anchor="center")
    plan = plan_grid(scan(np.arange(12) * 0.25, *spacing[1:]), native, grid, retina_mm=0.0)
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(spacing[::-1])
    reference = sitk.Image([64, 64, 24], sitk.sitkUInt8)
    reference.SetSpacing(plan.spacing_mm[::-1])
    middle = [(edge - 1) * step / 2 for edge, step in zip(native, spacing, strict=True)]
    half = [(edge - 1) * step / 2 for edge, step in zip(plan.size, plan.spacing_mm, strict=True)]
    reference.SetOrigin([m - s for m, s in zip(middle, half, strict=True)][::-1])
    oracle = sitk.GetArrayFromImage(sitk.Resample(image, reference, sitk.Transform(), sitk.sitkLinear))
    found = resample(volume[plan.axes[0].first : plan.axes[0].last], plan)
    inner = np.s_[4:-4, 6:-6, 6:-6]
    assert np.abs(found[inner].astype(int) - oracle[inner].astype(int)).max() <= 1


@pytest.mark.parametrize("name", GEOMETRIES)
def test_content_and_padding_of_a_macula_cube(name: str) -> None:
    native = (128, 885, 512)
    plan = plan_grid(scan(np.arange(128) * 6 / 127, 0.0026, 6 / 512), native, GEOMETRIES[name], retina_mm=1.1)
    share = np.prod([(stop - start) / edge for (start, stop), edge in zip(plan.content_box, plan.size, strict=True)])
    expected = {"methods": 0.22, "block6": 1.0, "fit": 1.0}[name]
    assert share == pytest.approx(expected, abs=0.03)
    assert plan.axes[1].cropped == pytest.approx(0.0, abs=0.01)


def test_methods_needs_half_of_the_bscans_only() -> None:
    plan = plan_grid(scan(np.arange(128) * 6 / 127, 0.0026, 6 / 512), (128, 885, 512), METHODS, retina_mm=1.1)
    d = plan.axes[0]
    assert d.last - d.first == pytest.approx(3.2 / (6 / 127), abs=3)
    assert plan.axes[0].cropped == pytest.approx(1 - 3.2 / 6, abs=0.02)


def test_block6_is_clamped_to_the_scan_and_centred_on_the_retina() -> None:
    deep = scan(np.arange(128) * 6 / 127, 0.004, 6 / 512)
    native = (128, 885, 512)
    for retina, top in ((0.1, 0.0), (1.7, 1.7 - 1.15), (3.5, 885 * 0.004 - 2.3)):
        h = plan_grid(deep, native, BLOCK6, retina_mm=retina).axes[1]
        assert (h.start, h.stop) == (0, 384)
        assert h.first * 0.004 == pytest.approx(top, abs=0.01)


def test_fit_records_its_own_spacing() -> None:
    plan = plan_grid(scan(np.arange(20) * 0.3, 0.01, 0.05), (20, 200, 100), FIT, retina_mm=1.0)
    assert plan.spacing_mm == pytest.approx((6.0 / 64, 2.0 / 384, 5.0 / 384))


def test_bad_geometries_are_refused_in_one_sentence() -> None:
    for name in ("blok6", "missing.yaml"):
        with pytest.raises(GeometryError, match="geometry"):
            load_geometry(name)
    with pytest.raises(GeometryError, match="voxels"):
        Geometry(name="huge", target_spacing_mm=(1e-3, 1e-3, 1e-3), size=(4096, 4096, 4096))
    with pytest.raises(GeometryError, match="positive"):
        Geometry(name="negative", target_spacing_mm=(0.05, -1.0, 0.02))
