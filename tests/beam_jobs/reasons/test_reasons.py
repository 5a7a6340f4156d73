"""Reasons that only the job can give: the store, the manifest, the filters, archives. One job, one row each."""

import csv
import io
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from manifests.reasons import Reason

NUM_FIXTURES: Final = 20
CODES: Final = (
    Reason.IO_UNREADABLE,
    Reason.FILE_MISSING,
    Reason.OUTSIDE_FILTER,
    Reason.ZIP_INVALID_OR_TRUNCATED,
    Reason.ZIP_UNSAFE,
)
STATUS: Final = {Reason.OUTSIDE_FILTER: "excluded"}
KEPT: Final = "maestro2_3d_macula_oct"
LEFT_OUT: Final = ("spectralis_ppol_mac_hr_oct", "triton_3d_radial_oct", "cirrus_mac_oct", "cirrus_disc_oct")
HEADER: Final = ("person_id", "filepath", "pixel_spacing", "slice_thickness")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixture:
    """Files to write, and the rows that they must get; a path that is listed without a file is in the manifest only."""

    reason: Reason
    name: str
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    rows: Mapping[str, Reason | None]


ERRORS: Final = (
    PermissionError,
    FileNotFoundError,
    TimeoutError,
    ConnectionResetError,
    BrokenPipeError,
    BlockingIOError,
    OSError,
)
MOMENTS: Final = ("open", "read", "pack")
"""When the store fails: when the file is opened, when it is read, or when it is opened again to be packed."""


def refuse(error: type[OSError]) -> Callable[..., Any]:
    """A method that raises."""

    def call(*_: object, **__: object) -> Any:
        raise error(5, "CANARY")

    return call


class FaultyStore(LocalFileSystem):
    """A store that fails as the folder `fault-MOMENT-ERROR` of a file says."""

    protocol = "faultystore"
    opened: ClassVar[Counter[str]] = Counter()

    def _open(self, path: str, mode: str = "rb", *args: Any, **choices: Any) -> Any:
        folder = Path(path).parent.name
        if "w" in mode or not folder.startswith("fault-"):
            return super()._open(path, mode, *args, **choices)
        _, moment, place = folder.split("-")
        error = ERRORS[int(place)]
        self.opened[path] += 1
        if moment == "open" or (moment == "pack" and self.opened[path] > 1):
            raise error(5, "CANARY")
        file = super()._open(path, mode, *args, **choices)
        if moment == "read":
            file.read = file.readinto = refuse(error)
        return file


def unreadable(make: Any) -> Iterator[Fixture]:
    for place, error in enumerate(ERRORS):
        for number, moment in enumerate(MOMENTS):
            file = make(number=3 * place + number)
            path = f"fault-{moment}-{place}/{Path(file.path).name}"
            name = f"{moment}_{error.__name__}"
            yield Fixture(
                reason=Reason.IO_UNREADABLE, name=name, files={path: file.encode()}, rows={path: Reason.IO_UNREADABLE}
            )


