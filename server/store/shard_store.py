"""Floor 3. A shard's store: its jobs and executions in SQLite, as of one entry of its log.

    shard-0007.db             job, spec     every job; the spec apart, so that a status does not rewrite a large body
                              live          executions that have not ended
                              tally         jobs by namespace, state, last outcome: counts without a scan
                              applied       one row: the entry of the log up to which all of this holds
    shard-0007-day-*.db       ended executions (`history`)

Invariants:
- `flush` is one transaction: content and `applied` move together, so a crash at any instant leaves the content of
  exactly one `applied`, and the log from there on writes the rest again (after-images: writing twice is writing once).
- History is committed (and synced) before the main file, and checkpointed before it.
- `durable` is the `applied` that was read before a checkpoint that moved every frame: only the log up to there may go.
- A row that is live is live, whatever history says: a redriven execution has an older end there.

Three connections, each owned by one thread at a time (`threads`): writing (`flush`, `checkpoint`, `trim`,
`expire`), point reads (`find`, `jobs`, `live`, `due`), lists (the rest). There is no lock in here.

The index over due times holds the generation too, so that filling the wheel never touches the jobs themselves.
Which indexes there are, and what each costs: docs/design/store.md.

Must never import: other rooms of floor 3 or higher; no threads, no clock.
"""
# ruff: noqa: S608 - only names that stand in this file go into the text; values are parameters

import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Final, Protocol, Self, TypeVar

from tickwheel.server import codec
from tickwheel.server.errors import StoreFailed
from tickwheel.server.model import JobParts, JobRow, Ms, Row
from tickwheel.server.placement import key_of, keys_of
from tickwheel.server.query import (
    Applied,
    Due,
    ExecutionHit,
    ExecutionQuery,
    Grouping,
    JobCounts,
    JobHit,
    JobQuery,
    StoreSizes,
)
from tickwheel.server.store import listing, sqlite
from tickwheel.server.store.history import (
    ExecutionColumns,
    History,
    JobId,
    Namespaces,
    sqlite_bytes,
)

_T = TypeVar("_T")

FORMAT: Final = 1

_SCHEMA: Final = """
CREATE TABLE namespace (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE job (
    row INTEGER PRIMARY KEY, namespace INTEGER NOT NULL, key INTEGER NOT NULL,
    state INTEGER NOT NULL, last_outcome INTEGER NOT NULL, generation INTEGER NOT NULL,
    next_ms INTEGER NOT NULL, due_ms INTEGER, create_ms INTEGER NOT NULL, update_ms INTEGER NOT NULL,
    name TEXT NOT NULL, labels TEXT NOT NULL, uid BLOB NOT NULL, status BLOB NOT NULL
);
CREATE INDEX job_key ON job (key);
CREATE INDEX job_due ON job (due_ms, generation) WHERE due_ms IS NOT NULL;
CREATE INDEX job_namespace ON job (namespace);
CREATE TABLE spec (row INTEGER PRIMARY KEY, spec BLOB NOT NULL);
CREATE TABLE live (
    row INTEGER PRIMARY KEY, namespace INTEGER NOT NULL, key INTEGER NOT NULL, job_row INTEGER NOT NULL,
    state INTEGER NOT NULL, number INTEGER NOT NULL, due_ms INTEGER, create_ms INTEGER NOT NULL,
    scheduled_ms INTEGER NOT NULL, data BLOB NOT NULL
);
CREATE INDEX live_key ON live (key);
CREATE INDEX live_due ON live (due_ms, number) WHERE due_ms IS NOT NULL;
CREATE TABLE tally (
    namespace INTEGER NOT NULL, state INTEGER NOT NULL, last_outcome INTEGER NOT NULL, jobs INTEGER NOT NULL,
    PRIMARY KEY (namespace, state, last_outcome)
) WITHOUT ROWID;
CREATE TABLE applied (
    id INTEGER PRIMARY KEY CHECK (id = 0), shard INTEGER NOT NULL,
    entry INTEGER NOT NULL, epoch INTEGER NOT NULL, next_row INTEGER NOT NULL, time_ms INTEGER NOT NULL
)
"""

