"""The eyes of `learning.py` once more: the same scans in other speckle, and other scans of the same eyes."""

import dataclasses
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from ingest.convert import convert_file
from ingest.geometry import load_geometry
from ingest.phantom.dicom import encode_dicom
from ingest.phantom.plan import CohortSpec, VolumePlan, plan_cohort, realise
from ingest.phantom.protocols import EXPLICIT_LE
from ingest.record import VolumeRecord
from shards.schema import Sample

Change = Mapping[str, int]
"""What `realise` is to draw anew."""

RETAKES: Final[Mapping[str, Change]] = MappingProxyType(
    {"in other speckle": {"speckle": 1}, "in another scan": {"scan": 1}}
)


def retakes(folder: Path, spec: CohortSpec, samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """The samples with the volumes of each of `RETAKES`, by the same path through DICOM and the grid of `folder`.

    Raises:
        SystemExit: if a sample is not what `spec` paints: retakes of other eyes would say nothing.
    """
    plans = {plan.participant.person_id: plan for plan in plan_cohort(spec)}
    chosen = [plans[person] for sample in samples if (person := sample.meta.participant_id) in plans]
    geometry = folder / "scan.yaml"
    if len(chosen) < len(samples) or not np.array_equal(_painted(chosen[0], {}, geometry), samples[0].volume):
        raise SystemExit(f"{folder} holds other eyes than those of {spec}; remove it.")
    return {name: _retake(geometry, chosen, change, samples) for name, change in RETAKES.items()}


def _retake(geometry: Path, plans: Sequence[VolumePlan], change: Change, samples: Sequence[Sample]) -> list[Sample]:
    count = len(plans)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        volumes = pool.map(_painted, plans, [change] * count, [geometry] * count)
        return [dataclasses.replace(sample, volume=volume) for sample, volume in zip(samples, volumes, strict=True)]


def _painted(plan: VolumePlan, change: Change, geometry: Path) -> np.ndarray:
    """The volume on the grid, as an ingest makes it."""
    volume, header = realise(dataclasses.replace(plan, transfer_syntax=EXPLICIT_LE), **change)
    record = convert_file(encode_dicom(volume, header), plan.path, None, load_geometry(str(geometry)))
    if not isinstance(record, VolumeRecord):
        raise SystemExit(f"{plan.path}: {record}")
    return record.volume
