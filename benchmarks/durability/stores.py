"""One cohort from a disk, an S3 server and a GCS server to each of them: equal bytes, also while the stores fail."""

import argparse
import hashlib
import os
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from reliability.report import ROOT, Promise, none_of, table, verdict

from durability.cohorts import digest, fresh, geometry_file, make_cohort
from durability.jobs import Setting, run
from shards.publish import publish
from shards.storage import locate, names_below, read_bytes
from shards.verify import verify

FAULT_SHARE: Final = 0.1
MORE_REQUESTS: Final = 1.5
"""One in ten is repeated, and some of these again; an upload that broke off also asks how far it came."""
SMOKE: Final = ("--set", "train.max_steps=2", "--set", "train.global_batch=2", "--set", "train.micro_batch=1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one job in one place gave."""

    place: str
    share: float
    hashes: Mapping[str, str] = field(repr=False)
    problems: int
    faults: Mapping[str, int]
    requests: int
    trained: bool | None = None


def run_target(options: argparse.Namespace) -> int:
    """A job on a disk, then in each store without and with faults; a short pretraining reads each healthy place."""
    folder = fresh("stores")
    geometry = "block6" if options.train else str(geometry_file())
    source = make_cohort(folder / "cohort", participants=1, volumes=8, corrupt=0.2)
    setting = Setting(name="2 processes", options=("--direct_num_workers=2",))
    run(str(source), str(folder / "dataset"), setting, geometry=geometry)
    wanted = digest(folder / "dataset")
    trained = _trains(str(folder / "dataset"), folder / "run-disk", {}) if options.train else None
    found = [Outcome(place="disk", share=0.0, hashes=wanted, problems=0, faults={}, requests=0, trained=trained)]
    jobs = ((protocol, share) for protocol in ("s3", "gs") for share in (0.0, FAULT_SHARE))
    found += [_in_store(protocol, share, source, geometry, options) for protocol, share in jobs]
    return _report(found, wanted, train=options.train)


def _in_store(protocol: str, share: float, source: Path, geometry: str, options: argparse.Namespace) -> Outcome:
    with _store(protocol) as (url, environment, proxy), _environment(environment):
        from tests.stores.faults import Fault, Plan

        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            publish(f"{url}/cohort/{file.relative_to(source)}", file.read_bytes())
        faults = (Fault.TOO_MANY, Fault.SERVER_ERROR, Fault.UNAVAILABLE, Fault.RESET, Fault.CUT, Fault.SHORT)
        proxy.plan(Plan(share=share, faults=(*faults, *((Fault.STALL,) if options.stall else ())), seed=options.seed))
        setting = Setting(name=f"{protocol}, {share:.0%} faults", options=("--direct_num_workers=2",))
        run(f"{url}/cohort", f"{url}/dataset", setting, geometry=geometry)
        seen, attempts = Counter(fault.value for fault in proxy.faults.elements()), Counter(proxy.attempts)
        proxy.plan(Plan())
        trains = options.train and not share
        trained = _trains(f"{url}/dataset", fresh(f"stores/run-{protocol}"), environment) if trains else None
        return Outcome(
            place=protocol,
            share=share,
            hashes=_digest(f"{url}/dataset"),
            problems=len(verify(f"{url}/dataset").problems),
            faults=seen,
            requests=sum(attempts.values()),
            trained=trained,
        )


@contextmanager
def _store(protocol: str) -> Iterator[tuple[str, Mapping[str, str], "object"]]:
    from tests.stores.fixtures import environment_of
    from tests.stores.proxy import proxied
    from tests.stores.rules import Rule
    from tests.stores.servers import gcs_server, make_bucket, s3_server

    start = gcs_server if protocol == "gs" else s3_server
    with start() as server, proxied(server, rule=Rule.KEEP) as proxy:
        bucket = f"soak-{uuid.uuid4().hex[:8]}"
        make_bucket(protocol, server, bucket)
        yield f"{protocol}://{bucket}", environment_of(protocol, proxy.url), proxy


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _digest(url: str) -> dict[str, str]:
    place = locate(url)
    return {name: hashlib.sha256(read_bytes(place / name)).hexdigest() for name in names_below(place)}


def _trains(dataset: str, out: Path, environment: Mapping[str, str]) -> bool:
    """Whether two steps of the smoke recipe run on the dataset where it lies."""
    words = [sys.executable, "-m", "fovea", "pretrain", "--recipe", "smoke", "--data", dataset, "--out", str(out)]
    env = {**os.environ, **environment}
    done = subprocess.run([*words, *SMOKE], cwd=ROOT, env=env, check=False, capture_output=True)
    if done.returncode:
        print(done.stderr.decode(errors="replace")[-500:], file=sys.stderr)
    return done.returncode == 0


def _bounded(protocol: str, found: Sequence[Outcome]) -> Promise:
    healthy, failing = (one.requests for one in found if one.place == protocol)
    text = f"{protocol}: requests of the failing store at most {MORE_REQUESTS} times those of the healthy one"
    return Promise(text=text, found=f"{failing / healthy:.2f}", kept=failing <= MORE_REQUESTS * healthy)


def _report(found: Sequence[Outcome], wanted: Mapping[str, str], *, train: bool) -> int:
    rows = [(one.place, f"{one.share:.0%}", len(one.hashes), sum(one.faults.values()), one.requests) for one in found]
    print(table(("place", "requests made to fail", "files", "faults", "requests"), rows))
    different = sum(one.hashes != wanted for one in found)
    promises = [
        Promise(
            text="the same bytes in every place",
            found=f"{len(found) - different} of {len(found)}",
            kept=not different,
        ),
        *(_bounded(protocol, found) for protocol in ("s3", "gs")),
        none_of("objects that `fovea verify` finds damaged", sum(one.problems for one in found)),
    ]
    if train:
        ended = [one.trained for one in found if one.trained is not None]
        promises.append(
            Promise(text="a pretraining reads each place", found=f"{sum(ended)} of {len(ended)}", kept=all(ended))
        )
    text, status = verdict(promises)
    print(text)
    return status
