"""A proxy before a store that fails requests by plan, keeps or breaks conditions, and counts what was asked."""

import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from tests.stores.faults import STATUS_FAULTS, Dice, Fault, Plan
from tests.stores.rules import Answer, Conditions, Request, Rule

HOP_HEADERS = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"})
RESET_LINGER = struct.pack("ii", 1, 0)
ERROR_CODES = {429: "SlowDown", 500: "InternalError", 503: "ServiceUnavailable"}


class Proxy(ThreadingHTTPServer):
    """`url` is where to find it; `attempts` and `faults` say what happened so far."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: str, plan: Plan, rule: Rule) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.attempts: Counter[tuple[str, str]] = Counter()
        self.faults: Counter[Fault] = Counter()
        self.conditions = Conditions(self.upstream, rule)
        self.stopped = threading.Event()
        self.armed: deque[Fault] = deque()
        """Faults for the next reads of parts of shards, one each."""
        self._dice = Dice(plan)
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def plan(self, plan: Plan) -> None:
        """From now on, fail by this plan, and count anew."""
        with self._lock:
            self._dice = Dice(plan)
            self.attempts.clear()
            self.faults.clear()

    def begin(self, request: Request) -> Fault | None:
        fault = self._dice.draw()
        with self._lock:
            if self.armed and "Range" in request.headers and ".tar" in request.target:
                fault = self.armed.popleft()
            self.attempts[request.method, unquote(urlsplit(request.target).path)] += 1
            if fault:
                self.faults[fault] += 1
        return fault

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nobody's error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def _serve(self) -> None:
        proxy = cast("Proxy", self.server)
        request = self._request()
        fault = proxy.begin(request)
        if fault in STATUS_FAULTS:
            self._send(_refusal(int(fault)))
        elif fault is Fault.STALL:
            proxy.stopped.wait(60)
            self.close_connection = True
        elif fault is Fault.RESET:
            self._reset()
        else:
            self._finish(proxy.conditions.answer(request), fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _serve  # noqa: N815

    def _finish(self, answer: Answer, fault: Fault | None) -> None:
        if fault is Fault.LOST_ANSWER:
            self._reset()
        elif fault is Fault.CUT and answer.body:
            self._send(answer, body=answer.body[: len(answer.body) // 2], length=len(answer.body))
            self._reset()
        elif fault is Fault.SHORT and self.command == "GET" and answer.status in {200, 206} and _is_download(answer):
            self._send(answer, body=answer.body[: len(answer.body) // 2])
        else:
            self._send(answer)

    def _request(self) -> Request:
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        if "chunked" in headers.pop("Transfer-Encoding", ""):
            body = b"".join(self._chunks())
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers.pop("Connection", None)
        headers["Content-Length"] = str(len(body))
        return Request(method=self.command, target=self.path, headers=headers, body=body)

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def _send(self, answer: Answer, body: bytes | None = None, length: int | None = None) -> None:
        sent = answer.body if body is None else body
        self.send_response(answer.status)
        for name, value in answer.headers:
            if name.lower() not in HOP_HEADERS or (self.command == "HEAD" and name.lower() == "content-length"):
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(sent) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)

    def _reset(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_LINGER)
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing: tests look at the counters."""


def _is_download(answer: Answer) -> bool:
    """Not a listing or a record about an object: those are no bodies of files."""
    kinds = [value for name, value in answer.headers if name.lower() == "content-type"]
    return not any(kind.startswith(("application/json", "application/xml", "text/")) for kind in kinds)


def _refusal(status: int) -> Answer:
    body = f"<?xml version='1.0'?><Error><Code>{ERROR_CODES[status]}</Code><Message>by plan</Message></Error>"
    return Answer(status=status, headers=(("Content-Type", "application/xml"),), body=body.encode())


@contextmanager
def proxied(upstream: str, plan: Plan | None = None, rule: Rule = Rule.KEEP) -> Iterator[Proxy]:
    """A proxy before the server at `upstream`, on a free port, for the length of the block."""
    proxy = Proxy(upstream, plan or Plan(), rule)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.stopped.set()
        proxy.shutdown()
        thread.join()
        proxy.server_close()
