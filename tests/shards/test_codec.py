"""The shard format. `python tests/shards/test_codec.py` prints the golden sha256 anew."""

import hashlib
import io
import sys
import tarfile

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from shards.codec import ShardWriter, decode_meta, decode_volume, encode_volume, sample_sha256
from shards.errors import SchemaError
from shards.schema import IntensityStats, Sample, SampleMeta

SMALL = (8, 32, 32)
SHARD = "train-topcon_maestro2-00000.tar"
GOLDEN_SHA256 = "a022fb20cfb6e67fdd3eeb948ddb71ed821a21155ce63c5df9b58c7138d1a353"

volumes = npst.arrays(
    dtype=st.sampled_from([np.uint8, np.uint16, np.dtype(">u2")]),
    shape=npst.array_shapes(min_dims=3, max_dims=3, max_side=5),
)


def write(samples, file=None):
    file = file or io.BytesIO()
    with ShardWriter(file, SHARD) as writer:
        rows = [writer.add(sample) for sample in samples]
    return file.getvalue(), rows


def golden_sample(number):
    key = f"100{number}-topcon_maestro2-R-maestro2_3d_macula_oct-0123456789"
    meta = SampleMeta(
        key=key,
        participant_id=f"100{number}",
        device="topcon_maestro2",
        manufacturer_model="Maestro2",
        protocol="maestro2_3d_macula_oct",
        anatomic_region="Macula",
        laterality="R",
        split="train",
        native_shape=(4, 8, 8),
        native_spacing_mm=(0.05, 0.0026, 0.0117),
        native_spacing_min_mm=(0.05, 0.0026, 0.0117),
        native_spacing_max_mm=(0.05, 0.0026, 0.0117),
        bscan_positions_mm=(0.0, 0.05, 0.1, 0.15),
        spacing_source="plane_positions",
        spacing_mm=(0.09375, 0.006, 0.015625),
        geometry="block6",
        retina_center_mm=0.01,
        content_box=((0, 4), (0, 8), (0, 8)),
        content_tokens=1,
        cropped_fraction=(0.0, 0.0, 0.0),
        padded_fraction=(0.0, 0.0, 0.0),
        num_frames_decoded=4,
        intensity=IntensityStats(mean=1.5, std=0.5, min=0.0, max=255.0, p01=0.0, p99=250.0),
    )
    dtype = (np.uint8, np.uint16)[number % 2]
    return Sample(meta=meta, volume=(np.arange(256).reshape(4, 8, 8) + number).astype(dtype))


@given(volumes)
def test_volumes_round_trip(volume):
    decoded = decode_volume(encode_volume(volume))
    np.testing.assert_array_equal(decoded, volume)
    assert decoded.dtype in (np.dtype("|u1"), np.dtype("<u2"))


def test_numpy_reads_what_we_write_and_we_read_what_numpy_writes():
    volume = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    np.testing.assert_array_equal(np.load(io.BytesIO(encode_volume(volume)), allow_pickle=False), volume)
    file = io.BytesIO()
    np.save(file, volume)
    np.testing.assert_array_equal(decode_volume(file.getvalue()), volume)


def test_volumes_are_stored_in_c_order_whatever_the_order_in_memory():
    volume = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert encode_volume(np.asfortranarray(volume)) == encode_volume(volume)


def test_decoding_copies_nothing():
    payload = bytearray(encode_volume(np.zeros((2, 3, 4), np.uint8)))
    volume = decode_volume(payload)
    payload[-1] = 7
    assert volume[-1, -1, -1] == 7
    assert volume.flags.writeable


class Trap:
    """Unpickling this ends the test run."""

    def __reduce__(self):
        return sys.exit, (1,)


def saved(array, **kwargs):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **kwargs)
    return file.getvalue()


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        (saved(np.array([[[Trap()]]], dtype=object), allow_pickle=True), r"'descr': '\|O'"),
        (saved(np.zeros((2, 3, 4), np.float32)), "<f4"),
        (saved(np.zeros((2, 3, 4), np.int16)), "<i2"),
        (saved(np.zeros((2, 3, 4), ">u2")), ">u2"),
        (saved(np.zeros((2, 3), np.uint8)), r"\(2, 3\)"),
        (saved(np.asfortranarray(np.zeros((2, 3, 4), np.uint8))), "'fortran_order': True"),
        (saved(np.zeros((2, 3, 4), np.uint8), version=(2, 0)), r"NUMPY\\x02\\x00"),
        (saved(np.zeros((2, 3, 4), np.uint8))[:-1], "has 151 bytes; .* takes 152"),
        (saved(np.zeros((2, 3, 4), np.uint8)) + b"x", "has 153 bytes; .* takes 152"),
        (saved(np.zeros((2, 3, 4), np.uint8))[:40], "its header is"),
        (saved(np.zeros((2, 0, 4), np.uint8)), r"\(2, 0, 4\)"),
        (b"", "its header is b''"),
        (b"not an array", "its header is"),
    ],
)
def test_anything_but_a_plain_volume_is_refused(payload, sentence):
    with pytest.raises(SchemaError, match=sentence):
        decode_volume(payload)