_PUT_JOB: Final = sqlite.Bulk("INSERT OR REPLACE INTO job VALUES", 14)
_PUT_SPEC: Final = sqlite.Bulk("INSERT OR REPLACE INTO spec VALUES", 2)
_PUT_LIVE: Final = sqlite.Bulk("INSERT OR REPLACE INTO live VALUES", 10)
_SET_STATUS: Final = sqlite.Bulk(
    "UPDATE job SET state = v.column2, last_outcome = v.column3, generation = v.column4, next_ms = v.column5,"
    " due_ms = v.column6, update_ms = v.column7, status = v.column8 FROM (VALUES",
    8,
    ") AS v WHERE job.row = v.column1",
)
_ADD_TALLY: Final = sqlite.Bulk(
    "INSERT INTO tally VALUES",
    4,
    "ON CONFLICT DO UPDATE SET jobs = jobs + excluded.jobs",
)
_ROWS: Final = "IN (SELECT value FROM json_each(?))"
_FIND: Final = (
    "SELECT namespace.name, job.name, job.row FROM job JOIN namespace ON namespace.id = job.namespace"
    " WHERE job.key {condition} ORDER BY job.row"
)
_FIND_ONE: Final = _FIND.format(condition="= ?")
_FIND_MANY: Final = _FIND.format(condition=_ROWS)
_JOB: Final = "job.row, namespace.name, job.name, job.uid, spec.spec, job.status, job.labels"
_JOINED: Final = (
    "job JOIN namespace ON namespace.id = job.namespace JOIN spec ON spec.row = job.row"
)
_DUE: Final = (
    "SELECT due_ms, row, {number} FROM {table} WHERE due_ms >= ? AND due_ms < ?"
    " AND (due_ms, {number}, row) > (?, ?, ?) ORDER BY due_ms, {number}, row LIMIT ?"
)
_DUE_JOBS: Final = _DUE.format(table="job", number="generation")
_DUE_LIVE: Final = _DUE.format(table="live", number="number")
_NUMBER_MIN: Final = -(1 << 62)
_CHUNK: Final = 10_000  # ids looked up in one statement


