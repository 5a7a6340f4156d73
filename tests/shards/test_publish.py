"""Publishing to a disk and to buckets: whole or not there, equal bytes twice, never other bytes unasked."""

import errno
import hashlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shards import publish as publishing
from shards import retries
from shards.publish import ContentConflictError, Way, probe_store, publish
from shards.retries import StoreError
from shards.storage import list_files, locate, read_bytes
from tests.stores.faults import Fault, Plan
from tests.stores.fixtures import Store
from tests.stores.rules import Rule

OpenStore = Callable[..., Store]


@pytest.fixture(params=["disk", "gs", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, open_store: OpenStore) -> str:
    """A folder that is not there yet, on a disk and in a bucket of each kind."""
    if request.param == "disk":
        return str(tmp_path / "data")
    return open_store(request.param).url + "/data"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without the waiting."""
    monkeypatch.setattr(retries, "FIRST_DELAY_S", 0.001)


def names_in(folder: str) -> list[str]:
    return [path.rpartition("/")[2] for path in list_files(folder)]


def test_equal_bytes_are_published_once(folder: str) -> None:
    url = f"{folder}/shards/one.tar"
    first, again = publish(url, b"some bytes"), publish(url, b"some bytes")
    assert (first.created, again.created) == (True, False)
    assert first.sha256 == again.sha256 == hashlib.sha256(b"some bytes").hexdigest()
    assert read_bytes(url) == b"some bytes"
    assert names_in(folder) == ["one.tar"], "neither a temporary file nor a probe is left"


def test_other_bytes_are_refused_and_the_object_is_named(folder: str) -> None:
    url = f"{folder}/shards/one.tar"
    publish(url, b"some bytes")
    with pytest.raises(ContentConflictError, match=r"one\.tar is there already with other content"):
        publish(url, b"other byte")
    assert read_bytes(url, expected_bytes=10) == b"some bytes"


def test_other_bytes_replace_when_asked(folder: str) -> None:
    url = f"{folder}/one.json"
    publish(url, b"some bytes")
    assert publish(url, b"other", replace=True).created
    assert not publish(url, b"other", replace=True).created
    assert read_bytes(url) == b"other"


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, 16 * 2**20, 16 * 2**20 + 1, 40 * 2**20])
def test_sizes_around_a_part(folder: str, size: int, tmp_path: Path) -> None:
    data = random.Random(size).randbytes(size)
    source = tmp_path / "source"
    source.write_bytes(data)
    with source.open("rb") as file:
        file.seek(size // 2)
        assert publish(f"{folder}/file", file).created
        assert not publish(f"{folder}/file", file).created
    assert hashlib.sha256(read_bytes(f"{folder}/file", size)).digest() == hashlib.sha256(data).digest()


def test_a_wrong_last_byte_of_many_parts_is_found(folder: str) -> None:
    data = random.Random(1).randbytes(17 * 2**20)
    publish(f"{folder}/file", data)
    with pytest.raises(ContentConflictError):
        publish(f"{folder}/file", data[:-1] + bytes([data[-1] ^ 1]))


def test_threads_with_equal_bytes_make_one_object(folder: str) -> None:
    data = random.Random(2).randbytes(300_000)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: publish(f"{folder}/file", data), range(8)))
    assert sum(result.created for result in results) == 1
    assert read_bytes(f"{folder}/file") == data


@pytest.mark.parametrize("size", [100_000, 17 * 2**20])
def test_of_threads_with_different_bytes_one_wins(folder: str, size: int) -> None:
    def attempt(number: int) -> bytes | None:
        data = bytes([number]) * size
        try:
            publish(f"{folder}/file", data)
        except ContentConflictError:
            return None
        return data

    with ThreadPoolExecutor(4) as pool:
        published = [data for data in pool.map(attempt, range(4)) if data is not None]
    assert len(published) == 1
    assert read_bytes(f"{folder}/file") == published[0]


RACER = """
import sys, time
from shards.publish import ContentConflictError, probe_store, publish
url, fill, start = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
probe_store(url)
time.sleep(max(0.0, start - time.time()))
try:
    print(publish(url, bytes([fill]) * 200_000).created)
except ContentConflictError:
    print("refused")
"""


@pytest.mark.parametrize(
    ("fills", "expected"), [((1, 1, 1), ["False", "False", "True"]), ((1, 2, 3), ["True", "refused", "refused"])]
)
def test_processes_race(folder: str, fills: tuple[int, ...], expected: list[str]) -> None:
    start = str(time.time() + 6)
    command = [sys.executable, "-c", RACER, f"{folder}/file"]
    racers = [
        subprocess.Popen([*command, str(fill), start], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for fill in fills
    ]
    answers = [racer.communicate(timeout=120) for racer in racers]
    assert sorted(out.strip() for out, _ in answers) == expected, answers
    data = read_bytes(f"{folder}/file", 200_000)
    assert data == data[:1] * 200_000
    assert names_in(folder) == ["file"]


KILLED = """
import os, signal, sys
from shards import publish as publishing
publishing._move = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
publishing.publish(sys.argv[1], b"whole" * 1000)
"""


def test_a_kill_before_the_final_name_leaves_nothing_under_it(tmp_path: Path) -> None:
    url = str(tmp_path / "file")
    killed = subprocess.run([sys.executable, "-c", KILLED, url], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert not Path(url).exists()
    assert [path.name[:6] for path in tmp_path.iterdir()] == [".file."]
    assert publish(url, b"whole" * 1000).created


@pytest.mark.parametrize("replace", [False, True])
def test_a_temporary_file_that_is_cleared_away_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    move, cleared = publishing._move, []

    def clear_once(temporary: Path, final: Path, *, replace: bool) -> bool:
        if not cleared:
            cleared.append(temporary)
            temporary.unlink()
        return move(temporary, final, replace=replace)

    monkeypatch.setattr(publishing, "_move", clear_once)
    assert publish(str(tmp_path / "file"), b"whole", replace=replace).created
    assert len(cleared) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_always_cleared_is_an_error_of_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "_move", lambda temporary, *_, **__: (temporary.unlink(), temporary.stat()))
    with pytest.raises(StoreError, match="its temporary file was removed 5 times"):
        publish(str(tmp_path / "file"), b"whole")


def test_a_disk_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert publish(str(tmp_path / "file"), b"whole").created
    with pytest.raises(ContentConflictError):
        publish(str(tmp_path / "file"), b"other")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_probe_finds_conditions(store: Store) -> None:
    assert probe_store(f"{store.url}/data/file") is Way.CONDITIONAL
    asked = store.proxy.attempts.total()
    assert probe_store(f"{store.url}/other/file") is Way.CONDITIONAL
    assert store.proxy.attempts.total() == asked, "once a process and bucket"
    assert list_files(store.url) == {}


@pytest.mark.parametrize("rule", [Rule.REFUSE, Rule.IGNORE])
@pytest.mark.parametrize("protocol", ["gs", "s3"])
def test_a_store_without_conditions(open_store: OpenStore, protocol: str, rule: Rule) -> None:
    store = open_store(protocol, rule)
    url = f"{store.url}/data/file"
    assert probe_store(url) is Way.CHECK
    assert [publish(url, b"some bytes").created for _ in range(2)] == [True, False]
    with pytest.raises(ContentConflictError):
        publish(url, b"other byte")
    data = random.Random(3).randbytes(17 * 2**20)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: publish(f"{store.url}/data/big", data), range(4)))
    assert read_bytes(f"{store.url}/data/big", len(data)) == data
    assert names_in(store.url) == ["big", "file"]


def test_what_another_job_wrote_over_an_upload_is_found(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{open_store('s3', Rule.REFUSE).url}/file"
    client = type(locate(url).client)
    upload = client.upload

    def overwritten(self: object, path: str, body: object, *, create: bool) -> None:
        upload(self, path, body, create=create)
        upload(self, path, publishing.Body.of(b"of another"), create=create)

    assert probe_store(url) is Way.CHECK
    monkeypatch.setattr(client, "upload", overwritten)
    with pytest.raises(ContentConflictError):
        publish(url, b"ours")


def test_an_upload_whose_answer_is_lost_is_found(store: Store, quick: None) -> None:
    url = f"{store.url}/file"
    probe_store(url)
    store.proxy.plan(Plan(share=1.0, faults=(Fault.LOST_ANSWER,)))
    with pytest.raises(StoreError, match="8 attempts failed"):
        publish(url, b"some bytes")
    assert store.proxy.attempts.total() <= 2 * retries.MAX_ATTEMPTS, "aiohttp asks twice where a connection was kept"
    store.proxy.plan(Plan(share=0.4, faults=(Fault.LOST_ANSWER,), seed=5))
    for number in range(20):
        publish(f"{url}-{number}", b"some bytes")
    publish(f"{url}-big", b"some bytes" * 2_000_000)
    assert store.proxy.faults[Fault.LOST_ANSWER] > 10
    store.proxy.plan(Plan())
    assert {size for path, size in list_files(store.url).items() if "big" not in path} == {10}
    assert read_bytes(f"{url}-big") == b"some bytes" * 2_000_000


def test_a_bucket_that_is_not_there(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        publish(f"{store.url}-of-nobody/file", b"some bytes")


def test_a_store_that_forbids(open_store: OpenStore, store: Store) -> None:
    forbidding = open_store(store.url.partition(":")[0], Rule.FORBID)
    with pytest.raises(PermissionError):
        publish(f"{forbidding.url}/file", b"some bytes")
    assert forbidding.proxy.attempts.total() == 1


def sizes(count: int, largest: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [1, largest, *(round(largest ** draw.random()) for _ in range(count - 2))]


@pytest.mark.slow
def test_two_hundred_objects_each_way_through_ten_percent_of_faults(store: Store, quick: None) -> None:
    wanted = {f"{number:03d}": size for number, size in enumerate(sizes(200, 20_000_000, seed=7))}
    probe_store(f"{store.url}/data/file")
    store.proxy.plan(Plan(share=0.1, seed=11))

    def there_and_back(name: str) -> bool:
        data = random.Random(name).randbytes(wanted[name])
        url = f"{store.url}/data/{name}"
        published = publish(url, data)
        back = read_bytes(url, len(data))
        return hashlib.sha256(back).hexdigest() == published.sha256 == hashlib.sha256(data).hexdigest()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(there_and_back, wanted))
    attempts, faults = store.proxy.attempts.total(), store.proxy.faults.total()
    store.proxy.plan(Plan())
    assert {path.rpartition("/")[2]: size for path, size in list_files(f"{store.url}/data").items()} == wanted
    assert faults > 50
    # stat, start and part, and read again; parts and pieces of large files; after a fault at most two requests more
    assert attempts <= 4 * 200 + 2 * 20 + 2 * faults, (attempts, faults)
