"""Floor 1. Which shard a job belongs to.

CRC-32 as in zlib, zip and Ethernet (polynomial 0xEDB88320): every language has it, so any client can route by itself.

    shard_of("acme", "nightly-report", 64) = crc32(b"acme/nightly-report") mod 64 = 0

Must never import: anything of this project; no I/O, no clock.
"""

import zlib


def shard_of(namespace: str, job: str, shards: int) -> int:
    """Return the shard of `namespaces/{namespace}/jobs/{job}` among `shards`; the same everywhere and for ever."""
    assert shards > 0, "there is at least one shard"
    return zlib.crc32(f"{namespace}/{job}".encode()) % shards
