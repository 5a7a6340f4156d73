"""The audit: does every input file have exactly one row, and do all tables tell the same story?"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final, get_args

from manifests.errors import AuditError, NoDatasetError
from manifests.offenders import SPACING_COLUMNS, Offenders, Row, positive, worst_offenders
from manifests.reasons import Reason
from manifests.rows import SOURCE_COLUMNS, Status
from manifests.store import read_csv
from shards.schema import SAMPLE_COLUMNS, SCHEMA_VERSION, SHARD_COLUMNS, SPLITS
from shards.storage import Place, exists, locate, read_bytes

STATUSES: Final[tuple[str, ...]] = get_args(Status)
TABLES: Final = {
    "sources": SOURCE_COLUMNS,
    "rejected": SOURCE_COLUMNS,
    "samples": SAMPLE_COLUMNS,
    "shards": SHARD_COLUMNS,
}

Range = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """What a committed dataset says of itself, as text: the audit trusts no parser but csv and json."""

    info: Mapping[str, Any]
    sources: Sequence[Row]
    rejected: Sequence[Row]
    samples: Sequence[Row]
    shards: Sequence[Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonCount:
    """Files with one reason from one device and one site (`unknown` where the file did not say)."""

    status: str
    reason: str
    device: str
    site: str
    num_files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolSummary:
    """The accepted volumes of one protocol: native spacing as (minimum, median, maximum) in mm, and native shapes."""

    device: str
    protocol: str
    num_files: int
    spacing_d_mm: Range | None
    spacing_h_mm: Range | None
    spacing_w_mm: Range | None
    shapes: Mapping[str, int]
    spacing_sources: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitCount:
    """What one split holds."""

    split: str
    num_participants: int
    num_samples: int
    by_device: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """Every input file accounted for, or the `problems` that say which are not."""

    url: str
    geometry: str
    code_version: str
    num_files: int
    by_status: Mapping[str, int]
    by_reason: tuple[ReasonCount, ...]
    by_warning: Mapping[str, int]
    by_split: tuple[SplitCount, ...]
    protocols: tuple[ProtocolSummary, ...]
    offenders: Offenders
    other_files: Mapping[str, int]
    num_shards: int
    problems: tuple[str, ...]

    @property
    def adds_up(self) -> bool:
        return not self.problems

    @property
    def equation(self) -> str:
        """`"58 files = 47 accepted + 8 rejected + 1 duplicate + 2 excluded"`; ZIPs that were opened are excluded."""
        parts = " + ".join(f"{self.by_status[status]} {status}" for status in STATUSES)
        return f"{self.num_files} files = {parts}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"adds_up": self.adds_up}


def audit(url: str) -> AuditReport:
    """Read the tables of the dataset at `url` and account for every file.

    Raises:
        NoDatasetError: if there is no folder at `url`, or no way to it.
        AuditError: if a table is missing, is not UTF-8 CSV, or lacks a column, or `dataset.json` is of another kind.
    """
    return account(read_tables(url), url=url)


def read_tables(url: str) -> Tables:
    """The CSV manifests and `dataset.json`, unparsed beyond their cells."""
    place = locate(url.rstrip("/"))
    try:
        there = place.fs.isdir(place.path) if place.is_local else exists(place)
    except Exception as error:  # every store's client has exceptions of its own
        raise _unreadable(url, error) from error
    if not there:
        raise NoDatasetError(f"there is no dataset at {url}: give the folder that `fovea ingest` wrote.")
    _read(place / "_SUCCESS")
    rows = {name: _read_rows(place / f"manifests/{name}.csv", columns) for name, columns in TABLES.items()}
    info = place / "dataset.json"
    return Tables(info=_parse_info(info.url, _read(info)), **rows)


def _read(place: Place) -> bytes:
    try:
        return read_bytes(place)
    except FileNotFoundError as error:
        raise AuditError(
            f"{place.url} is missing: this is no finished dataset; run the same `fovea ingest` again to finish it."
        ) from error
    except Exception as error:  # every store's client has exceptions of its own
        raise _unreadable(place.url, error) from error


def _unreadable(name: str, error: Exception) -> AuditError:
    return AuditError(
        f"{name} cannot be read ({type(error).__name__}); check permissions, credentials and the network."
    )


def _parse_info(path: str, body: bytes) -> Mapping[str, Any]:
    """`dataset.json`, as far as its kind and the kinds of what is counted here."""
    try:
        info = json.loads(body)
    except ValueError as error:
        raise AuditError(f"{path} is not JSON ({error}): it was changed; ingest again to a new DATASET.") from error
    if not isinstance(info, dict):
        raise AuditError(f"{path} is not an object: it was changed; ingest again to a new DATASET.")
    version = info.get("schema_version")
    if version != SCHEMA_VERSION:
        raise AuditError(
            f"{path} has schema version {version!r}, this code reads {SCHEMA_VERSION}; "
            "use the fovea-oct that wrote it, or ingest again."
        )
    wrong = [name for name in ("geometry", "counts", "other_files") if not isinstance(info.get(name), dict)]
    if wrong:
        raise AuditError(f"{path} has no object {wrong[0]}: it was changed; ingest again to a new DATASET.")
    return info


def _read_rows(place: Place, columns: Sequence[str]) -> list[dict[str, str]]:
    data, path = _read(place), place.url
    try:
        rows = read_csv(data)
    except UnicodeDecodeError as error:
        raise AuditError(f"{path} is not UTF-8: it was changed after it was written.") from error
    except csv.Error as error:
        raise AuditError(f"{path} is no CSV ({error}): it was changed after it was written.") from error
    header = data.split(b"\r\n", 1)[0].decode()
    if header.split(",") != list(columns):
        raise AuditError(f"{path} has the columns {header}, not {','.join(columns)}.")
    if any(None in row or None in row.values() for row in rows):
        raise AuditError(f"{path} has a line with more or fewer cells than columns.")
    return rows


def account(tables: Tables, *, url: str = "") -> AuditReport:
    """Count everything, and compare every count that is written down twice."""
    statuses = Counter(row["status"] for row in tables.sources)
    return AuditReport(
        url=url,
        geometry=str(tables.info.get("geometry", {}).get("name", "unknown")),
        code_version=str(tables.info.get("code_version", "unknown")),
        num_files=len(tables.sources),
        by_status={status: statuses[status] for status in STATUSES},
        by_reason=_by_reason(tables),
        by_warning=_by_warning(tables.sources),
        by_split=_by_split(tables.samples),
        protocols=_by_protocol(tables.sources),
        offenders=worst_offenders(tables.sources),
        other_files=dict(tables.info.get("other_files", {})),
        num_shards=len(tables.shards),
        problems=tuple(_problems(tables)),
    )


def _by_reason(tables: Tables) -> tuple[ReasonCount, ...]:
    sites = {row["participant_id"][:1]: row["clinical_site"] for row in tables.samples if row["clinical_site"]}
    counts = Counter(
        (row["status"], row["reason"], row["device"] or "unknown", _site(row["participant_id"], sites))
        for row in tables.sources
        if row["status"] != "accepted"
    )
    return tuple(
        ReasonCount(status=status, reason=reason, device=device, site=site, num_files=number)
        for (status, reason, device, site), number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )


def _site(participant_id: str, sites: Mapping[str, str]) -> str:
    """The site's name where the dataset knows one for ids with this first digit."""
    digit = participant_id[:1]
    return sites.get(digit, f"ids {digit}...") if digit else "unknown"


