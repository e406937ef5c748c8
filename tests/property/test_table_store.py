"""Table over store against a dict: whatever is put, flushed, read ahead and forgotten, a look-up tells what was put last.

Two stores are flushed alike, SQLite and plain dicts. A read may begin before a change and be admitted after it: the
table must not let its stale answer come to light, at once or when a change set is forgotten. A reader whose read a
flush overtook throws it away, as the runner does (`Table.thaws`).
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from tests.sim.store import DictStore

from tickwheel.server import codec
from tickwheel.server.keeper import KEY_MIN
from tickwheel.server.model import (
    Execution,
    ExecutionKind,
    ExecutionState,
    JobParts,
    JobRow,
    JobState,
    Ms,
    Row,
    Status,
)
from tickwheel.server.query import Applied
from tickwheel.server.reading import Found
from tickwheel.server.store import ShardStore, StoreOptions
from tickwheel.server.table import (
    EXECUTION_OVERHEAD_BYTES,
    GONE,
    JOB_OVERHEAD_BYTES,
    Changes,
    Partly,
    Table,
)

SHARD = 3
NOW: Ms = 1_800_000_000_000
NAMES = [("n1", "a"), ("n1", "b"), ("n2", "a"), ("n2", "c")]
EXECUTIONS = range(1_000, 1_004)
CACHE_BYTES = 3 * (JOB_OVERHEAD_BYTES + 200)
DUES = st.sampled_from([0, NOW + 5, NOW + 50])


def make_status(due_ms: Ms, generation: int, live: int) -> bytes:
    rows = tuple(range(live))
    return codec.encode_status(
        Status(JobState.SCHEDULED, generation, NOW, NOW, due_ms, due_ms, live=rows)
    )


def make_execution(row: Row, state: ExecutionState, attempt: int) -> bytes:
    return codec.encode_execution(
        Execution(
            1, b"u" * 16, "n1", "a", ExecutionKind.OCCURRENCE, NOW + row, "", state, NOW + row,
            attempt=attempt,
        )
    )  # fmt: skip


@dataclass
class Reading:
    """An answer of the store that is on its way back, and what was forgotten when the question was asked."""

    thaws: int
    found: Found


class TableOverStore(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.disk = ShardStore.open(
            self.directory, SHARD, StoreOptions(codec.execution_columns, large_flush_rows=8)
        )
        self.dicts = DictStore(SHARD)
        self.table = Table(CACHE_BYTES)
        self.jobs: dict[Row, JobRow] = {}
        self.names: dict[tuple[str, str], Row] = {}
        self.live: dict[Row, bytes] = {}
        self.ended: dict[Row, bytes] = {}
        self.next_row = 1
        self.index = 0
        self.readings: list[Reading] = []
        self.learnt_to: int | None = None

    def teardown(self) -> None:
        self.disk.close()
        shutil.rmtree(self.directory)

    @initialize()
    def begin_with_flushed_jobs(self) -> None:
        for name in NAMES[:2]:
            self.put(name, NOW + 5, 0)
        for row in EXECUTIONS[:2]:
            self.begin_execution(row, 0)
        self.freeze()
        self.flush_and_thaw(0)

    # --- changes ---

    @rule(name=st.sampled_from(NAMES), due_ms=DUES, size=st.integers(0, 3))
    def put(self, name: tuple[str, str], due_ms: Ms, size: int) -> None:
        """Create the job, or give it a new spec."""
        self.table.put_job(*self.make(name, due_ms, size))

    @rule(names=st.lists(st.sampled_from(NAMES), min_size=1, unique=True), due_ms=DUES)
    def put_all(self, names: list[tuple[str, str]], due_ms: Ms) -> None:
        """A batch of jobs, some of them new, perhaps all."""
        self.table.put_jobs([self.make(name, due_ms, 1) for name in names])

    def make(self, name: tuple[str, str], due_ms: Ms, size: int) -> tuple[Row, JobRow]:
        row = self.names.get(name)
        if row is None:
            row = self.names[name] = self.next_row
            self.next_row += 1
        labels = codec.encode_labels({"k": str(size)})
        uid = row.to_bytes(16, "big")
        job = JobRow(*name, uid, b"s" * 50 * size, make_status(due_ms, 1, 0), labels)
        self.jobs[row] = job
        return row, job

    @precondition(lambda self: self.jobs)
    @rule(pick=st.integers(0, 9), due_ms=DUES, generation=st.integers(1, 9), live=st.integers(0, 3))
    def change_status(self, pick: int, due_ms: Ms, generation: int, live: int) -> None:
        row = sorted(self.jobs)[pick % len(self.jobs)]
        status = make_status(due_ms, generation, live)
        self.jobs[row] = self.jobs[row]._replace(status=status)
        self.table.put_status(row, status)

    @precondition(lambda self: self.jobs)
    @rule(pick=st.integers(0, 9))
    def drop(self, pick: int) -> None:
        row = sorted(self.jobs)[pick % len(self.jobs)]
        job = self.jobs.pop(row)
        del self.names[job.namespace, job.name]
        self.table.drop_job(row, job.namespace, job.name)

    @rule(row=st.sampled_from(EXECUTIONS), attempt=st.integers(0, 9))
    def begin_execution(self, row: Row, attempt: int) -> None:
        """Begin it, change it, or, after it ended, begin it again (a redrive)."""
        self.live[row] = make_execution(row, ExecutionState.RETRYING, attempt)
        self.ended.pop(row, None)
        self.table.put_live(row, self.live[row])

    @rule(row=st.sampled_from(EXECUTIONS), attempt=st.integers(0, 9))
    def end_execution(self, row: Row, attempt: int) -> None:
        """End it, or lengthen a record that ended already."""
        self.ended[row] = make_execution(row, ExecutionState.SKIPPED, attempt)
        self.live.pop(row, None)
        self.table.put_ended(row, self.ended[row])

    # --- flushing ---

    @precondition(lambda self: self.table.frozen is None)
    @rule()
    def freeze(self) -> None:
        frozen = self.table.freeze()
        assert bool(frozen) == (frozen.rows > 0)

    @precondition(lambda self: self.table.frozen is not None)
    @rule(keep_ms=st.sampled_from([0, 10, 100]))
    def flush_and_thaw(self, keep_ms: int) -> None:
        frozen = self.table.frozen
        assert frozen is not None
        self.index += 1
        applied = Applied(self.index, 1, self.next_row, NOW)
        keys = self.disk.flush(frozen, applied)
        assert keys == self.dicts.flush(frozen, applied)
        self.table.thaw(NOW + keep_ms, keys)

    # --- reading ahead ---

    @rule()
    def begin_reading(self) -> None:
        """The store answers now; the answer arrives later."""
        rows = list(range(1, self.next_row))
        found = Found({}, self.disk.jobs(rows), self.disk.live(list(EXECUTIONS)))
        self.readings.append(Reading(self.table.thaws, found))

    @precondition(lambda self: self.readings)
    @rule(data=st.data())
    def end_reading(self, data: st.DataObject) -> None:
        reading = self.readings.pop(0)
        if reading.thaws != self.table.thaws:
            return
        jobs = sorted(reading.found.jobs)
        chosen = data.draw(st.lists(st.sampled_from(jobs), unique=True)) if jobs else []
        self.table.admit(
            [(row, reading.found.jobs[row]) for row in chosen], reading.found.live.items()
        )

    # --- which names there are ---

    @rule()
    def begin_learning(self) -> None:
        """The filter is made, or made anew, while everything goes on."""
        assert self.disk.job_count() == self.dicts.job_count()
        self.table.bloom.begin(self.disk.job_count())
        self.learnt_to = KEY_MIN

    @precondition(lambda self: self.learnt_to is not None)
    @rule(limit=st.integers(1, 3))
    def learn_a_page(self, limit: int) -> None:
        assert self.learnt_to is not None
        keys = self.disk.keys(self.learnt_to, limit)
        assert keys == self.dicts.keys(self.learnt_to, limit)
        self.table.bloom.learn(keys)
        self.learnt_to = keys[-1] + 1 if keys else None
        if not keys:
            self.table.bloom.end()

    # --- what must hold ---

    @invariant()
    def names_are_found(self) -> None:
        for key in NAMES:
            row = self.table.find(*key)
            if not isinstance(row, int):
                row = 0 if row is GONE else self.both_find(key)
            assert row == self.names.get(key, 0)

    def both_find(self, key: tuple[str, str]) -> Row:
        on_disk, in_dicts = self.disk.find([key]), self.dicts.find([key])
        assert on_disk == in_dicts
        return on_disk.get(key, 0)

    @invariant()
    def jobs_are_as_put_last(self) -> None:
        for row in range(1, self.next_row):
            assert self.look_up(row) == self.jobs.get(row), row

    def look_up(self, row: Row) -> JobRow | None:
        found = self.table.job(row)
        if isinstance(found, JobRow):
            return found
        if found is GONE:
            return None
        on_disk, in_dicts = self.disk.jobs([row]).get(row), self.dicts.jobs([row]).get(row)
        assert on_disk == in_dicts
        if isinstance(found, Partly):
            assert on_disk is not None
            return on_disk._replace(status=found.status)
        return on_disk

    @invariant()
    def executions_are_as_put_last(self) -> None:
        for row in EXECUTIONS:
            found = self.table.execution(row)
            below = None if found is GONE else self.disk.live([row]).get(row)
            assert (found if isinstance(found, bytes) else below) == self.live.get(row), row

    @invariant()
    def what_is_due_is_known_somewhere(self) -> None:
        """Due entries come from the change sets and from the store; stale ones among them do no harm."""
        known = {(due, row) for due, row, _ in self.table.due_between(1, NOW + 100)}
        known |= {(due.due_ms, due.row) for due in self.disk.due(1, NOW + 100, 1_000)}
        for row, job in self.jobs.items():
            due_ms = codec.status_due_ms(job.status)
            assert not due_ms or (due_ms, row) in known

    @invariant()
    def weights_are_exact(self) -> None:
        table = self.table
        frozen = table.frozen or Changes()
        assert table.bytes_held == weigh(table.active) + weigh(frozen)
        assert table._cache_bytes == sum(weigh_job(job) for job in table._jobs.values())
        assert table._cache_bytes <= CACHE_BYTES or not table._jobs


def weigh(changes: Changes) -> int:
    parts = [*changes.statuses.values(), *changes.live.values(), *changes.ended.values()]
    small = sum(len(data) + EXECUTION_OVERHEAD_BYTES for data in parts)
    dropped = len(changes.drops) * EXECUTION_OVERHEAD_BYTES
    return small + dropped + sum(weigh_job(job) for job in changes.jobs.values())


def weigh_job(parts: JobParts) -> int:
    job = JobRow(*parts)
    return len(job.spec) + len(job.status) + len(job.name) + len(job.labels) + JOB_OVERHEAD_BYTES


TestTableOverStore = TableOverStore.TestCase
TestTableOverStore.settings = settings(stateful_step_count=40)
