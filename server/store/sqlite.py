"""Floor 3. The few things that every SQLite file of the store needs: connections, bulk statements, checkpoints, errors.

Why bulk statements: beside a busy event loop the interpreter lock changes hands once a statement, so `executemany`
moves 2k to 7k rows a second and a statement of 1,000 rows 50k to 130k (docs/adr/0001-sqlite-for-the-store.md).

Must never import: rooms of floor 3 or higher; no threads, no clock.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

from tickwheel.server.errors import StoreFailed
from tickwheel.server.files import sync_directory

VARIABLES_MAX: Final = 32_766  # SQLITE_MAX_VARIABLE_NUMBER's default since 3.32
APPLICATION_ID: Final = 0x54574C31  # "TWL1"
_FATAL: Final = {
    sqlite3.SQLITE_IOERR: "STORE_IO",
    sqlite3.SQLITE_CORRUPT: "STORE_CORRUPT",
    sqlite3.SQLITE_NOTADB: "STORE_CORRUPT",
    sqlite3.SQLITE_CANTOPEN: "STORE_CANNOT_OPEN",
    sqlite3.SQLITE_READONLY: "STORE_READ_ONLY",
    sqlite3.SQLITE_FULL: "STORE_FULL",
}
_TIERS: Final = (4096, 1024, 256, 64, 16, 4, 1)
_STATEMENTS_CACHED: Final = 32
RUNS_A_STATEMENT: Final = 4
"""How often, at least, a flush runs the largest statement that it compiles."""
SMALL_ROWS: Final = 64
"""A statement of so many rows may be used once only: a small flush keeps its connection, and it is there next time."""

Value = int | str | bytes | None


def connect(path: Path, *, cache_bytes: int, synchronous: str = "NORMAL") -> sqlite3.Connection:
    """A connection in WAL mode that never checkpoints by itself; every transaction is spelled out."""
    db = sqlite3.connect(
        path,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=_STATEMENTS_CACHED,
        timeout=0.2,
    )
    try:
        db.execute("PRAGMA journal_mode = WAL").fetchone()
        db.execute("PRAGMA wal_autocheckpoint = 0").fetchone()
        db.execute(f"PRAGMA synchronous = {synchronous}")
        db.execute(f"PRAGMA cache_size = -{max(1, cache_bytes // 1024)}")
        db.execute("PRAGMA secure_delete = OFF").fetchone()
        db.execute("PRAGMA temp_store = MEMORY")
    except BaseException:
        db.close()
        raise
    return db


def create(db: sqlite3.Connection, schema: str, version: int, path: Path) -> None:
    """Lay the schema into a new file; refuse a file of a version this program does not know."""
    (found,) = db.execute("PRAGMA user_version").fetchone()
    if found == version:
        return
    if found != 0:
        raise StoreFailed(
            f"{path.name} has format {found}, this program knows {version}",
            reason="STORE_FORMAT",
            metadata={"path": str(path), "format": str(found)},
        )
    db.executescript(
        f"BEGIN IMMEDIATE; {schema}; PRAGMA application_id = {APPLICATION_ID};"
        f" PRAGMA user_version = {version}; COMMIT;"
    )
    checkpoint(db)
    sync_directory(path.parent)


def checkpoint(db: sqlite3.Connection) -> bool:
    """Move the journal's frames into the file and fsync it; True when all were moved and the journal is empty.

    TRUNCATE also waits (up to the connection's 0.2 s) until no reader needs the journal, so that it never grows
    without bound; a reader that stays longer makes this False, and the next call tries again.
    """
    try:
        busy, frames, moved = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return False
        raise
    return not busy and frames == moved


class Bulk:
    """A statement over many rows: `head (?, …), (?, …), … tail`, in sizes that SQLite and the statement cache like.

    Compiling a row of it takes twice as long as inserting one, and a large flush compiles anew (it closes its
    connection behind it): so the largest statement is run some times before smaller ones take the rest.

    >>> Bulk("INSERT INTO t VALUES", 2).sizes(1300)
    [256, 256, 256, 256, 256, 16, 4]
    """

    __slots__ = ("_statements", "_tiers", "_width")

    def __init__(self, head: str, width: int, tail: str = "") -> None:
        group = "(" + ",".join("?" * width) + ")"
        self._width = width
        self._tiers = [size for size in _TIERS if size * width <= VARIABLES_MAX]
        self._statements = {
            size: f"{head} {','.join([group] * size)} {tail}" for size in self._tiers
        }

    def sizes(self, count: int) -> list[int]:
        """How `count` rows are divided into statements."""
        sizes: list[int] = []
        largest = max(count // RUNS_A_STATEMENT, SMALL_ROWS)
        for tier in self._tiers:
            if tier > largest:
                continue
            repeat, count = divmod(count, tier)
            sizes += [tier] * repeat
        return sizes

    def run(self, db: sqlite3.Connection, rows: Sequence[tuple[Value, ...]]) -> None:
        """Execute it for all rows."""
        at = 0
        for size in self.sizes(len(rows)):
            values = list(chain.from_iterable(rows[at : at + size]))
            assert len(values) == size * self._width, f"a row is not {self._width} values wide"
            db.execute(self._statements[size], values)
            at += size


def numbers(values: Iterable[int]) -> str:
    """The parameter of `IN (SELECT value FROM json_each(?))`: any number of integers in one variable."""
    return "[" + ",".join(map(str, values)) + "]"


def translate(error: sqlite3.Error) -> Exception:
    """`StoreFailed` for a failing disk or file; anything else is a mistake of ours and stays what it is."""
    code = getattr(error, "sqlite_errorcode", None)
    reason = _FATAL.get(code & 0xFF) if code is not None else None
    if reason is None:
        return error
    name = getattr(error, "sqlite_errorname", "")
    return StoreFailed(f"SQLite: {error} ({name})", reason=reason, metadata={"sqlite": name})
