"""A shard's store in plain dicts: what `ShardStore` does, without SQLite, for the simulation.

It is the slow truth that the SQL is held against (tests/conformance, tests/property), and the store of simulated nodes:
`crash` loses what a power cut may lose.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tickwheel.server import codec
from tickwheel.server.errors import StoreFailed
from tickwheel.server.model import MS_PER_DAY, JobRow, Ms, Row
from tickwheel.server.placement import key_of
from tickwheel.server.query import (
    Applied,
    Due,
    ExecutionHit,
    ExecutionQuery,
    GroupBy,
    Grouping,
    JobCounts,
    JobHit,
    JobQuery,
    Key,
    StoreSizes,
)
from tickwheel.server.store.history import ExecutionColumns
from tickwheel.server.store.shard_store import Changes


@dataclass
class Content:
    """What a store holds."""

    jobs: dict[Row, JobRow] = field(default_factory=dict[Row, JobRow])
    live: dict[Row, bytes] = field(default_factory=dict[Row, bytes])
    ended: dict[Row, bytes] = field(default_factory=dict[Row, bytes])
    applied: Applied = field(default_factory=Applied)

    def copied(self) -> "Content":
        """The same rows, which are values."""
        return Content(dict(self.jobs), dict(self.live), dict(self.ended), self.applied)


class DictStore:
    """The methods of `ShardStore`, and `crash`."""

    def __init__(
        self, shard: int, execution_columns: ExecutionColumns = codec.execution_columns
    ) -> None:
        self._shard = shard
        self._columns = execution_columns
        self._now = Content()
        self._durable = Content()
        self._announced = Applied()
        self.full = False

    @property
    def applied(self) -> Applied:
        return self._now.applied

    @property
    def durable(self) -> Applied:
        return self._announced

    @classmethod
    def of(cls, shard: int, content: Content) -> "DictStore":
        """A store that holds a copy, durably."""
        store = cls(shard)
        store._now = content
        store.checkpoint()
        return store

    def content(self) -> Content:
        """All of it, for a copy: as it is, so copy it before it changes."""
        return self._now

    def close(self) -> None:
        self.checkpoint()

    def crash(self, *, keep_main: bool, keep_history: bool = True) -> None:
        """Die and come back: a dead process loses nothing, a power cut what main wrote since its checkpoint.

        History is synced at each commit, before main is written, so it loses nothing; `keep_history=False` is a disk
        that lied about that, which `durable` covers all the same.
        """
        assert keep_history or not keep_main, "main never survives its history"
        ended = self._now.ended if keep_history else self._durable.ended
        if not keep_main:
            self._now = self._durable.copied()
        self._now.ended = dict(ended)
        self._announced = Applied()

    def flush(self, changes: Changes, applied: Applied) -> list[int]:
        assert applied.index >= self.applied.index
        if self.full:
            raise StoreFailed("no space left", reason="STORE_FULL")
        now = self._now
        now.ended.update(changes.ended)
        now.jobs.update({row: JobRow(*job) for row, job in changes.jobs.items()})
        for row, status in changes.statuses.items():
            if row in now.jobs:
                now.jobs[row] = now.jobs[row]._replace(status=status)
        for row in changes.drops:
            now.jobs.pop(row, None)
        for row in changes.ended:
            now.live.pop(row, None)
        now.live.update(changes.live)
        now.applied = applied
        return [key_of(namespace, name) for namespace, name, *_ in changes.jobs.values()]

    def checkpoint(self) -> bool:
        self._durable = self._now.copied()
        self._announced = self.applied
        return True

    def expire(self, before_day: int) -> int:
        days = {day for day in self._days() if day < before_day}
        ended = self._now.ended
        kept = {row: data for row, data in ended.items() if self._day(data) not in days}
        self._now.ended = kept
        durable = self._durable.ended
        self._durable.ended = {r: d for r, d in durable.items() if self._day(d) not in days}
        return len(days)

    def trim(self, job_row: Row, keep: int, before_ms: Ms = 0) -> int:
        job = self._now.jobs.get(job_row)
        if job is None:
            return 0
        mine = sorted(
            (row for row, data in self._now.ended.items() if self._of(data, job, job_row)),
            reverse=True,
        )
        old = [r for r in mine if (self._day(self._now.ended[r]) + 1) * MS_PER_DAY <= before_ms]
        gone = {*mine[keep:], *old}
        for row in gone:
            del self._now.ended[row]
        return len(gone)

    def find(self, names: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Row]:
        wanted = set(names)
        rows = sorted(self._now.jobs.items())
        by_name = {(j.namespace, j.name): r for r, j in rows if (j.namespace, j.name) in wanted}
        return {name: by_name[name] for name in names if name in by_name}

    def jobs(self, rows: Sequence[Row]) -> dict[Row, JobRow]:
        return {row: self._now.jobs[row] for row in rows if row in self._now.jobs}

    def live(self, rows: Sequence[Row]) -> dict[Row, bytes]:
        return {row: self._now.live[row] for row in rows if row in self._now.live}

    def due(self, from_ms: Ms, until_ms: Ms, limit: int, after: Due | None = None) -> list[Due]:
        found = [item for item in self._all_due() if from_ms <= item.due_ms < until_ms]
        found.sort(key=_due_order)
        if after is not None:
            found = [item for item in found if _due_order(item) > _due_order(after)]
        return found[:limit]

    def _all_due(self) -> Iterator[Due]:
        for row, job in self._now.jobs.items():
            status = codec.decode_status(job.status)
            if status.due_ms > 0:
                yield Due(status.due_ms, row, status.generation)
        for row, data in self._now.live.items():
            _job, _state, _create, _scheduled, due_ms, attempt, _namespace, _name = self._columns(
                data
            )
            if due_ms > 0:
                yield Due(due_ms, row, -(attempt + 1))

    def list_jobs(self, query: JobQuery) -> list[JobHit]:
        hits = [JobHit(self._job_key(row, job), job) for row, job in self._matching(query)]
        hits.sort(key=lambda hit: hit.key)
        return [hit for hit in hits if query.after is None or hit.key > query.after][: query.limit]

    def count_jobs(self, query: JobQuery, grouping: Grouping) -> JobCounts:
        return dict(Counter(_group(job, grouping) for _row, job in self._matching(query)))

    def _matching(self, query: JobQuery) -> Iterator[tuple[Row, JobRow]]:
        return ((row, job) for row, job in self._now.jobs.items() if _job_matches(job, query))

    def _job_key(self, row: Row, job: JobRow) -> Key:
        return Key(codec.decode_status(job.status).create_ms, row, self._shard)

    def list_executions(self, query: ExecutionQuery) -> list[ExecutionHit]:
        everything = {**self._now.ended, **self._now.live}
        hits = [
            ExecutionHit(Key(self._columns(data)[2], row, self._shard), data)
            for row, data in everything.items()
            if self._execution_matches(data, query)
        ]
        hits.sort(key=lambda hit: hit.key, reverse=True)
        return [hit for hit in hits if query.after is None or hit.key < query.after][: query.limit]

    def executions_of(self, job_row: Row, limit: int) -> list[ExecutionHit]:
        job = self._now.jobs.get(job_row)
        if job is None:
            return []
        everything = {**self._now.ended, **self._now.live}
        hits = [
            ExecutionHit(Key(self._columns(data)[2], row, self._shard), data)
            for row, data in everything.items()
            if self._of(data, job, job_row)
        ]
        return sorted(hits, key=lambda hit: hit.key, reverse=True)[:limit]

    def execution(self, row: Row) -> bytes | None:
        return self._now.live.get(row, self._now.ended.get(row))

    def stored_jobs(self) -> list[tuple[Row, JobRow]]:
        """Every job, for a judge."""
        return list(self._now.jobs.items())

    def stored_live(self) -> set[Row]:
        """The rows of the live executions, for a judge."""
        return set(self._now.live)

    def stored_ended(self) -> dict[Row, bytes]:
        """Every ended execution that is not live again, for a judge."""
        return {row: data for row, data in self._now.ended.items() if row not in self._now.live}

    def keys(self, from_key: int, limit: int) -> list[int]:
        keys = sorted(key_of(job.namespace, job.name) for job in self._now.jobs.values())
        return [key for key in keys if key >= from_key][:limit]

    def job_count(self) -> int:
        return len(self._now.jobs)

    def sizes(self) -> StoreSizes:
        return StoreSizes(len(self._now.jobs), len(self._now.live), 0, 0, len(self._days()))

    def _days(self) -> set[int]:
        return {self._day(data) for data in self._now.ended.values()}

    def _day(self, data: bytes) -> int:
        return self._columns(data)[2] // MS_PER_DAY

    def _of(self, data: bytes, job: JobRow, job_row: Row) -> bool:
        columns = self._columns(data)
        return columns[0] == job_row and columns[6:] == (job.namespace, job.name)

    def _execution_matches(self, data: bytes, query: ExecutionQuery) -> bool:
        _row, state, _create, scheduled_ms, _due, _attempt, namespace, job = self._columns(data)
        return (
            query.namespace in ("", namespace)
            and query.job in ("", job)
            and (not query.states or state in query.states)
            and query.scheduled.holds(scheduled_ms)
        )


def _job_matches(job: JobRow, query: JobQuery) -> bool:
    status = codec.decode_status(job.status)
    labels = codec.decode_labels(job.labels)
    return (
        query.namespace in ("", job.namespace)
        and (not query.states or status.state in query.states)
        and (not query.last_outcomes or status.last_outcome in query.last_outcomes)
        and all(labels.get(key) == value for key, value in query.labels)
        and query.next_time.holds(status.next_ms)
        and query.create_time.holds(status.create_ms)
        and job.name.startswith(query.name_prefix)
    )


def _group(job: JobRow, grouping: Grouping) -> int | str:
    status = codec.decode_status(job.status)
    match grouping.by:
        case GroupBy.STATE:
            return int(status.state)
        case GroupBy.LAST_OUTCOME:
            return status.last_outcome
        case GroupBy.LABEL:
            return codec.decode_labels(job.labels).get(grouping.label, "")
        case GroupBy.NEXT_TIME:
            return status.next_ms // grouping.bucket_ms * grouping.bucket_ms
        case _:
            return 0


def _due_order(item: Due) -> tuple[Ms, int, Row]:
    return item.due_ms, item.number, item.row
