"""Keeper: the wheels' window keeps to its share of the entries, however much is due, and grows again as it empties."""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from random import Random
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest
from prometheus_client import CollectorRegistry

from tickwheel.server.codec import encode_status
from tickwheel.server.config import Config
from tickwheel.server.errors import ResourceExhausted
from tickwheel.server.keeper import (
    FIRST_WINDOW_MS,
    HOLD_MS,
    LEARN_PAGE,
    LONG_HOLD_MS,
    LONG_STEP_MS,
    LOOK_AGAIN_EVERY,
    Keeper,
)
from tickwheel.server.metrics import Metrics
from tickwheel.server.model import JobRow, JobState, Ms, Status
from tickwheel.server.placement import key_of
from tickwheel.server.query import Applied, Due
from tickwheel.server.shard import Entry, Shard
from tickwheel.server.slot import Slot
from tickwheel.server.table import GONE, UNKNOWN, Changes, Table

T = TypeVar("T")

NOW = 1_800_000_000_000
JOBS = 100_000
ENTRIES_MAX = 4_000


class EveryMs:
    """A store with a job due at each millisecond from NOW on."""

    def due(self, from_ms: Ms, until_ms: Ms, limit: int, after: Due | None = None) -> list[Due]:
        start = max(from_ms, NOW) if after is None else max(from_ms, after.due_ms + 1)
        end = min(until_ms, NOW + JOBS, start + limit)
        return [Due(ms, ms - NOW + 1, 1) for ms in range(start, end)]


class Keys:
    """A store of jobs by their names, in pages; `on_page` is called before each is read."""

    def __init__(self, names: list[str], on_page: Callable[[int], None]) -> None:
        self._keys = sorted(key_of("n", name) for name in names)
        self._on_page = on_page
        self.pages = 0

    def job_count(self) -> int:
        return len(self._keys)

    def keys(self, from_key: int, limit: int) -> list[int]:
        self._on_page(self.pages)
        self.pages += 1
        return [key for key in self._keys if key >= from_key][:limit]


class FakeRunner:
    def __init__(self, slot: Slot) -> None:
        self.slots = {0: slot}
        self.store = SimpleNamespace(query=self.read, flush=self.read)
        self.store_full = False
        self.table_bytes = 0
        self.now_ms = NOW
        self.hold_until_ms = 0
        self.look_at_clock: Callable[[], None] = lambda: None
        self.admitted: list[list[Ms]] = []
        self.clock = SimpleNamespace(
            now_ms=lambda: self.now_ms, monotonic_ms=lambda: 0, monotonic=lambda: 0.0
        )

    async def read(self, work: Callable[[], T]) -> T:
        return work()

    async def admit(self, slot: Slot, entries: list[Entry]) -> bool:
        assert slot is self.slots[0]
        self.admitted.append([due_ms for due_ms, _, _ in entries])
        return True

    def touch(self, slot: Slot) -> None:
        assert slot is self.slots[0]


def make(store: object = None) -> tuple[Keeper, FakeRunner, Shard]:
    shard = Shard(0, 1, start_ms=NOW, next_row=1, table=Table(1 << 20), rng=Random(1))
    slot = Slot(shard, cast(Any, store or EveryMs()), 0, 0)
    runner = FakeRunner(slot)
    config = Config(wheel_entries_max=ENTRIES_MAX, wheel_horizon_ms=900_000)
    metrics = Metrics(CollectorRegistry())
    return Keeper(config, cast(Any, runner), {0: slot}, cast(Any, None), metrics), runner, shard


def test_a_window_takes_no_more_than_its_share_beyond_the_near_future() -> None:
    async def run() -> None:
        keeper, runner, shard = make()
        await keeper.load_first(runner.slots[0])
        near = FIRST_WINDOW_MS
        assert near <= len(shard.wheel) <= near + ENTRIES_MAX
        for _ in range(20):
            runner.now_ms += 5_000
            shard.wheel.advance(runner.now_ms, JOBS)
            await keeper.widen()
            ahead_ms = shard.horizon_ms - runner.now_ms
            assert ahead_ms >= min(near, NOW + JOBS - runner.now_ms)
            assert len(shard.wheel) <= near + ENTRIES_MAX
        assert shard.horizon_ms >= NOW + JOBS

    asyncio.run(run())


def test_a_window_fills_to_its_share_where_little_is_due() -> None:
    async def run() -> None:
        keeper, runner, shard = make()
        runner.now_ms = NOW - 100_000
        await keeper.widen()
        assert ENTRIES_MAX // 2 < len(shard.wheel) <= ENTRIES_MAX + 1
        loaded = shard.horizon_ms
        assert loaded > NOW
        await keeper.widen()
        assert shard.horizon_ms == loaded

    asyncio.run(run())


