"""The benchmark of reading times the trainer's loader, and knows what accelerators ask for."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import read_speed


@pytest.mark.parametrize("readers", read_speed.READERS)
def test_a_speed_is_that_of_an_epoch_but_for_its_first_batch(tiny_dataset: str, readers: int) -> None:
    assert read_speed.speed(tiny_dataset, readers) > 0.01


def test_what_is_needed_follows_from_the_model() -> None:
    """docs/training.md: 9 TFLOP and 9.4 MB a volume; an H200 at 45% trains on 49 of them a second."""
    (line,) = [line for line in read_speed.needed().splitlines() if "H200" in line]
    assert float(line.split("|")[2]) == pytest.approx(49 * 9.4, rel=0.02)
