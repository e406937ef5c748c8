"""Floor 1. Which shard a job belongs to, and which nodes a shard belongs to.

CRC-32 as in zlib, zip and Ethernet (polynomial 0xEDB88320): every language has it, so any client can route by itself.

    shard_of("acme", "nightly-report", 64) = crc32(b"acme/nightly-report") mod 64 = 0

Nodes are chosen by rendezvous hashing (Thaler and Ravishankar, 1998): every node scores each shard by itself, the best
scores win, and a node that comes or goes moves only what it wins or held.

Must never import: anything of this project; no I/O, no clock.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from struct import unpack
from typing import NamedTuple


def shard_of(namespace: str, job: str, shards: int) -> int:
    """Return the shard of `namespaces/{namespace}/jobs/{job}` among `shards`; the same everywhere and for ever."""
    assert shards > 0, "there is at least one shard"
    return zlib.crc32(job.encode(), _crc_of(namespace)) % shards


@lru_cache(1_024)
def _crc_of(namespace: str) -> int:
    return zlib.crc32(f"{namespace}/".encode())


@lru_cache(8_192)
def key_of(namespace: str, job: str) -> int:
    """64 bits of a hash of a job's full name, as a signed integer. Stored: it never changes.

    An index over it takes 15 bytes a job where one over the names takes 40 and more; readers compare the name too.
    """
    return keys_of(namespace, (job,))[0]


def keys_of(namespace: str, jobs: Iterable[str]) -> Sequence[int]:
    """`key_of` of each of these."""
    digests = [blake2b(f"{namespace}/{job}".encode(), digest_size=8).digest() for job in jobs]
    return unpack(f"<{len(digests)}q", b"".join(digests))


class Site(NamedTuple):
    """Where a node stands; `zone` may be empty."""

    host: str
    zone: str


@lru_cache(16_384)
def score(shard: int, node: str) -> int:
    """How much a node wants a shard: the same for whoever asks."""
    return int.from_bytes(blake2b(f"{shard}/{node}".encode(), digest_size=8).digest())


def preference(shard: int, nodes: Mapping[str, Site]) -> list[str]:
    """Every node, the one that wants the shard most first."""
    return sorted(nodes, key=lambda node: (-score(shard, node), node))


def place(shard: int, nodes: Mapping[str, Site], count: int) -> tuple[str, ...]:
    """At most `count` nodes for a shard: no two on one host, and in as many zones as there are.

    >>> sites = {"a": Site("h1", "z1"), "b": Site("h1", "z1"), "c": Site("h2", "z1"), "d": Site("h3", "z2")}
    >>> sorted(sites[node].host for node in place(7, sites, 3))
    ['h1', 'h2', 'h3']
    """
    wanted = preference(shard, nodes)
    chosen: list[str] = []
    for zones_too in (True, False):
        for node in wanted:
            taken = [nodes[other] for other in chosen]
            if len(chosen) == count or node in chosen:
                continue
            new_zone = nodes[node].zone not in {site.zone for site in taken}
            if nodes[node].host not in {site.host for site in taken} and (
                new_zone or not zones_too
            ):
                chosen.append(node)
    return tuple(chosen)
