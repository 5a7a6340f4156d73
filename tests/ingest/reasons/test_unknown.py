"""A defect of ours costs one file, whichever step has it and whatever it raises: UNKNOWN_ERROR, without quotes."""

from types import ModuleType
from typing import Any, Final

import pytest

from ingest.convert import convert_file
from ingest.geometry import Geometry
from ingest.record import Rejection
from manifests.reasons import Reason

TINY: Final = Geometry(name="tiny", target_spacing_mm=None, size=(4, 16, 16), anchor="center")
STEPS: Final = (
    "check_header",
    "pixel_format",
    "find_frames",
    "plan_slow_axis",
    "decode_frames",
    "check_content",
    "check_annotation",
    "retina_center_mm",
    "plan_grid",
    "resample",
    "content_statistics",
    "content_token_mask",
)
ERRORS: Final = (
    ZeroDivisionError("CANARY"),
    IndexError("CANARY"),
    KeyError("CANARY"),
    AttributeError("CANARY"),
    AssertionError("CANARY\nCANARY"),
    RecursionError("CANARY"),
    UnicodeDecodeError("utf-8", b"CANARY", 0, 1, "CANARY"),
    ExceptionGroup("CANARY", [ValueError("CANARY")]),
)


@pytest.mark.parametrize("turn", [0, 3])
@pytest.mark.parametrize("step", STEPS)
def test_a_defect_in_any_step_is_one_row(
    damaged: ModuleType, monkeypatch: pytest.MonkeyPatch, step: str, turn: int
) -> None:
    place = STEPS.index(step) + turn
    seed = damaged.build.Seed(
        name=damaged.build.RASTERS[place % 8], syntax=damaged.build.SYNTAXES[place % len(damaged.build.SYNTAXES)]
    )
    error = ERRORS[place % len(ERRORS)]

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(f"ingest.convert.{step}", fail)
    result = convert_file(seed.encode(), seed.path, None, TINY)
    assert isinstance(result, Rejection)
    assert result.reason is Reason.UNKNOWN_ERROR
    assert result.detail.startswith(type(error).__name__)
    assert "test_unknown.py" in result.detail
    assert "CANARY" not in repr(result)
    assert (result.facts.participant_id, result.facts.sop_instance_uid) == ("4123", seed.header.uids.sop_instance)


def test_there_are_enough_of_them() -> None:
    assert 2 * len(STEPS) >= 20
