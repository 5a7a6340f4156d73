"""Files that share a SOP Instance UID, through the whole job, in any order of names and of the listing (DESIGN 4.3)."""

import csv
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from pydicom.uid import JPEG2000Lossless

from ingest.phantom.protocols import DEFLATED_LE, EXPLICIT_LE, IMPLICIT_LE, JPEG_LS_LOSSLESS, RLE_LOSSLESS

ACCEPTED: Final = ("accepted", "")
IDENTICAL: Final = ("duplicate", "DUP_SOP_UID_IDENTICAL")
CONFLICT: Final = ("rejected", "DUP_SOP_UID_CONFLICT")
BAD_PROBE: Final = ("rejected", "PARTICIPANT_PATH_MISMATCH")
BAD_PACK: Final = ("rejected", "ALL_ZERO")

PROTOCOLS: Final = ("maestro2_3d_macula_oct", "spectralis_ppol_mac_hr_oct", "triton_3d_radial_oct", "cirrus_mac_oct")
SYNTAXES: Final = (EXPLICIT_LE, JPEG2000Lossless, IMPLICIT_LE, JPEG_LS_LOSSLESS, DEFLATED_LE, RLE_LOSSLESS)

Outcome = tuple[str, str]
Edit = Callable[[Any], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Files of one UID: name of each, its content, and what must become of it."""

    name: str
    files: Mapping[str, bytes] = field(repr=False)
    expected: Mapping[str, Outcome]


def other_pixels(file: Any) -> bytes:
    return file.encode(np.roll(file.volume, 5, axis=2))


def black(file: Any) -> bytes:
    return file.encode(file.volume * 0)


def other_participant(file: Any) -> bytes:
    return file.encode(participant_id="9999")


def one_voxel(file: Any) -> bytes:
    volume = file.volume.copy()
    volume[5, 30, 30] ^= 1
    return file.encode(volume)


CONTENTS: Final[dict[str, Edit]] = {
    "good": lambda file: file.encode(),
    "other": other_pixels,
    "third": lambda file: file.encode(np.roll(file.volume, 9, axis=2)),
    "black": black,
    "probe": other_participant,
}
OUTCOMES: Final[dict[tuple[str, ...], Mapping[str, Outcome]]] = {
    ("good", "good"): {"good": ACCEPTED},
    ("good", "good", "good"): {"good": ACCEPTED},
    ("good", "other"): {"good": CONFLICT, "other": CONFLICT},
    ("good", "good", "other"): {"good": CONFLICT, "other": CONFLICT},
    ("good", "other", "third"): {"good": CONFLICT, "other": CONFLICT, "third": CONFLICT},
    ("good", "probe"): {"good": ACCEPTED, "probe": BAD_PROBE},
    ("good", "black"): {"good": ACCEPTED, "black": BAD_PACK},
    ("good", "good", "black"): {"good": ACCEPTED, "black": BAD_PACK},
    ("good", "good", "probe"): {"good": ACCEPTED, "probe": BAD_PROBE},
    ("good", "black", "probe"): {"good": ACCEPTED, "black": BAD_PACK, "probe": BAD_PROBE},
    ("good", "other", "black"): {"good": CONFLICT, "other": CONFLICT, "black": BAD_PACK},
    ("black", "black"): {"black": BAD_PACK},
    ("black", "probe"): {"black": BAD_PACK, "probe": BAD_PROBE},
    ("probe", "probe"): {"probe": BAD_PROBE},
}


def expected_of(names: Mapping[str, str], outcomes: Mapping[str, Outcome]) -> dict[str, Outcome]:
    """By path: of several accepted with the same bytes the first by path stands, the others are its duplicates."""
    found: dict[str, Outcome] = {}
    accepted: set[str] = set()
    for path in sorted(names):
        outcome = outcomes[names[path]]
        found[path] = IDENTICAL if outcome == ACCEPTED and names[path] in accepted else outcome
        accepted.add(names[path])
    return found


def in_every_order(make: Any) -> Iterator[Group]:
    """Every combination of contents, under names that sort either way."""
    number = 0
    for contents, outcomes in OUTCOMES.items():
        orders = sorted(set(permutations(contents)))
        for order in orders[:: 2 if len(orders) > 3 else 1]:  # each content comes first once
            number += 1
            file = make(number=number, name=PROTOCOLS[number % 4])
            paths = [f"{file.path.removesuffix('.dcm')}{suffix}" for suffix in (".DCM", ".dcm", ".dicom")]
            names = dict(zip(paths, order, strict=False))
            yield Group(
                name="-".join(order),
                files={path: CONTENTS[content](file) for path, content in names.items()},
                expected=expected_of(names, outcomes),
            )


DIFFERENCES: Final[dict[str, Edit]] = {
    "one_voxel": one_voxel,
    "other_eye_of_the_photographer": lambda file: file.encode(instance_number=7),
    "another_syntax": lambda file: file.encode(transfer_syntax=JPEG2000Lossless),
    "another_native_syntax": lambda file: file.encode(transfer_syntax=IMPLICIT_LE),
    "offset_table": lambda file: file.encode(transfer_syntax=RLE_LOSSLESS, offset_table=False),
    "preamble": lambda file: b"II*\0" + file.encode()[4:],
    "padded_copy": lambda file: file.encode() + bytes(512),
    "finer_step": lambda file: file.encode(spacing_mm=tuple(0.99 * value for value in file.header.spacing_mm)),
    "brighter": lambda file: file.encode(np.minimum(file.volume, 200) + 5),
    "mirrored": lambda file: file.encode(np.ascontiguousarray(file.volume[..., ::-1])),
}


def valid_differences(make: Any) -> Iterator[Group]:
    """What can differ between two valid files: from a byte of the preamble to all pixels."""
    for number, (name, edit) in enumerate(DIFFERENCES.items(), start=200):
        file = make(number=number, name=PROTOCOLS[number % 4])
        paths = (file.path, f"{file.folder}/copy.dcm")
        files = dict(zip(paths, (file.encode(), edit(file)), strict=True))
        yield Group(name=name, files=files, expected=dict.fromkeys(paths, CONFLICT))


def same_bytes_elsewhere(make: Any) -> Iterator[Group]:
    """Copies in other folders, under names that say nothing, in every transfer syntax."""
    for number, syntax in enumerate(SYNTAXES * 2, start=300):
        file = make(number=number, name=PROTOCOLS[number % 4], syntax=syntax)
        copies = ("IM0001", f"export/x{number}/scan.dcm", "backup/" + file.path, f"{file.folder}/IM{number}")
        copy = copies[number % 4] if number % 4 else f"a/x{number}.dcm"
        paths = sorted((file.path, copy))
        yield Group(
            name=f"copy_{number}",
            files=dict.fromkeys(paths, file.encode()),
            expected={paths[0]: ACCEPTED, paths[1]: IDENTICAL},
        )


@pytest.fixture(scope="module")
def groups(small_file: Any) -> list[Group]:
    return [*in_every_order(small_file), *valid_differences(small_file), *same_bytes_elsewhere(small_file)]


@pytest.fixture(scope="module")
def source(groups: list[Group], write: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("duplicates") / "source"
    for group in groups:
        write(root, group.files)
    return root


@pytest.fixture(scope="module")
def dataset(source: Path, run_job: Any) -> Path:
    run_job(source, source.parent / "dataset")
    return source.parent / "dataset"


def table(dataset: Path, name: str) -> list[dict[str, str]]:
    with (dataset / "manifests" / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_file_of_a_group_has_the_outcome_of_the_design(dataset: Path, groups: list[Group]) -> None:
    rows = table(dataset, "sources.csv")
    found = {row["path"]: (row["status"], row["reason"]) for row in rows}
    for group in groups:
        assert {path: found[path] for path in group.files} == group.expected, group.name
    assert len(rows) == len(found) == sum(len(group.files) for group in groups)


def test_there_are_enough_of_each(groups: list[Group]) -> None:
    for outcome in (IDENTICAL, CONFLICT):
        assert sum(outcome in group.expected.values() for group in groups) >= 20, outcome


def test_one_sample_comes_of_each_accepted_file(dataset: Path, groups: list[Group]) -> None:
    accepted = sum(ACCEPTED in group.expected.values() for group in groups)
    samples = table(dataset, "samples.csv")
    assert len(samples) == len({row["key"] for row in samples}) == accepted
    sources = {row["key"]: row for row in table(dataset, "sources.csv") if row["key"]}
    assert sources.keys() == {row["key"] for row in samples}
    assert all(row["status"] == "accepted" for row in sources.values())


def test_duplicates_have_their_hash_and_their_facts(dataset: Path, source: Path) -> None:
    for row in table(dataset, "sources.csv"):
        assert row["sha256"] == hashlib.sha256((source / row["path"]).read_bytes()).hexdigest()
        assert row["sop_instance_uid"]
        if row["reason"].startswith("DUP_"):
            assert row["stage"] == "plan"
            assert float(row["spacing_d_mm"]) > 0
            assert not row["key"] + row["shard"]


def test_the_listing_order_changes_nothing(
    source: Path, dataset: Path, run_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = LocalFileSystem.find

    def backwards(self: LocalFileSystem, *args: Any, **choices: Any) -> Any:
        return dict(reversed(find(self, *args, **choices).items()))

    monkeypatch.setattr(LocalFileSystem, "find", backwards)
    run_job(source, tmp_path / "dataset")
    assert _hashes(tmp_path / "dataset") == _hashes(dataset)


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
