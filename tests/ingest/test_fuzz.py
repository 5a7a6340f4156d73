"""A fixed slice of `make fuzz`, and that its promises can be broken."""

import hashlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from ingest.convert import convert_file
from ingest.record import Facts, Probed, Rejection, VolumeRecord
from manifests.reasons import Reason

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SLICE = 76
"""One mutation of every seed."""


@pytest.fixture(scope="module", autouse=True)
def reliability() -> Iterator[None]:
    """The scripts of `benchmarks/` are no package of ours: they are found as when one of them is run."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def test_the_seeds_are_small_good_files_of_every_transfer_syntax() -> None:
    from reliability.mutations import SMALL
    from reliability.seeds import SYNTAXES, all_seeds

    from ingest.syntaxes import CODECS, NATIVE_SYNTAXES

    assert len(all_seeds()) >= 60
    assert {seed.syntax for seed in all_seeds()} == set(SYNTAXES) == {*CODECS, *NATIVE_SYNTAXES}
    assert len({seed.sop_instance_uid for seed in all_seeds()}) == len(all_seeds())
    for seed in all_seeds():
        record = convert_file(seed.data, seed.path, None, SMALL)
        assert isinstance(record, VolumeRecord), (seed.name, record)
        assert all(edge <= most for edge, most in zip(record.native_shape, (10, 64, 64), strict=True))


def test_damage_is_aimed_at_the_elements_that_pydicom_finds() -> None:
    from reliability.mutate import anatomy_of
    from reliability.seeds import all_seeds

    for number, seed in enumerate(all_seeds()):
        anatomy, dataset = anatomy_of(number), dcmread(io.BytesIO(seed.data))
        at_top = [tag for tag in dataset.keys() if dataset[tag].VR != "SQ" and tag != 0x7FE00010]  # noqa: SIM118
        assert set(at_top) <= {part.tag for part in anatomy.top}, seed.name
        assert len(anatomy.fragments) >= (dataset.NumberOfFrames if seed.syntax.is_encapsulated else 0)


def test_every_kind_of_damage_is_done_and_can_be_done_again() -> None:
    from reliability.mutate import BYTES, PARTS, anatomy_of
    from reliability.mutate_frames import FRAMES
    from reliability.mutation import mutation

    kinds: dict[str, set[bytes]] = {}
    for number in range(8 * SLICE):
        found = mutation(number, 1)
        kinds.setdefault(found.kind.partition("+")[0], set()).add(found.data)
    assert set(kinds) == {*BYTES, *PARTS, *FRAMES}
    assert all(len(files) >= 10 for files in kinds.values())
    first = hashlib.sha256(mutation(77, 1).data).digest()
    anatomy_of.cache_clear()
    assert hashlib.sha256(mutation(77, 1).data).digest() == first
    assert mutation(77, 2).data != mutation(77, 1).data


def test_a_fresh_mutation_has_a_uid_of_its_own() -> None:
    from reliability.seeds import all_seeds

    first, second = (all_seeds()[20].fresh(number) for number in (20, 96))
    uids = [str(dcmread(io.BytesIO(seed.data)).SOPInstanceUID) for seed in (first, second)]
    assert uids == [first.sop_instance_uid, second.sop_instance_uid]
    assert uids[0] != uids[1]
    assert all(uid in seed.path for uid, seed in zip(uids, (first, second), strict=True))
    assert isinstance(convert_file(first.data, first.path, None, _small()), VolumeRecord)


def _small() -> Any:
    from reliability.mutations import SMALL

    return SMALL


def test_a_slice_of_the_mutations_keeps_every_promise() -> None:
    from reliability.mutations import promises, run_range

    total = run_range(range(SLICE), 1)
    assert not total.faults
    assert [promise.text for promise in promises(total, SLICE) if not promise.kept] == []
    assert total.reasons["accepted"] < SLICE / 2
    assert len(total.reasons) >= 10


class Answering:
    """A guard that gives every file these answers."""

    def __init__(self, probed: object, converted: object) -> None:
        self.probed, self.converted = probed, converted

    def probe(self, *_: object) -> object:
        return self.probed

    def convert(self, *_: object) -> object:
        return self.converted


UNKNOWN = Rejection(reason=Reason.UNKNOWN_ERROR, detail="a defect.", facts=Facts())
REFUSED = Rejection(reason=Reason.TRUNCATED_DATASET, detail="cut.", facts=Facts())


@pytest.fixture
def record() -> VolumeRecord:
    from reliability.seeds import all_seeds

    found = convert_file(all_seeds()[0].data, all_seeds()[0].path, None, _small())
    assert isinstance(found, VolumeRecord)
    return found


@pytest.mark.parametrize(
    ("answers", "broken"),
    [
        ((REFUSED, REFUSED), []),
        ((UNKNOWN, REFUSED), ["UNKNOWN_ERROR"]),
        ((REFUSED, UNKNOWN), ["UNKNOWN_ERROR"]),
        ((REFUSED, "accepted"), ["other faults"]),
        ((None, REFUSED), ["other faults"]),
    ],
)
def test_a_broken_promise_of_a_mutation_is_seen_and_its_file_kept(
    answers: tuple[Any, Any], broken: list[str], record: VolumeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reliability import mutations
    from reliability.mutation import mutation
    from reliability.report import verdict

    monkeypatch.setattr(mutations, "OUT", tmp_path)
    found = mutation(3, 1)
    probed, converted = (record if answer == "accepted" else answer for answer in answers)
    total = mutations.run_one(found, Answering(probed, converted))  # type: ignore[arg-type]
    kept = mutations.promises(total, 1)
    assert [promise.text for promise in kept if not promise.kept] == broken
    assert verdict(mutations.promises(total, 1))[1] == bool(broken)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [found.data] * bool(broken)


@pytest.mark.parametrize("name", ["DeflatedExplicitVRLittleEndian", "JPEG2000Lossless"])
def test_cuts_of_files_and_frames_are_refused(name: str) -> None:
    from reliability import truncations
    from reliability.seeds import SYNTAXES

    number = next(place for place, syntax in enumerate(SYNTAXES) if syntax.keyword == name)
    found = truncations.cut_one(number, tail=64, others=16)
    assert [promise.text for promise in truncations.promises([found]) if not promise.kept] == []
    assert (found.cuts, found.frame_reasons.total()) == (81, 10)


def test_an_accepted_cut_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from reliability import truncations

    whole = truncations.phantom(0)
    record = convert_file(whole.data, whole.path, None, truncations.METHODS)
    monkeypatch.setattr(truncations, "convert_file", lambda *_: record)
    found = truncations.cut_one(0, tail=3, others=2)
    assert len(found.accepted) == found.cuts == 6
    assert not next(truncations.promises([found])).kept


@pytest.mark.parametrize("name", ["deflate bomb in the header", "500 nested sequences", "10^6 declared frames"])
def test_files_made_to_exhaust_a_reader_are_refused_before_they_do(name: str) -> None:
    from reliability import limits

    number = next(place for place, case in enumerate(limits.CASES) if case.name == name)
    found = limits.measure(number)
    assert {*found.outcomes} == {found.case.reason}
    assert found.mib <= found.case.mib
    assert found.num_bytes < 10**6


def test_the_deflate_bomb_is_what_it_says() -> None:
    import zlib

    from reliability import exhausting

    data = exhausting.bomb_in_the_header()
    start = 132 + 12 + int.from_bytes(data[140:144], "little")
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    block = inflater.decompress(data[start:], 2**24)
    while block:
        size += len(block)
        block = inflater.decompress(inflater.unconsumed_tail, 2**24)
    assert inflater.eof
    assert len(data) < 10**6 < 10**9 < size


def test_good_files_are_compared_with_what_was_planned() -> None:
    import dataclasses

    from reliability import clean

    plans = clean.small_plans(12)
    assert len({plan.protocol.name for plan in plans if plan.protocol.raster}) == 12
    (done,) = clean.check_all(plans[:1])
    assert done.faults == ()
    probed = Probed(identity=None, scan=None, facts=_facts(plans[0]))  # type: ignore[arg-type]
    assert clean.compare(plans[0], probed) == (0.0, [])
    shifted = dataclasses.replace(probed.facts, spacing_w_mm=(probed.facts.spacing_w_mm or 0) + 2e-6, laterality=None)
    error, wrong = clean.compare(plans[0], dataclasses.replace(probed, facts=shifted))
    assert error == pytest.approx(2e-6)
    assert [fault.split()[0] for fault in wrong] == ["laterality", "spacing"]
    assert clean.compare(plans[0], REFUSED)[1] == ["TRUNCATED_DATASET (cut.)"]
    radial = next(plan for plan in clean.small_plans(13) if not plan.protocol.raster)
    assert clean.compare(radial, probed)[1] == ["a radial scan is accepted"]


def _facts(plan: Any) -> Facts:
    from ingest.phantom.protocols import true_spacing_mm

    spacing = true_spacing_mm(plan.protocol)
    return Facts(
        participant_id=plan.participant.person_id,
        device=plan.protocol.device,
        protocol=plan.protocol.name,
        laterality=plan.subject.laterality,
        num_frames=plan.protocol.num_frames,
        spacing_d_mm=spacing[0],
        spacing_h_mm=spacing[1],
        spacing_w_mm=spacing[2],
    )


def test_rows_that_do_not_add_up_are_seen() -> None:
    from collections import Counter

    from reliability.job import Accounts

    row = {"path": "a.dcm", "status": "rejected", "reason": "NOT_DICOM", "detail": ""}
    for rows, broken in (((row,), 0), ((row, row), 1), ((), 1), (({**row, "reason": ""},), 1)):
        accounts = Accounts(inputs=Counter(["a.dcm"]), rows=rows, seconds=1.0)
        assert sum(not promise.kept for promise in accounts.promises()) == broken
        assert accounts.print() == bool(broken)


def test_a_dicom_that_discovery_overlooks_is_seen(tmp_path: Path) -> None:
    from reliability.corpus import overlooked

    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.img").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "in/b").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "c.txt").write_bytes(b"words")
    assert overlooked(tmp_path) == ["in/a.img"]
