import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import SchemaError
from shards.schema import GRID_SHAPE, PATCH_SHAPE, Sample, SampleMeta, content_token_mask, shard_name

SMALL = (8, 32, 32)


def test_meta_survives_json(make_sample):
    meta = make_sample(3, SMALL, warnings=("SPACING_FROM_MANIFEST",), age=None).meta
    assert SampleMeta.from_mapping(json.loads(meta.to_json())) == meta


def test_meta_json_depends_on_values_only(make_sample):
    meta = make_sample(3, SMALL).meta
    shuffled = dict(reversed(json.loads(meta.to_json()).items()))
    assert SampleMeta.from_mapping(shuffled).to_json() == meta.to_json()


@pytest.mark.parametrize(
    "key", ["1001.2-d-R-p-0123456789", "1001-d-R-p", "a/b-d-R-p-0123456789", "1001-d-R-p-012345678G"]
)
def test_a_key_that_webdataset_would_cut_is_refused(make_sample, key):
    with pytest.raises(SchemaError, match="without dots"):
        make_sample(0, SMALL, key=key)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"schema_version": 2}, "schema version 2, this code reads 1"),
        ({"patient_name": "x"}, "does not fit the schema"),
        ({"intensity": None}, "does not fit the schema"),
        ({"split": "validation"}, "split 'validation'"),
    ],
)
def test_other_metadata_is_refused(make_sample, changes, sentence):
    values = json.loads(make_sample(0, SMALL).meta.to_json())
    with pytest.raises(SchemaError, match=sentence):
        SampleMeta.from_mapping({**values, **changes})


def test_missing_metadata_is_refused(make_sample):
    values = json.loads(make_sample(0, SMALL).meta.to_json())
    del values["participant_id"]
    with pytest.raises(SchemaError, match="participant_id"):
        SampleMeta.from_mapping(values)


def test_there_is_no_default_spacing(make_sample):
    required = {field.name for field in dataclasses.fields(SampleMeta) if field.default is dataclasses.MISSING}
    assert {"spacing_mm", "native_spacing_mm", "spacing_source"} <= required
    for bad in (0.0, -0.02, float("nan"), float("inf")):
        with pytest.raises(SchemaError, match="finite and positive"):
            make_sample(0, SMALL, spacing_mm=(0.05, bad, 0.02))


@pytest.mark.parametrize("volume", [np.zeros(SMALL, np.float32), np.zeros((8, 32), np.uint8), np.zeros(SMALL, np.int8)])
def test_a_sample_is_a_small_integer_volume(make_sample, volume):
    with pytest.raises(SchemaError, match="uint8 or uint16"):
        Sample(meta=make_sample(0, SMALL).meta, volume=volume)


def test_content_lies_inside_the_volume(make_sample):
    with pytest.raises(SchemaError, match="not inside"):
        make_sample(0, SMALL, content_box=((0, 9), (0, 32), (0, 32)))


def test_shard_names():
    assert shard_name("train", "topcon_triton", 3) == "train-topcon_triton-00003.tar"


@st.composite
def boxes(draw):
    axes = []
    for size in GRID_SHAPE:
        start = draw(st.integers(0, size))
        axes.append((start, draw(st.integers(start, size))))
    return tuple(axes)


@given(boxes(), st.sampled_from([1, 2]))
def test_a_token_counts_when_half_of_each_axis_is_content(box, pool):
    mask = content_token_mask(box, pool=pool)
    assert mask.shape == tuple(size // pool // edge for size, edge in zip(GRID_SHAPE, PATCH_SHAPE, strict=True))
    for axis, ((start, stop), edge) in enumerate(zip(box, PATCH_SHAPE, strict=True)):
        inside = np.zeros(GRID_SHAPE[axis], bool)
        inside[start:stop] = True
        half = inside.reshape(-1, edge * pool).mean(axis=1) >= 0.5
        other_axes = tuple(other for other in range(3) if other != axis)
        assert not (mask.any(axis=other_axes) & ~half).any()
        if mask.any():
            np.testing.assert_array_equal(mask.any(axis=other_axes), half)


def test_a_full_box_is_every_token():
    assert content_token_mask(((0, 64), (0, 384), (0, 384))).sum() == 9216


def test_a_grid_is_a_whole_number_of_tokens():
    with pytest.raises(SchemaError, match="whole number"):
        content_token_mask(((0, 6), (0, 32), (0, 32)), grid_shape=(6, 32, 32))
