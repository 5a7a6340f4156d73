"""What an ingest job is asked to do, and the part of it that decides the bytes of the dataset."""

import argparse
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, cast

from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.errors import JobOptionError
from ingest.geometry import Geometry, load_geometry
from ingest.record import Limits
from ingest.source import find_participants, read_source_file
from manifests.keys import default_hash_key
from shards.schema import DEVICES, SCHEMA_VERSION, Device

TARGET_SHARD_BYTES: Final = 256 * 2**20
"""Large enough for sequential reads from a bucket, small enough to redo after a failure."""

HASH_KEY_VARIABLE: Final = "FOVEA_HASH_KEY"
MIN_HASH_KEY_BYTES: Final = 16
"""128 bits: a word or a name would be found by trying, since keys and hashes are in every dataset."""
HashKeySource = Literal["environment", "default"]
LOCAL_RUNNER: Final = "FnApiRunner"
"""By name: the default DirectRunner first tries to download another runner (Prism)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestJob:
    """One ingest: where from, where to, and every choice that changes what is written."""

    source: str
    dataset: str
    geometry: Geometry
    labels: str | None = None
    labels_sha256: str | None = None
    devices: tuple[Device, ...] = DEVICES
    participant_metadata: bool = True
    target_shard_bytes: int = TARGET_SHARD_BYTES
    limits: Limits = field(default_factory=Limits)
    hash_key: bytes = field(repr=False)
    hash_key_source: HashKeySource = "default"

    def config(self) -> dict[str, Any]:
        """The choices that decide the bytes; places are not among them."""
        return {
            "schema_version": SCHEMA_VERSION,
            "geometry": self.geometry.describe(),
            "devices": sorted(self.devices),
            "participant_metadata": self.participant_metadata,
            "labels_sha256": self.labels_sha256,
            "target_shard_bytes": self.target_shard_bytes,
            "min_frames": self.limits.min_frames,
            "hash_key": self.hash_key_source,
            "hash_key_sha256": hashlib.sha256(b"fovea hash key:" + self.hash_key).hexdigest()[:16],
        }

    def config_sha256(self) -> str:
        """One hash of `config` and of the code version."""
        text = json.dumps([self.config(), code_version()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def code_version() -> str:
    """The installed version of this distribution."""
    return version("fovea-oct")


def hash_key_from_environment() -> bytes | None:
    """The secret of the keyed hash: a credential, so it comes from the environment; None when it is not set.

    Raises:
        JobOptionError: if it is short enough to be guessed.
    """
    key = os.fsencode(os.environ.get(HASH_KEY_VARIABLE, ""))
    if 0 < len(key) < MIN_HASH_KEY_BYTES:
        raise JobOptionError(
            f"{HASH_KEY_VARIABLE} has {len(key)} bytes, not {MIN_HASH_KEY_BYTES}: `openssl rand -hex 32` makes one."
        )
    return key or None


def parse_devices(names: Sequence[str]) -> tuple[Device, ...]:
    """Full device names, or their last part (`triton`); none means all.

    Raises:
        JobOptionError: on an unknown name.
    """
    if not names:
        return DEVICES
    short = {device.rpartition("_")[2]: device for device in DEVICES}
    wanted = [word.strip().lower() for name in names for word in name.split(",") if word.strip()]
    unknown = [word for word in wanted if word not in short and word not in DEVICES]
    if unknown:
        raise JobOptionError(f"unknown device {unknown[0]!r}: use {', '.join(short)}.")
    return tuple(sorted({cast("Device", short.get(word, word)) for word in wanted}))


def make_job(
    source: str,
    dataset: str,
    *,
    geometry: str = "methods",
    labels: str | None = None,
    devices: Sequence[str] = (),
    participant_metadata: bool = True,
) -> IngestJob:
    """A job from the words of a command line; the cohort table is looked for in SOURCE unless given.

    Raises:
        JobOptionError, GeometryError, SourceError: if a word makes no sense, or SOURCE is not there.
    """
    for name, words in (("SOURCE", source), ("DATASET", dataset), ("--labels", labels)):
        if words is not None and not words.strip():
            raise JobOptionError(f"{name} is empty: give a path or a URL.")
    place = absolute(source)
    table = absolute(labels) if labels else find_participants(place)
    labels_sha256 = hashlib.sha256(read_source_file(table)).hexdigest() if table else None
    secret = hash_key_from_environment()
    return IngestJob(
        source=place,
        dataset=absolute(dataset),
        geometry=load_geometry(geometry),
        labels=table,
        labels_sha256=labels_sha256,
        devices=parse_devices(devices),
        participant_metadata=participant_metadata,
        hash_key=secret or default_hash_key(labels_sha256),
        hash_key_source="environment" if secret else "default",
    )


def absolute(place: str) -> str:
    """A URL as it is; a local path from the root, since workers may run elsewhere."""
    local = place.removeprefix("file://")
    return local.rstrip("/") if "://" in local else str(Path(local).expanduser().resolve())


def beam_options(extra: Sequence[str], num_workers: int | None = None) -> PipelineOptions:
    """Beam's options from the words that `fovea ingest` does not know; all cores locally unless they say otherwise.

    Raises:
        JobOptionError: if Beam does not know a word either, or refuses its value.
    """
    given = _parse(extra)
    if (given.direct_num_workers or 0) < 0:
        raise JobOptionError(
            f"--direct_num_workers={given.direct_num_workers}: give a number of processes, or 0 for one a core."
        )
    if given.runner:
        return PipelineOptions(list(extra))
    workers = num_workers or given.direct_num_workers or os.cpu_count() or 1
    mode = "multi_processing" if workers > 1 else "in_memory"
    local = [f"--runner={LOCAL_RUNNER}", f"--direct_running_mode={mode}"]
    return PipelineOptions([*local, *extra, f"--direct_num_workers={workers}"])


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in an exception; argparse would print a page of usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise JobOptionError(f"Apache Beam refuses an option: {message}.")


def _parse(extra: Sequence[str]) -> argparse.Namespace:
    # Beam declares options by class; two classes may share one, and argparse refuses it twice.
    parser = _Parser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
    for options in _subclasses(PipelineOptions):
        adder = getattr(options, "_add_argparse_args", None)
        if adder:
            adder(parser)
    parser.set_defaults(runner=None, direct_num_workers=None)
    given, unknown = parser.parse_known_args(list(extra))
    if unknown:
        raise JobOptionError(f"unknown option {unknown[0]}: it is neither of `fovea ingest --help` nor of Apache Beam.")
    return given


def _subclasses(base: type) -> list[type]:
    children: list[type] = base.__subclasses__()
    return [base, *(below for child in children for below in _subclasses(child))]


def describe_run(options: PipelineOptions) -> Mapping[str, Any]:
    """Runner and workers, for the log."""
    values = options.get_all_options()
    return {"runner": values.get("runner"), "workers": values.get("direct_num_workers")}
