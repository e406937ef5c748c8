"""Floor 3. The SQL of lists and counts of one shard (`query` says what they mean).

Rows and create_ms grow together, so a range of create_ms is a range of rows, found by bisection, and a page is a scan
of a table in the order of its primary key. What the scan reads beyond the page is what the filters refuse; the indexes
over namespaces, over a job's executions and over the failed ones keep the common filters from reading everything.

Live executions are read before history: one that ends between the two is seen twice and kept once (the live one, which
was true when the list began), never missed.

Must never import: rooms of floor 3 or higher but `sqlite`, `history`; no threads, no clock.
"""
# ruff: noqa: S608 - only names that stand in this file go into the text; values are parameters

import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import islice
from typing import Final

from tickwheel.server.model import MS_PER_DAY, ExecutionState, JobRow, Ms, Row
from tickwheel.server.placement import key_of
from tickwheel.server.query import (
    ExecutionHit,
    ExecutionQuery,
    GroupBy,
    Grouping,
    JobCounts,
    JobHit,
    JobQuery,
    Key,
    Range,
    behind_row,
)
from tickwheel.server.store import sqlite
from tickwheel.server.store.history import History, JobId

_JOB_COLUMNS: Final = (
    "job.row, job.create_ms, namespace.name, job.name, job.uid, spec.spec, job.status, job.labels"
)
_JOB_TABLES: Final = (
    "job JOIN namespace ON namespace.id = job.namespace JOIN spec ON spec.row = job.row"
)
_PAGE: Final = 256  # ended executions checked against the live ones at a time


class _Where:
    """Conditions that all hold, with their parameters in order."""

    __slots__ = ("_terms", "values")

    def __init__(self) -> None:
        self._terms: list[str] = []
        self.values: list[sqlite.Value] = []

    def add(self, term: str, *values: sqlite.Value) -> None:
        self._terms.append(term)
        self.values.extend(values)

    def one_of(self, column: str, values: tuple[int, ...]) -> None:
        """A single value is written out, so that an index over just that value can serve."""
        if len(values) == 1:
            self.add(f"{column} = {int(values[0])}")
        elif values:
            self.add(f"{column} IN ({','.join(str(int(value)) for value in values)})")

    def within(self, column: str, span: Range) -> None:
        if span.from_ms:
            self.add(f"{column} >= ?", span.from_ms)
        if span.until_ms:
            self.add(f"{column} < ?", span.until_ms)

    def __str__(self) -> str:
        return " AND ".join(self._terms) or "1"


# --- jobs ------------------------------------------------------------------------------------------------------------


def list_jobs(db: sqlite3.Connection, shard: int, query: JobQuery) -> list[JobHit]:
    """A page of jobs, oldest first."""
    where = _Where()
    _page_forward(db, where, shard, query.after)
    if not _filter_jobs(db, where, query):
        return []
    sql = f"SELECT {_JOB_COLUMNS} FROM {_JOB_TABLES} WHERE {where} ORDER BY job.row LIMIT ?"
    found = db.execute(sql, (*where.values, query.limit)).fetchall()
    return [JobHit(Key(create_ms, row, shard), JobRow(*job)) for row, create_ms, *job in found]


def count_jobs(db: sqlite3.Connection, query: JobQuery, grouping: Grouping) -> JobCounts:
    """Jobs by group; from the tallies where they know."""
    where = _Where()
    if query.tallied and grouping.by in (GroupBy.NONE, GroupBy.STATE, GroupBy.LAST_OUTCOME):
        table, number = "tally", "sum(jobs)"
        where.add("jobs > 0")
    else:
        table, number = "job", "count(*)"
    if not _filter_jobs(db, where, query, table):
        return {}
    group, values = _group(grouping)
    sql = f"SELECT {group} AS grouped, {number} FROM {table} WHERE {where} GROUP BY 1"
    counts: JobCounts = dict(db.execute(sql, (*values, *where.values)).fetchall())
    return counts


def _group(grouping: Grouping) -> tuple[str, list[sqlite.Value]]:
    match grouping.by:
        case GroupBy.STATE:
            return "state", []
        case GroupBy.LAST_OUTCOME:
            return "last_outcome", []
        case GroupBy.NEXT_TIME:
            return "next_ms / ? * ?", [grouping.bucket_ms] * 2
        case GroupBy.LABEL:
            # The text between the key's mark and the next separator; the labels end with one.
            behind = "substr(labels, instr(labels, ?) + length(?))"
            value = f"substr({behind}, 1, instr({behind}, char(31)) - 1)"
            group = f"CASE instr(labels, ?) WHEN 0 THEN '' ELSE {value} END"
            return group, [f"\x1f{grouping.label}="] * group.count("?")
        case _:
            return "0", []


def _filter_jobs(
    db: sqlite3.Connection, where: _Where, query: JobQuery, table: str = "job"
) -> bool:
    """Add the query's conditions but its token; False when nothing can match."""
    if query.namespace:
        number = _namespace(db, query.namespace)
        if number is None:
            return False
        where.add(f"{table}.namespace = ?", number)
    where.one_of(f"{table}.state", query.states)
    where.one_of(f"{table}.last_outcome", query.last_outcomes)
    for key, value in query.labels:
        where.add("instr(job.labels, ?) > 0", f"\x1f{key}={value}\x1f")
    if query.name_prefix:
        where.add("substr(job.name, 1, ?) = ?", len(query.name_prefix), query.name_prefix)
    where.within("job.next_ms", query.next_time)
    span = query.create_time
    if span.from_ms:
        where.add("job.row >= ?", _seek(db, "job", span.from_ms))
    if span.until_ms:
        where.add("job.row < ?", _seek(db, "job", span.until_ms))
    return True


