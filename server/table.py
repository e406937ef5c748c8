"""Floor 1, pure. What one shard changed since its last flush, over what it has read ahead from the store.

    look-up order      active ──► frozen ──► cache ──► (the store, read by the runner)
                       applied    being      read
                       since      flushed    ahead

Two sets of after-images: `active` takes what is applied; `freeze` hands it to the store's thread and starts a new one;
`thaw` forgets the frozen one after its commit. A job that came and went between two flushes is one row in `jobs`.
A status may be known here while the rest of its job is only in the store: then `job` answers `Partly`.

Invariants: a row is in at most one of `jobs`, `statuses`, `drops` of one set, and in at most one of `live`, `ended`.
The frozen set is never changed, for another thread reads it. `bytes_held` bounds the memory. Jobs are kept as plain
tuples, which the garbage collector forgets: with 100,000 named tuples each of its rounds stopped the loop for 0.1 s.

A name that no set speaks of is asked of `bloom` first: what is surely not in the store is GONE without a look-up. The
filter hears of a job when its set is forgotten.

Must never import: any room but `bloom`, `codec`, `model`, `placement`; no I/O, no clock.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain, compress
from typing import Final, NamedTuple

from tickwheel.server.bloom import Bloom
from tickwheel.server.codec import status_columns, status_due_ms
from tickwheel.server.model import JobParts, JobRow, JobState, Ms, Row
from tickwheel.server.placement import keys_of


class Mark(Enum):
    """Answers of a look-up that are not a value."""

    UNKNOWN = "not here: ask the store"
    GONE = "known not to exist"


STATUS: Final = 4
assert JobRow._fields[STATUS] == "status", "where a job's parts hold its status"
UNKNOWN: Final = Mark.UNKNOWN
GONE: Final = Mark.GONE


class Partly(NamedTuple):
    """The job's status is here, its other parts are in the store."""

    status: bytes


_NO_NAMES: Final[Mapping[str, Row]] = {}

# What a row costs beside its bytes: tuple, dict entries, the ints, the name. Measured with tracemalloc at 100k jobs.
JOB_OVERHEAD_BYTES = 480
EXECUTION_OVERHEAD_BYTES = 160


@dataclass(slots=True)
class Changes:
    """After-images, by row, since a flush. `names` maps namespace -> name -> row, 0 for a name that was dropped."""

    jobs: dict[Row, JobParts] = field(default_factory=dict[Row, JobParts])
    statuses: dict[Row, bytes] = field(default_factory=dict[Row, bytes])
    drops: set[Row] = field(default_factory=set[Row])
    names: dict[str, dict[str, Row]] = field(default_factory=dict[str, dict[str, Row]])
    live: dict[Row, bytes] = field(default_factory=dict[Row, bytes])
    ended: dict[Row, bytes] = field(default_factory=dict[Row, bytes])
    bytes_held: int = 0

    def __bool__(self) -> bool:
        return bool(self.jobs or self.statuses or self.drops or self.live or self.ended)

    @property
    def rows(self) -> int:
        """How many rows a flush of this set writes or deletes."""
        return (
            len(self.jobs) + len(self.statuses) + len(self.drops) + len(self.live) + len(self.ended)
        )

    def row_of(self, namespace: str, name: str) -> Row | None:
        """The row of a name, 0 if this set dropped it, None if this set does not speak of it."""
        names = self.names.get(namespace)
        return None if names is None else names.get(name)

    def job(self, row: Row) -> JobRow | Partly | Mark:
        """What this set alone says of a job."""
        if (job := self.jobs.get(row)) is not None:
            return JobRow(*job)
        if (status := self.statuses.get(row)) is not None:
            return Partly(status)
        return GONE if row in self.drops else UNKNOWN

    def execution(self, row: Row) -> bytes | Mark:
        """What this set alone says of a live execution; one that ended is GONE."""
        if (data := self.live.get(row)) is not None:
            return data
        return GONE if row in self.ended else UNKNOWN


