import numpy as np
import pytest

from ingest.phantom.anatomy import effect_of, make_eye
from ingest.phantom.plan import CohortSpec, plan_cohort, realise
from ingest.phantom.protocols import PROTOCOLS
from ingest.phantom.render import render_volume, scan_grid


def scan(name, label=0, signal=1.0, laterality="R"):
    eye = make_eye(7, 3, laterality, effect_of(label, signal))
    return render_volume(PROTOCOLS[name].small(), eye, (7, 17, 5))


def bright_depth(profile):
    return int(np.argmax(profile))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_bscan_is_dark_above_bright_in_the_middle_and_fades_below(name):
    volume = scan(name)
    assert volume.dtype == np.uint8
    assert volume.shape == PROTOCOLS[name].small().shape
    profile = volume.mean(axis=(0, 2))
    peak = bright_depth(profile)
    assert 0.3 * len(profile) < peak < 0.75 * len(profile)
    assert profile[: len(profile) // 8].mean() < 0.5 * profile[peak]
    assert profile[-len(profile) // 12 :].mean() < 0.5 * profile[peak]


def test_same_seed_same_pixels_other_seed_other_speckle():
    protocol = PROTOCOLS["cirrus_mac_oct"].small()
    eye = make_eye(1, 1, "L", effect_of(1, 1.0))
    first = render_volume(protocol, eye, (1, 2))
    assert np.array_equal(first, render_volume(protocol, eye, (1, 2)))
    assert not np.array_equal(first, render_volume(protocol, eye, (1, 3)))


def test_other_speckle_is_the_same_scan_and_another_scan_is_not():
    (plan,) = plan_cohort(
        CohortSpec(participants=1, volumes_per_participant=1, devices=("topcon_maestro2",), small=True)
    )
    first, other, scan = (realise(plan, **again)[0].astype(int) for again in ({}, {"speckle": 1}, {"scan": 1}))
    assert np.array_equal(first, realise(plan)[0])
    assert abs(first - other).mean() > 3
    smooth, again, moved = (x.reshape(10, 2, 16, 8, 16, 8).mean(axis=(1, 3, 5)) for x in (first, other, scan))
    assert abs(smooth - again).mean() < 4
    assert abs(smooth - moved).mean() > 8


@pytest.mark.parametrize("name", ["maestro2_3d_macula_oct", "cirrus_disc_oct", "spectralis_onh_rc_hr_oct"])
def test_at_strength_zero_the_label_leaves_no_trace_in_any_voxel(name):
    assert np.array_equal(scan(name, label=0, signal=0.0), scan(name, label=3, signal=0.0))
    assert not np.array_equal(scan(name, label=0), scan(name, label=3))


def test_the_label_changes_tissue_but_not_the_random_stream():
    """The vitreous far above the retina keeps its very noise: nothing else tells the labels apart."""
    healthy, sick = scan("triton_macula_6x6_octa", label=0), scan("triton_macula_6x6_octa", label=3)
    assert np.array_equal(healthy[:, :20], sick[:, :20])
    assert np.abs(healthy.astype(int) - sick).mean() > 1


def upper_surface(volume):
    """Row of the steepest rise of the smoothed A-scans, per B-scan and A-scan."""
    smooth = np.apply_along_axis(np.convolve, 1, volume.astype(float), np.ones(5) / 5, "same")
    lateral = np.stack([np.roll(smooth, shift, axis=2) for shift in range(-2, 3)]).mean(axis=0)
    return np.argmax(lateral > 0.5 * lateral.max(axis=1, keepdims=True), axis=1)


def test_the_fovea_is_a_dip_at_the_centre_of_a_macular_scan():
    surface = upper_surface(scan("maestro2_3d_macula_oct"))
    middle = surface.shape[0] // 2
    center = np.median(surface[middle - 1 : middle + 2, 60:68])
    shoulders = np.median(surface[middle - 1 : middle + 2, [35, 36, 37, 90, 91, 92]])
    assert center > shoulders + 2


def test_eyes_are_mirrored_on_the_side_of_the_disc():
    """In the wide field the pigment epithelium is interrupted at the disc: right of the middle in a right eye."""

    def gap_side(laterality):
        volume = scan("maestro2_3d_wide_oct", laterality=laterality).astype(float)
        bright = volume.max(axis=1)[9:13].mean(axis=0)
        smooth = np.convolve(bright, np.ones(7) / 7, "same")[8:-8]
        return np.argmin(smooth) + 8 - 64

    assert gap_side("R") > 8
    assert gap_side("L") < -8


def test_radial_lines_share_a_centre():
    protocol = PROTOCOLS["spectralis_onh_rc_hr_oct"].small()
    grid = scan_grid(protocol)
    assert np.hypot(grid.x, grid.y).min(axis=1).max() < protocol.lateral_spacing_mm
    assert np.ptp(grid.y[protocol.num_frames // 2]) > 5
