"""What is to be stored: bytes or an open file, read in parts, with its checksums."""

import base64
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final, Self

HASH_BLOCK_BYTES: Final = 4 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """The bytes of an object; an open file is read as often as needed, from its beginning to its end."""

    stream: BinaryIO = field(repr=False)
    size: int
    sha256: str
    md5: bytes = field(repr=False)

    @classmethod
    def of(cls, data: bytes | BinaryIO) -> Self:
        """Read `data` once for its size and checksums."""
        stream = io.BytesIO(data) if isinstance(data, bytes | bytearray | memoryview) else data
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        size = 0
        stream.seek(0)
        while block := stream.read(HASH_BLOCK_BYTES):
            sha256.update(block)
            md5.update(block)
            size += len(block)
        return cls(stream=stream, size=size, sha256=sha256.hexdigest(), md5=md5.digest())

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
