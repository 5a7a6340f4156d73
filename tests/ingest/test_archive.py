"""Archives are streamed, never unpacked: what is unsafe is quarantined whole, what is damaged costs one member."""

import io
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingest import archive as archive_module
from ingest.archive import Listing, list_members, open_archive, open_member
from ingest.errors import IngestError
from ingest.reader import SourceReader
from ingest.source import discover
from manifests.reasons import Reason

Edit = Callable[[zipfile.ZipInfo], object]
MODE = 0o100644 << 16
DIRECTORY, LOCAL = b"PK\x01\x02", b"PK\x03\x04"


def pack(members: dict[str, bytes] | list[tuple[str, bytes]], edit: Edit = bool) -> bytes:
    """An archive in memory, `edit`ed entry by entry."""
    buffer = io.BytesIO()
    pairs = members.items() if isinstance(members, dict) else members
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as file:
        warnings.simplefilter("ignore")  # of repeated names
        for name, data in pairs:
            info = zipfile.ZipInfo(name)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, MODE
            edit(info)
            file.writestr(info, data)
    return buffer.getvalue()


def patched(data: bytes, mark: bytes, offset: int, layout: str, value: int) -> bytes:
    """One field of the first local header or directory entry overwritten (APPNOTE 4.3.7, 4.3.12)."""
    changed, place = bytearray(data), data.index(mark) + offset
    changed[place : place + struct.calcsize(layout)] = struct.pack(layout, value)
    return bytes(changed)


def listed(data: bytes) -> Listing:
    return list_members(io.BytesIO(data))


def refusal(data: bytes, name: str) -> IngestError:
    with pytest.raises(IngestError) as caught, open_member(io.BytesIO(data), name) as member:
        member.read()
    return caught.value


def as_mode(mode: int) -> Edit:
    return lambda info: setattr(info, "external_attr", mode << 16)


