"""Google Cloud Storage through gcsfs: uploads resume, and the store compares the checksum."""

import base64
import io
import json
import os
import types
import urllib.parse
from dataclasses import dataclass
from typing import Any, Final

from shards.body import Body
from shards.clients import CONNECT_TIMEOUT_S, Client, Fingerprint, Page, split_path
from shards.retries import PassingFaultError, retrying

PART_BYTES: Final = 16 * 2**20
"""Of a resumable upload: a multiple of its granularity, and little enough to send again."""

GRANULARITY_BYTES: Final = 256 * 1024
"""The store keeps whole multiples of this of an unfinished upload."""


def connect(silence_s: float, request_s: float) -> Client:
    """The client of this process, by Google's own environment variables.

    The class is gcsfs' HTTP one: the other asks every bucket over gRPC first whether it is a zonal one. Its retries
    (six, with delays of its own) are taken off: ours are the only ones. With STORAGE_EMULATOR_HOST, as in Google's
    libraries, nobody signs in.
    """
    import aiohttp  # noqa: PLC0415 - only who has a bucket needs these
    from gcsfs.core import GCSFileSystem  # type: ignore[import-untyped]  # noqa: PLC0415

    fs = GCSFileSystem(
        token="anon" if os.environ.get("STORAGE_EMULATOR_HOST") else None,
        requests_timeout=aiohttp.ClientTimeout(total=request_s, sock_connect=CONNECT_TIMEOUT_S, sock_read=silence_s),
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    fs._request = types.MethodType(GCSFileSystem._request.__wrapped__, fs)
    return GcsClient(fs=fs)


@dataclass(frozen=True, slots=True, kw_only=True)
class GcsClient:
    """`gs://`, by the JSON API."""

    fs: Any

    def stat(self, path: str) -> Fingerprint | None:
        bucket, name = split_path(path)
        try:
            resource = self.fs.call("GET", "b/{}/o/{}", bucket, name, json_out=True)
        except FileNotFoundError:
            return None
        md5 = resource.get("md5Hash")  # an object composed of others has none
        checksum = f"md5:{base64.b64decode(md5).hex()}" if md5 else f"etag:{resource.get('etag')}"
        return Fingerprint(bytes=int(resource["size"]), checksum=checksum)

    def list_page(self, path: str, token: str | None) -> tuple[Page, str | None]:
        bucket, prefix = split_path(path)
        answer = self.fs.call(
            "GET",
            "b/{}/o",
            bucket,
            prefix=f"{prefix}/" if prefix else None,
            pageToken=token,
            fields="items(name,size),nextPageToken",
            json_out=True,
        )
        items = answer.get("items", ())
        found = {f"{bucket}/{one['name']}": int(one["size"]) for one in items if not one["name"].endswith("/")}
        return found, answer.get("nextPageToken")

    def read(self, path: str, start: int, stop: int) -> bytes:
        data: bytes = self.fs.cat_file(path, start=start, end=stop)
        return data

    def remove(self, path: str) -> None:
        self.fs.call("DELETE", "b/{}/o/{}", *split_path(path))

    def upload(self, path: str, body: Body, *, create: bool) -> None:
        upload = _Upload(self.fs, path, body, create=create)
        while not upload.finished:
            retrying(upload.send, f"gs://{path}")


class _Upload:
    """A resumable upload: unseen before it is whole, and compared with the MD5 that was named at its start."""

    def __init__(self, fs: Any, path: str, body: Body, *, create: bool) -> None:
        self._fs = fs
        self._path = path
        self._body = body
        self._create = create
        self._session: str | None = None
        self._offset = 0
        self._in_doubt = False
        self.finished = False

    def send(self) -> None:
        """The next part; after a fault, first what the store already has.

        By POST, as gcsfs does: aiohttp repeats a PUT by itself when a kept connection was closed, and then the store
        may get a part twice.
        """
        if self._session is None:
            self._session, self._offset, self._in_doubt = self._start(), 0, False
        if self._in_doubt:
            self._put(b"", f"bytes */{self._body.size}")
        if self.finished:
            return
        part = self._body.part(self._offset, PART_BYTES)
        last = self._offset + len(part) - 1
        self._put(part, f"bytes {self._offset}-{last}/{self._body.size}" if part else "bytes */0")

    def _start(self) -> str:
        bucket, name = split_path(self._path)
        headers, _ = self._fs.call(
            "POST",
            f"{self._fs._location}/upload/storage/v1/b/{_quoted(bucket)}/o",
            uploadType="resumable",
            name=name,
            ifGenerationMatch="0" if self._create else None,
            json={"name": name, "md5Hash": self._body.md5_base64},
            headers={"X-Upload-Content-Type": "application/octet-stream"},
        )
        return str(headers["Location"])

    def _put(self, part: bytes, content_range: str) -> None:
        self._in_doubt = True
        try:
            headers, answer = self._fs.call(
                "POST", self._session, headers={"Content-Range": content_range}, data=io.BytesIO(part)
            )
        except FileNotFoundError as error:
            self._session = None
            raise PassingFaultError(f"gs://{self._path}: the store forgot the upload.") from error
        self.finished = bool(answer) and "name" in json.loads(answer)
        self._offset = _kept_bytes(headers.get("Range"))
        self._in_doubt = False


def _kept_bytes(header: str | None) -> int:
    """Of `bytes=0-524287`; no header: nothing yet."""
    kept = int(header.rpartition("-")[2]) + 1 if header else 0
    return kept // GRANULARITY_BYTES * GRANULARITY_BYTES


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="")
