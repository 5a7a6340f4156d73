"""Ctrl-C and SIGTERM during an ingest: an exit code, one sentence, no process left, and the job can be finished."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fovea.stop import descendants
from ingest.phantom.cohort import write_cohort
from ingest.phantom.plan import CohortSpec
from shards.verify import verify

PATIENCE_S = 120.0


def start(*words: object) -> subprocess.Popen[str]:
    """As a shell starts it: in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "fovea", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def is_guard(process: int) -> bool:
    try:
        return b"ingest.isolated" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def wait_for_guards(job: subprocess.Popen[str]) -> list[int]:
    """All processes of the job, once one of them parses files."""
    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends and job.poll() is None:
        below = descendants(job.pid)
        if any(map(is_guard, below)):
            return below
        time.sleep(0.02)
    pytest.fail(f"no guard was started; exit code {job.poll()}")


def wait_for_end(processes: list[int]) -> list[int]:
    """Those that still run; killing takes the kernel a moment."""
    ends = time.monotonic() + 10
    while (left := [one for one in processes if is_running(one)]) and time.monotonic() < ends:
        time.sleep(0.02)
    return left


def test_a_stopped_ingest_leaves_no_process_and_can_be_finished(tmp_path: Path) -> None:
    cohort, dataset = tmp_path / "cohort", tmp_path / "dataset"
    write_cohort(cohort, CohortSpec(participants=4, volumes_per_participant=4, small=True), workers=1)
    words = ("ingest", cohort, dataset, "--geometry", "block6", "--direct_num_workers=2")
    for stop, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        job = start(*words)
        processes = wait_for_guards(job)
        # A terminal sends Ctrl-C to the whole group; `kill` and a container's end reach one process.
        os.killpg(job.pid, stop) if stop == signal.SIGINT else job.send_signal(stop)
        _, said = job.communicate(timeout=PATIENCE_S)
        assert job.returncode == code
        assert (
            said == f"fovea: stopped by {stop.name}: {dataset} is not finished; run the same command again to go on.\n"
        )
        assert wait_for_end([job.pid, *processes]) == []
        assert not (dataset / "_SUCCESS").exists()
    job = start(*words)
    _, said = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 0, said
    assert verify(str(dataset)).problems == ()


def test_a_stop_ends_a_command_that_nobody_listens_to() -> None:
    """As `fovea ingest ... 2>&1 | head` is, once `head` has gone."""
    code = (
        "import os, signal, sys, time; from fovea.stop import stoppable\n"
        "with stoppable('again.'):\n"
        "    os.write(2, b'x'), sys.stdin.read(1), os.kill(os.getpid(), signal.SIGTERM), time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        assert job.stdin is not None
        assert job.stderr is not None
        job.stderr.close()
        job.stdin.write(b"x")
        job.stdin.close()
    assert job.returncode == 143


def test_ctrl_c_in_any_command_is_no_traceback() -> None:
    code = (
        "import os, signal, sys, manifests.audit, fovea.cli;"
        "manifests.audit.audit = lambda url: os.kill(os.getpid(), signal.SIGINT);"
        "sys.argv = ['fovea', 'audit', 'd']; fovea.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "fovea: stopped by SIGINT.\n")