class Changes(Protocol):
    """What `table` collected since the last flush. A row in `ended` leaves `live`; one in both is live."""

    @property
    def jobs(self) -> Mapping[Row, JobParts]:
        """Jobs to write whole."""
        ...

    @property
    def statuses(self) -> Mapping[Row, bytes]:
        """New statuses of jobs that the store has."""
        ...

    @property
    def drops(self) -> Collection[Row]:
        """Jobs to delete."""
        ...

    @property
    def live(self) -> Mapping[Row, bytes]:
        """Executions that have not ended."""
        ...

    @property
    def ended(self) -> Mapping[Row, bytes]:
        """Executions that have."""
        ...


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Sizes, in bytes. There are as many stores as shards in one process, and seldom more than one is flushing."""

    execution_columns: ExecutionColumns = codec.execution_columns
    # While a large flush runs; given back behind it. Random index pages should fit: 15 B a job of the shard.
    write_cache_bytes: int = 16 << 20
    read_cache_bytes: int = 512 << 10
    list_cache_bytes: int = 512 << 10
    # A flush of more rows closes its connection behind it: its statements and pages take megabytes.
    large_flush_rows: int = 256

    def __post_init__(self) -> None:
        assert self.write_cache_bytes >= 64 << 10, "the write cache holds at least a few pages"
        assert self.read_cache_bytes > 0, "the read cache is not empty"
        assert self.list_cache_bytes > 0, "the list cache is not empty"


class ShardStore:
    """One shard's store. Every method may raise `sqlite3.Error`; `sqlite.translate` says which are fatal."""

    def __init__(self, path: Path, shard: int, options: StoreOptions) -> None:
        self._path = path
        self._shard = shard
        self._options = options
        self._read = sqlite.connect(path, cache_bytes=options.read_cache_bytes)
        self._write: sqlite3.Connection | None = None
        self._lists: sqlite3.Connection | None = None
        try:
            sqlite.create(self._read, _SCHEMA, FORMAT, path)
            self.applied = self._load_applied()
            self._namespaces = Namespaces(self._read)
            (top,) = self._read.execute("SELECT coalesce(max(row), 0) FROM job").fetchone()
        except BaseException:
            self._read.close()
            raise
        self._top_row: Row = top
        self.durable = Applied()
        self._history = History(
            path.parent, shard, options.write_cache_bytes // 4, options.execution_columns
        )

    @classmethod
    def open(cls, directory: Path, shard: int, options: StoreOptions) -> Self:
        """Open or create the store of `shard` in `directory`. `applied` then says where its log goes on.

        Raises StoreFailed for a file of another format or shard.
        """
        return cls(directory / f"shard-{shard:04d}.db", shard, options)

    def close(self) -> None:
        """Checkpoint and close. Nothing is lost without it."""
        self.checkpoint()
        self._history.close()
        self._close_writer()
        for db in (self._lists, self._read):
            if db is not None:
                db.close()

    # --- writing -----------------------------------------------------------------------------------------------------

    def flush(self, changes: Changes, applied: Applied) -> Sequence[int]:
        """Write a change set: history first, then the jobs, the live executions and `applied` in one transaction.

        The answer are the keys of its jobs (`placement.key_of`), in their order.
        """
        assert applied.index >= self.applied.index, "a flush never goes back"
        if changes.ended:
            self._history.write(changes.ended)
        db = self._writer()
        db.execute("BEGIN IMMEDIATE")
        try:
            keys = self._write_jobs(db, changes)
            self._write_live(db, changes)
            db.execute(
                "INSERT OR REPLACE INTO applied VALUES (0, ?, ?, ?, ?, ?)",
                (self._shard, applied.index, applied.epoch, applied.next_row, applied.time_ms),
            )
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            self._namespaces = Namespaces(db)
            raise
        self.applied = applied
        self._top_row = max(self._top_row, max(changes.jobs, default=0))
        self._give_back(len(changes.jobs) + len(changes.statuses) + len(changes.live))
        return keys

    def checkpoint(self) -> bool:
        """Move all that was flushed into the database files, fsynced; True when all of it was, and `durable` moves.

        False means that a reader was in the way: nothing is wrong, the log has to be kept a while longer.
        """
        wanted = self.applied
        if not self._history.checkpoint() or not sqlite.checkpoint(self._writer()):
            return False
        self.durable = wanted
        return True

    def expire(self, before_day: int) -> int:
        """Unlink the ended executions created before `before_day` (days since the epoch); returns the files."""
        return self._history.expire(before_day)

    def trim(self, job_row: Row, keep: int, before_ms: Ms = 0) -> int:
        """Delete a job's ended executions but its newest `keep`, and those of days that ended before `before_ms`.

        Returns how many went.
        """
        job = _job_id(self._writer(), job_row)
        return self._history.trim(job, keep, before_ms) if job else 0

    def _write_jobs(self, db: sqlite3.Connection, changes: Changes) -> list[int]:
        fresh = [row for row in changes.jobs if row > self._top_row]
        known = [row for row in changes.jobs if row <= self._top_row]
        tally = _tally(db, [*known, *changes.statuses, *changes.drops], -1)
        keys = _keys(changes.jobs)
        if keys:
            _PUT_JOB.run(db, self._job_values(db, changes.jobs, keys))
            _PUT_SPEC.run(db, [(row, spec) for row, (_, _, _, spec, _, _) in changes.jobs.items()])
        _SET_STATUS.run(
            db, [_status_values(row, status) for row, status in changes.statuses.items()]
        )
        if changes.drops:
            rows = sqlite.numbers(changes.drops)
            db.execute(f"DELETE FROM job WHERE row {_ROWS}", (rows,))
            db.execute(f"DELETE FROM spec WHERE row {_ROWS}", (rows,))
        tally.update(_tally(db, [*known, *fresh, *changes.statuses], 1))
        _ADD_TALLY.run(db, [(*group, number) for group, number in tally.items() if number])
        return keys

    def _job_values(
        self, db: sqlite3.Connection, jobs: Mapping[Row, JobParts], keys: Sequence[int]
    ) -> list[tuple[sqlite.Value, ...]]:
        """What is written of each job beside its spec, put together by column: it holds the interpreter meanwhile."""
        namespaces, names, uids, _, statuses, labels = zip(*jobs.values(), strict=True)
        states, outcomes, generations, next_ms, due_ms, create_ms, update_ms = zip(
            *map(codec.status_columns, statuses), strict=True
        )
        number = {name: self._namespaces.number(db, name) for name in {*namespaces}}
        columns = (
            jobs.keys(), [number[name] for name in namespaces], keys, states, outcomes, generations, next_ms,
            [ms or None for ms in due_ms], create_ms, update_ms, names, labels, uids, statuses,
        )  # fmt: skip
        return list(zip(*columns, strict=True))

    def _write_live(self, db: sqlite3.Connection, changes: Changes) -> None:
        if changes.ended:
            db.execute(f"DELETE FROM live WHERE row {_ROWS}", (sqlite.numbers(changes.ended),))
        _PUT_LIVE.run(db, [self._live_values(db, row, data) for row, data in changes.live.items()])

    def _live_values(
        self, db: sqlite3.Connection, row: Row, data: bytes
    ) -> tuple[sqlite.Value, ...]:
        columns = self._options.execution_columns(data)
        job_row, state, create_ms, scheduled_ms, due_ms, attempt, namespace, job = columns
        number = self._namespaces.number(db, namespace)
        key = key_of(namespace, job)
        return (
            row,
            number,
            key,
            job_row,
            state,
            -(attempt + 1),
            due_ms or None,
            create_ms,
            scheduled_ms,
            data,
        )

    def _writer(self) -> sqlite3.Connection:
        if self._write is None:
            self._write = sqlite.connect(self._path, cache_bytes=self._options.write_cache_bytes)
        return self._write

    def _give_back(self, rows: int) -> None:
        """Free what a flush of so many rows took: one shard at a time may hold a write cache, not all of them."""
        if rows >= self._options.large_flush_rows:
            self._close_writer()
        else:
            self._writer().execute("PRAGMA shrink_memory")

    def _close_writer(self) -> None:
        if self._write is not None:
            self._write.close()
            self._write = None

    def _load_applied(self) -> Applied:
        found = self._read.execute("SELECT * FROM applied").fetchone()
        if found is None:
            return Applied()
        _id, shard, *applied = found
        if shard != self._shard:
            raise StoreFailed(
                f"{self._path.name} holds shard {shard}",
                reason="STORE_FORMAT",
                metadata={"path": str(self._path), "shard": str(shard)},
            )
        return Applied(*applied)

    # --- point reads -------------------------------------------------------------------------------------------------

    def find(self, names: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Row]:
        """The rows of the jobs with these (namespace, name); who is not there is left out."""
        hits: list[tuple[str, str, Row]] = []
        if len(names) == 1:
            # A list costs SQLite as much as a second look-up, before it has looked at the first.
            hits = self._read.execute(_FIND_ONE, (key_of(*names[0]),)).fetchall()
        else:
            for chunk in _chunks(names):
                keys = sqlite.numbers(key_of(*name) for name in chunk)
                hits += self._read.execute(_FIND_MANY, (keys,)).fetchall()
        if not hits:
            return {}
        wanted = set(names)
        return {(space, name): row for space, name, row in hits if (space, name) in wanted}

    def keys(self, from_key: int, limit: int) -> list[int]:
        """A page of the keys of all jobs (`placement.key_of`), ascending: what a filter learns."""
        sql = "SELECT key FROM job WHERE key >= ? ORDER BY key LIMIT ?"
        return [key for (key,) in self._lister().execute(sql, (from_key, limit))]

    def job_count(self) -> int:
        """How many jobs are here."""
        count: int = (
            self._lister().execute("SELECT coalesce(sum(jobs), 0) FROM tally").fetchone()[0]
        )
        return count

    def jobs(self, rows: Sequence[Row]) -> dict[Row, JobRow]:
        """The jobs of these rows; who is not there is left out."""
        found: dict[Row, JobRow] = {}
        for chunk in _chunks(rows):
            sql = f"SELECT {_JOB} FROM {_JOINED} WHERE job.row {_ROWS}"
            for row, *job in self._read.execute(sql, (sqlite.numbers(chunk),)):
                found[row] = JobRow(*job)
        return found

    def live(self, rows: Sequence[Row]) -> dict[Row, bytes]:
        """The live executions of these rows; who is not there is left out."""
        found: dict[Row, bytes] = {}
        for chunk in _chunks(rows):
            sql = f"SELECT row, data FROM live WHERE row {_ROWS}"
            found.update(self._read.execute(sql, (sqlite.numbers(chunk),)).fetchall())
        return found

    def execution(self, row: Row) -> bytes | None:
        """An execution, live or ended; None when retention took it or it never was. Looks into a file a day."""
        return listing.execution(self._read, self._history, row)

    def due(self, from_ms: Ms, until_ms: Ms, limit: int, after: Due | None = None) -> list[Due]:
        """What falls due in `from_ms` <= due < `until_ms`, ordered by (due_ms, number, row), behind `after`.

        `after` is the last of the page before: many may be due at one instant.
        """
        at = (after.due_ms, after.number, after.row) if after else (from_ms, _NUMBER_MIN, 0)
        values = (max(from_ms, at[0]), until_ms, *at, limit)
        found = self._read.execute(_DUE_JOBS, values).fetchall()
        live = self._read.execute(_DUE_LIVE, values).fetchall()
        if live:
            found = sorted([*found, *live], key=_due_order)[:limit]
        return [Due(*item) for item in found]

    # --- lists -------------------------------------------------------------------------------------------------------

    def list_jobs(self, query: JobQuery) -> list[JobHit]:
        """A page of jobs, oldest first."""
        return listing.list_jobs(self._lister(), self._shard, query)

    def count_jobs(self, query: JobQuery, grouping: Grouping) -> JobCounts:
        """The jobs that `query` means (its limit and token aside), by group. By state and outcome it is no scan."""
        return listing.count_jobs(self._lister(), query, grouping)

    def list_executions(self, query: ExecutionQuery) -> list[ExecutionHit]:
        """A page of executions, live and ended, newest first."""
        return listing.list_executions(self._lister(), self._history, self._shard, query)

    def executions_of(self, job_row: Row, limit: int) -> list[ExecutionHit]:
        """The newest executions of one job, live and ended."""
        job = _job_id(self._lister(), job_row)
        if job is None:
            return []
        return listing.executions_of(self._lister(), self._history, self._shard, job, limit)

    def sizes(self) -> StoreSizes:
        """How much is here."""
        db = self._lister()
        (live,) = db.execute("SELECT count(*) FROM live").fetchone()
        days = len(self._history.days)
        return StoreSizes(
            self.job_count(), live, sqlite_bytes(self._path), self._history.file_bytes(), days
        )

    def _lister(self) -> sqlite3.Connection:
        if self._lists is None:
            self._lists = sqlite.connect(self._path, cache_bytes=self._options.list_cache_bytes)
        return self._lists


