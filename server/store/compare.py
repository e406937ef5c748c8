"""Floor 3. Is a shard's store what it should be: the hash that replicas compare, and SQLite's own check.

`hashing` covers what must be equal where the applied index is equal: every job with its name, uid, labels, spec and
status, and every live execution, in the order of rows. Not covered: ended executions, which each replica trims by
itself; numbers of namespaces, which a file gives away in the order in which it met them; columns made from the status.
The bytes hashed are spelled out here (lengths, then fields), so that they are the same in every version of Python.

Both work in slices on a connection of their own, within one read transaction: the shard goes on meanwhile, its
checkpoint waits. In the lists' thread.

Must never import: rooms of floor 3 or higher but this package's; no threads, no clock.
"""

import sqlite3
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

from tickwheel.server.model import Row
from tickwheel.server.store.snapshot import Slices, check_tables, main_name, reading, whole

SLICE_ROWS: Final = 2_000
"""Rows hashed in one slice: about 5 ms."""
_HASH_BYTES: Final = 16
_JOBS: Final = (
    "SELECT job.row, CAST(namespace.name AS BLOB), CAST(job.name AS BLOB), CAST(job.labels AS BLOB), job.uid,"
    " spec.spec, job.status FROM job JOIN namespace ON namespace.id = job.namespace"
    " JOIN spec ON spec.row = job.row WHERE job.row > ? ORDER BY job.row LIMIT ?"
)
_LIVE: Final = "SELECT row, data FROM live WHERE row > ? ORDER BY row LIMIT ?"


@dataclass(frozen=True, slots=True)
class StateHash:
    """The state of a shard at entry `index` of its log; equal indexes have equal digests, or replicas diverged."""

    index: int
    epoch: int
    jobs: int
    live: int
    digest: bytes


def state_hash(store: Path, shard: int) -> StateHash:
    """The hash of the shard whose files are in `store`, at once."""
    return whole(hashing(store, shard))


def hashing(store: Path, shard: int) -> Slices[StateHash]:
    """`state_hash` in slices."""
    with reading(store / main_name(shard)) as db:
        index, epoch = db.execute("SELECT entry, epoch FROM applied").fetchone() or (0, 0)
        digest = blake2b(digest_size=_HASH_BYTES)
        jobs = yield from _hash_rows(db, _JOBS, digest)
        digest.update(b"live")
        live = yield from _hash_rows(db, _LIVE, digest)
    return StateHash(index, epoch, jobs, live, digest.digest())


def _hash_rows(db: sqlite3.Connection, sql: str, digest: blake2b) -> Slices[int]:
    count = 0
    after: Row = -1
    while rows := db.execute(sql, (after, SLICE_ROWS)).fetchall():
        parts: list[bytes] = []
        for row, *fields in rows:
            parts.append(b"%d:%a" % (row, [len(field) for field in fields]))
            parts += fields
        digest.update(b"".join(parts))
        count += len(rows)
        after = rows[-1][0]
        yield
    return count


def scrubbing(store: Path, shard: int) -> Slices[list[str]]:
    """SQLite's quick_check of the main file, a table a slice; what it complains of, empty when all is well."""
    with reading(store / main_name(shard)) as db:
        return (yield from check_tables(db))
