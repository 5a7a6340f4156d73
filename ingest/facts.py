"""What can be said of a file before it is judged: the columns of its row, each by an allow-list, none by a guess."""

from collections.abc import Callable
from typing import Final, TypeVar

from pydicom.dataset import Dataset

from ingest.errors import IngestError
from ingest.fields import integer, text
from ingest.header import Header
from ingest.identity import PARTICIPANT, UID, anatomic_region, model_name, read_path
from ingest.record import Facts
from manifests.plan import ManifestRow

STANDARD_ROOT: Final = "1.2.840.10008."
"""The root of DICOM itself (PS3.5 section 9.1)."""

Value = TypeVar("Value")


def path_facts(path: str) -> Facts:
    """What the path alone says; nothing of what its folders and its name disagree on."""
    found = read_path(path)
    return Facts(
        participant_id=found.participant_id, device=found.device, protocol=found.protocol, laterality=found.laterality
    )


def known_facts(header: Header, path: str, manifest: ManifestRow | None) -> Facts:
    """Path and header together; a column that cannot be read stays empty."""
    by_path, dataset = path_facts(path), header.dataset
    return Facts(
        participant_id=by_path.participant_id or _matching(lambda: text(dataset, "PatientID"), PARTICIPANT.fullmatch),
        device=by_path.device,
        manufacturer_model=_or_none(lambda: model_name(dataset)),
        protocol=by_path.protocol,
        anatomic_region=anatomic_region(by_path.protocol, manifest) if by_path.protocol else None,
        laterality=by_path.laterality,
        num_frames=_count(dataset, "NumberOfFrames"),
        rows=_count(dataset, "Rows"),
        columns=_count(dataset, "Columns"),
        transfer_syntax_uid=_registered(str(header.transfer_syntax_uid)),
        sop_instance_uid=_matching(lambda: text(dataset, "SOPInstanceUID"), UID.fullmatch),
    )


def _count(dataset: Dataset, keyword: str) -> int | None:
    """A number that a table can hold, of the 32 bits that a header may use (PS3.5 6.2, IS)."""
    value = integer(dataset, keyword)
    return value if value is not None and abs(value) < 2**31 else None


def _registered(uid: str) -> str | None:
    """A UID of the standard's own root; any other may hold a serial number."""
    return uid if uid.startswith(STANDARD_ROOT) else None


def _or_none(read: Callable[[], Value]) -> Value | None:
    """A check says later, with its reason, what is wrong with a value; here it is only not known."""
    try:
        return read()
    except IngestError:
        return None


def _matching(read: Callable[[], str | None], allowed: Callable[[str], object]) -> str | None:
    value = _or_none(read)
    return value if value and allowed(value) else None
