"""Discovery: the union of listing and manifest, archives opened safely, nothing lost."""

import io
import os
import zipfile
from pathlib import Path

import fsspec
import pytest

from ingest.errors import IngestError, SourceError
from ingest.reader import SourceReader
from ingest.source import Discovery, discover, find_participants, is_candidate
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


@pytest.mark.parametrize("listed", ["./a.dcm", "/a.dcm", "//a.dcm", "x/../a.dcm", "a.zip", "a.zip!b.dcm", ".", ""])
def test_however_a_file_is_listed_it_has_one_row(listed: str, tmp_path: Path) -> None:
    """Two rows for one path end the job."""
    manifest = f"{MANIFEST}1001\t{listed}\t\t0.05\t\n"
    files = {"a.dcm": b"1", "a.zip": archive({"b.dcm": b"2"}), "notes.txt": b"3", "manifest.tsv": manifest.encode()}
    found = discover(fill(tmp_path, files))
    assert [entry.path for entry in found.entries] == ["a.dcm", "a.zip!b.dcm"]
    assert [row.path for row in found.settled] == ["a.zip"]
    assert (found.entries[0].manifest is not None) is listed.endswith("a.dcm")


def listing(*lines: str) -> bytes:
    """A manifest; each line is a path and the cells behind it."""
    return (MANIFEST + "".join(f"1001\t{line}\n" for line in lines)).encode()


def told(found: Discovery) -> dict[str, str | None]:
    """Path -> slice thickness of an entry, None without a row of a manifest; the reason of what is settled."""
    entries = {entry.path: entry.manifest.slice_thickness if entry.manifest else None for entry in found.entries}
    rows = {row.path: row.reason.value for row in found.settled}
    assert not entries.keys() & rows.keys()
    return entries | rows


@pytest.mark.parametrize("name", ["x.bin", "x.dcm.gz", "x.txt", "scan.Jane Doe", ".x.dcm", "x.0_1"])
def test_what_a_manifest_lists_is_a_scan_whatever_its_extension(name: str, tmp_path: Path) -> None:
    files = {name: b"1", f"copy of {name}": b"22"} | {"manifest.tsv": listing(f"/{name}\t\t0.05")}
    found = discover(fill(tmp_path, files))
    assert told(found)[name] == "0.05"
    assert [row.path for row in found.settled] == []
    assert sum(found.other_files.values()) == len(files) - len(found.entries)


def test_a_listed_pipe_and_a_listed_member_of_any_extension_have_a_row(tmp_path: Path) -> None:
    rows = listing("/pipe.bin\t\t1", "/retinal_oct/cirrus/1001/x.bin\t\t2", "/retinal_oct/cirrus/1001/gone.bin\t\t3")
    zipped = archive({"1001/x.bin": b"1", "1001/notes.txt": b"2"})
    source = fill(tmp_path, {"manifest.tsv": rows, "cirrus.zip": zipped})
    os.mkfifo(tmp_path / "pipe.bin")
    assert told(discover(source)) == {
        "cirrus.zip!1001/x.bin": "2",
        "cirrus.zip": "OUTSIDE_FILTER",
        "pipe.bin": "IO_UNREADABLE",
        "retinal_oct/cirrus/1001/gone.bin": "FILE_MISSING",
    }


@pytest.mark.parametrize("root", ["retinal_oct/", ""])
@pytest.mark.parametrize("sites", [("siteA/", "siteB/"), ("", "siteB/"), ("a/", "a/b/")])
def test_each_of_two_cohorts_has_the_rows_of_its_own_manifest(
    sites: tuple[str, str], root: str, tmp_path: Path
) -> None:
    """`one` is there in both, `two` in the first only; one's `three` and `four` are listed by the other."""
    first, second = (f"{site}{root}" for site in sites)
    paths = [f"/retinal_oct/oct/{name}.dcm" for name in ("one", "two", "three")]
    source = fill(
        tmp_path,
        {
            f"{first}manifest.tsv": listing(f"{paths[0]}\t\t1", f"{paths[1]}\t\t2", "/retinal_oct/oct/four.dcm"),
            f"{second}manifest.tsv": listing(*(f"{path}\t\t{number}" for number, path in enumerate(paths, start=7))),
            **{f"{first}oct/{name}.dcm": b"1" for name in ("one", "two", "three")},
            f"{second}oct/one.dcm": b"1",
            f"{second}oct/four.dcm": b"1",
        },
    )
    assert told(discover(source)) == {
        f"{first}oct/one.dcm": "1",
        f"{first}oct/two.dcm": "2",
        f"{first}oct/three.dcm": None,
        f"{second}oct/one.dcm": "7",
        f"{second}oct/four.dcm": None,
        f"{sites[0]}retinal_oct/oct/four.dcm": "FILE_MISSING",
        f"{sites[1]}retinal_oct/oct/two.dcm": "FILE_MISSING",
        f"{sites[1]}retinal_oct/oct/three.dcm": "FILE_MISSING",
    }


