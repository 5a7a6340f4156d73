"""The reason codes are a contract: the enum is the table, and the page is the enum."""

import csv
from pathlib import Path

from manifests.reasons import Reason
from manifests.reasons_page import reasons_page

ROOT = Path(__file__).parents[2]


def test_enum_is_the_normative_table_in_order() -> None:
    with (ROOT / "tests/data/reasons.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["code"] for row in table] == [reason.value for reason in Reason]
    for row in table:
        info = Reason(row["code"]).info
        assert (info.stage, info.severity, info.meaning) == (row["stage"], row["severity"], row["meaning"])
        assert info.retryable == (row["retryable"] == "yes")
        assert info.hint.endswith(".")


def test_precedence_follows_stages() -> None:
    stages = [reason.info.stage for reason in Reason]
    assert stages == sorted(stages, key=["discover", "probe", "plan", "pack"].index)
    assert Reason.FRAME_UNDECODABLE.precedence > Reason.SPACING_MISSING.precedence


def test_page_is_generated_from_the_enum() -> None:
    page = (ROOT / "docs/reasons.md").read_text(encoding="utf-8")
    assert page == reasons_page(), "run `make docs`"
