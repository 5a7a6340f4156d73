"""Fixtures: a bucket in an emulator behind the proxy, with the environment that leads there.

`gcs_emulator` and `s3_server` give a `Store` with a fresh bucket; `store` runs a test with each of them. Before the
requests go wrong, they go through the proxy that keeps conditions; `store.proxy.plan(...)` makes it fail a share.
"""

import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.stores.proxy import Proxy, proxied
from tests.stores.rules import Rule
from tests.stores.servers import gcs_server, make_bucket
from tests.stores.servers import s3_server as run_s3_server

AWS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A bucket: `url` is its address, `server` the emulator itself, `env` what other processes need to find it."""

    url: str
    server: str
    proxy: Proxy
    env: Mapping[str, str]


@pytest.fixture(scope="session")
def gcs_process() -> Iterator[str]:
    """The address of a GCS emulator, one for all tests of a run."""
    with gcs_server() as url:
        yield url


@pytest.fixture(scope="session")
def s3_process() -> Iterator[str]:
    """The address of moto's S3, one for all tests of a run."""
    with run_s3_server() as url:
        yield url


def environment_of(protocol: str, endpoint: str) -> dict[str, str]:
    """What leads the clients of a protocol to the server at `endpoint`."""
    if protocol == "gs":
        return {"STORAGE_EMULATOR_HOST": endpoint}
    return {"AWS_ENDPOINT_URL": endpoint, **AWS}


@pytest.fixture
def open_store(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, Rule], Store]]:
    """`open_store("gs" or "s3", rule)` -> a `Store`, and the environment set to lead there."""
    with ExitStack() as opened:

        def make(protocol: str, rule: Rule = Rule.KEEP) -> Store:
            server = request.getfixturevalue("gcs_process" if protocol == "gs" else "s3_process")
            proxy = opened.enter_context(proxied(server, rule=rule))
            env = environment_of(protocol, proxy.url)
            for name in {"AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS"} & os.environ.keys():
                monkeypatch.delenv(name)
            for name, value in env.items():
                monkeypatch.setenv(name, value)
            bucket = f"bucket-{uuid.uuid4().hex[:12]}"
            make_bucket(protocol, server, bucket)
            return Store(url=f"{protocol}://{bucket}", server=server, proxy=proxy, env=env)

        yield make


@pytest.fixture
def gcs_emulator(open_store: Callable[[str, Rule], Store]) -> Store:
    """A bucket in a GCS emulator, at `STORAGE_EMULATOR_HOST`."""
    return open_store("gs", Rule.KEEP)


@pytest.fixture
def s3_server(open_store: Callable[[str, Rule], Store]) -> Store:
    """A bucket in moto's S3, at `AWS_ENDPOINT_URL`."""
    return open_store("s3", Rule.KEEP)


@pytest.fixture(params=["gs", "s3"])
def store(request: pytest.FixtureRequest, open_store: Callable[[str, Rule], Store]) -> Store:
    """A bucket in each of the emulators, one after the other."""
    return open_store(request.param, Rule.KEEP)
