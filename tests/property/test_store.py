"""SQLite's store against plain dicts, under any history of flushes, checkpoints, crashes and clean-ups."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.sim.store import DictStore
from tests.unit.store_samples import DAY_0, Changed, execution, execution_columns, job

from tickwheel.server.model import MS_PER_DAY, ExecutionState, JobRow, JobState, Ms, Row
from tickwheel.server.query import (
    Applied,
    Due,
    ExecutionQuery,
    GroupBy,
    Grouping,
    JobQuery,
    Key,
    Range,
)
from tickwheel.server.store import ShardStore, StoreOptions

SHARD = 3
JOB_ROWS = range(1, 16)
EXECUTION_ROWS = range(16, 40)
OPTIONS = StoreOptions(execution_columns, large_flush_rows=8)


def create_ms(row: Row) -> Ms:
    """Rows are created in order, some in one millisecond, over several days."""
    return DAY_0 + row // 3 * (MS_PER_DAY // 3)


def make_job(row: Row, draw: tuple[int, int, int, int]) -> JobRow:
    state, due, generation, label = draw
    return job(
        f"j{row % 7}",
        namespace=f"n{row % 2}",
        body=bytes([generation]) * (due * 900),
        labels={"k": str(label)} if label else {},
        state=JobState(state),
        generation=generation,
        create_ms=create_ms(row),
        due_ms=due and DAY_0 + due,
        last_outcome=label and int(ExecutionState.FAILED),
    )


def make_execution(row: Row, draw: tuple[int, int, int]) -> bytes:
    state, due, attempt = draw
    job_row = 1 + row % 5
    return execution(
        job_row,
        f"j{job_row % 7}",
        namespace=f"n{job_row % 2}",
        state=ExecutionState(state),
        create_ms=create_ms(row),
        scheduled_ms=create_ms(row) + due,
        due_ms=due and DAY_0 + due,
        attempt=attempt,
    )


def by_row(rows: range, drawn: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[Row, Any]]:
    return st.dictionaries(st.sampled_from(rows), drawn, max_size=12)


JOBS = st.tuples(st.integers(1, 5), st.integers(0, 9), st.integers(1, 3), st.integers(0, 2))
EXECUTIONS = st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 2))
FLUSHES = st.tuples(
    st.just("flush"),
    by_row(JOB_ROWS, JOBS),
    by_row(JOB_ROWS, JOBS),
    st.sets(st.sampled_from(JOB_ROWS), max_size=4),
    by_row(EXECUTION_ROWS, EXECUTIONS),
    by_row(EXECUTION_ROWS, EXECUTIONS),
)
STEPS = st.one_of(
    FLUSHES,
    FLUSHES,
    st.just(("checkpoint",)),
    st.tuples(st.just("crash"), st.sampled_from(["kill", "power"])),
    st.tuples(st.just("trim"), st.sampled_from(JOB_ROWS), st.integers(0, 3)),
    st.tuples(st.just("expire"), st.integers(0, 3)),
)


class Pair:
    """Both stores, taken through the same steps."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.generation = 0
        self.real = ShardStore.open(self._home(), SHARD, OPTIONS)
        self.model = DictStore(SHARD, execution_columns)
        self.index = 0

    def _home(self) -> Path:
        home = self.directory / str(self.generation)
        home.mkdir(exist_ok=True)
        return home

    def step(self, step: tuple[Any, ...]) -> None:
        match step:
            case ("flush", jobs, statuses, drops, live, ended):
                self._flush(jobs, statuses, drops, live, ended)
            case ("checkpoint",):
                assert self.real.checkpoint()
                assert self.model.checkpoint()
                assert self.real.durable == self.model.durable
            case ("crash", what):
                self._crash(what)
            case ("trim", row, keep):
                assert self.real.trim(row, keep) == self.model.trim(row, keep)
            case ("expire", days):
                self.real.expire(DAY_0 // MS_PER_DAY + days)
                self.model.expire(DAY_0 // MS_PER_DAY + days)
            case _:
                raise AssertionError(step)

    def _flush(self, *drawn: Any) -> None:
        jobs, statuses, drops, live, ended = drawn
        self.index += 1
        changes = Changed(
            {row: make_job(row, draw) for row, draw in jobs.items()},
            {row: make_job(row, draw).status for row, draw in statuses.items()},
            drops,
            {row: make_execution(row, draw) for row, draw in live.items()},
            {row: make_execution(row, draw) for row, draw in ended.items()},
        )
        applied = Applied(self.index, 1, 50, DAY_0 + self.index)
        self.real.flush(changes, applied)
        self.model.flush(changes, applied)

    def _crash(self, what: str) -> None:
        old = self._home()
        self.generation += 1
        new = self._home()
        for path in old.glob("*.db*"):
            unsynced = path.name.endswith("-wal") and "day" not in path.name
            if not (what == "power" and unsynced) and not path.name.endswith("-shm"):
                shutil.copy(path, new / path.name)
        self.real.close()
        self.real = ShardStore.open(new, SHARD, OPTIONS)
        self.model.crash(keep_main=what == "kill")


def check(real: ShardStore, model: DictStore) -> None:
    """All that can be read is the same."""
    assert real.applied == model.applied
    assert real.jobs(JOB_ROWS) == model.jobs(JOB_ROWS)
    assert real.live(EXECUTION_ROWS) == model.live(EXECUTION_ROWS)
    names = [(f"n{n}", f"j{j}") for n in range(2) for j in range(7)]
    assert real.find(names) == model.find(names)
    assert real.due(DAY_0 + 2, DAY_0 + 8, 100) == model.due(DAY_0 + 2, DAY_0 + 8, 100)
    assert (real.sizes().jobs, real.sizes().live) == (model.sizes().jobs, model.sizes().live)
    for row in EXECUTION_ROWS:
        assert real.execution(row) == model.execution(row)
    for row in (1, 2, 3):
        assert real.executions_of(row, 4) == model.executions_of(row, 4)


@given(st.lists(STEPS, max_size=12))
def test_same_content(steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        pair = Pair(Path(directory))
        for step in steps:
            pair.step(step)
            check(pair.real, pair.model)
        pair.real.close()


def make_key(row: Row, shard: int) -> Key:
    return Key(create_ms(row), row, shard)


KEYS = st.none() | st.builds(make_key, st.integers(1, 40), st.integers(SHARD - 1, SHARD + 1))
NAMESPACES = st.sampled_from(["", "n0", "n1", "nobody"])
DUE_RANGES = st.builds(
    Range,
    st.sampled_from([0, DAY_0 + 3, DAY_0 + 2 * MS_PER_DAY]),
    st.sampled_from([0, DAY_0 + 6, DAY_0 + 3 * MS_PER_DAY]),
)
JOB_QUERIES = st.builds(
    JobQuery,
    namespace=NAMESPACES,
    states=st.sampled_from([(), (1,), (2, 3)]),
    last_outcomes=st.sampled_from([(), (0,), (5,)]),
    labels=st.sampled_from([(), (("k", "1"),), (("k", ""),)]),
    next_time=DUE_RANGES,
    create_time=DUE_RANGES,
    name_prefix=st.sampled_from(["", "j", "j1"]),
    limit=st.integers(1, 6),
    after=KEYS,
)
JOB_NAMES = [("", ""), ("n0", ""), ("n1", ""), ("nobody", ""), ("n0", "j1"), ("n1", "j2")]


@st.composite
def execution_queries(draw: st.DrawFn) -> ExecutionQuery:
    namespace, name = draw(st.sampled_from(JOB_NAMES))
    return ExecutionQuery(
        namespace,
        name,
        states=draw(st.sampled_from([(), (5,), (4, 5), (1, 3)])),
        scheduled=draw(DUE_RANGES),
        limit=draw(st.integers(1, 6)),
        after=draw(KEYS),
    )


GROUPINGS = st.sampled_from(
    [
        Grouping(),
        Grouping(GroupBy.STATE),
        Grouping(GroupBy.LAST_OUTCOME),
        Grouping(GroupBy.LABEL, label="k"),
        Grouping(GroupBy.NEXT_TIME, bucket_ms=4),
    ]
)


@given(
    st.lists(FLUSHES, min_size=1, max_size=4),
    st.lists(JOB_QUERIES, max_size=6),
    st.lists(execution_queries(), max_size=6),
    GROUPINGS,
)
def test_same_lists(
    flushes: list[tuple[Any, ...]],
    job_queries: list[JobQuery],
    wanted: list[ExecutionQuery],
    grouping: Grouping,
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        pair = Pair(Path(directory))
        for step in flushes:
            pair.step(step)
        for query in job_queries:
            assert pair.real.list_jobs(query) == pair.model.list_jobs(query)
            counts = pair.real.count_jobs(query, grouping)
            assert counts == pair.model.count_jobs(query, grouping)
        for asked in wanted:
            assert pair.real.list_executions(asked) == pair.model.list_executions(asked)
        pair.real.close()


@given(by_row(JOB_ROWS, JOBS), by_row(EXECUTION_ROWS, EXECUTIONS), st.integers(1, 5))
def test_pages_of_due_make_the_whole(jobs: Any, live: Any, limit: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        pair = Pair(Path(directory))
        nothing: set[Row] = set()
        pair.step(("flush", jobs, {}, nothing, live, {}))
        whole = pair.model.due(DAY_0, DAY_0 + 20, 100)
        pages: list[Due] = []
        while page := pair.real.due(DAY_0, DAY_0 + 20, limit, after=pages[-1] if pages else None):
            pages += page
        assert pages == whole
        pair.real.close()
