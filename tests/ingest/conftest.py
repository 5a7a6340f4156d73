"""Small phantoms in memory, so that each test damages a good file in one way."""

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from ingest.phantom.dicom import build_dataset, encode_dicom
from ingest.phantom.header import HeaderSpec, Subject, Uids, protocol_header
from ingest.phantom.pixels import Volume8
from ingest.phantom.protocols import EXPLICIT_LE, PROTOCOLS, Protocol

Edit = Callable[[Dataset], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A good file before it is written."""

    protocol: Protocol
    header: HeaderSpec
    volume: Volume8

    @property
    def path(self) -> str:
        name = f"4123_{self.protocol.name}_l_{self.header.uids.sop_instance}.dcm"
        return f"retinal_oct/structural_oct/{self.protocol.device}/4123/{name}"

    def encode(self) -> bytes:
        return encode_dicom(self.volume, self.header)

    def dataset(self) -> Dataset:
        """The header without pixels, to be edited and probed."""
        return build_dataset(self.volume, self.header)


@cache
def texture(shape: tuple[int, int, int]) -> Volume8:
    """Smooth tissue with grain: enough signal for every check, rendered in milliseconds."""
    rng = np.random.default_rng(5)
    depth = np.exp(-(((np.arange(shape[1]) - shape[1] / 2) / (shape[1] / 8)) ** 2))
    grain = rng.normal(0, 12, shape)
    return np.clip(20 + 150 * depth[None, :, None] + grain, 1, 250).astype(np.uint8)


def make_scan(name: str, transfer_syntax: str = EXPLICIT_LE) -> Scan:
    """One scan of a protocol at its reduced size."""
    protocol = PROTOCOLS[name].small()
    subject = Subject(
        participant_id="4123",
        laterality="L",
        model={"zeiss_cirrus": "Cirrus", "heidelberg_spectralis": "Spectralis"}.get(
            protocol.device, protocol.device.removeprefix("topcon_").capitalize()
        ),
        uids=Uids.from_entropy("tests", name),
        acquired=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
    )
    header = protocol_header(protocol, subject, transfer_syntax)
    volume = texture(protocol.shape)
    return Scan(protocol=protocol, header=header, volume=volume)


@pytest.fixture
def scan() -> Callable[..., Scan]:
    """Hands the maker over: with importlib mode, tests do not import this module."""
    return make_scan