def missing(make: Any) -> Iterator[Fixture]:
    """Listed, and not there: in every device's folder, without an extension, in a folder of its own."""
    forms = ("{path}", "{path}.dcm", "{folder}/IM{number}", "{folder}/a b {number}.dcm", "{folder}/größe{number}.dcm")
    for number in range(NUM_FIXTURES + 2):
        file = make(number=100 + number, name=(KEPT, *LEFT_OUT)[number % 5])
        form = forms[number // 5]
        path = form.format(path=file.path.removesuffix(".dcm"), folder=file.folder, number=number)
        rows = {path: Reason.FILE_MISSING}
        yield Fixture(reason=Reason.FILE_MISSING, name=f"listed_{number}", rows=rows)


def outside(make: Any) -> Iterator[Fixture]:
    """Devices that were not asked for, known by the path or only by the header, and archives, which are no volumes."""
    reason = Reason.OUTSIDE_FILTER
    for number in range(12):
        file = make(number=200 + number, name=LEFT_OUT[number % 4])
        path = file.path if number % 3 else f"plain/{file.participant}/scan"
        yield Fixture(reason=reason, name=f"device_{number}", files={path: file.encode()}, rows={path: reason})
    for number in range(6):
        file = make(number=220 + number)
        path, member = f"zips/good{number}.zip", Path(file.path).name
        data = archive({("", "a/b/")[number % 2] + member: file.encode(), "readme.txt": b"x"}, stored=number % 3 == 0)
        rows = {path: reason, f"{path}!{('', 'a/b/')[number % 2]}{member}": None}
        yield Fixture(reason=reason, name=f"archive_{number}", files={path: data}, rows=rows)
    for name, data in (("empty", archive({})), ("of_texts", archive({"a.txt": b"x", "b.csv": b"y"}))):
        path = f"zips/{name}.ZIP"
        yield Fixture(reason=reason, name=f"archive_{name}", files={path: data}, rows={path: reason})


def archive(members: Mapping[str, bytes], *, stored: bool = False, edit: Callable[[Any], None] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as zipped:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, (2024, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
            if edit:
                edit(info)
            zipped.writestr(info, data)
    return buffer.getvalue()


def _at(data: bytes, place: int, patch: bytes) -> bytes:
    return data[:place] + patch + data[place + len(patch) :]


def broken_archives(make: Any) -> Iterator[Fixture]:
    reason = Reason.ZIP_INVALID_OR_TRUNCATED
    file = make(number=300)
    good = archive({"IM1": file.encode()})
    end, directory = good.rindex(b"PK\5\6"), good.rindex(b"PK\1\2")
    whole: dict[str, bytes] = {
        **{f"cut_at_{share}": good[: round(share * len(good))] for share in (0.01, 0.3, 0.6, 0.9, 0.99)},
        "last_byte_lost": good[:-1],
        "end_lost": good[:end],
        "directory_lost": good[:directory],
        "end_only_half": good[: end + 10],
        "text": b"CANARY^JANE\n" * 50,
        "zeros": bytes(5000),
        "a_dicom": file.encode(),
        "gzip": b"\x1f\x8b\x08" + bytes(100),
        "rar": b"Rar!\x1a\x07\0" + bytes(100),
        "directory_damaged": _at(good, directory, b"XXXX"),
        "directory_longer_than_the_file": _at(good, end + 12, struct.pack("<L", len(good) * 2)),
        "html": b"<html>CANARY</html>",
    }
    for name, data in whole.items():
        path = f"broken/{name}.zip"
        yield Fixture(reason=reason, name=name, files={path: data}, rows={path: reason})
    yield from broken_members(file)


def broken_members(file: Any) -> Iterator[Fixture]:
    """The directory is right; a member's bytes are not."""
    reason = Reason.ZIP_INVALID_OR_TRUNCATED
    name = Path(file.path).name
    plain = archive({name: file.encode()}, stored=True)
    packed = archive({name: file.encode()})
    crc = plain.index(b"PK\1\2") + 16
    members = {
        "voxel_flipped": _at(plain, plain.index(file.encode()) + len(file.encode()) - 99, b"\xaa\xbb"),
        "stream_spoiled": _at(packed, len(packed) // 2, b"\xff" * 40),
        "stream_zeroed": _at(packed, 100, bytes(400)),
        "checksum_wrong": _at(plain, crc, b"\1\2\3\4"),
        "local_header_gone": _at(plain, 0, b"XXXX"),
        "local_name_different": plain.replace(name.encode(), name.encode().upper(), 1),
        "method_unknown": _at(_at(packed, 8, b"\x63\0"), packed.index(b"PK\1\2") + 10, b"\x63\0"),
    }
    for place, (what, data) in enumerate(members.items()):
        path = f"spoiled{place}/{what}.zip"
        rows = {path: Reason.OUTSIDE_FILTER, f"{path}!{name}": reason}
        yield Fixture(reason=reason, name=f"member_{what}", files={path: data}, rows=rows)


def _mode(kind: int) -> Callable[[Any], None]:
    def edit(info: Any) -> None:
        info.create_system = 3
        info.external_attr = (kind | 0o777) << 16

    return edit


def _encrypted(data: bytes) -> bytes:
    """The flag that a member is encrypted, in its own header and in the directory."""
    directory = data.rindex(b"PK\1\2")
    return _at(_at(data, 6, b"\1\0"), directory + 8, b"\1\0")


def _declares(data: bytes, size: int) -> bytes:
    """A member that says it inflates to so much."""
    return _at(data, data.rindex(b"PK\1\2") + 24, struct.pack("<L", size))


def _twice(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr(name, data)
        with pytest.warns(UserWarning, match="Duplicate"):
            zipped.writestr(name, data[::-1])
    return buffer.getvalue()


def unsafe_archives(make: Any) -> Iterator[Fixture]:
    reason = Reason.ZIP_UNSAFE
    data = make(number=400).encode()
    names = {
        "up": "../scan.dcm",
        "up_twice": "../../etc/scan.dcm",
        "up_inside": "a/../../scan.dcm",
        "up_at_the_end": "a/b/..",
        "up_backwards": "..\\scan.dcm",
        "up_mixed": "a\\..\\../scan.dcm",
        "absolute": "/etc/scan.dcm",
        "absolute_twice": "//host/scan.dcm",
        "drive": "C:\\scan.dcm",
        "drive_forward": "C:/scan.dcm",
        "drive_relative": "c:scan.dcm",
        "share": "\\\\host\\share\\scan.dcm",
        "nested": "inner.zip",
        "nested_upper_case": "a/INNER.ZIP",
    }
    many: dict[str, bytes] = {name: archive({member: data}) for name, member in names.items()}
    many |= {f"{name}_beside_good": archive({"good.dcm": data, names[name]: data}) for name in ("up", "nested")}
    many |= {
        "link": archive({"link.dcm": b"/etc/passwd"}, edit=_mode(stat.S_IFLNK)),
        "link_beside_good": archive({"a.dcm": b"../x"}, edit=_mode(stat.S_IFLNK)),
        "encrypted": _encrypted(archive({"scan.dcm": data})),
        "encrypted_stored": _encrypted(archive({"scan.dcm": data}, stored=True)),
        "repeated_name": _twice("scan.dcm", data),
        "bomb": archive({"bomb.dcm": bytes(80 * 2**20)}),
        "declares_gigabytes": _declares(archive({"scan.dcm": data}), 0xFFFFFFF0),
    }
    for name, content in many.items():
        path = f"unsafe/{name}.zip"
        yield Fixture(reason=reason, name=name, files={path: content}, rows={path: reason})


@pytest.fixture(scope="module")
def fixtures(small_file: Any) -> list[Fixture]:
    makers = (unreadable, missing, outside, broken_archives, unsafe_archives)
    return [fixture for maker in makers for fixture in maker(small_file)]


@pytest.fixture(scope="module")
def rows(fixtures: list[Fixture], write: Any, run_job: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one job over all of them wrote."""
    root = tmp_path_factory.mktemp("reasons") / "source"
    for fixture in fixtures:
        write(root, fixture.files)
    absent = [path for fixture in fixtures if fixture.reason is Reason.FILE_MISSING for path in fixture.rows]
    with (root / "retinal_oct/manifest.tsv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(HEADER)
        table.writerows(("4000", f"/{path}", "[0.01, 0.09]", "0.1") for path in absent)
    fsspec.register_implementation("faultystore", FaultyStore, clobber=True)
    FaultyStore.opened.clear()
    return run_job(f"faultystore://{root}", root.parent / "dataset", devices=["maestro2"])


@pytest.mark.parametrize("code", CODES)
def test_every_fixture_of_the_job_has_its_row(fixtures: list[Fixture], rows: Any, code: Reason) -> None:
    for fixture in fixtures:
        if fixture.reason is code:
            found = {path: rows[path]["reason"] for path in fixture.rows}
            assert found == {path: reason or "" for path, reason in fixture.rows.items()}, fixture.name


@pytest.mark.parametrize("code", CODES)
def test_rows_say_what_the_table_of_reasons_says(fixtures: list[Fixture], rows: Any, code: Reason) -> None:
    for fixture in fixtures:
        for path, reason in fixture.rows.items():
            if reason is code:
                row = rows[path]
                assert row["status"] == STATUS.get(code, "rejected"), path
                assert (row["stage"], row["severity"]) == (code.info.stage, code.info.severity)
                assert row["detail"].endswith(".")
                assert "\n" not in row["detail"]
                assert "CANARY" not in row["detail"]


def test_nothing_of_an_unsafe_archive_is_taken(rows: Any) -> None:
    inside = [row for path, row in rows.items() if path.startswith("unsafe/") and "!" in path]
    assert {row["reason"] for row in inside} <= {"ZIP_UNSAFE"}
    assert not any(row["key"] for row in inside)


def test_no_file_is_without_a_row_or_has_one_too_many(fixtures: list[Fixture], rows: Any) -> None:
    expected = {path for fixture in fixtures for path in fixture.rows}
    assert expected <= rows.keys()
    assert all("unsafe/" in path for path in rows.keys() - expected)


def test_what_the_store_does_not_give_may_be_tried_again(fixtures: list[Fixture], rows: Any) -> None:
    """An unreadable file has no hash, nor is it told from its size; a missing one has neither."""
    assert Reason.IO_UNREADABLE.info.retryable
    assert Reason.FILE_MISSING.info.retryable
    for fixture in fixtures:
        for path, reason in fixture.rows.items():
            if reason in {Reason.IO_UNREADABLE, Reason.FILE_MISSING}:
                assert not rows[path]["sha256"], path


def test_there_are_enough_of_each(fixtures: list[Fixture]) -> None:
    counts = Counter(fixture.reason for fixture in fixtures)
    assert {code: counts[code] for code in CODES if counts[code] < NUM_FIXTURES} == {}
    assert len({(fixture.reason, fixture.name) for fixture in fixtures}) == len(fixtures)
