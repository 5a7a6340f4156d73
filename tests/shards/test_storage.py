"""Reading from a disk and from buckets: what passes is retried, bounded; what is short or grown is never taken."""

import io
import multiprocessing
import pickle
import random
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shards import retries, s3, storage
from shards.errors import AddressError
from shards.gcs import GcsClient
from shards.publish import publish
from shards.retries import PassingFaultError, StoreError, retrying
from shards.storage import (
    Place,
    RangedFile,
    exists,
    fingerprint,
    list_files,
    locate,
    open_file,
    read_bytes,
    read_range,
    remove,
    remove_tree,
    size,
)
from tests.stores.faults import QUICK_FAULTS, Fault, Plan
from tests.stores.fixtures import Store
from tests.stores.rules import Rule

DATA = random.Random(0).randbytes(3_000_000)


@pytest.fixture(params=["disk", "gs", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, open_store: Callable[..., Store]) -> str:
    """A folder that is not there yet, on a disk and in a bucket of each kind."""
    if request.param == "disk":
        return str(tmp_path / "data")
    return open_store(request.param).url + "/data"


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been waited."""
    waited: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", waited.append)
    return waited


def test_addresses() -> None:
    place = locate("gs://bucket/some/folder/")
    assert (place.path, (place / "a b.tar").path) == ("bucket/some/folder", "bucket/some/folder/a b.tar")
    assert (place / "a b.tar").url == "gs://bucket/some/folder/a b.tar"
    assert locate("/some/where").is_local
    assert not locate("s3://bucket").is_local
    assert locate("gs://bucket").path == "bucket"
    assert pickle.loads(pickle.dumps(place)) == place  # noqa: S301 - our own


@pytest.mark.parametrize("url", ["gs://", "s3:///file", "nonsense://bucket/file"])
def test_addresses_that_lead_nowhere(url: str) -> None:
    with pytest.raises(AddressError, match=f"^{url} "):
        locate(url)


def test_a_passing_fault_is_tried_again_up_to_the_bound(delays: list[float]) -> None:
    calls = []

    def work() -> None:
        calls.append(1)
        raise ConnectionResetError(104, "Connection reset by peer")

    with pytest.raises(StoreError, match=r"^x: 8 attempts failed, the last with ConnectionResetError"):
        retrying(work, "x")
    assert len(calls) == retries.MAX_ATTEMPTS
    assert len(delays) == retries.MAX_ATTEMPTS - 1
    assert all(0 < delay <= retries.MAX_DELAY_S for delay in delays)


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "no"), PermissionError(13, "no"), TypeError("a defect"), StoreError("no.")]
)
def test_what_does_not_pass_is_told_at_once(error: Exception, delays: list[float]) -> None:
    def work() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        retrying(work, "x")
    assert caught.value is error
    assert delays == []


def test_a_fault_that_passes(delays: list[float]) -> None:
    answers = iter([PassingFaultError("short"), TimeoutError(), None])

    def work() -> int:
        if answer := next(answers):
            raise answer
        return 7

    assert retrying(work, "x") == 7
    assert len(delays) == 2


@pytest.mark.parametrize("fault", QUICK_FAULTS)
def test_every_fault_is_retried_and_then_told(store: Store, delays: list[float], fault: Fault) -> None:
    publish(f"{store.url}/file", DATA)
    store.proxy.plan(Plan(share=1.0, faults=(fault,)))
    with pytest.raises(StoreError, match="8 attempts failed") as caught:
        read_bytes(f"{store.url}/file", len(DATA))
    assert "\n" not in str(caught.value)
    assert store.proxy.faults[fault] >= retries.MAX_ATTEMPTS
    assert store.proxy.attempts.total() <= 2 * retries.MAX_ATTEMPTS, "aiohttp asks twice where a connection was kept"
    store.proxy.plan(Plan(share=0.5, faults=(fault,), seed=3))
    assert all(read_range(f"{store.url}/file", at, 1000) == DATA[at : at + 1000] for at in range(0, 30_000, 1000))
    assert store.proxy.faults[fault] > 5


def test_a_server_that_stalls_is_asked_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, delays: list[float]
) -> None:
    publish(f"{store.url}/file", DATA)
    monkeypatch.setattr(storage, "SILENCE_S", 0.5)
    assert read_bytes(f"{store.url}/file") == DATA  # connects
    store.proxy.plan(Plan(share=0.4, faults=(Fault.STALL,), seed=1))
    assert all(read_range(f"{store.url}/file", at, 1000) == DATA[at : at + 1000] for at in range(0, 8000, 1000))
    assert store.proxy.faults[Fault.STALL] >= 2


def test_whole_files(folder: str) -> None:
    publish(f"{folder}/file", DATA)
    publish(f"{folder}/empty", b"")
    assert read_bytes(f"{folder}/file") == read_bytes(f"{folder}/file", len(DATA)) == DATA
    assert read_bytes(f"{folder}/empty") == read_bytes(f"{folder}/empty", 0) == b""
    assert size(f"{folder}/file") == len(DATA)


def test_pieces_of_a_large_file(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(f"{folder}/file", DATA)
    for piece in (len(DATA) // 3, len(DATA) - 1, len(DATA), len(DATA) + 1, 7 * 10**5):
        monkeypatch.setattr(storage, "READ_BYTES", piece)
        assert read_bytes(f"{folder}/file", len(DATA)) == DATA


@pytest.mark.parametrize("expected", [0, 1, len(DATA) - 1, len(DATA) + 1, 2 * len(DATA)])
def test_a_file_of_another_size_than_listed_is_refused(folder: str, expected: int, delays: list[float]) -> None:
    publish(f"{folder}/file", DATA)
    with pytest.raises(StoreError, match=f"it has {len(DATA)} bytes, expected were {expected}"):
        read_bytes(f"{folder}/file", expected)
    assert delays == []


@pytest.mark.parametrize(("start", "length"), [(len(DATA) - 10, 11), (len(DATA), 1), (2 * len(DATA), 5)])
def test_a_range_behind_the_end(folder: str, start: int, length: int, delays: list[float]) -> None:
    publish(f"{folder}/file", DATA)
    with pytest.raises(StoreError, match=f"it has {len(DATA)} bytes"):
        read_range(f"{folder}/file", start, length)
    assert delays == [], "the store says how long the file is: nothing to wait for"
    assert read_range(f"{folder}/file", len(DATA) - 10, 10) == DATA[-10:]
    assert read_range(f"{folder}/file", 5, 0) == b""


def test_what_is_not_there(folder: str, delays: list[float]) -> None:
    publish(f"{folder}/file", b"data")
    for read in (read_bytes, size, lambda url: read_bytes(url, 4), lambda url: read_range(url, 0, 4), RangedFile):
        with pytest.raises(FileNotFoundError):
            read(f"{folder}/nothing")
    assert fingerprint(f"{folder}/nothing") is fingerprint(folder) is None
    assert [exists(f"{folder}{name}") for name in ("/file", "", "/fil", "/nothing")] == [True, True, False, False]
    assert list_files(f"{folder}/nothing") == {}
    assert delays == []


def test_a_store_that_does_not_answer_is_not_an_absent_file(store: Store, delays: list[float]) -> None:
    store.proxy.plan(Plan(share=1.0, faults=(Fault.UNAVAILABLE,)))
    for ask in (exists, fingerprint, list_files, size):
        with pytest.raises(StoreError):
            ask(f"{store.url}/file")


def test_a_store_that_refuses(store: Store, open_store: Callable[..., Store]) -> None:
    forbidding = open_store(store.url.partition(":")[0], Rule.FORBID)
    for ask in (exists, list_files, read_bytes, lambda url: read_range(url, 0, 4)):
        with pytest.raises(PermissionError):
            ask(f"{forbidding.url}/InvalidRange-416")  # a name is no status
    assert forbidding.proxy.attempts.total() == 4


def test_checksums(store: Store) -> None:
    publish(f"{store.url}/file", b"abc")
    found = fingerprint(f"{store.url}/file")
    assert found is not None
    assert (found.bytes, found.checksum) == (3, "md5:900150983cd24fb0d6963f7d28e17f72")


def test_listing_and_removing(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PAGE_FILES", 2)
    names = ["a", "b/c d", "b/ä+%2F#?.tar", "b/e/f", "g"]
    for number, name in enumerate(names):
        publish(f"{folder}/{name}", bytes(number))
    publish(f"{folder}-other/file", b"")
    root = locate(folder).path
    assert list_files(folder) == {f"{root}/{name}": number for number, name in enumerate(names)}
    remove(f"{folder}/a")
    remove(f"{folder}/a")
    assert f"{root}/a" not in list_files(folder), "no listing is remembered"
    remove_tree(f"{folder}/b")
    assert list_files(folder) == {f"{root}/g": 4}
    remove_tree(folder)
    remove_tree(folder)
    assert not exists(folder)
    assert exists(f"{folder}-other/file")


def test_several_may_remove_a_folder_at_once(folder: str) -> None:
    for number in range(40):
        publish(f"{folder}/{number % 7}/{number}", b"")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(remove_tree, [folder, f"{folder}/", f"{folder}/3", folder]))
    assert not exists(folder)


def test_pages_of_a_gcs_listing() -> None:
    class Pages:
        """The emulator gives all at once; the API gives a token."""

        def call(self, *_: object, pageToken: str | None, **__: object) -> dict[str, object]:  # noqa: N803
            number = int(pageToken or 0)
            items = [{"name": f"folder/{number}", "size": "5"}, {"name": "folder/", "size": "0"}]
            return {"items": items, "nextPageToken": str(number + 1)} if number < 2 else {"items": items}

    client = GcsClient(fs=Pages())
    token, found = None, {}
    for _ in range(3):
        page, token = client.list_page("bucket/folder", token)
        found.update(page)
    assert token is None
    assert found == {f"bucket/folder/{number}": 5 for number in range(3)}


def test_a_stream_reads_as_a_file_does(folder: str) -> None:
    publish(f"{folder}/file", DATA)
    draw = random.Random(4)
    ours, plain = RangedFile(f"{folder}/file", ahead_bytes=1000), io.BytesIO(DATA)
    for _ in range(60):
        whence = draw.choice([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END])
        offset = -draw.randrange(5000) if whence == io.SEEK_END else draw.randrange(5000)
        assert ours.seek(offset, whence) == plain.seek(offset, whence)
        length = draw.choice([0, 1, 10, 999, 1000, 1001, 4000])
        assert ours.read(length) == plain.read(length)
        assert ours.tell() == plain.tell()
    ours.seek(len(DATA) - 70_000)
    assert ours.read() == DATA[-70_000:]
    with pytest.raises(OSError, match="negative"):
        ours.seek(-1)


def test_a_zip_in_a_bucket_costs_few_requests(store: Store) -> None:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for number in range(50):
            archive.writestr(f"{number}.dcm", DATA[: 1000 * number])
    publish(f"{store.url}/a.zip", memory.getvalue())
    store.proxy.plan(Plan())
    with open_file(f"{store.url}/a.zip") as stream, zipfile.ZipFile(stream) as archive:
        assert [len(archive.read(info)) for info in archive.infolist()] == [1000 * number for number in range(50)]
    assert store.proxy.attempts.total() <= 8


def test_threads_share_a_client(store: Store) -> None:
    publish(f"{store.url}/file", DATA)
    with ThreadPoolExecutor(16) as pool:
        read = pool.map(lambda at: read_range(f"{store.url}/file", at, 9999) == DATA[at : at + 9999], range(200))
        assert all(read)


def _read_in_child(place: Place, answers: "multiprocessing.SimpleQueue[bool]") -> None:
    answers.put(read_bytes(place) == DATA and read_range(place, 10, 20) == DATA[10:30])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_forked_after_use_read_too(store: Store, method: str) -> None:
    place = locate(f"{store.url}/file")
    publish(place.url, DATA)
    assert read_range(place, 0, 10) == DATA[:10]
    context = multiprocessing.get_context(method)
    answers = context.SimpleQueue()
    children = [context.Process(target=_read_in_child, args=(place, answers)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    assert answers.get()
    assert answers.get()
    assert read_range(place, 5, 10) == DATA[5:15], "the parent's client still works"
