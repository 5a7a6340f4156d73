import pytest

from ingest.phantom.errors import PhantomError
from ingest.phantom.protocols import PROTOCOLS, TRANSFER_SYNTAXES, true_spacing_mm
from shards.schema import DEVICES

RASTERS = [name for name, protocol in PROTOCOLS.items() if protocol.raster]


def test_table_has_the_thirteen_documented_protocols():
    assert len(PROTOCOLS) == 13
    assert {protocol.device for protocol in PROTOCOLS.values()} == set(DEVICES) == set(TRANSFER_SYNTAXES)
    assert [name for name in PROTOCOLS if name not in RASTERS] == ["spectralis_onh_rc_hr_oct"]


@pytest.mark.parametrize(
    ("name", "step", "lateral"),
    [
        ("spectralis_ppol_mac_hr_oct", 0.128, 9.3 / 768),
        ("spectralis_mac_20x20_hs_octa", 0.0114, 5.8 / 512),
        ("maestro2_3d_macula_oct", 6 / 127, 6 / 512),
        ("maestro2_3d_wide_oct", 9 / 127, 12 / 512),
        ("maestro2_macula_6x6_octa", 6 / 360, 6 / 360),
        ("triton_3d_radial_oct", 0.0352, 12 / 512),
        ("triton_macula_6x6_octa", 0.01875, 0.01875),
        ("triton_macula_12x12_octa", 0.0234375, 0.0234375),
        ("cirrus_mac_oct", 6 / 128, 6 / 512),
        ("cirrus_disc_oct", 6 / 200, 6 / 200),
        ("cirrus_macula_6x6_octa", 6 / 350, 6 / 350),
        ("cirrus_disc_6x6_octa", 6 / 350, 6 / 350),
    ],
)
def test_true_spacing_is_the_documented_one(name, step, lateral):
    found = true_spacing_mm(PROTOCOLS[name])
    assert found[0] == pytest.approx(step, rel=0.01)
    assert found[2] == pytest.approx(lateral, rel=1e-9)


@pytest.mark.parametrize("name", RASTERS)
def test_small_keeps_the_field_of_view(name):
    full, small = PROTOCOLS[name], PROTOCOLS[name].small()
    assert 16 <= small.num_frames <= 24
    assert small.shape[1:] == (128, 128)
    assert small.rows * small.axial_spacing_mm == pytest.approx(full.rows * full.axial_spacing_mm)
    assert small.columns * small.lateral_spacing_mm == pytest.approx(full.fov_lateral_mm)
    gaps = small.num_frames - (1 if small.spans_ends else 0)
    assert gaps * small.bscan_step_mm == pytest.approx(full.fov_slow_mm)


def test_a_radial_scan_has_no_spacing_as_a_volume():
    with pytest.raises(PhantomError, match="radial"):
        true_spacing_mm(PROTOCOLS["spectralis_onh_rc_hr_oct"])
