"""A stand-in for the services that a Dataflow job talks to: Dataflow's REST API here, Cloud Storage by an emulator.

It keeps every request, answers the states that a test asks for, and can do the work: it fetches the staged graph from
the bucket, as Dataflow would, and runs that.
"""

import base64
import bz2
import json
import re
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.request import urlopen

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2 as protos
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

JOBS: Final = re.compile(r"/v1b3/projects/(?P<project>[^/]+)/locations/(?P<region>[^/]+)/jobs(?:/(?P<job>[^/?]+))?")
JOB_ID: Final = "2026-01-02_03_04_05-1234567890"
PACKED: Final = re.compile(rb"[A-Za-z0-9+/]{40,}={0,2}")
NOTE: Final = "\n\nNote: imports, functions and other variables defined in the global context of your __main__ file ..."


@dataclass(kw_only=True)
class Service:
    """What it was asked, and what it shall answer; `states` are given out one a look, the last for ever."""

    storage: str
    states: Sequence[str] = ("JOB_STATE_PENDING", "JOB_STATE_RUNNING", "JOB_STATE_DONE")
    message: str = ""
    refuse: tuple[int, str] | None = None
    active_request: str | None = None
    works: bool = False
    requests: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    looks: int = 0
    metrics: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    outcome: str | None = None
    worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    @property
    def job(self) -> dict[str, Any]:
        """The body of the one job that was created."""
        (body,) = self.bodies
        job: dict[str, Any] = json.loads(body)
        return job

    def create(self, body: bytes) -> tuple[int, dict[str, Any]]:
        if self.refuse:
            code, message = self.refuse
            return code, {"error": {"code": code, "message": message, "status": "PERMISSION_DENIED"}}
        self.bodies.append(body)
        job = json.loads(body)
        if self.works:
            self.worker.submit(self.do_the_work)
            self.worker.shutdown(wait=False)
        request = self.active_request or job["clientRequestId"]
        return 200, {"id": JOB_ID, "name": job["name"], "clientRequestId": request, "currentState": "JOB_STATE_PENDING"}

    def look(self) -> dict[str, Any]:
        if self.works and self.outcome is None:
            return {"id": JOB_ID, "currentState": "JOB_STATE_RUNNING"}
        state = self.states[min(self.looks, len(self.states) - 1)]
        self.looks += 1
        return {"id": JOB_ID, "currentState": state}

    def messages(self) -> dict[str, Any]:
        if not self.message:
            return {}
        error = {"messageText": self.message, "messageImportance": "JOB_MESSAGE_ERROR", "time": "2026-01-02T03:04:06Z"}
        return {"jobMessages": [error]}

    def fetch(self, url: str) -> bytes:
        """An object as it lies in the bucket."""
        bucket, _, name = url.removeprefix("gs://").partition("/")
        with urlopen(f"{self.storage}/{bucket}/{name}") as answer:  # noqa: S310 - the emulator's own address
            data: bytes = answer.read()
        return data

    def graph(self) -> protos.Pipeline:
        """The graph that the job names, from the bucket."""
        url = self.job["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"]
        return protos.Pipeline.FromString(self.fetch(url))

    def do_the_work(self) -> None:
        try:
            self._run(self.graph())
            self.outcome = "done"
        except Exception as error:
            self.outcome, self.states, self.message = "failed", ["JOB_STATE_FAILED"], str(error)
            raise

    def _run(self, proto: protos.Pipeline) -> None:
        for environment in proto.components.environments.values():
            environment.urn, environment.payload = "beam:env:embedded_python:v1", b""
            del environment.dependencies[:]
        FnApiRunner().run_via_runner_api(proto, PipelineOptions([])).wait_until_finish()


class Handler(BaseHTTPRequestHandler):
    """HTTP around a `Service`."""

    service: ClassVar[Service]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/token"):
            self.answer(200, {"access_token": "t", "expires_in": 3600, "token_type": "Bearer"})
        elif self.known():
            self.answer(*self.service.create(body))

    def do_GET(self) -> None:
        if self.known():
            service, rest = self.service, self.path.partition("?")[0].rpartition("/")[2]
            answers = {"messages": service.messages, "metrics": lambda: {"metrics": service.metrics}}
            self.answer(200, answers.get(rest, service.look)())

    def known(self) -> bool:
        found = JOBS.match(self.path)
        if found:
            self.service.requests.append(found.groupdict() | {"method": self.command})
        else:
            self.answer(404, {"error": {"code": 404, "message": f"no such path: {self.path}"}})
        return found is not None

    def answer(self, code: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serve(service: Service) -> Iterator[Service]:
    """The stand-in on a free port; `service.url` says which."""
    server = ThreadingHTTPServer(("localhost", 0), type("Bound", (Handler,), {"service": service}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    service.url = f"http://localhost:{server.server_port}"
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_account(path: Path, token_url: str) -> None:
    """A service account's file that is good for the stand-in's token: without one each process looks for Google's."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {
        "type": "service_account",
        "project_id": "proj-123456",
        "private_key_id": "1",
        "private_key": key.decode(),
        "client_email": "fovea@proj-123456.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": token_url,
    }
    path.write_text(json.dumps(account))


def everything(value: Any) -> Iterator[str]:
    """Every string of a JSON value, keys too."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from (key, *everything(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from everything(inner)
    else:
        yield str(value)


def holds(secret: str, data: bytes) -> bool:
    """Whether a secret is in some bytes, or in what Beam packed into them (pickled, compressed, in base 64)."""
    return secret.encode() in data or any(secret.encode() in _unpacked(text) for text in PACKED.findall(data))


def _unpacked(text: bytes) -> bytes:
    for start in range(4):  # letters of what stands before may look like base 64 too
        with suppress(ValueError, OSError, zlib.error):
            data = base64.b64decode(text[start : start + (len(text) - start) // 4 * 4])
            return bz2.decompress(data) if data.startswith(b"BZh") else zlib.decompress(data)
    return b""