UNSAFE = {
    "parent": (pack({"../x.dcm": b"1"}), "leaves"),
    "parent inside": (pack({"a/../../x.dcm": b"1"}), "leaves"),
    "absolute": (pack({"/x.dcm": b"1"}), "leaves"),
    "backslash": (pack({"a\\..\\..\\x.dcm": b"1"}), "leaves"),
    "backslash root": (pack({"\\x.dcm": b"1"}), "leaves"),
    "drive": (pack({"C:\\x.dcm": b"1"}), "leaves"),
    "drive with slash": (pack({"c:/x.dcm": b"1"}), "leaves"),
    "link": (pack({"x.dcm": b"/etc/passwd"}, as_mode(0o120777)), "link"),
    "device": (pack({"x.dcm": b""}, as_mode(0o020666)), "device"),
    "pipe": (pack({"x.dcm": b""}, as_mode(0o010666)), "device"),
    "nested": (pack({"inner.ZIP": pack({"x.dcm": b"1"})}), "archive itself"),
    "encrypted": (patched(pack({"x.dcm": b"1"}), DIRECTORY, 8, "<H", 1), "encrypted"),
    "strongly encrypted": (patched(pack({"x.dcm": b"1"}), DIRECTORY, 8, "<H", 0x41), "encrypted"),
    "repeated": (pack([("x.dcm", b"1"), ("x.dcm", b"2")]), "repeat"),
    "bomb": (pack({"bomb.dcm": bytes(80 * 2**20)}), "declares"),
    "declared 4 GiB": (patched(pack({"x.dcm": b"1"}), DIRECTORY, 24, "<I", 2**32 - 2), "declares"),
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_unsafe_archives_say_what_is_unsafe(kind: str) -> None:
    data, what = UNSAFE[kind]
    found = listed(data)
    assert what in (found.unsafe or "")
    assert len(found.members) == 1


@pytest.mark.parametrize("kind", UNSAFE)
def test_every_candidate_of_an_unsafe_archive_has_one_row_and_none_is_opened(kind: str, tmp_path: Path) -> None:
    first = UNSAFE[kind][0]
    (tmp_path / "a.zip").write_bytes(first)
    name = listed(first).members[0].name
    found = discover(str(tmp_path))
    rows = [(row.path, row.reason, row.bytes) for row in found.settled]
    inside = [] if name.lower().endswith(".zip") else [(f"a.zip!{name}", Reason.ZIP_UNSAFE, None)]
    assert rows == [("a.zip", Reason.ZIP_UNSAFE, len(first)), *inside]
    assert found.entries == ()


def overlapping() -> bytes:
    """Two entries of the directory for one run of compressed bytes: every further one multiplies it."""
    data = bytearray(pack({"a.dcm": b"1" * 5000, "b.dcm": b"2" * 5000}))
    second = data.index(DIRECTORY, data.index(DIRECTORY) + 1)
    data[second + 42 : second + 46] = struct.pack("<I", 0)
    return bytes(data)


def test_members_that_share_compressed_bytes_are_refused() -> None:
    assert "overlap" in (listed(overlapping()).unsafe or "")
    quoted = patched(pack({"a.dcm": b"1" * 5000, "b.dcm": b"2"}), DIRECTORY, 20, "<I", 2000)
    assert "overlap" in (listed(quoted).unsafe or "")


def test_more_members_than_any_cohort_has_are_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pack({f"{number}.dcm": b"" for number in range(30)})
    (tmp_path / "a.zip").write_bytes(data)
    monkeypatch.setattr(archive_module, "MAX_MEMBERS", 30)
    assert len(discover(str(tmp_path)).entries) == 30
    monkeypatch.setattr(archive_module, "MAX_MEMBERS", 29)
    found = discover(str(tmp_path))
    assert [(row.path, row.reason) for row in found.settled] == [("a.zip", Reason.ZIP_UNSAFE)]
    assert found.entries == ()


def test_a_directory_is_not_read_when_it_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "MAX_DIRECTORY_BYTES", 70_000)
    data = pack({f"{number:0200}.dcm": b"" for number in range(300)})
    with pytest.raises(IngestError) as caught:
        listed(data)
    assert caught.value.reason is Reason.ZIP_UNSAFE


