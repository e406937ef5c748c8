"""Table: whose word stands (active, frozen, cache), what flushing moves, what the cache refuses, what it weighs."""

import pytest

from tickwheel.server import codec
from tickwheel.server.model import JobRow, JobState, Status
from tickwheel.server.placement import key_of
from tickwheel.server.table import (
    EXECUTION_OVERHEAD_BYTES,
    GONE,
    JOB_OVERHEAD_BYTES,
    UNKNOWN,
    Changes,
    Partly,
    Table,
)

CACHE_BYTES = 1 << 20
NEVER_KEEP = 0


def status(due_ms: int = 0, generation: int = 1) -> bytes:
    return codec.encode_status(Status(JobState.SCHEDULED, generation, 1, 1, due_ms, due_ms))


def job(name: str = "a", due_ms: int = 0, spec: bytes = b"spec") -> JobRow:
    return JobRow("acme", name, b"u" * 16, spec, status(due_ms))


def flushed(table: Table, keep_until_ms: int = NEVER_KEEP) -> None:
    table.freeze()
    thawed(table, keep_until_ms)


def thawed(table: Table, keep_until_ms: int = NEVER_KEEP) -> None:
    frozen = table.frozen or Changes()
    table.thaw(keep_until_ms, [key_of(parts[0], parts[1]) for parts in frozen.jobs.values()])


@pytest.fixture
def table() -> Table:
    return Table(CACHE_BYTES)


# --- look-ups --------------------------------------------------------------------------------


def test_an_empty_table_knows_nothing(table: Table) -> None:
    assert table.find("acme", "a") is UNKNOWN
    assert table.job(1) is UNKNOWN
    assert table.execution(1) is UNKNOWN
    assert not table.active
    assert table.bytes_held == 0


def test_a_job_is_found_by_name_and_row_before_and_while_it_is_flushed(table: Table) -> None:
    table.put_job(1, job())
    for _ in range(2):
        assert table.find("acme", "a") == 1
        assert table.find("acme", "b") is UNKNOWN
        assert table.find("other", "a") is UNKNOWN
        assert table.job(1) == job()
        if table.frozen is None:
            table.freeze()


def test_after_its_flush_only_the_store_knows_it(table: Table) -> None:
    table.put_job(1, job())
    flushed(table)
    assert table.find("acme", "a") is UNKNOWN
    assert table.job(1) is UNKNOWN
    assert table.thaws == 1


def test_what_is_due_soon_stays_at_hand(table: Table) -> None:
    table.put_job(1, job("soon", due_ms=99))
    table.put_job(2, job("later", due_ms=100))
    table.put_job(3, job("never", due_ms=0))
    flushed(table, keep_until_ms=100)
    assert table.job(1) == job("soon", due_ms=99)
    assert table.job(2) is UNKNOWN
    assert table.job(3) is UNKNOWN


def test_a_status_alone_is_part_of_an_answer(table: Table) -> None:
    table.put_status(1, status(5))
    assert table.job(1) == Partly(status(5))
    table.freeze()
    assert table.job(1) == Partly(status(5))
    table.put_status(1, status(6))
    assert table.job(1) == Partly(status(6))


def test_a_later_status_stands_over_a_job_below(table: Table) -> None:
    table.put_job(1, job())
    table.freeze()
    table.put_status(1, status(7))
    assert table.job(1) == job(due_ms=7)


def test_a_status_stands_over_a_cached_job_through_its_flush(table: Table) -> None:
    table.admit([(1, job())], [])
    table.put_status(1, status(7))
    assert table.job(1) == job(due_ms=7)
    table.freeze()
    assert table.job(1) == job(due_ms=7)
    thawed(table)
    assert table.job(1) == job(due_ms=7)


def test_a_flushed_status_of_a_job_that_is_not_cached_is_only_in_the_store(table: Table) -> None:
    table.put_status(1, status(7))
    flushed(table)
    assert table.job(1) is UNKNOWN


