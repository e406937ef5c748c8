"""Floor 3. A shard's ended executions: one SQLite file a day, so that retention is an unlink.

The day of an execution is that of its create_ms, which never changes: however often it is redriven and ends again, its
row is written to the same file. The store writes here first and into its main file last, and these commits are synced
(synchronous=FULL): when the main file says "applied up to n", the executions that ended up to n are on disk, whatever
the kernel wrote back first. A crash between the two leaves rows here that the log will write again, the same.

    shard-0007.db                 jobs, live executions, applied
    shard-0007-day-20657.db       ended executions that were created on day 20657 since the epoch

`write`, `checkpoint`, `expire`, `trim`, `close` belong to the thread that flushes; `days`, `reading`, `file_bytes` to
anyone.

Must never import: rooms of floor 3 or higher but `sqlite`; no threads, no clock.
"""

import sqlite3
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from tickwheel.server.files import sync_directory
from tickwheel.server.model import MS_PER_DAY, ExecutionState, Ms, Row
from tickwheel.server.placement import key_of
from tickwheel.server.store import sqlite

FORMAT: Final = 1

# job_row, state, create_ms, scheduled_ms, due_ms, attempt, namespace, job
Columns = tuple[Row, int, Ms, Ms, Ms, int, str, str]
ExecutionColumns = Callable[[bytes], Columns]
_Ended = tuple[Row, Columns, bytes]

_SCHEMA: Final = f"""
CREATE TABLE namespace (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE execution (
    row INTEGER PRIMARY KEY, namespace INTEGER NOT NULL, key INTEGER NOT NULL, job_row INTEGER NOT NULL,
    state INTEGER NOT NULL, create_ms INTEGER NOT NULL, scheduled_ms INTEGER NOT NULL, data BLOB NOT NULL
);
CREATE INDEX execution_key ON execution (key);
CREATE INDEX execution_namespace ON execution (namespace);
CREATE INDEX execution_failed ON execution (row) WHERE state = {int(ExecutionState.FAILED)}
"""
_PUT: Final = sqlite.Bulk("INSERT OR REPLACE INTO execution VALUES", 8)
_TRIM: Final = (
    "DELETE FROM execution WHERE row IN (SELECT row FROM execution"
    " WHERE key = ? AND job_row = ? ORDER BY row DESC LIMIT -1 OFFSET ?) RETURNING row"
)


class JobId(NamedTuple):
    """How history finds the executions of a job."""

    namespace: str
    name: str
    row: Row


class Namespaces:
    """The short numbers of namespaces in one file, known to its writer."""

    __slots__ = ("_ids",)

    def __init__(self, db: sqlite3.Connection) -> None:
        self._ids: dict[str, int] = dict(db.execute("SELECT name, id FROM namespace"))

    def number(self, db: sqlite3.Connection, name: str) -> int:
        """The number of a namespace; a new one is written within the open transaction."""
        found = self._ids.get(name)
        if found is None:
            found = len(self._ids) + 1
            db.execute("INSERT INTO namespace VALUES (?, ?)", (found, name))
            self._ids[name] = found
        return found


