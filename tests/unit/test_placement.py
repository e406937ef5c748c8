"""Placement: the numbers are part of the API, so they are written down here."""

from collections import Counter

import pytest

from tickwheel.server.placement import shard_of


def crc32_bit_by_bit(data: bytes) -> int:
    """CRC-32 from its definition: reflected polynomial 0xEDB88320, all ones before and after."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_the_check_value_of_crc32_catalogues() -> None:
    assert crc32_bit_by_bit(b"123456789") == 0xCBF43926


VECTORS = [
    ("default", "a", 64, 18),
    ("default", "nightly-report", 64, 30),
    ("acme", "nightly-report", 64, 0),
    ("acme", "nightly-report", 1024, 192),
    ("acme", "nightly-report", 3, 2),
    ("acme", "r-7z2q", 64, 4),
    ("a.b", "0", 64, 34),
]


@pytest.mark.parametrize(("namespace", "job", "shards", "shard"), VECTORS)
def test_vectors(namespace: str, job: str, shards: int, shard: int) -> None:
    assert shard_of(namespace, job, shards) == shard
    assert crc32_bit_by_bit(f"{namespace}/{job}".encode()) % shards == shard


def test_one_shard_takes_all() -> None:
    assert {shard_of("n", f"job-{k}", 1) for k in range(100)} == {0}


def test_jobs_spread_evenly() -> None:
    counts = Counter(shard_of("acme", f"job-{k}", 64) for k in range(64_000))
    assert len(counts) == 64
    assert 850 < min(counts.values()) <= max(counts.values()) < 1_150


def test_no_shards_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError):
        shard_of("n", "j", 0)