def test_a_dropped_job_is_gone_by_row_and_name(table: Table) -> None:
    table.put_job(1, job())
    table.freeze()
    table.drop_job(1, "acme", "a")
    assert table.find("acme", "a") is GONE
    assert table.job(1) is GONE
    thawed(table)
    table.freeze()
    assert table.find("acme", "a") is GONE
    assert table.job(1) is GONE


def test_a_name_can_be_used_again(table: Table) -> None:
    table.put_job(1, job())
    table.drop_job(1, "acme", "a")
    table.put_job(2, job())
    assert table.find("acme", "a") == 2
    assert table.job(1) is GONE


def test_an_execution_lives_and_ends(table: Table) -> None:
    table.put_live(9, b"one")
    assert table.execution(9) == b"one"
    table.freeze()
    assert table.execution(9) == b"one"
    table.put_live(9, b"two")
    assert table.execution(9) == b"two"
    table.put_ended(9, b"end")
    assert table.execution(9) is GONE
    table.put_live(9, b"again")
    assert table.execution(9) == b"again"
    assert list(table.live_unflushed()) == [(9, b"one"), (9, b"again")]


def test_due_between_asks_all_sets_and_has_an_open_end(table: Table) -> None:
    table.put_job(1, job("a", due_ms=10))
    table.put_status(2, status(11))
    table.freeze()
    table.put_job(3, job("c", due_ms=19))
    table.put_job(4, job("d", due_ms=20))
    table.put_job(6, job("e", due_ms=9))
    table.put_status(5, status(20))
    assert [(due, row) for due, row, _ in table.due_between(10, 20)] == [(10, 1), (11, 2), (19, 3)]


# --- flushing --------------------------------------------------------------------------------


def test_one_flush_at_a_time(table: Table) -> None:
    table.freeze()
    with pytest.raises(AssertionError, match="one flush"):
        table.freeze()
    thawed(table)
    with pytest.raises(AssertionError, match="nothing is frozen"):
        thawed(table)


def test_the_frozen_set_is_never_changed(table: Table) -> None:
    table.put_job(1, job())
    table.put_live(9, b"x")
    frozen = table.freeze()
    table.put_status(1, status(5))
    table.put_ended(9, b"y")
    table.drop_job(1, "acme", "a")
    assert frozen.jobs == {1: job()}
    assert (frozen.statuses, frozen.drops, frozen.ended) == ({}, set(), {})
    assert frozen.live == {9: b"x"}


def test_a_completed_job_leaves_the_cache(table: Table) -> None:
    table.admit([(1, job()), (2, job("b"))], [])
    weight = table._cache_bytes
    done = codec.encode_status(Status(JobState.COMPLETED, 1, 1, 1, 0, 9_000))
    table.put_status(1, done)
    table.put_status(2, status(5))
    assert isinstance(table.job(1), JobRow)
    flushed(table)
    assert table.job(1) is UNKNOWN
    assert table.job(2) == job("b")._replace(status=status(5))
    assert 0 < table._cache_bytes < weight


def test_a_row_is_in_one_place_of_a_set(table: Table) -> None:
    active = table.active
    table.put_status(1, status(5))
    table.put_job(1, job())
    assert (1 in active.jobs, 1 in active.statuses) == (True, False)
    table.put_status(1, status(6))
    assert (JobRow(*active.jobs[1]).status, active.statuses) == (status(6), {})
    table.drop_job(1, "acme", "a")
    assert (active.jobs, active.statuses, active.drops) == ({}, {}, {1})
    table.put_status(2, status(6))
    table.drop_job(2, "acme", "b")
    assert (active.statuses, active.drops) == ({}, {1, 2})
    table.put_live(9, b"x")
    table.put_ended(9, b"y")
    assert (active.live, active.ended) == ({}, {9: b"y"})
    assert active
    assert active.rows == 3


# --- the cache -------------------------------------------------------------------------------


