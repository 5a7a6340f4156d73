"""Planning is a pure function of the set of inputs."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from manifests.cohort import Participant
from manifests.keys import default_hash_key, hashed_split, sample_key
from manifests.plan import FileRef, ShardPlan, cut_shards, make_elements, plan
from shards.schema import DEVICES

HASH_KEY = default_hash_key(None)

files = st.builds(
    FileRef,
    path=st.uuids().map(lambda value: f"{value}.dcm"),
    bytes=st.integers(1, 10**8),
    sop_instance_uid=st.integers(0, 30).map(lambda number: f"1.2.{number}"),
    participant_id=st.sampled_from(["1001", "4002", "7003", "1004"]),
    device=st.sampled_from(DEVICES),
    laterality=st.sampled_from(["R", "L"]),
    protocol=st.sampled_from(["mac_oct", "disc_oct"]),
    manifest=st.none(),
)
cohort = {
    "4002": Participant(
        participant_id="4002", clinical_site="UCSD", study_group=None, age=None, recommended_split="test"
    )
}


def _plan(inputs: list[FileRef]) -> list[ShardPlan]:
    return plan(inputs, cohort, hash_key=HASH_KEY, samples_per_shard=4)


@given(st.lists(files, max_size=40, unique_by=lambda file: file.path), st.randoms(use_true_random=False))
def test_plan_does_not_depend_on_the_order_of_inputs(inputs: list[FileRef], random: object) -> None:
    shuffled = list(inputs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert _plan(inputs) == _plan(shuffled)


@given(st.lists(files, max_size=40, unique_by=lambda file: file.path))
def test_every_file_is_planned_exactly_once_and_uids_stay_together(inputs: list[FileRef]) -> None:
    shards = _plan(inputs)
    elements = [element for shard in shards for element in shard.elements]
    assert Counter(file.path for element in elements for file in element.files) == Counter(f.path for f in inputs)
    by_uid = {
        uid: {f.path for f in inputs if f.sop_instance_uid == uid} for uid in {f.sop_instance_uid for f in inputs}
    }
    for element in elements:
        assert {f.path for f in (*element.files, *element.rivals)} == by_uid[element.files[0].sop_instance_uid]
        assert len({(f.participant_id, f.device, f.laterality, f.protocol) for f in element.files}) == 1
    assert len({element.key for element in elements}) == len(elements)
    assert len({shard.shard for shard in shards}) == len(shards)


@given(st.lists(files, max_size=40, unique_by=lambda file: file.path))
def test_shards_are_small_enough_even_and_sorted(inputs: list[FileRef]) -> None:
    shards = _plan(inputs)
    for shard in shards:
        keys = [element.key for element in shard.elements]
        assert 1 <= len(keys) <= 4
        assert keys == sorted(keys)
        assert {(element.split, element.device) for element in shard.elements} == {(shard.split, shard.device)}


def test_recommended_split_wins_and_else_a_participant_has_one_split() -> None:
    inputs = [
        FileRef(
            path=f"{participant}-{number}.dcm",
            bytes=1,
            sop_instance_uid=f"1.{participant}.{number}",
            participant_id=participant,
            device=DEVICES[number % 4],
            laterality="L" if number % 2 else "R",
            protocol="mac_oct",
        )
        for participant in ("1001", "4002", "7003")
        for number in range(8)
    ]
    splits: dict[str, set[str]] = {}
    for file in inputs:
        (element,) = make_elements([file], cohort, HASH_KEY)
        splits.setdefault(file.participant_id, set()).add(element.split)
    assert splits["4002"] == {"test"}
    assert splits["1001"] == {hashed_split("1001", HASH_KEY)}
    assert all(len(found) == 1 for found in splits.values())


def test_hashed_split_is_about_70_15_15() -> None:
    shares = Counter(hashed_split(str(number), b"key") for number in range(1000, 9000))
    assert abs(shares["train"] / 8000 - 0.70) < 0.02
    assert abs(shares["val"] / 8000 - 0.15) < 0.02


def test_no_volume_of_a_participant_overwrites_another() -> None:
    """PREDECESSOR 7: with up to 24 volumes each, the last file listed won silently."""
    inputs = [
        FileRef(
            path=f"{number}.dcm",
            bytes=1,
            sop_instance_uid=f"1.2.{number}",
            participant_id="1001",
            device=DEVICES[number % 4],
            laterality="L" if number % 8 < 4 else "R",
            protocol="mac_oct",
        )
        for number in range(24)
    ]
    elements = [element for file in inputs for element in make_elements([file], {}, HASH_KEY)]
    assert len({element.key for element in elements}) == 24
    assert sum(len(shard.elements) for shard in cut_shards(elements[:6], samples_per_shard=4)) == 6


def test_fingerprint_changes_with_files_and_configuration() -> None:
    file = FileRef(
        path="a.dcm",
        bytes=1,
        sop_instance_uid="1.2",
        participant_id="1001",
        device=DEVICES[0],
        laterality="R",
        protocol="mac_oct",
    )
    (shard,) = _plan([file])
    (other,) = _plan([FileRef(**{name: getattr(file, name) for name in file.__slots__} | {"bytes": 2})])
    assert len({shard.fingerprint("x"), shard.fingerprint("y"), other.fingerprint("x")}) == 3


def _key(uid: str, labels_sha256: str | None) -> str:
    return sample_key(
        participant_id="1001",
        device=DEVICES[0],
        laterality="R",
        protocol="mac_oct",
        sop_instance_uid=uid,
        hash_key=default_hash_key(labels_sha256),
    )


def test_the_default_key_belongs_to_the_cohort() -> None:
    cohorts = [None, "a" * 64, "b" * 64]
    assert [_key("1.2.3", one) for one in cohorts] == [_key("1.2.3", one) for one in cohorts]
    assert len({_key("1.2.3", one) for one in cohorts}) == 3
    splits = [[hashed_split(str(person), default_hash_key(one)) for person in range(1000, 1100)] for one in cohorts]
    assert splits[0] != splits[1] != splits[2]


def test_a_key_holds_nothing_of_the_uid() -> None:
    uid = "1.2.276.0.75.2.2.42.887654.20200101093000.17"
    key = _key(uid, None)
    assert key.rpartition("-")[0] == "1001-heidelberg_spectralis-R-mac_oct"
    assert not any(part in key for part in ("887654", "20200101", "093000", uid))
