"""Discovery: the union of listing and manifest, archives opened safely, nothing lost."""

import io
import os
import zipfile
from pathlib import Path

import fsspec
import pytest

from ingest.errors import IngestError, SourceError
from ingest.reader import SourceReader
from ingest.source import discover, find_participants, is_candidate
from manifests.reasons import Reason

MANIFEST = "person_id\tfilepath\tpixel_spacing\tslice_thickness\tanatomic_region\n"


def fill(root: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name", ["a.dcm", "A.DCM", "b.dicom", "plain", "1.2.840.10008.42", "x/y/z.Dcm", "a.dcm ", "a.dcm\n", " ", "a."]
)
def test_names_that_may_be_dicom(name: str) -> None:
    assert is_candidate(name)


@pytest.mark.parametrize("name", ["manifest.tsv", "a.png", ".DS_Store", "x.tar.gz", "a.dcm.json"])
def test_names_that_are_not(name: str) -> None:
    assert not is_candidate(name)


def test_every_file_is_an_entry_a_settled_row_or_counted(tmp_path: Path) -> None:
    source = fill(
        tmp_path, {"a.dcm": b"1", "sub/B": b"22", "c.zip": archive({"d.dcm": b"333", "e.txt": b"4"}), "f.png": b""}
    )
    found = discover(source)
    assert [(entry.path, entry.bytes) for entry in found.entries] == [("a.dcm", 1), ("c.zip!d.dcm", 3), ("sub/B", 2)]
    assert [(row.path, row.reason) for row in found.settled] == [("c.zip", Reason.OUTSIDE_FILTER)]
    assert found.other_files == {".png": 1}
    assert SourceReader(source).read("c.zip!d.dcm") == b"333"
    assert len(SourceReader(source).sha256("sub/B")) == 64


@pytest.mark.parametrize("prefix", ["", "dataset/"])
def test_manifest_is_joined_wherever_it_lies(tmp_path: Path, prefix: str) -> None:
    rows = (
        "1001\t/retinal_oct/structural_oct/x/1001/a.dcm\t[0.1, 0.2]\t0.05\tMacula\n1001\t/retinal_oct/gone.dcm\t\t\t\n"
    )
    source = fill(
        tmp_path,
        {
            f"{prefix}retinal_oct/manifest.tsv": (MANIFEST + rows).encode(),
            f"{prefix}retinal_oct/structural_oct/x/1001/a.dcm": b"1",
            f"{prefix}retinal_oct/structural_oct/x/1001/unlisted.dcm": b"1",
        },
    )
    found = discover(source)
    manifests = {entry.path: entry.manifest for entry in found.entries}
    listed = manifests[f"{prefix}retinal_oct/structural_oct/x/1001/a.dcm"]
    assert listed is not None
    assert (listed.pixel_spacing, listed.slice_thickness, listed.anatomic_region) == ("[0.1, 0.2]", "0.05", "Macula")
    assert manifests[f"{prefix}retinal_oct/structural_oct/x/1001/unlisted.dcm"] is None
    assert [(row.path, row.reason) for row in found.settled] == [(f"{prefix}retinal_oct/gone.dcm", Reason.FILE_MISSING)]


def test_source_may_be_the_retinal_oct_folder_itself(tmp_path: Path) -> None:
    rows = "1001\t/retinal_oct/structural_oct/a.dcm\t\t0.05\t\n1001\t/retinal_oct/structural_oct/gone.dcm\t\t\t\n"
    source = fill(tmp_path, {"manifest.tsv": (MANIFEST + rows).encode(), "structural_oct/a.dcm": b"1"})
    found = discover(source)
    assert found.entries[0].manifest is not None
    assert [row.reason for row in found.settled] == [Reason.FILE_MISSING]


def test_listed_files_in_an_archive_are_not_missing(tmp_path: Path) -> None:
    rows = "1001\t/retinal_oct/structural_oct/zeiss_cirrus/1001/1001_a_l_1.2.dcm\t\t0.05\t\n"
    source = fill(
        tmp_path,
        {"manifest.tsv": (MANIFEST + rows).encode(), "zeiss_cirrus.zip": archive({"1001/1001_a_l_1.2.dcm": b"1"})},
    )
    found = discover(source)
    assert [row.reason for row in found.settled] == [Reason.OUTSIDE_FILTER]
    assert found.entries[0].manifest is not None


def test_listed_files_in_an_unsafe_archive_are_not_missing(tmp_path: Path) -> None:
    rows = "1001\t/retinal_oct/structural_oct/1001_a_l_1.2.dcm\t\t0.05\t\n"
    members = {"1001_a_l_1.2.dcm": b"1", "../x.dcm": b"2"}
    source = fill(tmp_path, {"manifest.tsv": (MANIFEST + rows).encode(), "a.zip": archive(members)})
    assert {row.reason for row in discover(source).settled} == {Reason.ZIP_UNSAFE}


@pytest.mark.parametrize("listed", ["./a.dcm", "/a.dcm", "//a.dcm", "a.zip", "notes.txt", "a.zip!b.dcm", "."])
def test_however_a_file_is_listed_it_has_one_row(listed: str, tmp_path: Path) -> None:
    """Two rows for one path end the job."""
    manifest = f"{MANIFEST}1001\t{listed}\t\t0.05\t\n"
    files = {"a.dcm": b"1", "a.zip": archive({"b.dcm": b"2"}), "notes.txt": b"3", "manifest.tsv": manifest.encode()}
    found = discover(fill(tmp_path, files))
    assert [entry.path for entry in found.entries] == ["a.dcm", "a.zip!b.dcm"]
    assert [row.path for row in found.settled] == ["a.zip"]
    assert (found.entries[0].manifest is not None) is (listed in {"./a.dcm", "/a.dcm", "//a.dcm"})


