"""A dataset in buckets of emulators on this machine, each behind a proxy that can be told to misbehave."""

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shards.publish import publish
from tests.stores.faults import Fault as Answer
from tests.stores.faults import Plan
from tests.stores.fixtures import environment_of
from tests.stores.proxy import Proxy, proxied
from tests.stores.servers import gcs_server, make_bucket, s3_server

SILENT: Final = Plan(share=1.0, faults=(Answer.STALL,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A copy of the dataset at `url`; `folder` is the one that it was made of."""

    url: str
    proxy: Proxy
    folder: Path

    def fall_silent(self) -> None:
        """Answer nothing."""
        self.proxy.plan(SILENT)

    def speak(self) -> None:
        """Answer as it should."""
        self.proxy.plan(Plan())

    def cut(self, draw: float) -> None:
        """Replace a shard of the training split by its beginning; the padding at its end is not all that is lost."""
        shards = sorted(self.folder.glob("shards/train-*.tar"))
        path = shards[int(draw * len(shards))]
        data = path.read_bytes()
        publish(f"{self.url}/shards/{path.name}", data[: int(draw * len(data) / 2)], replace=True)

    def mend(self) -> None:
        """Put every shard back."""
        for path in self.folder.glob("shards/train-*.tar"):
            publish(f"{self.url}/shards/{path.name}", path.read_bytes(), replace=True)

    def hand_over(self, others: "Sequence[Bucket]") -> None:
        """Leave faults for reads that did not come to another bucket: the next process meets them."""
        left = list(self.proxy.armed)
        self.proxy.armed.clear()
        next((other for other in others if other is not self), self).proxy.armed.extend(left)


@contextmanager
def buckets(protocols: Sequence[str], folder: Path) -> Iterator[list[Bucket]]:
    """A bucket for each of them, and the environment set to lead there."""
    before = dict(os.environ)
    with ExitStack() as opened:
        opened.callback(_put_back, before)
        yield [opened.enter_context(_bucket(protocol, folder)) for protocol in protocols]


def _put_back(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


@contextmanager
def _bucket(protocol: str, folder: Path) -> Iterator[Bucket]:
    with (gcs_server if protocol == "gs" else s3_server)() as server, proxied(server) as proxy:
        os.environ.update(environment_of(protocol, proxy.url))
        name = f"faults-{uuid.uuid4().hex[:8]}"
        make_bucket(protocol, server, name)
        bucket = Bucket(url=f"{protocol}://{name}/dataset", proxy=proxy, folder=folder)
        for path in sorted(one for one in folder.rglob("*") if one.is_file()):
            publish(f"{bucket.url}/{path.relative_to(folder)}", path.read_bytes())
        yield bucket