def _keys(jobs: Mapping[Row, JobParts]) -> list[int]:
    """Each job's key, in their order; jobs of one namespace mostly come in a row."""
    keys: list[int] = []
    for namespace, of_namespace in groupby(jobs.values(), itemgetter(0)):
        keys += keys_of(namespace, [name for _, name, *_ in of_namespace])
    return keys


def _status_values(row: Row, status: bytes) -> tuple[Row, int, int, int, Ms, Ms | None, Ms, bytes]:
    """What a status sets; `due_ms` is NULL, and so not in the index of due times, when there is none."""
    state, outcome, generation, next_ms, due_ms, _create_ms, update_ms = codec.status_columns(
        status
    )
    due = due_ms or None
    return row, state, outcome, generation, next_ms, due, update_ms, status


def _tally(db: sqlite3.Connection, rows: Iterable[Row], sign: int) -> Counter[tuple[int, int, int]]:
    """`sign` times the jobs of these rows, by (namespace, state, last outcome)."""
    listed = sqlite.numbers(rows)
    tally: Counter[tuple[int, int, int]] = Counter()
    if listed == "[]":
        return tally
    sql = f"SELECT namespace, state, last_outcome, count(*) FROM job WHERE row {_ROWS} GROUP BY 1, 2, 3"
    for namespace, state, outcome, count in db.execute(sql, (listed,)):
        tally[namespace, state, outcome] = sign * count
    return tally


def _job_id(db: sqlite3.Connection, row: Row) -> JobId | None:
    sql = "SELECT namespace.name, job.name FROM job JOIN namespace ON namespace.id = job.namespace WHERE row = ?"
    found = db.execute(sql, (row,)).fetchone()
    return JobId(found[0], found[1], row) if found else None


def _due_order(item: tuple[Ms, Row, int]) -> tuple[Ms, int, Row]:
    return item[0], item[2], item[1]


def _chunks(items: Sequence[_T]) -> Iterable[Sequence[_T]]:
    return (items[at : at + _CHUNK] for at in range(0, len(items), _CHUNK))
