"""Keeper: the wheels' window keeps to its share of the entries, however much is due, and grows again as it empties."""

import asyncio
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from prometheus_client import CollectorRegistry

from tickwheel.server.config import Config
from tickwheel.server.keeper import FIRST_WINDOW_MS, Keeper
from tickwheel.server.metrics import Metrics
from tickwheel.server.model import Ms
from tickwheel.server.query import Applied, Due
from tickwheel.server.shard import Shard
from tickwheel.server.slot import Slot
from tickwheel.server.table import Changes, Table

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


class FakeRunner:
    def __init__(self, slot: Slot) -> None:
        self.slots = {0: slot}
        self.store: Any = None
        self.store_full = False
        self.table_bytes = 0
        self.now_ms = NOW
        self.clock = SimpleNamespace(
            now_ms=lambda: self.now_ms, monotonic_ms=lambda: 0, monotonic=lambda: 0.0
        )

    async def read(self, work: Callable[[], T]) -> T:
        return work()

    def touch(self, slot: Slot) -> None:
        assert slot is self.slots[0]


def make() -> tuple[Keeper, FakeRunner, Shard]:
    shard = Shard(0, 1, start_ms=NOW, next_row=1, table=Table(1 << 20), rng=Random(1))
    slot = Slot(shard, cast(Any, EveryMs()), 0, 0)
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

    def flush(self, changes: Changes, applied: Applied) -> None:
        assert not changes
        self.applied = applied
        self.flushes.append(applied.index)


def test_entries_that_changed_no_row_are_flushed_once_too() -> None:
    """The first entry of a leadership is such a one; a copy of the store has to say that it reaches so far."""

    async def run() -> None:
        keeper, runner, _ = make()
        slot, store = runner.slots[0], Follows()
        slot.store = cast(Any, store)

        async def flush(work: Callable[[], T]) -> T:
            return work()

        runner.store = SimpleNamespace(flush=flush)
        await keeper.flush()
        slot.index = slot.applied = 7
        await keeper.flush()
        await keeper.flush()
        assert store.flushes == [7]

    asyncio.run(run())
