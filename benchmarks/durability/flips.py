"""`fovea verify` against damage, and the stock webdataset beside it."""

import argparse
import hashlib
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from reliability.report import Promise, table, verdict

from durability.cohorts import fresh, make_cohort
from durability.jobs import Setting, run
from shards.verify import verify


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """What was done to one file of the dataset, and what found it."""

    kind: str
    file: str
    named: bool
    noticed_by_stock: bool | None


def run_target(options: argparse.Namespace) -> int:
    """Flip, cut, remove, add and swap, one at a time; each is undone before the next."""
    folder = fresh("flips")
    source = make_cohort(folder / "cohort")
    run(str(source), str(folder / "dataset"), Setting(name="in memory"))
    found = list(_all(folder / "dataset", options))
    kinds = list(dict.fromkeys(one.kind for one in found))
    rows = [(kind, *_counts([one for one in found if one.kind == kind])) for kind in kinds]
    print(table(("damage", "done", "found and named by `fovea verify`", "noticed by webdataset"), rows))
    missed = [one for one in found if not one.named]
    text, status = verdict(
        [
            Promise(text="all found", found=f"{len(found) - len(missed)} of {len(found)}", kept=not missed),
            Promise(
                text="undone, the dataset is whole again",
                found="yes" if not verify(str(folder / "dataset")).problems else "no",
                kept=not verify(str(folder / "dataset")).problems,
            ),
        ]
    )
    print(text)
    return status


def _counts(found: list[Damage]) -> tuple[int, int, str]:
    stock = [one.noticed_by_stock for one in found if one.noticed_by_stock is not None]
    share = f"{sum(stock)} ({sum(stock) / len(stock):.1%})" if stock else "-"
    return len(found), sum(one.named for one in found), share


def _all(dataset: Path, options: argparse.Namespace) -> Iterator[Damage]:
    generator = random.Random(options.seed)
    shards = sorted(dataset.glob("shards/*.tar"))
    others = [*sorted(dataset.glob("manifests/*")), dataset / "dataset.json", dataset / "_SUCCESS"]
    before = {shard: _stock(shard) for shard in shards}
    for number in range(options.flips):
        file = generator.choice(others) if number % 10 == 9 else generator.choice(shards)
        yield _damaged(dataset, file, "bit flip", lambda data: _flip(data, generator), before)
    for number in range(options.cuts):
        file = generator.choice(others) if number % 10 == 9 else generator.choice(shards)
        yield _damaged(dataset, file, "truncation", lambda data: data[: generator.randrange(len(data))], before)
    for file in (*shards, *others):
        yield _damaged(dataset, file, "missing", lambda _: None, before)
    yield from _foreign(dataset, shards)


def _flip(data: bytes, generator: random.Random) -> bytes:
    changed = bytearray(data)
    changed[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def _damaged(
    dataset: Path, file: Path, kind: str, change: Callable[[bytes], bytes | None], before: dict[Path, str]
) -> Damage:
    good, stat = file.read_bytes(), file.stat()
    bad = change(good)
    if bad is None:
        file.unlink()
    else:
        file.write_bytes(bad)
    named = _names(dataset, file)
    stock = _stock(file) != before[file] if file in before and bad is not None else None
    noticed = None if stock is None else _stock(file).startswith("error")
    file.write_bytes(good)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return Damage(kind=kind, file=file.name, named=named, noticed_by_stock=noticed)


def _foreign(dataset: Path, shards: list[Path]) -> Iterator[Damage]:
    """A shard too many, and each two neighbours of equal size or not, swapped."""
    extra = dataset / "shards/train-topcon_triton-09999.tar"
    shutil.copyfile(shards[0], extra)
    yield Damage(kind="extra", file=extra.name, named=_names(dataset, extra), noticed_by_stock=None)
    extra.unlink()
    for one, other in pairwise(shards):
        _swap(one, other)
        named = _names(dataset, one) and _names(dataset, other)
        yield Damage(kind="swapped", file=one.name, named=named, noticed_by_stock=None)
        _swap(one, other)


def _swap(one: Path, other: Path) -> None:
    middle = one.with_suffix(".swap")
    one.rename(middle)
    other.rename(one)
    middle.rename(other)


def _names(dataset: Path, file: Path) -> bool:
    """Whether verify finds a problem, and names the file; one of `dataset.json` may be told as `_SUCCESS`'s."""
    named = Counter(problem.file for problem in verify(str(dataset)).problems)
    heads = {"dataset.json", "_SUCCESS"}
    name = str(file.relative_to(dataset))
    return name in named or (name in heads and bool(heads & named.keys()))


def _stock(shard: Path) -> str:
    """What a reader with the stock package gets of a shard: `error`, or a hash of all samples."""
    digest = hashlib.sha256()
    try:
        for sample in _samples(shard):
            digest.update(repr(sorted(sample)).encode() + sample["volume.npy"].tobytes())
            digest.update(repr(sample["meta.json"]).encode())
    except Exception as error:  # noqa: BLE001 - whatever it raises, it was noticed
        return f"error {type(error).__name__}"
    return digest.hexdigest()


def _samples(shard: Path) -> Iterator[dict[str, Any]]:
    """What `webdataset.WebDataset(shard).decode()` gives; opened here so that it is closed after an error."""
    import webdataset

    with shard.open("rb") as stream:
        source = [{"url": str(shard), "stream": stream}]
        members = webdataset.tariterators.tar_file_expander(source, handler=webdataset.reraise_exception)
        grouped = webdataset.tariterators.group_by_keys(members, handler=webdataset.reraise_exception)
        yield from webdataset.decode()(grouped)