def test_what_a_set_knows_better_is_not_admitted(table: Table) -> None:
    table.put_job(1, job(due_ms=5))
    table.drop_job(2, "acme", "b")
    table.put_live(9, b"new")
    table.put_ended(8, b"end")
    table.freeze()
    table.admit([(1, job()), (2, job("b"))], [(9, b"old"), (8, b"old")])
    thawed(table)
    assert table.job(1) is UNKNOWN
    assert table.job(2) is UNKNOWN
    assert table.execution(9) is UNKNOWN
    assert table.execution(8) is UNKNOWN


def test_admitted_rows_serve_until_they_change(table: Table) -> None:
    table.admit([(1, job())], [(9, b"x"), (8, b"x")])
    table.admit([(1, job("other"))], [])
    assert table.job(1) == job()
    assert table.execution(9) == b"x"
    table.put_live(9, b"y")
    table.put_ended(8, b"y")
    table.drop_job(1, "acme", "a")
    flushed(table)
    assert table.job(1) is UNKNOWN
    assert table.execution(9) is UNKNOWN
    assert table.execution(8) is UNKNOWN


def test_a_new_spec_stands_over_the_cached_one_through_its_flush(table: Table) -> None:
    table.admit([(1, job(spec=b"old"))], [])
    table.put_job(1, job(spec=b"new"))
    assert table.job(1) == job(spec=b"new")
    flushed(table)
    assert table.job(1) is UNKNOWN, "the store knows the new one"
    assert table._cache_bytes == 0


def test_the_cache_is_bounded_and_lets_go_of_the_oldest() -> None:
    room = JOB_OVERHEAD_BYTES + 200
    table = Table(2 * room)
    table.admit([(row, job(str(row))) for row in range(1, 6)], [])
    held = [row for row in range(1, 6) if table.job(row) is not UNKNOWN]
    assert held == [4, 5]
    table.admit([], [(row, b"x") for row in range(10, 40)])
    live = [row for row in range(10, 40) if table.execution(row) is not UNKNOWN]
    assert live == list(range(40 - 2 * room // EXECUTION_OVERHEAD_BYTES, 40))


def test_a_cache_without_room_keeps_nothing() -> None:
    table = Table(0)
    table.admit([(1, job())], [(2, b"x")])
    assert table.job(1) is UNKNOWN
    assert table.execution(2) is UNKNOWN


def test_the_cache_weighs_a_status_that_grew(table: Table) -> None:
    table.admit([(1, job())], [])
    table.put_status(1, codec.encode_status(Status(JobState.SCHEDULED, 1, 1, 1, live=(1, 2))))
    flushed(table)
    table.drop_job(1, "acme", "a")
    assert table._cache_bytes == 0


# --- weight ----------------------------------------------------------------------------------


def test_weight_follows_each_change(table: Table) -> None:
    base, extra = JOB_OVERHEAD_BYTES, EXECUTION_OVERHEAD_BYTES
    long = codec.encode_status(Status(JobState.SCHEDULED, 1, 1, 1, live=(1, 2)))
    table.put_status(1, status())
    assert table.bytes_held == len(status()) + extra
    table.put_status(1, long)
    assert table.bytes_held == len(long) + extra
    table.put_job(1, job())
    whole = base + len(b"spec") + len("a") + len(status())
    assert table.bytes_held == whole
    table.put_status(1, long)
    assert table.bytes_held == whole + 16
    table.put_job(1, job(spec=b""))
    assert table.bytes_held == whole - 4
    table.drop_job(1, "acme", "a")
    assert table.bytes_held == extra
    table.put_live(9, b"abc")
    table.put_ended(9, b"abcd")
    table.put_ended(9, b"abcde")
    table.put_live(9, b"ab")
    assert table.bytes_held == 2 * extra + 2
    table.freeze()
    table.put_live(8, b"")
    assert table.bytes_held == 3 * extra + 2
    thawed(table)
    assert table.bytes_held == extra