def test_a_manifest_that_lies_elsewhere_says_which_file_if_only_one_has_that_path(tmp_path: Path) -> None:
    rows = listing("/retinal_oct/one.dcm\t\t1", "/retinal_oct/two.dcm\t\t2")
    names = ("old/retinal_oct/one.dcm", "old/retinal_oct/two.dcm", "new/retinal_oct/two.dcm")
    source = fill(tmp_path, {"tables/manifest.tsv": rows} | dict.fromkeys(names, b"1"))
    assert told(discover(source)) == {
        "old/retinal_oct/one.dcm": "1",
        "old/retinal_oct/two.dcm": None,
        "new/retinal_oct/two.dcm": None,
        "tables/retinal_oct/two.dcm": "FILE_MISSING",
    }


def test_members_of_one_name_are_told_apart_by_their_folder_or_not_at_all(tmp_path: Path) -> None:
    rows = listing(
        *(f"/retinal_oct/{path}/scan.dcm\t\t{path[-4:]}" for path in ("c/1001", "c/4001", "c/7001", "t/1002"))
    )
    archives = {
        "c.zip": archive(dict.fromkeys(["1001/scan.dcm", "4001/scan.dcm", "1002/scan.dcm"], b"1")),
        "t.zip": archive({"1002/scan.dcm": b"1"}),
    }
    found = told(discover(fill(tmp_path, {"manifest.tsv": rows} | archives)))
    assert {path: said for path, said in found.items() if not path.endswith(".zip")} == {
        "c.zip!1001/scan.dcm": "1001",
        "c.zip!4001/scan.dcm": "4001",
        "retinal_oct/c/7001/scan.dcm": "FILE_MISSING",
        "c.zip!1002/scan.dcm": None,
        "t.zip!1002/scan.dcm": None,
    }


def test_a_quote_that_nobody_closes_swallows_no_line(tmp_path: Path) -> None:
    rows = listing('a.dcm\t"[0.1, 0.2]\t0.1', 'b".dcm\t\t0.2', 'c.dcm\t"\t0.3', 'd.dcm\t\t0.4"')
    source = fill(tmp_path, {"manifest.tsv": rows} | dict.fromkeys(("a.dcm", 'b".dcm', "c.dcm", "d.dcm"), b"1"))
    assert told(discover(source)) == {"a.dcm": "0.1", 'b".dcm': "0.2", "c.dcm": "0.3", "d.dcm": '0.4"'}


def test_a_cell_that_is_quoted_whole_says_what_is_inside(tmp_path: Path) -> None:
    rows = b'"person_id"\t"filepath"\t"pixel_spacing"\t"slice_thickness"\n"1001"\t"/b""1"".dcm"\t"[0.1, 0.2]"\t"0.2"\n'
    [entry] = discover(fill(tmp_path, {"manifest.tsv": rows, 'b"1".dcm': b"1"})).entries
    assert entry.manifest is not None
    assert (entry.manifest.pixel_spacing, entry.manifest.slice_thickness) == ("[0.1, 0.2]", "0.2")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_may_be_empty_short_or_long_and_end_as_they_like(end: str, mark: str, tmp_path: Path) -> None:
    lines = [
        "",
        " \t ",
        "person_id\tfilepath\tslice_thickness",
        "",
        "1001",
        "1001\ta.dcm",
        "\t\t\t\t",
        "7\tb.dcm\t2\tx\ty\t",
    ]
    text = mark + end.join([*lines, "7\tgone.dcm\t3"])
    source = fill(tmp_path, {"manifest.tsv": text.encode(), "a.dcm": b"1", "b.dcm": b"1"})
    assert told(discover(source)) == {"a.dcm": None, "b.dcm": "2", "gone.dcm": "FILE_MISSING"}
    assert discover(source).entries[0].manifest is not None