class _DayFile:
    """The writer's side of one day."""

    __slots__ = ("_db", "_namespaces")

    def __init__(self, path: Path, cache_bytes: int) -> None:
        self._db = sqlite.connect(path, cache_bytes=cache_bytes, synchronous="FULL")
        try:
            sqlite.create(self._db, _SCHEMA, FORMAT, path)
            self._namespaces = Namespaces(self._db)
        except BaseException:
            self._db.close()
            raise

    def write(self, rows: list[_Ended]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            _PUT.run(self._db, [self._values(*ended) for ended in rows])
            self._db.execute("COMMIT")
        except BaseException:
            self.rollback()
            raise
        self._db.execute("PRAGMA shrink_memory")  # one file at a time may hold a write cache

    def _values(self, row: Row, columns: Columns, data: bytes) -> tuple[sqlite.Value, ...]:
        job_row, state, create_ms, scheduled_ms, _due, _attempt, namespace, job = columns
        number = self._namespaces.number(self._db, namespace)
        return (row, number, key_of(namespace, job), job_row, state, create_ms, scheduled_ms, data)

    def rollback(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._namespaces = Namespaces(self._db)

    def trim(self, job: JobId, keep: int) -> int:
        return len(
            self._db.execute(_TRIM, (key_of(job.namespace, job.name), job.row, keep)).fetchall()
        )

    def count(self, job: JobId) -> int:
        sql = "SELECT count(*) FROM execution WHERE key = ? AND job_row = ?"
        number: int = self._db.execute(sql, (key_of(job.namespace, job.name), job.row)).fetchone()[
            0
        ]
        return number

    def checkpoint(self) -> bool:
        return sqlite.checkpoint(self._db)

    def close(self) -> None:
        self._db.close()


class History:
    """The day files of one shard."""

    def __init__(
        self, directory: Path, shard: int, cache_bytes: int, columns: ExecutionColumns
    ) -> None:
        self._directory = directory
        self._prefix = f"shard-{shard:04d}-day-"
        self._cache_bytes = cache_bytes
        self._columns = columns
        self._open: dict[int, _DayFile] = {}
        found = (
            path.stem.removeprefix(self._prefix) for path in directory.glob(f"{self._prefix}*.db")
        )
        # Replaced, never changed in place: other threads take it as it is.
        self._days = tuple(sorted((int(day) for day in found), reverse=True))

    @property
    def days(self) -> tuple[int, ...]:
        """The days that have a file, newest first."""
        return self._days

    def write(self, ended: Mapping[Row, bytes]) -> None:
        """Put every execution into its day's file: one synced transaction a file."""
        by_day: dict[int, list[_Ended]] = {}
        for row, data in ended.items():
            columns = self._columns(data)
            by_day.setdefault(columns[2] // MS_PER_DAY, []).append((row, columns, data))
        for day in sorted(by_day):
            self._file(day).write(by_day[day])

    def checkpoint(self) -> bool:
        """True when every file written since the last time is wholly checkpointed; those files are closed."""
        for day, file in list(self._open.items()):
            if file.checkpoint():
                self._open.pop(day).close()
        return not self._open

    def expire(self, before_day: int) -> int:
        """Unlink the files of the days before `before_day`; returns how many."""
        gone = [day for day in self._days if day < before_day]
        for day in gone:
            file = self._open.pop(day, None)
            if file is not None:
                file.close()
            path = self._path(day)
            for suffix in ("-wal", "-shm", ""):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
        if gone:
            self._days = tuple(day for day in self._days if day >= before_day)
            sync_directory(self._directory)
        return len(gone)

    def trim(self, job: JobId, keep: int, before_ms: Ms = 0) -> int:
        """Delete the job's ended executions but the newest `keep`, and those created before; returns how many went."""
        removed = 0
        for day in self._days:
            if day * MS_PER_DAY + MS_PER_DAY <= before_ms:
                keep = 0
            file = self._file(day)
            held = file.count(job)
            if held > keep:
                removed += file.trim(job, keep)
            keep = max(0, keep - held)
        return removed

    @contextmanager
    def reading(self, day: int) -> Generator[sqlite3.Connection | None, None, None]:
        """A connection to one day's file, or None when retention took it meanwhile."""
        path = self._path(day)
        if day not in self._days or not path.exists():
            yield None
            return
        db = sqlite3.connect(
            f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None, cached_statements=4
        )
        try:
            yield db
        finally:
            db.close()

    def file_bytes(self) -> int:
        """The bytes of all day files and their journals."""
        return sum(sqlite_bytes(self._path(day)) for day in self._days)

    def close(self) -> None:
        """Close what is open; the last close of a file checkpoints it."""
        while self._open:
            self._open.popitem()[1].close()

    def _path(self, day: int) -> Path:
        return self._directory / f"{self._prefix}{day}.db"

    def _file(self, day: int) -> _DayFile:
        file = self._open.get(day)
        if file is None:
            file = self._open[day] = _DayFile(self._path(day), self._cache_bytes)
            if day not in self._days:
                self._days = tuple(sorted((*self._days, day), reverse=True))
        return file


def sqlite_bytes(path: Path) -> int:
    """The bytes of a database file and its journal."""
    total = 0
    for name in (path, path.with_name(path.name + "-wal")):
        try:
            total += name.stat().st_size
        except FileNotFoundError:
            continue
    return total
