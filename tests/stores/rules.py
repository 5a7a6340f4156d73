"""What real stores keep and emulators do not: conditions on uploads, decided under one lock."""

import http.client
import threading
from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import parse_qs, quote, unquote, urlsplit

UPLOAD_PATH = "/upload/storage/v1/b/"
RECORD_PATH = "/storage/v1/b/"


class Rule(StrEnum):
    """How conditions on uploads are treated."""

    KEEP = "keep"
    """As Google and Amazon document it: the emulator of GCS knows no `ifGenerationMatch`, and moto looks for the object
    and writes it in two steps that another upload can come between."""
    REFUSE = "refuse"
    """501, as Backblaze B2."""
    IGNORE = "ignore"
    """As stores that never heard of the header."""
    FORBID = "forbid"
    """403 to everything, as with credentials that lack a right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def forward(upstream: str, request: Request) -> Answer:
    """The real server's answer."""
    connection = http.client.HTTPConnection(upstream, timeout=60)
    try:
        connection.request(request.method, request.target, body=request.body, headers=request.headers)
        response = connection.getresponse()
        body = response.read()
        return Answer(status=response.status, headers=tuple(response.getheaders()), body=body)
    finally:
        connection.close()


class Conditions:
    """Passes requests on, and decides those that are conditional."""

    def __init__(self, upstream: str, rule: Rule) -> None:
        self._upstream = upstream
        self._rule = rule
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)

    def answer(self, request: Request) -> Answer:
        if self._rule is Rule.FORBID:
            return _error(403, "AccessDenied", "Access Denied")
        name = _condition(request)
        if name is None:
            return forward(self._upstream, request)
        if self._rule is Rule.REFUSE:
            return _error(501, "NotImplemented", "A header you provided implies functionality that is not implemented")
        if self._rule is Rule.IGNORE:
            return forward(self._upstream, _without_condition(request))
        with self._locks[name]:
            if name.startswith(RECORD_PATH) and self._is_there(name):
                return _error(412, "conditionNotMet", "At least one of the pre-conditions did not hold")
            return forward(self._upstream, request)

    def _is_there(self, name: str) -> bool:
        probe = Request(method="GET", target=name, headers={"Host": self._upstream}, body=b"")
        status = forward(self._upstream, probe).status
        if status not in {200, 404}:
            raise RuntimeError(f"the emulator answered {status} to the question for {name}.")
        return status == 200


def _condition(request: Request) -> str | None:
    """The object that must not be there, as a target that asks for it; None if the request has no condition."""
    parts = urlsplit(request.target)
    query = parse_qs(parts.query)
    if parts.path.startswith(UPLOAD_PATH) and query.get("ifGenerationMatch") == ["0"]:
        bucket = parts.path.removeprefix(UPLOAD_PATH).partition("/")[0]
        return f"{RECORD_PATH}{bucket}/o/{quote(query['name'][0], safe='')}"
    if request.headers.get("If-None-Match") == "*" and request.method in {"PUT", "POST"}:
        return quote(unquote(parts.path))
    return None


def _without_condition(request: Request) -> Request:
    headers = {name: value for name, value in request.headers.items() if name != "If-None-Match"}
    return Request(method=request.method, target=request.target, headers=headers, body=request.body)


def _error(status: int, code: str, message: str) -> Answer:
    """In the words of S3; gcsfs looks at the status alone."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status=status, headers=(("Content-Type", "application/xml"),), body=body.encode())