def _by_warning(sources: Iterable[Row]) -> dict[str, int]:
    """Codes in the detail of accepted files (`SATURATED`, ...)."""
    codes = set(Reason)
    found = Counter(
        word for row in sources if row["status"] == "accepted" for word in _words(row["detail"]) if word in codes
    )
    return dict(sorted(found.items()))


def _words(detail: str) -> set[str]:
    return {word.strip(",;:.") for word in detail.split()}


def _by_split(samples: Sequence[Row]) -> tuple[SplitCount, ...]:
    present = sorted({row["split"] for row in samples}, key=_split_place)
    return tuple(_split_count(split, [row for row in samples if row["split"] == split]) for split in present)


def _split_count(split: str, rows: Sequence[Row]) -> SplitCount:
    return SplitCount(
        split=split,
        num_participants=len({row["participant_id"] for row in rows}),
        num_samples=len(rows),
        by_device=dict(sorted(Counter(row["device"] for row in rows).items())),
    )


def _by_protocol(sources: Sequence[Row]) -> tuple[ProtocolSummary, ...]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in sources:
        if row["status"] == "accepted":
            groups.setdefault((row["device"], row["protocol"]), []).append(row)
    return tuple(_protocol_summary(device, protocol, rows) for (device, protocol), rows in sorted(groups.items()))


def _protocol_summary(device: str, protocol: str, rows: Sequence[Row]) -> ProtocolSummary:
    shapes = Counter("x".join(row[name] or "?" for name in ("num_frames", "rows", "columns")) for row in rows)
    ranges = {name: _range(row[name] for row in rows) for name in SPACING_COLUMNS}
    return ProtocolSummary(
        device=device,
        protocol=protocol,
        num_files=len(rows),
        shapes=dict(shapes.most_common()),
        spacing_sources=dict(Counter(row["spacing_source"] or "?" for row in rows).most_common()),
        **ranges,
    )


def _range(cells: Iterable[str]) -> Range | None:
    values = sorted(value for cell in cells if (value := positive(cell)) is not None)
    return (values[0], median(values), values[-1]) if values else None


