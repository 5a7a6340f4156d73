"""The emulators, each in a process of its own on a free port of this machine, stopped at the end."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException

START_S = 60.0


@contextmanager
def gcs_server() -> Iterator[str]:
    """The address of a GCS emulator that keeps its objects in memory."""
    with _server(["gcp_storage_emulator", "start", "--host", "127.0.0.1", "--in-memory", "--quiet", "--port"]) as url:
        yield url


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of moto's S3."""
    with _server(["moto.server", "-H", "127.0.0.1", "-p"]) as url:
        yield url


def make_bucket(protocol: str, server: str, name: str) -> None:
    """A bucket, by the server's own API."""
    if protocol == "gs":
        body, method, url = f'{{"name": "{name}"}}'.encode(), "POST", f"{server}/storage/v1/b?project=test"
    else:
        body, method, url = b"", "PUT", f"{server}/{name}"
    headers = {"Content-Type": "application/json"} if body else {}
    request = urllib.request.Request(url, data=body, method=method, headers=headers)  # noqa: S310 - our own server
    urllib.request.urlopen(request, timeout=30).close()  # noqa: S310


@contextmanager
def _server(command: list[str]) -> Iterator[str]:
    port = _free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", *command, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, process)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server for {url} ended with {process.returncode}.")
        try:
            urllib.request.urlopen(url, timeout=5).close()  # noqa: S310 - our own server
        except (OSError, HTTPException):
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"the server for {url} did not answer within {START_S:.0f} s.")
