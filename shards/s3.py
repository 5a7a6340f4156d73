"""S3 and what speaks its protocol, through s3fs: each part has a checksum that the store compares."""

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final

from shards.body import Body
from shards.clients import CONNECT_TIMEOUT_S, Client, Fingerprint, Page, split_path
from shards.retries import PassingFaultError, retrying

PART_BYTES: Final = 16 * 2**20
MAX_PARTS: Final = 10_000
SMALLEST_PART_BYTES: Final = 5 * 2**20
"""What S3 demands of every part but the last: `PART_BYTES` may not go below it."""

PAGE_FILES: Final = 1000
"""Of a listing: the most that S3 gives at once."""

PLAIN_ETAG: Final = re.compile(r'"?([0-9a-f]{32})"?')
"""The MD5 of an object that came in one request and is not encrypted with a key of its own."""


def connect(endpoint: str | None, silence_s: float, request_s: float) -> Client:
    """The client of this process, by the AWS environment variables and files.

    Retries of botocore (five attempts) and of s3fs (five times those) are taken off: ours are the only ones.
    """
    from s3fs import S3FileSystem  # type: ignore[import-untyped]  # noqa: PLC0415 - only who has a bucket needs it

    fs = S3FileSystem(
        **({"endpoint_url": endpoint} if endpoint else {}),
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": silence_s,
            "retries": {"mode": "standard", "total_max_attempts": 1},
        },
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    fs.retries = 1
    return S3Client(fs=fs, request_s=request_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Client:
    """`s3://`."""

    fs: Any
    request_s: float

    def stat(self, path: str) -> Fingerprint | None:
        try:
            head = self._call("head_object", path)
        except FileNotFoundError:
            return None
        etag = str(head.get("ETag", ""))
        plain = PLAIN_ETAG.fullmatch(etag)
        encrypted = head.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in head
        checksum = f"md5:{plain[1]}" if plain and not encrypted else f"etag:{etag}"
        return Fingerprint(bytes=int(head["ContentLength"]), checksum=checksum)

    def list_page(self, path: str, token: str | None) -> tuple[Page, str | None]:
        bucket, prefix = split_path(path)
        after = {"ContinuationToken": token} if token else {}
        answer = self.fs.call_s3(
            "list_objects_v2",
            Bucket=bucket,
            Prefix=f"{prefix}/" if prefix else "",
            MaxKeys=PAGE_FILES,
            timeout=self.request_s,
            **after,
        )
        items = answer.get("Contents", ())
        found = {f"{bucket}/{one['Key']}": int(one["Size"]) for one in items if not one["Key"].endswith("/")}
        return found, answer.get("NextContinuationToken")

    def read(self, path: str, start: int, stop: int) -> bytes:
        data: bytes = self.fs.cat_file(path, start=start, end=stop, timeout=self.request_s)
        return data

    def remove(self, path: str) -> None:
        self._call("delete_object", path)

    def upload(self, path: str, body: Body, *, create: bool) -> None:
        condition = {"IfNoneMatch": "*"} if create else {}
        if body.size <= PART_BYTES:
            data = body.part(0, body.size)
            retrying(
                lambda: self._conditional("put_object", path, Body=data, ContentMD5=body.md5_base64, **condition),
                f"s3://{path}",
            )
            return
        upload = retrying(lambda: self._call("create_multipart_upload", path), f"s3://{path}")["UploadId"]
        try:
            self._send_parts(path, body, upload, condition)
        except BaseException:
            retrying(lambda: self._abort(path, upload), f"s3://{path}")
            raise

    def _send_parts(self, path: str, body: Body, upload: str, condition: dict[str, str]) -> None:
        size = max(PART_BYTES, -(-body.size // MAX_PARTS))
        parts = []
        for number, data in enumerate(body.parts(size), start=1):
            sent = {"UploadId": upload, "PartNumber": number, "Body": data, "ContentMD5": _md5(data)}
            answer = retrying(lambda sent=sent: self._call("upload_part", path, **sent), f"s3://{path}")  # type: ignore[misc]
            parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        retrying(lambda: self._complete(path, upload, parts, condition), f"s3://{path}")

    def _complete(self, path: str, upload: str, parts: list[dict[str, Any]], condition: dict[str, str]) -> None:
        """An upload that the store forgot was completed by an attempt whose answer was lost: the name is taken."""
        try:
            self._conditional(
                "complete_multipart_upload", path, UploadId=upload, MultipartUpload={"Parts": parts}, **condition
            )
        except FileNotFoundError as error:
            if self.stat(path) is None:
                raise
            raise FileExistsError(17, "there is such an object already", path) from error

    def _conditional(self, method: str, path: str, **arguments: Any) -> None:
        try:
            self._call(method, path, **arguments)
        except OSError as error:
            code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
            if code in {"PreconditionFailed", "412"}:
                raise FileExistsError(17, "there is such an object already", path) from error
            raise

    def _abort(self, path: str, upload: str) -> None:
        try:
            self._call("abort_multipart_upload", path, UploadId=upload)
        except FileNotFoundError:
            return

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        bucket, key = split_path(path)
        answer = self.fs.call_s3(method, Bucket=bucket, Key=key, timeout=self.request_s, **arguments)
        if answer is None:
            raise PassingFaultError(f"s3://{path}: the answer to {method} was empty.")
        return answer


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
