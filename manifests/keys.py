"""Names that give nothing away: keyed hashes, sample keys, and the split of a participant."""

import hashlib
import hmac
import re
from typing import Final

from shards.schema import Device, Laterality, Split

PUBLIC_HASH_KEY: Final = b"fovea-1"
"""What the key of a dataset is derived from when none is given. Whoever has the list of UIDs can repeat the hashes."""

HASH_DIGITS: Final = 10
"""40 bits: among the few volumes that share the rest of a key, two never meet by chance."""

SPLIT_TRAIN: Final = 0.70
SPLIT_VAL: Final = 0.15


def default_hash_key(labels_sha256: str | None) -> bytes:
    """The key of a dataset that was given none: another cohort has other digests, another geometry the same ones.

    Args:
        labels_sha256: of the cohort's participants.tsv; None without one.
    """
    return hmac.new(PUBLIC_HASH_KEY, (labels_sha256 or "").encode(), hashlib.sha256).digest()


def keyed_hash(text: str, hash_key: bytes) -> str:
    """HMAC-SHA256 as hexadecimal (RFC 2104)."""
    return hmac.new(hash_key, text.encode(), hashlib.sha256).hexdigest()


def sample_key(
    *,
    participant_id: str,
    device: Device,
    laterality: Laterality,
    protocol: str,
    sop_instance_uid: str,
    hash_key: bytes,
) -> str:
    """`{participant}-{device}-{laterality}-{protocol}-{10 hex}`: no dot, no path, no UID."""
    digits = keyed_hash(sop_instance_uid, hash_key)[:HASH_DIGITS]
    return "-".join((_word(participant_id), device, laterality, _word(protocol), digits))


def _word(text: str) -> str:
    """Safe in a file name, and short enough for the 100 bytes of a USTAR name."""
    return re.sub(r"[^a-z0-9_]+", "_", text.lower())[:40] or "unknown"


def hashed_split(participant_id: str, hash_key: bytes) -> Split:
    """70/15/15 by a keyed hash of the participant, so that both eyes and all visits stay together."""
    share = int(keyed_hash(f"split:{participant_id}", hash_key)[:12], 16) / 16**12
    if share < SPLIT_TRAIN:
        return "train"
    return "val" if share < SPLIT_TRAIN + SPLIT_VAL else "test"
