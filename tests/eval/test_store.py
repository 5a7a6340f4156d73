"""Embeddings on disk: what goes in comes out, whole or not at all."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from eval.errors import EmbeddingsError, PlaceError
from eval.store import TEXT_COLUMNS, Embeddings, read_attributes, read_embeddings, write_embeddings


def embeddings(num_volumes: int = 5, **attributes: Any) -> Embeddings:
    columns = {name: tuple(f"{name}-{place} é" for place in range(num_volumes)) for name in TEXT_COLUMNS}
    columns["study_group"] = ("",) * num_volumes
    generator = np.random.default_rng(0)
    return Embeddings(
        features=generator.normal(size=(num_volumes, 7)).astype(np.float32),
        intensity=generator.normal(size=(num_volumes, 6)).astype(np.float32),
        columns=columns,
        attributes={"encoder": "target", "checkpoint_step": 3, **attributes},
    )


def test_a_store_gives_back_what_went_in(tmp_path: Path) -> None:
    written = embeddings()
    write_embeddings(tmp_path / "e.zarr", written)
    read = read_embeddings(tmp_path / "e.zarr")
    assert np.array_equal(read.features, written.features)
    assert read.features.dtype == np.float32
    assert np.array_equal(read.intensity, written.intensity)
    assert dict(read.columns) == dict(written.columns)
    assert read.attributes == written.attributes
    assert read.volumes()[2].key == "key-2 é"
    assert read.volumes()[2].study_group is None


def test_the_store_is_a_plain_zarr_v3_group_without_pickled_objects(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "e.zarr", embeddings())
    group = zarr.open_group(tmp_path / "e.zarr", mode="r")
    assert group.metadata.zarr_format == 3
    assert {name: str(array.metadata.data_type.to_json(zarr_format=3)) for name, array in group.arrays()} == {
        "features": "float32",
        "intensity": "float32",
        **dict.fromkeys(TEXT_COLUMNS, "string"),
    }


def test_other_embeddings_are_not_overwritten_without_force(tmp_path: Path) -> None:
    path = tmp_path / "e.zarr"
    write_embeddings(path, embeddings())
    write_embeddings(path, embeddings())
    with pytest.raises(EmbeddingsError, match=r"holds other embeddings \(checkpoint_step, dataset differ\)") as caught:
        write_embeddings(path, embeddings(4, checkpoint_step=9, dataset="d"))
    assert caught.value.exit_code == 2
    assert len(read_embeddings(path).features) == 5
    write_embeddings(path, embeddings(4, checkpoint_step=9), force=True)
    assert len(read_embeddings(path).features) == 4
    assert [one.name for one in tmp_path.iterdir()] == ["e.zarr"]


def test_of_a_link_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    link, target = tmp_path / "link.zarr", tmp_path / "elsewhere" / "e.zarr"
    link.symlink_to(target)
    for num_volumes in (5, 4):  # made, and replaced
        write_embeddings(link, embeddings(num_volumes))
        assert link.is_symlink()
        assert len(read_embeddings(target).features) == num_volumes
    assert {path.name for folder in (tmp_path, target.parent) for path in folder.iterdir()} == {
        "link.zarr",
        "elsewhere",
        "e.zarr",
    }


def test_a_store_whose_folder_takes_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is replaced from beside it, so its own folder does not matter."""
    path = tmp_path / "e.zarr"
    write_embeddings(path, embeddings())
    tried: list[Path] = []

    def refuse(*, dir: Path) -> None:  # noqa: A002
        tried.append(dir)
        raise PermissionError(13, "Permission denied", str(dir / "hidden"))

    monkeypatch.setattr("eval.place.TemporaryFile", refuse)
    with pytest.raises(PlaceError, match=rf"^{path} cannot be written \(Permission denied\): choose another --out\.$"):
        write_embeddings(path, embeddings())
    assert tried == [tmp_path]


def test_where_the_new_store_gets_no_name_the_old_one_keeps_its(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "e.zarr"
    write_embeddings(path, embeddings())
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".new"):
            raise OSError("stale file handle")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="stale file handle"):
        write_embeddings(path, embeddings(4), force=True)
    assert len(read_embeddings(path).features) == 5
    assert [one.name for one in tmp_path.iterdir()] == ["e.zarr"]


def test_a_folder_that_is_no_store_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "file").write_bytes(b"text")
    zarr.open_group(tmp_path / "other.zarr", mode="w")
    for name, sentence in (
        ("photos", "not a zarr group"),
        ("file", "not a zarr group"),
        ("other.zarr", "no embeddings"),
    ):
        with pytest.raises(EmbeddingsError, match="exists and holds no embeddings"):
            write_embeddings(tmp_path / name, embeddings(), force=True)
        with pytest.raises(EmbeddingsError, match=sentence):
            read_embeddings(tmp_path / name)
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"
    with pytest.raises(EmbeddingsError, match="not a zarr group"):
        read_embeddings(tmp_path / "nowhere")


def test_a_write_that_fails_leaves_the_old_store_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "e.zarr"
    write_embeddings(path, embeddings())

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(zarr.Group, "create_array", full)
    with pytest.raises(OSError, match="no space"):
        write_embeddings(path, embeddings())
    assert [one.name for one in tmp_path.iterdir()] == ["e.zarr"]
    assert read_attributes(path) == embeddings().attributes


def test_features_that_are_not_finite_and_columns_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    one = embeddings()
    with pytest.raises(EmbeddingsError, match="1 of 5 feature vectors are not finite"):
        Embeddings(
            features=np.where(np.arange(5)[:, None] == 2, np.nan, one.features),
            intensity=one.intensity,
            columns=one.columns,
            attributes={},
        )
    with pytest.raises(EmbeddingsError, match="all of one length"):
        Embeddings(features=one.features[:3], intensity=one.intensity, columns=one.columns, attributes={})
    with pytest.raises(EmbeddingsError, match="a sample key twice"):
        Embeddings(
            features=one.features,
            intensity=one.intensity,
            columns={**one.columns, "key": ("same",) * 5},
            attributes={},
        )


def test_a_store_that_lost_an_array_is_refused(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "e.zarr", embeddings())
    del zarr.open_group(tmp_path / "e.zarr", mode="a")["split"]
    with pytest.raises(EmbeddingsError, match="lacks split"):
        read_embeddings(tmp_path / "e.zarr")


@pytest.mark.parametrize("chunk", ["features/c/0/0", "intensity/c/0/0", "split/c/0", "features/zarr.json"])
def test_a_store_that_is_not_as_it_was_written_is_refused(tmp_path: Path, chunk: str) -> None:
    """A missing chunk would be zeros, or empty texts; a flipped bit, other numbers."""
    path = tmp_path / "e.zarr"
    write_embeddings(path, embeddings())
    whole = (path / chunk).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:-9] + b"\x01" + whole[-8:]):
        (path / chunk).write_bytes(damaged)
        with pytest.raises(EmbeddingsError, match="make it again with `fovea embed`"):
            read_embeddings(path)
    (path / chunk).unlink()
    with pytest.raises(EmbeddingsError, match="make it again with `fovea embed`"):
        read_embeddings(path)
