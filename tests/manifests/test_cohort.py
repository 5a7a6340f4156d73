"""Participants files, and the join of their labels to volumes."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.cohort import (
    STUDY_GROUPS,
    Participant,
    audit_join,
    join_labels,
    participant_id,
    participants_of,
    read_participants,
)
from manifests.errors import CohortError, JoinError
from shards.schema import SampleRow

HEADER = "person_id\tclinical_site\tstudy_group\tage\trecommended_split\n"
SITES = {"1": "UW", "4": "UCSD", "7": "UAB"}


def row(identity: str, number: int = 0, **changes: object) -> SampleRow:
    values: dict[str, object] = {
        "key": f"{identity}-topcon_maestro2-R-maestro2_3d_macula_oct-{number:010x}",
        "shard": "train-topcon_maestro2-00000.tar",
        "split": "train",
        "device": "topcon_maestro2",
        "protocol": "maestro2_3d_macula_oct",
        "anatomic_region": "Macula",
        "laterality": "R",
        "participant_id": identity,
        "clinical_site": None,
        "study_group": None,
        "age": None,
        "content_tokens": 9216,
        "spacing_d_mm": 0.09375,
        "spacing_h_mm": 0.006,
        "spacing_w_mm": 0.015625,
        "volume_offset": 0,
        "volume_bytes": 1,
        "meta_offset": 0,
        "meta_bytes": 1,
        "sha256": "0" * 64,
    }
    return SampleRow(**(values | changes))


def person(identity: str, group: str | None = "healthy", site: str | None = None) -> Participant:
    return Participant(participant_id=identity, clinical_site=site, study_group=group, age=None, recommended_split=None)


def test_reads_the_documented_columns_and_ignores_the_others() -> None:
    data = (
        "person_id\tclinical_site\tstudy_group\tage\tstudy_visit_date\trecommended_split\tretinal_oct\n"
        "1001\tUW\thealthy\t61\t2024-01-01\ttrain\tTRUE\n"
        "4002\tUCSD\tinsulin_dependent\t70.5\t2024-01-02\tval\tTRUE\n"
    )
    assert read_participants(data.encode(), name="participants.tsv") == {
        "1001": Participant(
            participant_id="1001", clinical_site="UW", study_group="healthy", age=61.0, recommended_split="train"
        ),
        "4002": Participant(
            participant_id="4002",
            clinical_site="UCSD",
            study_group="insulin_dependent",
            age=70.5,
            recommended_split="val",
        ),
    }


def test_commas_a_byte_order_mark_and_windows_lines_are_read_too() -> None:
    data = b'\xef\xbb\xbfparticipant_id,study_group,clinical_site\r\n7001,healthy,"UAB, Alabama"\r\n\r\n'
    assert read_participants(data, name="p.csv") == {"7001": person("7001", site="UAB, Alabama")}


def test_missing_optional_columns_and_empty_cells_are_none() -> None:
    assert read_participants(b"person_id\tstudy_group\n1001\t\n", name="p.tsv") == {"1001": person("1001", None)}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("who\tstudy_group\n1\thealthy\n", r"p\.tsv lacks the column person_id or participant_id; .*who, study_group"),
        ("person_id\tage\n1\t2\n", r"lacks the column study_group; columns found: person_id, age"),
        ("", "lacks the column person_id or participant_id and the column study_group; columns found: none"),
        (HEADER, "has a header but no participants"),
        (HEADER + "1001\tUW\thealthy\t61\ttest-ish\n", "line 2: recommended_split 'test-ish' is not one of train, val"),
        (HEADER + "1001\tUW\thealty\t61\ttrain\n", "study_group 'healty' is not one of healthy, pre_diabetes"),
        (HEADER + "AB12\tUW\thealthy\t61\ttrain\n", "person_id 'AB12' is not a number"),
        (HEADER + "1001\tUW\thealthy\told\ttrain\n", "age 'old' is not a number of years"),
        (HEADER + "1001\tUW\thealthy\tnan\ttrain\n", "age 'nan' is not a number of years"),
        (HEADER + "1001\tUW\thealthy\n", "line 2: 3 cells under 5 column names"),
        (HEADER + '1001\tUW\thealthy\t"' + "x" * 140_000, "line 2: field larger than field limit"),
    ],
)
def test_a_file_that_is_not_as_documented_ends_in_one_sentence(data: str, sentence: str) -> None:
    with pytest.raises(CohortError, match=sentence) as caught:
        read_participants(data.encode(), name="p.tsv")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_bytes_that_are_not_text_are_named() -> None:
    with pytest.raises(CohortError, match="not UTF-8"):
        read_participants(b"person_id\tstudy_group\n1\t\xff\n", name="p.tsv")


def test_rows_of_one_participant_that_disagree_are_an_error_and_equal_ones_are_not() -> None:
    same = HEADER + "1001\tUW\thealthy\t61\ttrain\n" * 2
    assert list(read_participants(same.encode(), name="p.tsv")) == ["1001"]
    other = same + "1001.0\tUW\tinsulin_dependent\t61\ttrain\n"
    with pytest.raises(CohortError, match="1001 appears twice with study_group 'healthy' and 'insulin_dependent'"):
        read_participants(other.encode(), name="p.tsv")


@given(st.integers(min_value=0, max_value=99_999), st.sampled_from(["{}", " {} ", "{}.0", "\t{}.0 "]))
def test_an_id_is_its_digits_whatever_the_first_one(number: int, spelling: str) -> None:
    assert participant_id(spelling.format(number)) == str(number)


@pytest.mark.parametrize("text", ["", "1.5", "-4", "1e3", "p12", "12 34", "٣٤"])
def test_what_is_not_a_whole_number_is_no_id(text: str) -> None:
    assert participant_id(text) is None


def test_all_three_sites_survive_the_join() -> None:
    identities = [f"{site}{number:03d}" for site in SITES for number in range(20)]
    lines = "".join(f"{one}\t{SITES[one[0]]}\t{STUDY_GROUPS[int(one) % 4]}\t60\ttrain\n" for one in identities)
    participants = read_participants((HEADER + lines).encode(), name="participants.tsv")
    join = join_labels([row(one) for one in identities], participants)
    assert {site: count.matched for site, count in join.audit.by_site.items()} == {"UW": 20, "UCSD": 20, "UAB": 20}
    assert join.labels == {row(one).key: int(one) % 4 for one in identities}
    join.audit.check()


def test_a_join_that_loses_two_sites_is_stopped_and_names_them() -> None:
    identities = [f"{site}{number:03d}" for site in SITES for number in range(20)]
    only_first_site = {one: person(one, site="UW") for one in identities if one.startswith("1")}
    audit = join_labels([row(one) for one in identities], only_first_site).audit
    assert audit.match_rate == pytest.approx(1 / 3)
    with pytest.raises(
        JoinError, match=r"20 of 60 .*ids 4\.\.\. keeps 0 of 20 with OCT; ids 7\.\.\. keeps 0 of 20"
    ) as caught:
        audit.check()
    assert isinstance(caught.value, CohortError)
    assert caught.value.exit_code == 1
    audit.check(allow_unmatched=True)


def test_a_site_whose_volumes_never_arrived_is_named_too() -> None:
    identities = [f"{site}{number:03d}" for site in SITES for number in range(20)]
    participants = {one: person(one, site=SITES[one[0]]) for one in identities}
    audit = join_labels([row(one) for one in identities if one.startswith("1")], participants).audit
    assert audit.match_rate == 1
    assert audit.lost_sites == ("UAB", "UCSD")
    with pytest.raises(JoinError, match="UCSD has 20 labelled and none with OCT"):
        audit.check()


def test_a_few_lost_participants_pass_and_more_than_a_twentieth_do_not() -> None:
    identities = [str(1000 + number) for number in range(100)]
    rows = [row(one) for one in identities]
    join_labels(rows, {one: person(one) for one in identities[5:]}).audit.check()
    with pytest.raises(JoinError, match="94 of 100"):
        join_labels(rows, {one: person(one) for one in identities[6:]}).audit.check()


def test_labels_of_another_cohort_are_refused_even_when_unmatched_is_allowed() -> None:
    with pytest.raises(JoinError, match="another cohort"):
        join_labels([row("1001")], {"2002": person("2002")}).audit.check(allow_unmatched=True)


def test_no_volume_of_a_participant_overwrites_another() -> None:
    rows = [row("4001", number, laterality="RL"[number % 2]) for number in range(24)]
    join = join_labels(rows, {"4001": person("4001", "insulin_dependent")})
    assert join.labels == {one.key: 3 for one in rows}
    assert len(join.labels) == 24
    with pytest.raises(CohortError, match="appears twice"):
        join_labels([*rows, rows[0]], {})


def test_the_audit_counts_by_device_and_split() -> None:
    rows = [
        row("1001", 1, device="topcon_triton"),
        row("1001", 2, device="zeiss_cirrus"),
        row("1002", 3, device="zeiss_cirrus", split="val"),
    ]
    recommended = Participant(
        participant_id="1003", clinical_site=None, study_group="healthy", age=None, recommended_split="test"
    )
    audit = audit_join(rows, {"1001": person("1001"), "1003": recommended, "1004": person("1004")})
    counts = {name: (c.labelled, c.with_oct, c.matched) for name, c in (audit.by_device | audit.by_split).items()}
    assert counts == {
        "topcon_triton": (3, 1, 1),
        "zeiss_cirrus": (3, 2, 1),
        "train": (1, 1, 1),
        "val": (0, 1, 0),
        "test": (1, 0, 0),
        "unassigned": (1, 0, 0),
    }
    assert (audit.total.labelled_without_oct, audit.total.oct_without_label) == (2, 1)


def test_a_label_that_differs_from_the_datasets_own_is_reported() -> None:
    rows = [row("1001", study_group="healthy"), row("1002", study_group="healthy")]
    audit = audit_join(rows, {"1001": person("1001"), "1002": person("1002", "insulin_dependent")})
    assert audit.relabelled == ("1002",)


def test_the_dataset_knows_its_own_participants() -> None:
    rows = [row("1001", 1, study_group="healthy", clinical_site="UW", age=50.0), row("4001", 2)]
    found = participants_of(rows)
    assert found["1001"].study_group == "healthy"
    assert found["4001"].study_group is None


@given(st.lists(st.integers(min_value=0, max_value=9999), unique=True, min_size=1, max_size=30), st.randoms())
def test_groups_add_up_to_the_total_in_any_order(numbers: list[int], shuffler: random.Random) -> None:
    identities = [str(number) for number in numbers]
    rows = [row(one, int(one)) for one in identities if int(one) % 3]
    people = {one: person(one) for one in identities if int(one) % 5}
    audit = audit_join(rows, people)
    for groups in (audit.by_site, audit.by_split):
        assert sum(count.labelled for count in groups.values()) == audit.total.labelled
        assert sum(count.with_oct for count in groups.values()) == audit.total.with_oct
        assert sum(count.matched for count in groups.values()) == audit.total.matched
    shuffler.shuffle(rows)
    assert audit_join(rows, people) == audit
