"""What the guard costs on good full-size files: `make guard-cost` (docs/reliability.md).

Each file is converted with and without the guard in turn, now the one first and now the other, in one run: five times
at least, and short conversions for as many seconds as long ones, since their times scatter by a fifth. The cost is the
ratio of the two medians of a file: ratios of one run, because machines are noisy. Uncompressed files are the worst
case: there is no decoding for the copies to hide behind.
"""

import argparse
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence

from pydicom.uid import UID

from ingest.convert import convert_file
from ingest.geometry import BLOCK6
from ingest.guard import Guard
from ingest.phantom.dicom import encode_dicom
from ingest.phantom.plan import CohortSpec, plan_cohort, realise
from ingest.phantom.protocols import (
    EXPLICIT_LE,
    JPEG_2000,
    JPEG_2000_LOSSLESS,
    JPEG_LS_LOSSLESS,
    RLE_LOSSLESS,
)
from ingest.record import VolumeRecord

CASES = (
    ("spectralis_ppol_mac_hr_oct", EXPLICIT_LE),
    ("spectralis_mac_20x20_hs_octa", EXPLICIT_LE),
    ("maestro2_3d_macula_oct", EXPLICIT_LE),
    ("maestro2_3d_macula_oct", JPEG_2000_LOSSLESS),
    ("triton_3d_radial_oct", JPEG_2000),
    ("triton_3d_radial_oct", JPEG_LS_LOSSLESS),
    ("cirrus_mac_oct", RLE_LOSSLESS),
)


def full_size(name: str, syntax: str) -> tuple[str, bytes]:
    """Path and bytes of a full-size phantom."""
    plan = next(plan for plan in plan_cohort(CohortSpec(participants=12, seed=11)) if plan.protocol.name == name)
    volume, header = realise(dataclasses.replace(plan, transfer_syntax=syntax))
    return plan.path, encode_dicom(volume, header)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one conversion, which must succeed."""
    started = time.perf_counter()
    result = work()
    assert isinstance(result, VolumeRecord), result
    return time.perf_counter() - started


def in_turn(runs: Sequence[Callable[[], object]], number: int) -> list[float]:
    """Seconds of each, every second time in the other order."""
    order = (0, 1) if number % 2 else (1, 0)
    took = {place: seconds(runs[place]) for place in order}
    return [took[0], took[1]]


def main() -> None:
    """Print one row a case, and the cost over all of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5, help="pairs of conversions, at least")
    parser.add_argument("--seconds", type=float, default=20.0, help="for so long, at least")
    options = parser.parse_args()
    print("| protocol | transfer syntax | MB | pairs | without s | with s | cost |\n|---|---|---|---|---|---|---|")
    total = [0.0, 0.0]
    with Guard() as guard:
        for name, syntax in CASES:
            path, data = full_size(name, syntax)
            runs = (
                lambda path=path, data=data: convert_file(data, path, None, BLOCK6),
                lambda path=path, data=data: guard.convert(data, path, None, BLOCK6),
            )
            in_turn(runs, 0)  # imports and first pages
            once = sum(in_turn(runs, 1))
            pairs = max(options.repeats, math.ceil(options.seconds / once))
            times = [in_turn(runs, number) for number in range(pairs)]
            plain, guarded = (statistics.median(column) for column in zip(*times, strict=True))
            total = [total[0] + plain, total[1] + guarded]
            size = len(data) / 1e6
            row = f"| {name} | {UID(syntax).keyword} | {size:.0f} | {pairs} | {plain:.3f} | {guarded:.3f} "
            print(f"{row}| {guarded / plain - 1:+.1%} |", flush=True)
    print(f"| all | | | | {total[0]:.2f} | {total[1]:.2f} | {total[1] / total[0] - 1:+.1%} |")


if __name__ == "__main__":
    main()