class Table:
    """The memory of one shard: two change sets and a cache of rows read ahead."""

    def __init__(self, cache_bytes_max: int) -> None:
        self.active = Changes()
        self.frozen: Changes | None = None
        self.thaws = 0
        self.bloom = Bloom()
        self._cache_bytes_max = cache_bytes_max
        self._cache_bytes = 0
        self._jobs: dict[Row, JobParts] = {}
        self._live: dict[Row, bytes] = {}

    @property
    def bytes_held(self) -> int:
        """Bytes of unflushed rows, with their overhead; the cache is bounded apart."""
        return self.active.bytes_held + (self.frozen.bytes_held if self.frozen else 0)

    def _sets(self) -> tuple[Changes, ...]:
        """The change sets, older first."""
        return (self.active,) if self.frozen is None else (self.frozen, self.active)

    # --- look-ups ---

    def find(self, namespace: str, name: str) -> Row | Mark:
        """The row of a name."""
        names = self.active.names.get(namespace)
        row = None if names is None else names.get(name)
        if row is None and self.frozen is not None:
            row = self.frozen.row_of(namespace, name)
        if row is None:
            (may_be,) = self.bloom.may_hold(keys_of(namespace, (name,)))
            return UNKNOWN if may_be else GONE
        return row or GONE

    def perhaps(self, namespace: str, names: Sequence[str]) -> Iterable[str]:
        """Which of these names may be a job's; the others surely are not."""
        for changes in self._sets():
            if not changes.names.get(namespace, _NO_NAMES).keys().isdisjoint(names):
                return names
        return compress(names, self.bloom.may_hold(keys_of(namespace, names)))

    def job(self, row: Row) -> JobRow | Partly | Mark:
        """The job of a row as applied."""
        found = self.active.job(row)
        if isinstance(found, JobRow) or found is GONE:
            return found
        below = self._job_below(row)
        if not isinstance(found, Partly):
            return below
        return below._replace(status=found.status) if isinstance(below, JobRow) else found

    def _job_below(self, row: Row) -> JobRow | Partly | Mark:
        found = self.frozen.job(row) if self.frozen is not None else UNKNOWN
        if isinstance(found, JobRow) or found is GONE:
            return found
        cached = self._jobs.get(row)
        if cached is None:
            return found
        return JobRow(*(_with(cached, found.status) if isinstance(found, Partly) else cached))

    def execution(self, row: Row) -> bytes | Mark:
        """A live execution's bytes as applied."""
        found = self.active.execution(row)
        if found is UNKNOWN and self.frozen is not None:
            found = self.frozen.execution(row)
        if found is UNKNOWN:
            return self._live.get(row, UNKNOWN)
        return found

    def ended(self, row: Row) -> bytes | Mark:
        """The bytes of an execution that ended since the last flush; one that lives again is GONE."""
        for changes in reversed(self._sets()):
            if (data := changes.ended.get(row)) is not None:
                return data
            if row in changes.live:
                return GONE
        return UNKNOWN

    def due_between(self, from_ms: Ms, until_ms: Ms) -> Iterator[tuple[Ms, Row, bytes]]:
        """(due, row, status) of the unflushed jobs with from <= due < until. A later set's word stands."""
        for changes in self._sets():
            for row, job in changes.jobs.items():
                if from_ms <= (due_ms := status_due_ms(job[STATUS])) < until_ms:
                    yield due_ms, row, job[STATUS]
            for row, status in changes.statuses.items():
                if from_ms <= (due_ms := status_due_ms(status)) < until_ms:
                    yield due_ms, row, status

    def live_unflushed(self) -> Iterator[tuple[Row, bytes]]:
        """The live executions that the store does not hold yet, or holds in an older form."""
        for changes in self._sets():
            yield from changes.live.items()

    # --- changes ---

    def put_jobs(self, jobs: Sequence[tuple[Row, JobParts]]) -> None:
        """New jobs, or new specs of jobs."""
        active, rows = self.active, dict(jobs)
        known = active.jobs.keys(), active.statuses.keys(), self._jobs.keys()
        if not all(rows.keys().isdisjoint(keys) for keys in known):
            for row, job in jobs:
                self.put_job(row, job)
            return
        active.jobs.update(jobs)
        namespaces, names, _, specs, statuses, labels = zip(*rows.values(), strict=True)
        for namespace, name, row in zip(namespaces, names, rows, strict=True):
            active.names.setdefault(namespace, {})[name] = row
        texts = chain(names, specs, statuses, labels)
        active.bytes_held += JOB_OVERHEAD_BYTES * len(rows) + sum(map(len, texts))

    def put_job(self, row: Row, job: JobParts) -> None:
        """A new job, or a new spec of one."""
        active = self.active
        namespace, name, uid, spec, status, labels = job
        if row in active.jobs:
            active.bytes_held -= _job_bytes(active.jobs[row])
        elif row in active.statuses:
            active.bytes_held -= _weight(active.statuses.pop(row))
        parts = active.jobs[row] = (namespace, name, uid, spec, status, labels)
        active.names.setdefault(namespace, {})[name] = row
        active.bytes_held += _job_bytes(parts)
        if row in self._jobs:
            self._forget(row)

    def put_status(self, row: Row, status: bytes) -> None:
        """A change of a job's mutable part."""
        active = self.active
        job = active.jobs.get(row)
        if job is not None:
            active.jobs[row] = _with(job, status)
            active.bytes_held += len(status) - len(job[STATUS])
            return
        active.bytes_held += _weight(status) - _weight(active.statuses.get(row))
        active.statuses[row] = status

    def drop_job(self, row: Row, namespace: str, name: str) -> None:
        """The job does not exist any more."""
        active = self.active
        job = active.jobs.pop(row, None)
        if job is not None:
            active.bytes_held -= _job_bytes(job)
        active.bytes_held -= _weight(active.statuses.pop(row, None))
        active.drops.add(row)
        active.names.setdefault(namespace, {})[name] = 0
        active.bytes_held += EXECUTION_OVERHEAD_BYTES
        self._forget(row)

    def put_live(self, row: Row, execution: bytes) -> None:
        """An execution that has not ended."""
        active = self.active
        before = active.ended.pop(row, None) or active.live.get(row)
        active.bytes_held += _weight(execution) - _weight(before)
        active.live[row] = execution
        self._live.pop(row, None)

    def put_ended(self, row: Row, execution: bytes) -> None:
        """An execution's end, or a record of occurrences that were not attempted."""
        active = self.active
        before = active.live.pop(row, None) or active.ended.get(row)
        active.bytes_held += _weight(execution) - _weight(before)
        active.ended[row] = execution
        self._live.pop(row, None)

    # --- flushing ---

    def freeze(self) -> Changes:
        """The active set, handed over for flushing; a new one takes its place."""
        assert self.frozen is None, "one flush at a time"
        self.frozen, self.active = self.active, Changes()
        return self.frozen

    def thaw(self, keep_until_ms: Ms, keys: Sequence[int]) -> None:
        """The frozen set is committed in the store: forget it, but keep what is due before `keep_until_ms` at hand.

        `keys` are those of its jobs, for the filter. A job that is completed is not kept, or the cache would fill up
        with what has fired.
        """
        frozen = self.frozen
        assert frozen is not None, "nothing is frozen"
        assert len(keys) == len(frozen.jobs), "the filter has to know every job of the store"
        self.bloom.add(keys)
        self.frozen = None
        self.thaws += 1
        for row, status in frozen.statuses.items():
            if (cached := self._jobs.get(row)) is None:
                continue
            if status_columns(status)[0] == JobState.COMPLETED:
                self._forget(row)
            else:
                self._jobs[row] = _with(cached, status)
                self._cache_bytes += len(status) - len(cached[STATUS])
        for row, job in frozen.jobs.items():
            if 0 < status_due_ms(job[STATUS]) < keep_until_ms:
                self.admit(((row, job),), ())
        self._shrink()

    def admit(
        self, jobs: Iterable[tuple[Row, JobParts]], live: Iterable[tuple[Row, bytes]]
    ) -> None:
        """Keep rows that were read from the store. The caller vouches that no thaw happened since the reading began.

        What a change set knows better is not kept: it would come back to light, stale, when that set is forgotten.
        """
        for row, job in jobs:
            if row not in self._jobs and not any(
                row in c.jobs or row in c.drops for c in self._sets()
            ):
                self._jobs[row] = _with(job, job[STATUS])
                self._cache_bytes += _job_bytes(job)
        for row, data in live:
            if not any(row in c.live or row in c.ended for c in self._sets()):
                self._live[row] = data
        self._shrink()

    def _shrink(self) -> None:
        while self._cache_bytes > self._cache_bytes_max and self._jobs:
            self._forget(next(iter(self._jobs)))
        while len(self._live) * EXECUTION_OVERHEAD_BYTES > self._cache_bytes_max:
            del self._live[next(iter(self._live))]

    def _forget(self, row: Row) -> None:
        job = self._jobs.pop(row, None)
        if job is not None:
            self._cache_bytes -= _job_bytes(job)


def _with(job: JobParts, status: bytes) -> JobParts:
    """The job with this status, as a plain tuple."""
    namespace, name, uid, spec, _, labels = job
    return namespace, name, uid, spec, status, labels


def _job_bytes(job: JobParts) -> int:
    _, name, _, spec, status, labels = job
    return len(spec) + len(status) + len(name) + len(labels) + JOB_OVERHEAD_BYTES


def _weight(data: bytes | None) -> int:
    """What a status or an execution costs; None costs nothing."""
    return 0 if data is None else len(data) + EXECUTION_OVERHEAD_BYTES
