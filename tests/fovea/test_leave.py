"""The end of a process keeps what an ordinary end promises, and leaves out what aborts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

START = "import atexit, os, sys, threading, time\nfrom fovea.leave import leave_after\n"


def run(body: str, **streams: object) -> subprocess.CompletedProcess[str]:
    code = f"{START}def work():\n    {body}\nleave_after(work)"
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        text=True,
        timeout=60,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        **{"capture_output": True, **streams},
    )


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("pass", 0),
        ("sys.exit()", 0),
        ("sys.exit(0)", 0),
        ("sys.exit(2)", 2),
        ("sys.exit(143)", 143),
        ("sys.exit('in words')", 1),
        ("raise KeyError('x')", 1),
    ],
)
def test_the_status_is_that_of_an_ordinary_end(body: str, status: int) -> None:
    done = run(body)
    assert done.returncode == status
    assert ("in words" in done.stderr) == ("words" in body)
    assert ("KeyError: 'x'" in done.stderr) == ("KeyError" in body)


def test_threads_are_joined_and_exit_functions_called_and_output_arrives() -> None:
    done = run(
        "atexit.register(print, 'by atexit'); print('at work');"
        " threading.Thread(target=lambda: (time.sleep(0.3), print('by a thread'))).start()"
    )
    assert done.stdout == "at work\nby a thread\nby atexit\n"


def test_the_interpreter_is_not_torn_down() -> None:
    """There is the abort: a library's thread that asks for the interpreter then."""
    kept = "sys.kept = type('Kept', (), {'__del__': lambda self, say=os.write: say(1, b'torn down')})()"
    assert (
        "torn down"
        in subprocess.run(
            [sys.executable, "-c", f"import os, sys; {kept}"], check=True, text=True, capture_output=True
        ).stdout
    )
    assert run(kept).stdout == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_output_that_did_not_arrive_is_no_success() -> None:
    with Path("/dev/full").open("w") as full:
        done = run("print('lost')", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (
        1,
        "fovea: what was printed could not be written: No space left on device.\n",
    )
