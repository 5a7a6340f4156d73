"""The best checkpoint of a run by a probe: `best.json`, which says which one it is.

It follows from the rows and from the checkpoints that are there. So after a run that went back, or was resumed from
before its best step, it is again what those that are left have earned.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from train.errors import CheckpointError

BEST_FILE: Final = "best.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The step of a checkpoint, and the value of the column of its validation row by which it was chosen."""

    step: int
    measure: str
    value: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def to_line(self) -> str:
        """What `best.json` holds, in a run folder and beside copies."""
        return json.dumps(self.to_json()) + "\n"


def find_best(
    rows: Iterable[Mapping[str, Any]], measure: str, steps: Collection[int], *, rowless: Best | None = None
) -> Best | None:
    """The highest value of the validations whose step was saved; of equal ones the earliest.

    Not of step 0: a random encoder is what the others are compared with. `rowless` is one whose row was lost.
    """
    scored = [
        Best(step=row["step"], measure=measure, value=row[measure])
        for row in rows
        if row["split"] == "val" and row["step"] in steps and row["step"] > 0 and row.get(measure) is not None
    ]
    scored += [rowless] if rowless else []
    return max(scored, key=lambda one: (one.value, -one.step), default=None)


def read_best(run: Path) -> Best | None:
    """The best checkpoint of a run folder, None if none was chosen.

    Raises:
        CheckpointError: if the file is not one that a run has written.
    """
    path = run / BEST_FILE
    try:
        return parse_best(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unlike_ours(str(path), error) from error


def parse_best(data: bytes, where: str) -> Best:
    """What `best.json` says.

    Raises:
        CheckpointError: if it is not one that a run has written; `where` is for people.
    """
    try:
        body = json.loads(data)
        return Best(step=int(body["step"]), measure=str(body["measure"]), value=float(body["value"]))
    except (ValueError, TypeError, KeyError) as error:
        raise _unlike_ours(where, error) from error


def _unlike_ours(where: str, error: Exception) -> CheckpointError:
    said = f"{where} is not as a run writes it ({type(error).__name__}): remove it, and take another checkpoint."
    return CheckpointError(said)