@pytest.mark.parametrize(
    ("listed", "path", "detail"),
    [
        ("../outside.dcm", "../outside.dcm", "outside of SOURCE"),
        ("/../../outside.dcm", "../../outside.dcm", "outside of SOURCE"),
        ("a/../../outside.dcm", "../outside.dcm", "outside of SOURCE"),
        ("..\\outside.dcm", "../outside.dcm", "outside of SOURCE"),
        ("..", "..", "outside of SOURCE"),
        ("{outside}", "{outside}", "not found"),
        ("C:\\data\\outside.dcm", "C:/data/outside.dcm", "not found"),
        ("retinal_oct", "retinal_oct", "not found"),
    ],
)
def test_a_listed_path_that_leads_out_of_source_is_one_row_and_is_not_read(
    listed: str, path: str, detail: str, tmp_path: Path
) -> None:
    outside = tmp_path / "outside.dcm"
    outside.write_bytes(b"1")
    source = fill(
        tmp_path / "source", {"manifest.tsv": listing(listed.format(outside=outside)), "retinal_oct/a.dcm": b""}
    )
    found = discover(source)
    assert [entry.path for entry in found.entries] == ["retinal_oct/a.dcm"]
    [row] = found.settled
    assert (row.path, row.reason) == (path.format(outside=str(outside)[1:]), Reason.FILE_MISSING)
    assert row.detail == f"listed in manifest.tsv, {detail}."


@pytest.mark.parametrize(
    "listed",
    [
        "/retinal_oct/oct/a.DCM", "retinal_oct/oct/a.Dcm", "\\retinal_oct\\oct\\a.dcm", "retinal_oct/oct\\a.DCM",
        "oct\\a.dcm", "/data/study/retinal_oct/oct/a.dcm", "D:\\study\\retinal_oct\\oct\\a.dcm",
        "/retinal_oct//oct/./a.dcm ",
    ],
)  # fmt: skip
def test_separators_roots_and_the_case_of_an_extension_do_not_hide_a_file(listed: str, tmp_path: Path) -> None:
    files = {"x/retinal_oct/manifest.tsv": listing(f"{listed}\t\t1"), "x/retinal_oct/oct/a.dcm": b"1"}
    assert told(discover(fill(tmp_path, files))) == {"x/retinal_oct/oct/a.dcm": "1"}


def test_of_names_that_differ_in_case_the_exact_one_is_meant(tmp_path: Path) -> None:
    rows = listing("a.dcm\t\t1", "a.DCM\t\t2", "a.Dcm\t\t3", "back\\slash.dcm\t\t4")
    source = fill(tmp_path, {"manifest.tsv": rows} | dict.fromkeys(("a.dcm", "a.DCM", "back\\slash.dcm"), b"1"))
    assert told(discover(source)) == {"a.dcm": "1", "a.DCM": "2", "a.Dcm": "FILE_MISSING", "back\\slash.dcm": "4"}


def test_a_file_that_is_listed_twice_has_what_its_lines_agree_on(tmp_path: Path) -> None:
    rows = listing(
        "a.dcm\t[1, 2]\t1\tMacula", "/a.DCM\t[1, 2]\t2\tMacula", "a.dcm\t[1, 2]\t1\tMacula", *["gone.dcm"] * 2
    )
    found = discover(fill(tmp_path, {"manifest.tsv": rows, "a.dcm": b"1"}))
    [manifest] = [entry.manifest for entry in found.entries]
    assert manifest is not None
    assert (manifest.pixel_spacing, manifest.slice_thickness, manifest.anatomic_region) == ("[1, 2]", None, "Macula")
    assert [row.path for row in found.settled] == ["gone.dcm"]


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
