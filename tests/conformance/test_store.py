"""One suite for both stores: SQLite's and the simulation's dicts promise the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sim.store import DictStore
from tests.unit.store_samples import DAY_0, NOW, Changed, execution, execution_columns, job

from tickwheel.server.model import MS_PER_DAY, ExecutionState, JobState
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
Store = ShardStore | DictStore


@pytest.fixture(params=["sqlite", "dict"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "dict":
        yield DictStore(SHARD, execution_columns)
        return
    opened = ShardStore.open(tmp_path, SHARD, StoreOptions(execution_columns))
    yield opened
    opened.close()


def test_new_store_is_empty(store: Store) -> None:
    assert store.applied == Applied(0, 0, 1, 0)
    assert store.find([("acme", "a")]) == {}
    assert store.jobs([1]) == {}
    assert store.live([1]) == {}
    assert store.due(0, 1 << 60, 10) == []
    assert store.list_jobs(JobQuery()) == []
    assert store.list_executions(ExecutionQuery()) == []
    assert store.execution(1) is None
    assert store.sizes().jobs == 0


def test_job_is_found_by_name_and_row(store: Store) -> None:
    a, b = job("a", body=b"spec of a"), job("a", namespace="other")
    store.flush(Changed(jobs={1: a, 2: b}), Applied(7, 2, 3, NOW))
    assert store.applied == Applied(7, 2, 3, NOW)
    assert store.find([("acme", "a"), ("other", "a"), ("acme", "b")]) == {
        ("acme", "a"): 1,
        ("other", "a"): 2,
    }
    assert store.jobs([2, 1, 9]) == {1: a, 2: b}


def test_put_replaces_the_whole_job(store: Store) -> None:
    store.flush(Changed(jobs={1: job("a", body=b"old")}), Applied(1))
    new = job("a", body=b"new", due_ms=NOW + 5, generation=2, labels={"k": "v"})
    store.flush(Changed(jobs={1: new}), Applied(2))
    assert store.jobs([1]) == {1: new}
    assert store.due(0, 1 << 60, 10) == [Due(NOW + 5, 1, 2)]


def test_status_changes_the_status_alone(store: Store) -> None:
    old = job("a", body=b"spec", due_ms=NOW)
    store.flush(Changed(jobs={1: old}), Applied(1))
    status = job("a", due_ms=NOW + 60, generation=4, state=JobState.SCHEDULED).status
    store.flush(Changed(statuses={1: status, 99: status}), Applied(2))
    assert store.jobs([1, 99]) == {1: old._replace(status=status)}
    assert store.due(0, 1 << 60, 10) == [Due(NOW + 60, 1, 4)]


def test_drop_forgets_the_job_and_frees_its_name(store: Store) -> None:
    store.flush(Changed(jobs={1: job("a"), 2: job("b")}), Applied(1))
    store.flush(Changed(jobs={3: job("a")}, drops={1, 77}), Applied(2))
    assert store.jobs([1, 2, 3]).keys() == {2, 3}
    assert store.find([("acme", "a")]) == {("acme", "a"): 3}


def test_flush_of_nothing_moves_applied(store: Store) -> None:
    store.flush(Changed(), Applied(5, 1, 9, NOW))
    assert store.applied == Applied(5, 1, 9, NOW)


def test_due_is_ordered_and_half_open(store: Store) -> None:
    jobs = {
        1: job("late", due_ms=NOW + 30),
        2: job("early", due_ms=NOW + 10, generation=3),
        3: job("paused", due_ms=0, state=JobState.PAUSED),
        4: job("kept until then", due_ms=NOW + 25, state=JobState.COMPLETED),
        5: job("edge", due_ms=NOW + 40),
    }
    live = {6: execution(1, "late", due_ms=NOW + 20, attempt=2), 7: execution(1, "late", due_ms=0)}
    store.flush(Changed(jobs=jobs, live=live), Applied(1))
    assert store.due(NOW + 10, NOW + 40, 10) == [
        Due(NOW + 10, 2, 3),
        Due(NOW + 20, 6, -3),
        Due(NOW + 25, 4, 1),
        Due(NOW + 30, 1, 1),
    ]
    assert store.due(NOW + 11, NOW + 41, 2) == [Due(NOW + 20, 6, -3), Due(NOW + 25, 4, 1)]


def test_due_pages_through_one_instant(store: Store) -> None:
    jobs = {row: job(f"j{row}", due_ms=NOW, generation=1 + row % 3) for row in range(1, 21)}
    live = {row: execution(1, "j1", due_ms=NOW, attempt=row % 2) for row in range(21, 31)}
    store.flush(Changed(jobs=jobs, live=live), Applied(1))
    whole = store.due(NOW, NOW + 1, 100)
    assert len(whole) == 30
    paged: list[Due] = []
    while page := store.due(NOW, NOW + 1, 7, after=paged[-1] if paged else None):
        paged += page
    assert paged == whole


def test_execution_moves_from_live_to_history_and_back(store: Store) -> None:
    running = execution(1, "a", state=ExecutionState.RUNNING)
    failed = execution(1, "a", state=ExecutionState.FAILED)
    store.flush(Changed(jobs={1: job("a")}, live={2: running}), Applied(1))
    assert store.live([2]) == {2: running}
    store.flush(Changed(ended={2: failed}), Applied(2))
    assert store.live([2]) == {}
    assert store.execution(2) == failed
    store.flush(Changed(live={2: running}), Applied(3))
    assert store.execution(2) == running
    assert [hit.data for hit in store.list_executions(ExecutionQuery())] == [running]
    only_failed = ExecutionQuery(states=(ExecutionState.FAILED,))
    assert store.list_executions(only_failed) == []
    store.flush(Changed(ended={2: failed}), Applied(4))
    assert [hit.data for hit in store.list_executions(only_failed)] == [failed]


def test_row_in_both_is_live(store: Store) -> None:
    running, failed = execution(1, "a"), execution(1, "a", state=ExecutionState.FAILED)
    store.flush(Changed(live={2: running}, ended={2: failed}), Applied(1))
    assert store.execution(2) == running
    assert store.live([2]) == {2: running}


def test_jobs_are_listed_in_pages_oldest_first(store: Store) -> None:
    jobs = {row: job(f"j{row}", create_ms=NOW + row // 4) for row in range(1, 31)}
    store.flush(Changed(jobs=jobs), Applied(1))
    rows: list[int] = []
    after = None
    while page := store.list_jobs(JobQuery(limit=7, after=after)):
        rows += [hit.key.row for hit in page]
        after = page[-1].key
    assert rows == list(range(1, 31))


@pytest.mark.parametrize(("token_shard", "first"), [(SHARD - 1, 5), (SHARD, 6), (SHARD + 1, 6)])
def test_token_of_another_shard(store: Store, token_shard: int, first: int) -> None:
    store.flush(Changed(jobs={row: job(f"j{row}") for row in range(1, 9)}), Applied(1))
    page = store.list_jobs(JobQuery(after=Key(NOW, 5, token_shard)))
    assert page[0].key.row == first


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        (JobQuery(namespace="acme"), [1, 2, 3]),
        (JobQuery(namespace="nobody"), []),
        (JobQuery(states=(JobState.PAUSED,)), [2]),
        (JobQuery(states=(JobState.PAUSED, JobState.COMPLETED)), [2, 3]),
        (JobQuery(last_outcomes=(ExecutionState.FAILED,)), [3]),
        (JobQuery(labels=(("team", "a"),)), [1, 2]),
        (JobQuery(labels=(("team", "a"), ("tier", "2"))), [2]),
        (JobQuery(labels=(("team", ""),)), []),
        (JobQuery(name_prefix="ap"), [1, 4]),
        (JobQuery(next_time=Range(NOW + 2, NOW + 4)), [2, 3]),
        (JobQuery(create_time=Range(NOW + 2)), [2, 3, 4]),
        (JobQuery(create_time=Range(0, NOW + 3)), [1, 2]),
        (JobQuery(create_time=Range(NOW + 9)), []),
        (JobQuery(namespace="acme", limit=2), [1, 2]),
    ],
)
def test_jobs_are_filtered(store: Store, query: JobQuery, rows: list[int]) -> None:
    _fill(store)
    assert [hit.key.row for hit in store.list_jobs(query)] == rows
    if query.limit > 4:
        counts = store.count_jobs(query, Grouping())
        assert counts == ({0: len(rows)} if rows else {})


@pytest.mark.parametrize(
    ("grouping", "counts"),
    [
        (
            Grouping(GroupBy.STATE),
            {JobState.SCHEDULED: 2, JobState.PAUSED: 1, JobState.COMPLETED: 1},
        ),
        (Grouping(GroupBy.LAST_OUTCOME), {0: 3, ExecutionState.FAILED: 1}),
        (Grouping(GroupBy.LABEL, label="team"), {"a": 2, "": 1, "b": 1}),
        (Grouping(GroupBy.LABEL, label="tea"), {"": 4}),
        (Grouping(GroupBy.NEXT_TIME, bucket_ms=1000), {NOW: 4}),
    ],
)
def test_jobs_are_counted(store: Store, grouping: Grouping, counts: dict[int | str, int]) -> None:
    _fill(store)
    assert store.count_jobs(JobQuery(), grouping) == counts
    labelled = JobQuery(labels=(("team", "b"),))
    assert sum(store.count_jobs(labelled, grouping).values()) == 1


def test_tallies_follow_every_kind_of_change(store: Store) -> None:
    _fill(store)
    paused = job("apple", state=JobState.PAUSED).status
    store.flush(
        Changed(
            jobs={2: job("bear"), 9: job("zebra", create_ms=NOW + 9)},
            statuses={1: paused, 9: paused},
            drops={3},
        ),
        Applied(2),
    )
    counts = store.count_jobs(JobQuery(), Grouping(GroupBy.STATE))
    assert counts == {JobState.SCHEDULED: 2, JobState.PAUSED: 2}
    assert store.count_jobs(JobQuery(namespace="acme"), Grouping()) == {0: 3}
    assert store.sizes().jobs == 4


def test_executions_are_listed_newest_first_over_days(store: Store) -> None:
    made = {
        row: execution(
            1, "a", create_ms=DAY_0 + (row // 3) * MS_PER_DAY // 2, state=ExecutionState.FAILED
        )
        for row in range(2, 20)
    }
    live = {20: execution(1, "a", create_ms=DAY_0 + 4 * MS_PER_DAY)}
    store.flush(Changed(jobs={1: job("a", create_ms=DAY_0)}, ended=made, live=live), Applied(1))
    rows: list[int] = []
    after = None
    while page := store.list_executions(ExecutionQuery(limit=4, after=after)):
        rows += [hit.key.row for hit in page]
        after = page[-1].key
    assert rows == list(range(20, 1, -1))
    assert [hit.key.row for hit in store.executions_of(1, 3)] == [20, 19, 18]
    assert store.executions_of(2, 3) == []


@pytest.mark.parametrize(("token_shard", "first"), [(SHARD - 1, 4), (SHARD, 4), (SHARD + 1, 5)])
def test_execution_token_of_another_shard(store: Store, token_shard: int, first: int) -> None:
    ended = {r: execution(1, "a", state=ExecutionState.SUCCEEDED) for r in range(2, 9)}
    store.flush(Changed(ended=ended), Applied(1))
    page = store.list_executions(ExecutionQuery(after=Key(NOW, 5, token_shard)))
    assert page[0].key.row == first


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        (ExecutionQuery(namespace="acme"), [5, 4, 3, 2]),
        (ExecutionQuery(namespace="nobody"), []),
        (ExecutionQuery(namespace="acme", job="a"), [5, 3, 2]),
        (ExecutionQuery(namespace="acme", job="a", states=(ExecutionState.FAILED,)), [3]),
        (ExecutionQuery(states=(ExecutionState.FAILED,)), [6, 4, 3]),
        (ExecutionQuery(namespace="acme", states=(ExecutionState.FAILED,)), [4, 3]),
        (ExecutionQuery(scheduled=Range(NOW + 3, NOW + 5)), [4, 3]),
    ],
)
def test_executions_are_filtered(store: Store, query: ExecutionQuery, rows: list[int]) -> None:
    failed, fine = ExecutionState.FAILED, ExecutionState.SUCCEEDED
    ended = {
        2: execution(1, "a", state=fine, scheduled_ms=NOW + 2),
        3: execution(1, "a", state=failed, scheduled_ms=NOW + 3),
        4: execution(9, "b", state=failed, scheduled_ms=NOW + 4),
        6: execution(8, "a", namespace="other", state=failed, scheduled_ms=NOW + 6),
    }
    live = {5: execution(1, "a", scheduled_ms=NOW + 5)}
    store.flush(Changed(ended=ended, live=live), Applied(1))
    assert [hit.key.row for hit in store.list_executions(query)] == rows


def test_retention_by_day(store: Store) -> None:
    ended = {
        row: execution(1, "a", create_ms=DAY_0 + row * MS_PER_DAY, state=ExecutionState.FAILED)
        for row in range(2, 6)
    }
    store.flush(Changed(ended=ended), Applied(1))
    assert store.expire(DAY_0 // MS_PER_DAY + 4) == 2
    assert [hit.key.row for hit in store.list_executions(ExecutionQuery())] == [5, 4]
    assert store.expire(DAY_0 // MS_PER_DAY + 4) == 0
    assert store.execution(2) is None


def test_retention_by_count(store: Store) -> None:
    ended = {
        row: execution(1, "a", create_ms=DAY_0 + row * MS_PER_DAY // 3, state=ExecutionState.FAILED)
        for row in range(3, 15)
    }
    other = {2: execution(9, "b", create_ms=DAY_0, state=ExecutionState.FAILED)}
    store.flush(Changed(jobs={1: job("a")}, ended={**other, **ended}), Applied(1))
    assert store.trim(1, 5) == 7
    assert [hit.key.row for hit in store.list_executions(ExecutionQuery())] == [
        14,
        13,
        12,
        11,
        10,
        2,
    ]
    assert store.trim(1, 5) == 0
    assert store.trim(77, 0) == 0


def test_checkpoint_moves_durable(store: Store) -> None:
    ended = {2: execution(1, "a", state=ExecutionState.FAILED)}
    store.flush(Changed(jobs={1: job("a")}, ended=ended), Applied(4, 1, 3, NOW))
    assert store.durable == Applied()
    assert store.checkpoint()
    assert store.durable == Applied(4, 1, 3, NOW)
    store.flush(Changed(), Applied(5, 1, 3, NOW))
    assert store.durable == Applied(4, 1, 3, NOW)


def _fill(store: Store) -> None:
    jobs = {
        1: job("apple", create_ms=NOW + 1, next_ms=NOW + 1, labels={"team": "a", "tier": "1"}),
        2: job(
            "bear",
            create_ms=NOW + 2,
            next_ms=NOW + 2,
            labels={"team": "a", "tier": "2"},
            state=JobState.PAUSED,
        ),
        3: job(
            "cat",
            create_ms=NOW + 3,
            next_ms=NOW + 3,
            state=JobState.COMPLETED,
            last_outcome=ExecutionState.FAILED,
        ),
        4: job("ape", namespace="other", create_ms=NOW + 4, next_ms=NOW + 4, labels={"team": "b"}),
    }
    store.flush(Changed(jobs=jobs), Applied(1))