@given(st.binary(max_size=200), st.integers(0, 151))
def test_damaged_headers_are_refused_or_harmless(noise, start):
    payload = bytearray(encode_volume(np.zeros((2, 3, 4), np.uint8)))
    payload[start : start + len(noise)] = noise
    try:
        volume = decode_volume(payload)
    except SchemaError:
        return
    assert volume.ndim == 3
    assert volume.dtype in (np.uint8, np.uint16)


@pytest.mark.parametrize("array", [np.zeros((2, 3, 4)), np.zeros((2, 0, 4), np.uint8), np.zeros((2, 3), np.uint8)])
def test_other_arrays_are_not_written(array):
    with pytest.raises(SchemaError, match="a stored volume is uint8 or uint16"):
        encode_volume(array)


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff", b"[]", b"null"])
def test_metadata_that_is_no_object_is_refused(payload):
    with pytest.raises(SchemaError, match=r"meta\.json"):
        decode_meta(payload)


def test_rows_say_where_the_payloads_lie(make_sample):
    samples = sorted((make_sample(number, SMALL) for number in range(4)), key=lambda sample: sample.key)
    data, rows = write(samples)
    for sample, row in zip(samples, rows, strict=True):
        meta = data[row.meta_offset :][: row.meta_bytes]
        volume = data[row.volume_offset :][: row.volume_bytes]
        assert decode_meta(meta) == sample.meta
        np.testing.assert_array_equal(decode_volume(volume), sample.volume)
        assert row.sha256 == sample_sha256(volume, meta) == hashlib.sha256(volume + meta).hexdigest()
        assert (row.key, row.shard, row.split) == (sample.key, SHARD, sample.meta.split)
        assert (row.spacing_d_mm, row.spacing_h_mm, row.spacing_w_mm) == sample.meta.spacing_mm


def test_members_are_plain_ustar_without_time_or_owner(make_sample):
    data, rows = write([make_sample(0, SMALL)])
    assert data[257:265] == b"ustar\x0000"
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == [f"{rows[0].key}.meta.json", f"{rows[0].key}.volume.npy"]
    assert [member.offset_data for member in members] == [rows[0].meta_offset, rows[0].volume_offset]
    for member in members:
        assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
        assert (member.mode, member.isreg()) == (0o644, True)


def test_the_same_samples_give_the_same_bytes(make_sample):
    first, _ = write([make_sample(0, SMALL)])
    second, _ = write([make_sample(0, SMALL)])
    assert first == second


def golden_shard():
    return hashlib.sha256(write([golden_sample(0), golden_sample(1)])[0]).hexdigest()


def test_golden_shard():
    assert golden_shard() == GOLDEN_SHA256


@pytest.mark.filterwarnings(
    # webdataset 1.0.2 leaves the local files that it read for the garbage collector to close.
    "ignore:Exception ignored in. <_io.FileIO name=.*tar:pytest.PytestUnraisableExceptionWarning"
)
def test_stock_webdataset_reads_a_shard(make_sample, tmp_path):
    samples = sorted((make_sample(number, SMALL) for number in range(4)), key=lambda sample: sample.key)
    path = tmp_path / SHARD
    path.write_bytes(write(samples)[0])
    read = list(webdataset.WebDataset(str(path), shardshuffle=False).decode())
    assert [item["__key__"] for item in read] == [sample.key for sample in samples]
    for item, sample in zip(read, samples, strict=True):
        np.testing.assert_array_equal(item["volume.npy"], sample.volume)
        assert item["meta.json"]["participant_id"] == sample.meta.participant_id
        assert set(item) == {"__key__", "__url__", "volume.npy", "meta.json"} | set(item) & {"__local_path__"}


def test_keys_must_increase(make_sample):
    first, second = sorted((make_sample(number, SMALL) for number in range(2)), key=lambda sample: sample.key)
    writer = ShardWriter(io.BytesIO(), SHARD)
    writer.add(second)
    for sample in (first, second):
        with pytest.raises(SchemaError, match="increasing key order"):
            writer.add(sample)


def test_a_key_too_long_for_ustar_is_refused(make_sample):
    key = f"1001-topcon_maestro2-R-{'x' * 300}-0123456789"
    with pytest.raises(SchemaError, match="does not fit a USTAR header"):
        write([make_sample(0, SMALL, key=key)])


def test_a_shard_that_failed_has_no_end(make_sample):
    file = io.BytesIO()
    sample = make_sample(0, SMALL)
    with pytest.raises(SchemaError, match="increasing"):
        write([sample, sample], file)
    whole, rows = write([sample])
    assert len(file.getvalue()) == rows[0].volume_offset + -(-rows[0].volume_bytes // 512) * 512
    assert len(file.getvalue()) < len(whole)
    assert not file.closed


if __name__ == "__main__":
    sys.stdout.write(golden_shard() + "\n")