def _page_forward(db: sqlite3.Connection, where: _Where, shard: int, after: Key | None) -> None:
    if after is None:
        return
    where.add("job.row >= ?", _seek(db, "job", after.create_ms))
    where.add("(job.create_ms > ? OR job.row >= ?)", after.create_ms, behind_row(after, shard))


def _seek(db: sqlite3.Connection, table: str, create_ms: Ms) -> Row:
    """The first row of `table` created at or after `create_ms`, or one behind the last. ~20 look-ups."""
    low, high = db.execute(
        f"SELECT coalesce(min(row), 1), coalesce(max(row), 0) + 1 FROM {table}"
    ).fetchone()
    sql = f"SELECT row, create_ms FROM {table} WHERE row >= ? ORDER BY row LIMIT 1"
    while low < high:
        middle = (low + high) // 2
        found = db.execute(sql, (middle,)).fetchone()  # None: deleted since the look at max(row)
        if found and found[1] < create_ms:
            low = found[0] + 1
        else:
            high = middle
    return int(low)


def _namespace(db: sqlite3.Connection, name: str) -> int | None:
    found = db.execute("SELECT id FROM namespace WHERE name = ?", (name,)).fetchone()
    return int(found[0]) if found else None


# --- executions ------------------------------------------------------------------------------------------------------


def list_executions(
    db: sqlite3.Connection, history: History, shard: int, query: ExecutionQuery
) -> list[ExecutionHit]:
    """A page of executions, newest first."""
    hits = list(_select(db, "live", shard, query, None))
    with closing(_ended(db, history, shard, query, None)) as ended:
        return _newest([*islice(ended, query.limit), *hits], query.limit)


def executions_of(
    db: sqlite3.Connection, history: History, shard: int, job: JobId, limit: int
) -> list[ExecutionHit]:
    """The newest executions of one job."""
    query = ExecutionQuery(job.namespace, job.name, limit=limit)
    hits = list(_select(db, "live", shard, query, job.row))
    with closing(_ended(db, history, shard, query, job.row)) as ended:
        return _newest([*islice(ended, limit), *hits], limit)


def execution(db: sqlite3.Connection, history: History, row: Row) -> bytes | None:
    """An execution by row, live before ended, newest day first."""
    found = db.execute("SELECT data FROM live WHERE row = ?", (row,)).fetchone()
    for day in () if found else history.days:
        with history.reading(day) as file:
            if file is not None:
                found = file.execute("SELECT data FROM execution WHERE row = ?", (row,)).fetchone()
        if found:
            break
    data: bytes | None = found[0] if found else None
    return data


def _newest(hits: list[ExecutionHit], limit: int) -> list[ExecutionHit]:
    """The first `limit` in order; of two of one row the later in `hits` stays."""
    by_key = {hit.key: hit for hit in hits}
    return [by_key[key] for key in sorted(by_key, reverse=True)[:limit]]


def _ended(
    db: sqlite3.Connection, history: History, shard: int, query: ExecutionQuery, job_row: Row | None
) -> Generator[ExecutionHit, None, None]:
    """Those of history that are not live again, newest first."""
    sql = "SELECT row FROM live WHERE row IN (SELECT value FROM json_each(?))"
    for day in history.days:
        if query.after and day > query.after.create_ms // MS_PER_DAY:
            continue
        with history.reading(day) as file:
            if file is None:
                continue
            found = _select(file, "execution", shard, query, job_row)
            while page := list(islice(found, _PAGE)):
                listed = sqlite.numbers(hit.key.row for hit in page)
                live = {row for (row,) in db.execute(sql, (listed,))}
                yield from (hit for hit in page if hit.key.row not in live)


def _select(
    db: sqlite3.Connection, table: str, shard: int, query: ExecutionQuery, job_row: Row | None
) -> Iterator[ExecutionHit]:
    """The rows of `live` or of a day's `execution`, newest first.

    Of history they are read as they are asked for, because some turn out to be live again.
    """
    where = _Where()
    if query.namespace:
        number = _namespace(db, query.namespace)
        if number is None:
            return
        where.add("+namespace = ?" if query.job else "namespace = ?", number)
    if query.job:
        where.add("key = ?", key_of(query.namespace, query.job))
    if job_row is not None:
        where.add("job_row = ?", job_row)
    where.one_of("state", query.states)
    where.within("scheduled_ms", query.scheduled)
    if query.after:
        _page_backward(db, where, table, shard, query.after)
    # Failed ones are few: their own index beats that of the namespace.
    hint = ""
    if table == "execution" and query.states == (int(ExecutionState.FAILED),) and not query.job:
        hint = "INDEXED BY execution_failed"
    limit = query.limit if table == "live" else -1
    sql = f"SELECT row, create_ms, data FROM {table} {hint} WHERE {where} ORDER BY row DESC LIMIT {limit}"
    for row, create_ms, data in db.execute(sql, where.values):
        yield ExecutionHit(Key(create_ms, row, shard), data)


def _page_backward(
    db: sqlite3.Connection, where: _Where, table: str, shard: int, after: Key
) -> None:
    """Behind `after`, newest first: those created earlier, and of the same millisecond those before its row."""
    where.add("row < ?", _seek(db, table, after.create_ms + 1))
    last = after.row if shard < after.shard else after.row - 1
    where.add("(create_ms < ? OR row <= ?)", after.create_ms, last)
