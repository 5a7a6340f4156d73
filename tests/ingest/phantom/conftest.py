import datetime

import numpy as np
import pytest

from ingest.phantom.case import Case
from ingest.phantom.header import HeaderSpec, Subject, Uids, protocol_header
from ingest.phantom.protocols import PROTOCOLS, TRANSFER_SYNTAXES, Protocol


def small_header(protocol: Protocol, transfer_syntax: str | None = None) -> HeaderSpec:
    subject = Subject(
        participant_id="4321",
        laterality="R",
        model="Some model",
        uids=Uids.from_entropy("test", protocol.name),
        acquired=datetime.datetime(2024, 2, 3, 10, 30, 15),
    )
    return protocol_header(protocol, subject, transfer_syntax or TRANSFER_SYNTAXES[protocol.device][0])


def noise_volume(protocol: Protocol) -> np.ndarray:
    return np.random.default_rng(5).integers(20, 200, protocol.shape).astype(np.uint8)


@pytest.fixture
def header_of():
    return small_header


@pytest.fixture
def case_of():
    def build(name: str) -> Case:
        protocol = PROTOCOLS[name].small()
        return Case(
            volume=noise_volume(protocol),
            header=small_header(protocol),
            protocol=protocol,
            path=f"retinal_oct/structural_oct/{protocol.device}/4321/4321_{name}_r_1.2.3.4.dcm",
            rng=np.random.default_rng(3),
        )

    return build
