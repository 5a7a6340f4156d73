"""A codec that dies, loops or takes all memory costs its file and nothing else.

The faults are put into the other process from outside: a `sitecustomize` wraps the JPEG 2000 decoder that is pinned.
"""

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless

from ingest.convert import convert_file, probe_file
from ingest.errors import GuardError
from ingest.geometry import BLOCK6
from ingest.guard import Guard
from ingest.phantom.dicom import encode_dicom
from ingest.record import Probed, Rejection, VolumeRecord
from ingest.watch import Watch
from manifests.reasons import Reason

MACULA = "maestro2_3d_macula_oct"
POISON = 251
"""The grey level of the first voxel that makes the wrapped decoder misbehave; textures end at 250."""

WRAPPER = """
import ctypes, os, signal, sys, time
import imagecodecs

whole = imagecodecs.jpeg2k_decode

class Panic(BaseException):
    pass

def panic():
    raise Panic

def loop():
    while True:
        pass

def jpeg2k_decode(data, *args, **kwargs):
    pixels = whole(data, *args, **kwargs)
    if pixels[0, 0] == {poison}:
        {fault}
    return pixels

imagecodecs.jpeg2k_decode = jpeg2k_decode
"""

FAULTS = {
    "segfault": "ctypes.string_at(0)",
    "abort": "os.abort()",
    "panic": "panic()",
    "exit": "os._exit(0)",
    "loop": "loop()",
    "loop in C": "sum(range(10**12))",
    "allocation": "bytearray(4 * 2**30)",
    "many allocations": "[bytearray(2**28) for _ in range(16)]",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.fixture
def guard() -> Iterator[Guard]:
    with Guard() as found:
        yield found


def poisoned(scan: Any) -> bytes:
    """One B-scan in the middle makes the wrapped decoder misbehave."""
    good = scan(MACULA, JPEG2000Lossless)
    volume = good.volume.copy()
    volume[len(volume) // 2, 0, 0] = POISON
    return encode_dicom(volume, good.header)


def inject(monkeypatch: pytest.MonkeyPatch, folder: Path, fault: str) -> None:
    (folder / "sitecustomize.py").write_text(WRAPPER.format(poison=POISON, fault=fault), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_the_guard_changes_nothing_about_a_good_file(scan: Any, guard: Guard) -> None:
    good = scan(MACULA, JPEG2000Lossless)
    inside, outside = (run(good.encode(), good.path, None, BLOCK6) for run in (convert_file, guard.convert))
    assert isinstance(inside, VolumeRecord)
    assert isinstance(outside, VolumeRecord)
    assert np.array_equal(inside.volume, outside.volume)
    assert (inside.probed, inside.intensity) == (outside.probed, outside.intensity)
    assert guard.probe(io.BytesIO(good.encode()), good.path, None) == probe_file(
        io.BytesIO(good.encode()), good.path, None
    )


@pytest.mark.parametrize("fault", FAULTS)
def test_a_codec_that_misbehaves_costs_its_file_only(
    scan: Any, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, tmp_path, FAULTS[fault])
    good = scan(MACULA, JPEG2000Lossless)
    with Guard() as guard:
        before = guard.convert(good.encode(), good.path, None, BLOCK6)
        result = guard.convert(poisoned(scan), good.path, None, BLOCK6)
        after = guard.convert(good.encode(), good.path, None, BLOCK6)
    assert isinstance(before, VolumeRecord)
    assert isinstance(after, VolumeRecord)
    assert isinstance(result, Rejection)
    assert result.reason is Reason.FRAME_UNDECODABLE
    assert result.facts == before.facts, "what the header said must be in the row"


def test_a_codec_that_waits_for_ever_is_ended(scan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, tmp_path, "time.sleep(1e6)")
    good = scan(MACULA, JPEG2000Lossless)
    with Guard(stall_s=3) as guard:
        result = guard.convert(poisoned(scan), good.path, None, BLOCK6)
        assert isinstance(guard.convert(good.encode(), good.path, None, BLOCK6), VolumeRecord)
    assert isinstance(result, Rejection)
    assert result.reason is Reason.FRAME_UNDECODABLE
    assert "time" in result.detail


@pytest.mark.parametrize(("fault", "reason"), [("os.abort()", "PARSER_CRASH"), ("loop()", "PARSE_LIMIT_EXCEEDED")])
def test_a_parser_that_dies_or_hangs_costs_its_file_only(
    scan: Any, fault: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = (
        "import os\nimport ingest.header as header\nwhole = header.read_dataset\n"
        "def loop():\n    while True: pass\n"
        f"def read(stream, *rest, **more):\n    if stream.rest()[:8] == b'CRASHME!': {fault}\n"
        "    return whole(stream, *rest, **more)\nheader.read_dataset = read\n"
    )
    (tmp_path / "sitecustomize.py").write_text(parser, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    good = scan(MACULA)
    bad = bytes(128) + b"DICM" + b"CRASHME!"
    with Guard() as guard:
        for result in (guard.probe(io.BytesIO(bad), good.path, None), guard.convert(bad, good.path, None, BLOCK6)):
            assert isinstance(result, Rejection)
            assert result.reason is Reason[reason]
            assert result.facts.participant_id == "4123"
        assert isinstance(guard.probe(io.BytesIO(good.encode()), good.path, None), Probed)


def test_a_process_that_is_ended_from_outside_is_no_files_fault(
    scan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is being stopped must not record its files as broken: a later run would believe it."""
    inject(monkeypatch, tmp_path, "os.kill(os.getpid(), signal.SIGTERM)")
    with Guard() as guard, pytest.raises(GuardError, match="SIGTERM"):
        guard.convert(poisoned(scan), scan(MACULA).path, None, BLOCK6)


def test_a_kill_is_believed_the_second_time_only(scan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel that needs memory may pick this process though the file is good."""
    flag = str(tmp_path / "once")
    inject(monkeypatch, tmp_path, f"os.path.exists({flag!r}) or (open({flag!r}, 'w'), os.kill(os.getpid(), 9))")
    with Guard() as guard:
        assert isinstance(guard.convert(poisoned(scan), scan(MACULA).path, None, BLOCK6), VolumeRecord)


def test_a_process_that_cannot_start_says_so(scan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(3)", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Guard() as guard, pytest.raises(GuardError, match="did not start"):
        guard.convert(scan(MACULA).encode(), scan(MACULA).path, None, BLOCK6)


def test_no_process_outlives_its_guard(scan: Any, tmp_path: Path) -> None:
    """A worker that is killed has no time to clean up."""
    note = tmp_path / "child"
    script = (
        "import io, time\nfrom ingest.guard import Guard\nguard = Guard()\n"
        "guard.probe(io.BytesIO(), 'x', None)\n"
        f"open({str(note)!r}, 'w').write(str(guard._child.pid))\ntime.sleep(60)\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", script])
    child = _wait_for(lambda: int(note.read_text()) if note.exists() and note.read_text() else None)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert _wait_for(lambda: not _is_alive(child))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()


def _wait_for(ask: Any) -> Any:
    for _ in range(600):
        found = ask()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("nothing came of it in 30 s")


def test_large_files_of_slow_codecs_keep_their_allowance(scan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each frame that is checked or decoded has an allowance of its own: 500 of them may take minutes."""

    class Counting(Watch):
        frames = 0

        def frame(self, num_voxels: int) -> None:
            assert num_voxels == 128 * 128
            self.frames += 1

    watch, good = Counting(), scan(MACULA, RLELossless)
    assert isinstance(convert_file(good.encode(), good.path, None, BLOCK6, watch=watch), VolumeRecord)
    assert watch.frames == 2 * len(good.volume)


def test_a_default_timeout_of_all_sockets_is_not_the_guards(scan: Any) -> None:
    """Beam's authentication for Google's services sets one, and a pipe with a timeout ended good files at random."""
    good, before = scan(MACULA), socket.getdefaulttimeout()
    socket.setdefaulttimeout(60)
    try:
        with Guard() as guard:
            for _ in range(2):
                assert isinstance(guard.probe(io.BytesIO(good.encode()), good.path, None), Probed)
                time.sleep(0.3)
    finally:
        socket.setdefaulttimeout(before)