class Follows:
    """A store that takes what it is given."""

    def __init__(self) -> None:
        self.applied = Applied()
        self.flushes: list[int] = []

    def flush(self, changes: Changes, applied: Applied) -> Sequence[int]:
        assert not changes
        self.applied = applied
        self.flushes.append(applied.index)
        return ()


def test_entries_that_changed_no_row_are_flushed_once_too() -> None:
    """The first entry of a leadership is such a one; a copy of the store has to say that it reaches so far."""

    async def run() -> None:
        keeper, runner, _ = make()
        slot, store = runner.slots[0], Follows()
        slot.store = cast(Any, store)
        await keeper.flush()
        slot.index = slot.applied = 7
        await keeper.flush()
        await keeper.flush()
        assert store.flushes == [7]

    asyncio.run(run())


def job(name: str) -> JobRow:
    status = encode_status(Status(JobState.SCHEDULED, 1, NOW, NOW, NOW, NOW))
    return JobRow("n", name, b"u" * 16, b"", status, "")


def test_names_are_learnt_page_by_page_while_jobs_come() -> None:
    async def run() -> None:
        stored = [f"stored-{n}" for n in range(2 * LEARN_PAGE)]
        store = Keys(stored, lambda page: shard.table.put_job(9 + page, job(f"late-{page}")))
        keeper, _, shard = make(store)
        shard.table.put_job(7, job("unflushed"))
        assert shard.table.find("n", "never") is UNKNOWN
        await keeper.learn()
        assert store.pages == 3
        jobs = shard.table.freeze().jobs.values()
        shard.table.thaw(0, [key_of(namespace, name) for namespace, name, *_ in jobs])
        for name in [*stored, "unflushed", "late-0", "late-1", "late-2"]:
            assert shard.table.find("n", name) is UNKNOWN
        assert shard.table.find("n", "never") is GONE
        await keeper.learn()
        assert store.pages == 3  # it knows enough

    asyncio.run(run())


def test_learning_waits_while_lists_fill_the_queue() -> None:
    def busy(_page: int) -> None:
        raise ResourceExhausted("busy", reason="STORE_BUSY")

    async def run() -> None:
        keeper, _, shard = make(Keys(["a"], busy))
        await keeper.learn()
        assert shard.table.find("n", "never") is UNKNOWN

    asyncio.run(run())


@pytest.mark.parametrize("retired", [True, False])
def test_a_store_that_was_replaced_meanwhile_may_fail(retired: bool) -> None:
    def closed(_page: int) -> None:
        raise sqlite3.ProgrammingError("Cannot operate on a closed database.")

    async def run() -> None:
        keeper, runner, _ = make(Keys(["a"], closed))
        runner.slots[0].retired = retired
        if retired:
            await keeper.learn()
        else:
            with pytest.raises(sqlite3.ProgrammingError):
                await keeper.learn()

    asyncio.run(run())


def test_rows_are_read_as_they_come_into_sight_and_now_and_then_all_of_them() -> None:
    async def run() -> None:
        keeper, runner, shard = make()
        for step_ms in range(-500, 4_000, 500):
            shard.wheel.add(NOW + step_ms, step_ms + 1_000, 1)
        sight_ms = keeper.config.prefetch_ms
        assert sight_ms == 2_000
        for _ in range(LOOK_AGAIN_EVERY):
            await keeper.read_ahead()
            runner.now_ms += 500
        in_sight = [NOW + ms for ms in (500, 1_000, 1_500, 2_000)]
        again = [NOW + ms for ms in (2_000, 2_500, 3_000, 3_500)]
        assert runner.admitted == [in_sight, [NOW + 2_500], [NOW + 3_000], again]

    asyncio.run(run())


def test_a_step_of_the_clock_holds_firing_or_turns_the_wheel_back() -> None:
    keeper, runner, shard = make()
    runner.now_ms += 900
    runner.look_at_clock()
    assert runner.hold_until_ms == 0, "slewing is no step"
    for step_ms, hold_ms in ((5_000, HOLD_MS), (LONG_STEP_MS, LONG_HOLD_MS)):
        runner.now_ms += step_ms
        runner.look_at_clock()
        assert runner.hold_until_ms == runner.now_ms + hold_ms
    shard.wheel.add(runner.now_ms + 10, 7, 1)
    shard.wheel.advance(runner.now_ms + 5, 1)
    runner.now_ms -= 30_000
    asyncio.run(keeper.watch_clock())
    assert runner.hold_until_ms == 0
    assert shard.wheel.next_ms() == runner.now_ms + 30_010
    runner.look_at_clock()
    assert runner.hold_until_ms == 0, "each step is taken once"
