"""Every kind of damage that a file's bytes can have gives the reason it must, and what is known of the file."""

import re
from collections import Counter
from dataclasses import asdict
from types import ModuleType
from typing import Any, Final

import pytest

from ingest.convert import convert_file
from ingest.geometry import Geometry
from ingest.record import Rejection, VolumeRecord
from manifests.reasons import Reason

TINY: Final = Geometry(name="tiny", target_spacing_mm=None, size=(4, 16, 16), anchor="center")
BY_THE_JOB: Final = {
    Reason.IO_UNREADABLE,
    Reason.FILE_MISSING,
    Reason.OUTSIDE_FILTER,
    Reason.ZIP_INVALID_OR_TRUNCATED,
    Reason.ZIP_UNSAFE,
    Reason.DUP_SOP_UID_IDENTICAL,
    Reason.DUP_SOP_UID_CONFLICT,
    Reason.UNKNOWN_ERROR,
}
"""No single file's bytes give these: see `tests/beam_jobs/test_reasons.py` and `test_unknown.py`."""

NUM_FIXTURES: Final = 20
SENTENCE: Final = re.compile(r"[^\n]{8,160}\.")
CANARIES: Final = ("CANARY", "JANE", "PHANTOM", "900001", "4124", "4999")
"""Text of the headers: names, a serial number, other participants."""


def converted(case: Any) -> VolumeRecord | Rejection:
    return convert_file(case.data(), case.where, case.manifest, TINY, case.limits)


def check_detail(detail: str) -> None:
    """One sentence without any header text."""
    assert SENTENCE.fullmatch(detail), detail
    assert ". " not in detail
    assert not any(word in detail for word in CANARIES), detail


def test_damage_has_its_reason_and_keeps_what_is_known(case: Any) -> None:
    result = converted(case)
    if case.reason.info.severity == "warn":
        assert isinstance(result, VolumeRecord), result
        assert result.warnings == (case.reason.value,)
    else:
        assert isinstance(result, Rejection), result
        assert result.reason is case.reason, result.detail
        check_detail(result.detail)
    found = asdict(result.facts)
    expected = {name: _to_a_nanometre(value) for name, value in case.facts.items()}
    assert {name: found[name] for name in expected} == expected
    assert not any(word in repr(found) for word in ("CANARY", "JANE"))


def _to_a_nanometre(value: object) -> object:
    """Spacing in mm as it stands in decimal strings."""
    return pytest.approx(value, abs=1e-6) if isinstance(value, float) else value


def test_of_two_faults_the_earlier_reason_wins(pair: Any) -> None:
    result = converted(pair)
    assert isinstance(result, Rejection), result
    assert result.reason is pair.reason, result.detail
    check_detail(result.detail)
    assert (result.facts.participant_id, result.facts.device) == ("4123", pair.seed.protocol.device)


def test_the_undamaged_file_is_accepted(seed: Any) -> None:
    """Else a fixture would prove nothing: its good twin has every fact, and no warning."""
    result = convert_file(seed.encode(), seed.path, None, TINY)
    assert isinstance(result, VolumeRecord), result
    assert result.warnings == ()
    assert result.facts.transfer_syntax_uid == seed.syntax


def test_every_reason_of_a_file_has_its_fixtures(damaged: ModuleType) -> None:
    counts = Counter(case.reason for case in damaged.CASES)
    assert set(counts) == set(Reason) - BY_THE_JOB
    assert {reason: count for reason, count in counts.items() if count < NUM_FIXTURES} == {}


def test_fixtures_are_distinct_and_span_transfer_syntaxes_and_protocols(damaged: ModuleType) -> None:
    for reason in set(Reason) - BY_THE_JOB:
        table = [case for case in damaged.CASES if case.reason is reason]
        assert len({(case.name, case.seed, case.where) for case in table}) >= NUM_FIXTURES, reason
        if reason is not Reason.CODESTREAM_OBFUSCATED:  # only the JPEG 2000 family is scrambled
            assert len({case.seed.syntax for case in table}) >= 4, reason
        assert len({case.seed.name for case in table}) >= 4, reason


def test_pairs_cover_every_step_of_the_order(damaged: ModuleType) -> None:
    assert len(damaged.PAIRS) > 2 * NUM_FIXTURES
    assert len({pair.reason for pair in damaged.PAIRS}) >= NUM_FIXTURES