HARMLESS = {
    "names that differ in case": ["a.dcm", "A.dcm"],
    "exclamation marks": ["a!b.dcm", "x.zip!y.dcm", "!.dcm"],
    "times": ["10:30.dcm"],
    "folders": ["deep/er/a.dcm", "deep/er/b.dcm"],
    "not ASCII": ["é/日本.dcm", "😀.dcm"],
    "hostile": ["=1+1.dcm", "<b>x</b>.dcm", "a\nb.dcm", "[red]x[/red].dcm", " .dcm"],
    "dots": ["a..b.dcm", "c...dcm"],
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_every_member_has_its_row_and_its_bytes(kind: str, tmp_path: Path) -> None:
    names = HARMLESS[kind]
    members = {name: f"content of {name}".encode() for name in names}
    (tmp_path / "a.zip").write_bytes(pack(members))
    found = discover(str(tmp_path))
    assert [entry.path for entry in found.entries] == sorted(f"a.zip!{name}" for name in names)
    for name, content in members.items():
        assert SourceReader(str(tmp_path)).read(f"a.zip!{name}") == content


def zip64(data: bytes) -> bytes:
    """The same archive with the 64-bit end of its directory (APPNOTE 4.3.14), as large archives have."""
    end = data.index(b"PK\x05\x06")
    count, size, offset = struct.unpack("<HII", data[end + 10 : end + 20])
    record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    full = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    return data[:end] + record + locator + full


@pytest.mark.parametrize(
    "wrap",
    [lambda data: b"#!/bin/sh\n" * 9 + data, lambda data: data + bytes(500), zip64],
    ids=["prefix", "suffix", "zip64"],
)
def test_bytes_around_an_archive_do_not_matter(wrap: Callable[[bytes], bytes], tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(wrap(pack({"x.dcm": b"scan" * 99, "folder/": b"", "notes.txt": b"n"})))
    found = discover(str(tmp_path))
    assert [entry.path for entry in found.entries] == ["a.zip!x.dcm"]
    assert [row.reason for row in found.settled] == [Reason.OUTSIDE_FILTER]
    assert SourceReader(str(tmp_path)).read("a.zip!x.dcm") == b"scan" * 99


@pytest.mark.parametrize("members", [{}, {"only/": b""}, {".hidden": b"1", "notes.txt": b"2"}])
def test_an_archive_without_scans_is_one_row(members: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(pack(members))
    found = discover(str(tmp_path))
    assert found.entries == ()
    assert [(row.path, row.reason) for row in found.settled] == [("a.zip", Reason.OUTSIDE_FILTER)]


def noise(num_bytes: int) -> bytes:
    return np.random.default_rng(1).integers(0, 256, num_bytes, np.uint8).tobytes()


def damaged() -> Iterator[tuple[str, bytes]]:
    """Ways in which the first member of two is damaged, and the directory can still be read."""
    good = pack({"a.dcm": noise(5000), "b.dcm": b"neighbour"})
    yield "wrong checksum", patched(good, DIRECTORY, 16, "<I", 7)
    yield "inflates to more than declared", patched(good, DIRECTORY, 24, "<I", 100)
    yield "inflates to less than declared", patched(good, DIRECTORY, 24, "<I", 6000)
    yield "other name in its local header", patched(good, LOCAL, 30, "<B", ord("z"))
    yield "no local header", patched(good, LOCAL, 0, "<I", 0)
    yield "damaged data", patched(good, LOCAL, 2000, "<Q", 0)
    yield "bzip2", pack({"a.dcm": b"1", "b.dcm": b"neighbour"}, _first_as(zipfile.ZIP_BZIP2))
    yield "lzma", pack({"a.dcm": b"1", "b.dcm": b"neighbour"}, _first_as(zipfile.ZIP_LZMA))
    yield "deflate64", patched(good, DIRECTORY, 10, "<H", 9)


def _first_as(method: int) -> Edit:
    return lambda info: setattr(info, "compress_type", method) if info.filename == "a.dcm" else None


@pytest.mark.parametrize(("kind", "data"), list(damaged()), ids=[kind for kind, _ in damaged()])
def test_a_damaged_member_costs_itself_only(kind: str, data: bytes, tmp_path: Path) -> None:
    assert listed(data).unsafe is None
    assert refusal(data, "a.dcm").reason is Reason.ZIP_INVALID_OR_TRUNCATED
    (tmp_path / "a.zip").write_bytes(data)
    assert SourceReader(str(tmp_path)).read("a.zip!b.dcm") == b"neighbour"


def test_what_a_member_declares_bounds_what_it_takes() -> None:
    """`read` of the standard library inflated all 64 MB before it cut them to the declared 100 bytes."""
    data = patched(pack({"a.dcm": bytes(64 * 2**20)}), DIRECTORY, 24, "<I", 100)
    tracemalloc.start()
    assert refusal(data, "a.dcm").reason is Reason.ZIP_INVALID_OR_TRUNCATED
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20


def test_an_error_of_the_reader_is_not_taken_for_the_archives() -> None:
    data = pack({"a.dcm": b"1"})
    with pytest.raises(ValueError, match="mine"), open_member(io.BytesIO(data), "a.dcm"):
        raise ValueError("mine")


def test_an_archive_cut_anywhere_is_one_row_or_reads_as_before(tmp_path: Path) -> None:
    whole = pack({f"{name}.dcm": noise(300) for name in "abc"})
    for length in range(len(whole)):
        (tmp_path / "a.zip").write_bytes(whole[:length])
        found = discover(str(tmp_path))
        reason = Reason.ZIP_INVALID_OR_TRUNCATED if length else Reason.EMPTY_FILE
        assert [(row.path, row.reason) for row in found.settled] == [("a.zip", reason)]
        assert found.entries == ()


def test_any_bytes_give_rows_and_never_an_exception(tmp_path: Path) -> None:
    """600 archives with a few bytes changed: each path has one row, each entry its bytes or a reason of its own."""
    whole = np.frombuffer(zip64(pack({f"{name}/{name}.dcm": noise(120) for name in "abc"})), np.uint8)
    rng = np.random.default_rng(3)
    for _ in range(600):
        data = whole.copy()
        places = rng.integers(0, len(data), rng.integers(1, 6))
        data[places] = rng.choice(np.array([0, 1, 127, 128, 255, 80], np.uint8), len(places))
        (tmp_path / "a.zip").write_bytes(data.tobytes())
        found = discover(str(tmp_path))
        paths = [entry.path for entry in found.entries] + [row.path for row in found.settled]
        assert len(paths) == len(set(paths))
        assert {row.reason for row in found.settled} <= {
            Reason.OUTSIDE_FILTER,
            Reason.ZIP_UNSAFE,
            Reason.ZIP_INVALID_OR_TRUNCATED,
        }
        for entry in found.entries:
            read_or_refuse(tmp_path, entry.path)


def read_or_refuse(source: Path, path: str) -> None:
    try:
        assert len(SourceReader(str(source)).read(path)) == 120
    except IngestError as error:
        assert error.reason is Reason.ZIP_INVALID_OR_TRUNCATED  # noqa: PT017 - either is right


def test_a_file_whose_name_reads_as_a_member_is_read_as_itself(tmp_path: Path) -> None:
    (tmp_path / "x.zip!y.dcm").write_bytes(b"plain")
    (tmp_path / "d.zip!e").mkdir()
    (tmp_path / "d.zip!e/a.zip").write_bytes(pack({"m.dcm": b"member"}))
    found = discover(str(tmp_path))
    paths = [entry.path for entry in found.entries]
    assert paths == ["d.zip!e/a.zip!m.dcm", "x.zip!y.dcm"]
    assert [SourceReader(str(tmp_path)).read(path) for path in paths] == [b"member", b"plain"]


def test_a_file_and_a_member_of_one_path_are_one_row_and_neither_is_taken(tmp_path: Path) -> None:
    (tmp_path / "x.zip!y.dcm").write_bytes(b"plain")
    (tmp_path / "x.zip").write_bytes(pack({"y.dcm": b"member", "z.dcm": b"member"}))
    found = discover(str(tmp_path))
    assert found.entries == ()
    assert [(row.path, row.reason) for row in found.settled] == [
        ("x.zip", Reason.ZIP_UNSAFE),
        ("x.zip!y.dcm", Reason.ZIP_UNSAFE),
        ("x.zip!z.dcm", Reason.ZIP_UNSAFE),
    ]


def test_a_reader_reads_an_archives_directory_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cohort may come as one archive a device: its directory, read anew for each file, would cost hours."""
    content = {f"{number}.dcm": noise(50 + number) for number in range(40)}
    (tmp_path / "a.zip").write_bytes(pack(content))
    (tmp_path / "b.zip").write_bytes(pack({"x.dcm": b"other"}))
    opened = []

    def counted(stream: Any) -> zipfile.ZipFile:
        opened.append(stream)
        return open_archive(stream)

    monkeypatch.setattr("ingest.reader.open_archive", counted)
    with SourceReader(str(tmp_path)) as reader:
        assert [reader.read(f"a.zip!{name}") for name in content] == list(content.values())
        assert len(opened) == 1
        assert reader.read("b.zip!x.dcm") == b"other"
        assert reader.read("a.zip!3.dcm") == content["3.dcm"]
        assert len(opened) == 3
        with pytest.raises(IngestError):
            reader.read("a.zip!none.dcm")
        assert reader.read("a.zip!4.dcm") == content["4.dcm"], "after a failure the archive is opened anew"
