"""What is to be stored: bytes or an open file, read in parts, with its checksums."""

import base64
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import BinaryIO, Final, Self

HASH_BLOCK_BYTES: Final = 4 * 2**20


@dataclass(frozen=True, kw_only=True)
class Body:
    """The bytes of an object; an open file is read as often as needed, from its beginning to its end."""

    stream: BinaryIO = field(repr=False)
    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes | BinaryIO) -> Self:
        """Read `data` once for its size and sha256."""
        stream = io.BytesIO(data) if isinstance(data, bytes | bytearray | memoryview) else data
        sha256, size = hashlib.sha256(), 0
        stream.seek(0)
        while block := stream.read(HASH_BLOCK_BYTES):
            sha256.update(block)
            size += len(block)
        return cls(stream=stream, size=size, sha256=sha256.hexdigest())

    @cached_property
    def md5(self) -> bytes:
        """Only buckets ask for it: one more reading of the stream, which a disk is spared."""
        digest = hashlib.md5(usedforsecurity=False)
        for part in self.parts(HASH_BLOCK_BYTES):
            digest.update(part)
        return digest.digest()

    @property
    def md5_base64(self) -> str:
        return base64.b64encode(self.md5).decode()

    @property
    def checksum(self) -> str:
        """As a `Fingerprint` of the same bytes has it."""
        return f"md5:{self.md5.hex()}"

    def part(self, offset: int, size: int) -> bytes:
        self.stream.seek(offset)
        return self.stream.read(size)

    def parts(self, size: int) -> Iterator[bytes]:
        """All of it, at most `size` bytes at a time."""
        for offset in range(0, self.size, size):
            yield self.part(offset, size)
