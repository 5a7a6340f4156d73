"""Beam counters: files, bytes, milliseconds by stage, rejections by reason."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from apache_beam.metrics import Metrics

from manifests.rows import SourceRow

NAMESPACE: Final = "fovea"


def count(name: str, amount: int = 1) -> None:
    """Add to a counter of this job."""
    Metrics.counter(NAMESPACE, name).inc(amount)


def count_row(row: SourceRow) -> None:
    """A file has its row: by status, and by reason unless accepted."""
    count(f"files_{row.status}")
    if row.reason:
        count(f"reason_{row.reason}")


def count_seconds(seconds: Mapping[str, float]) -> None:
    """Counters hold whole numbers: milliseconds."""
    for stage, value in seconds.items():
        count(f"milliseconds_{stage}", round(1000 * value))


def read_counters(result: Any) -> dict[str, int]:
    """Every counter of a finished run; one that several steps share is their sum."""
    totals: Counter[str] = Counter()
    for counter in result.metrics().query()["counters"]:
        if counter.key.metric.namespace == NAMESPACE:
            totals[counter.key.metric.name] += int(counter.result)
    return dict(sorted(totals.items()))