def _split_place(split: str) -> tuple[int, str]:
    """In the order of the schema, then anything that does not belong there."""
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), split)


def _problems(tables: Tables) -> Iterable[str]:
    yield from _row_problems(tables.sources)
    yield from _count_problems(tables)
    yield from _rejected_problems(tables)
    yield from _sample_problems(tables)
    yield from _shard_problems(tables)
    yield from _split_problems(tables.samples)


def _row_problems(sources: Sequence[Row]) -> Iterable[str]:
    """Each row by itself: one path once, a known status, a reason exactly when not accepted, plausible spacing.

    Lines are named by number: paths hold UIDs, and this is printed.
    """
    twice = len(sources) - len({row["path"] for row in sources})
    if twice:
        yield f"sources.csv lists {twice} paths more than once."
    known = set(Reason)
    for number, row in enumerate(sources, start=2):
        if row["status"] not in STATUSES:
            yield f"line {number} of sources.csv: status {row['status']!r} is not one of {', '.join(STATUSES)}."
        if (row["status"] == "accepted") != (row["reason"] == ""):
            yield f"line {number} of sources.csv: status {row['status']} with reason {row['reason']!r}."
        if row["reason"] and row["reason"] not in known:
            yield f"line {number} of sources.csv: reason {row['reason']!r} is not a known code."
        if row["status"] == "accepted" and not all(positive(row[name]) for name in SPACING_COLUMNS):
            yield f"line {number} of sources.csv: accepted with spacing {[row[name] for name in SPACING_COLUMNS]} mm."


def _count_problems(tables: Tables) -> Iterable[str]:
    """`dataset.json` against the rows."""
    counts = tables.info.get("counts", {})
    statuses = Counter(row["status"] for row in tables.sources)
    found = {
        "inputs": len(tables.sources),
        **{status: statuses[status] for status in STATUSES},
        "samples": len(tables.samples),
        "shards": len(tables.shards),
        "by_reason": dict(Counter(row["reason"] for row in tables.sources if row["reason"])),
    }
    for name, number in found.items():
        said = counts.get(name)
        said = {code: times for code, times in said.items() if times} if isinstance(said, dict) else said
        if said != number:
            yield f"dataset.json counts {name} {said}, its tables {number}."
    total = sum(statuses[status] for status in STATUSES)
    if total != len(tables.sources):
        yield f"{len(tables.sources)} files, but {total} accepted, rejected, duplicate or excluded."


def _rejected_problems(tables: Tables) -> Iterable[str]:
    """`rejected.csv` is `sources.csv` without what was accepted, row by row."""
    expected = [dict(row) for row in tables.sources if row["status"] != "accepted"]
    if [dict(row) for row in tables.rejected] != expected:
        rows = f"{len(tables.rejected)} rows"
        yield f"rejected.csv has {rows} that are not the {len(expected)} of sources.csv that were not accepted."


def _sample_problems(tables: Tables) -> Iterable[str]:
    """An accepted file is one sample, in the shard that its row names, and nothing else is."""
    yield from _repeated("samples.csv lists", (row["key"] for row in tables.samples))
    yield from _repeated("sources.csv accepts", (row["key"] for row in tables.sources if row["status"] == "accepted"))
    accepted = {(row["key"], row["shard"]) for row in tables.sources if row["status"] == "accepted"}
    samples = {(row["key"], row["shard"]) for row in tables.samples}
    for key, shard in sorted(accepted - samples):
        yield f"{key} was accepted into {shard}, but samples.csv has no such row."
    for key, shard in sorted(samples - accepted):
        yield f"{key} of {shard} is in samples.csv, but no accepted file made it."


def _shard_problems(tables: Tables) -> Iterable[str]:
    said = {row["shard"]: row["num_samples"] for row in tables.shards}
    found = {shard: str(times) for shard, times in Counter(row["shard"] for row in tables.samples).items()}
    for shard in sorted(said.keys() | found.keys()):
        if said.get(shard, "0") != found.get(shard, "0"):
            yield f"{shard} holds {said.get(shard, '0')} samples by shards.csv, {found.get(shard, '0')} by samples.csv."


def _split_problems(samples: Sequence[Row]) -> Iterable[str]:
    """A participant in two splits would be trained on and tested on."""
    splits: dict[str, set[str]] = {}
    for row in samples:
        splits.setdefault(row["participant_id"], set()).add(row["split"])
    for identity, found in sorted(splits.items()):
        if len(found) > 1:
            yield f"participant {identity} is in {' and '.join(sorted(found))}: the splits leak."


def _repeated(where: str, values: Iterable[str]) -> Iterable[str]:
    for value, times in Counter(values).items():
        if times > 1:
            yield f"{where} {value} {times} times."