def test_extensions_that_nobody_knows_are_counted_together(tmp_path: Path) -> None:
    source = fill(tmp_path, {"a.dcm": b"", "b.TSV": b"", "scan.Jane Doe": b"", "c.doe": b"", ".hidden": b""})
    assert discover(source).other_files == {"": 1, ".tsv": 1, "other": 2}


def test_more_than_a_thousand_files_are_listed(tmp_path: Path) -> None:
    """PREDECESSOR 6: the listing stopped at 1000 keys a prefix."""
    source = fill(tmp_path, {f"{number:04d}.dcm": b"" for number in range(1234)})
    assert len(discover(source).entries) == 1234


def test_damaged_archive_and_damaged_member_are_told(tmp_path: Path) -> None:
    whole = archive({"a.dcm": bytes(range(256)) * 8})
    source = fill(tmp_path, {"cut.zip": whole[:-30], "bad.zip": whole[:60] + b"\x00\xff" + whole[62:]})
    rows = {row.path: row.reason for row in discover(source).settled}
    assert rows == {"bad.zip": Reason.OUTSIDE_FILTER, "cut.zip": Reason.ZIP_INVALID_OR_TRUNCATED}
    with pytest.raises(IngestError) as caught:
        SourceReader(source).read("bad.zip!a.dcm")
    assert caught.value.reason is Reason.ZIP_INVALID_OR_TRUNCATED


def test_a_store_that_gives_no_bytes_is_not_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fill(tmp_path, {"a.dcm": b"1"})

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(type(fsspec.filesystem("file")), "_open", refuse)
    with pytest.raises(IngestError) as caught:
        SourceReader(source).read("a.dcm")
    assert caught.value.reason is Reason.IO_UNREADABLE


def test_sources_that_cannot_be_used_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a folder"):
        discover(str(tmp_path / "nowhere"))
    for data in (b"filepath\n" + b"x" * 200_000, b"filepath\n\xff"):
        fill(tmp_path, {"retinal_oct/manifest.tsv": data})
        with pytest.raises(SourceError, match="as a table in UTF-8"):
            discover(str(tmp_path))


def test_what_the_system_says_of_a_listing_names_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/data/Jane_Doe")

    monkeypatch.setattr(type(fsspec.filesystem("file")), "find", refuse)
    with pytest.raises(SourceError, match="Permission denied") as caught:
        discover(str(tmp_path))
    assert "Jane" not in str(caught.value)


def test_the_cohort_table_nearest_to_the_top_is_found(tmp_path: Path) -> None:
    source = fill(tmp_path, {"dataset/participants.tsv": b"", "dataset/old/participants.tsv": b""})
    assert find_participants(source) == f"{source}/dataset/participants.tsv"


def test_tables_of_other_folders_are_not_this_cohorts(tmp_path: Path) -> None:
    """Each folder of AI-READI has a manifest.tsv: of electrocardiograms, of photographs."""
    source = fill(
        tmp_path,
        {
            "cardiac_ecg/manifest.tsv": b"wfdb_hea_filepath\n/cardiac_ecg/x.hea\n",
            "retinal_photography/manifest.tsv": b"filepath\n/retinal_photography/x.dcm\n",
            "retinal_oct/manifest.tsv": b"filepath\n/retinal_oct/a.dcm\n/retinal_oct/b.dcm\n",
            "retinal_oct/a.dcm": b"1",
        },
    )
    found = discover(source)
    assert [entry.path for entry in found.entries] == ["retinal_oct/a.dcm"]
    assert [(row.path, row.reason) for row in found.settled] == [("retinal_oct/b.dcm", Reason.FILE_MISSING)]


def test_links_to_folders_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    """1.3 TB often lie on another disk than the cohort's folder."""
    source = fill(tmp_path / "source", {"retinal_oct/a.dcm": b"1"})
    fill(tmp_path / "disk", {"1001/b.dcm": b"22", "1001/deep/c.dcm": b"333"})
    (tmp_path / "source/retinal_oct/topcon").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/1001/circle").symlink_to(tmp_path / "source")
    found = {entry.path: entry.bytes for entry in discover(source).entries}
    prefix = "retinal_oct/topcon/1001"
    assert found == {"retinal_oct/a.dcm": 1, f"{prefix}/b.dcm": 2, f"{prefix}/deep/c.dcm": 3}
    with SourceReader(source) as reader:
        assert reader.read(f"{prefix}/b.dcm") == b"22"


def test_what_is_no_file_is_a_row_and_is_never_opened(tmp_path: Path) -> None:
    """Reading a named pipe waits for ever."""
    source = fill(tmp_path, {"retinal_oct/a.dcm": b"1"})
    os.mkfifo(tmp_path / "retinal_oct/pipe.dcm")
    (tmp_path / "retinal_oct/broken.dcm").symlink_to(tmp_path / "nowhere")
    found = discover(source)
    assert [entry.path for entry in found.entries] == ["retinal_oct/a.dcm"]
    assert {(row.path, row.reason) for row in found.settled} == {
        ("retinal_oct/pipe.dcm", Reason.IO_UNREADABLE),
        ("retinal_oct/broken.dcm", Reason.IO_UNREADABLE),
    }
