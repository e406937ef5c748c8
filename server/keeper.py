"""Floor 4. What a node does beside the commands: keep the wheels filled, rows at hand, the store fed and the log short.

    every 250 ms   read ahead   rows due within `prefetch_ms`: what came into sight, and once a second all of it
    every flush    flush        a frozen change set a shard ──► SQLite ──► thaw
    every checkpoint            SQLite checkpoint ──► durable index ──► old WAL segments go
    every minute   widen        the wheels' window; retention of history files
    once a start   learn        which jobs a led shard's store holds, for its filter

Only an index that a complete checkpoint covers lets a WAL segment go: a commit in SQLite alone is not durable.

Must never import: the doors, `node`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

from tickwheel.server.clock import StepDetector
from tickwheel.server.config import Config
from tickwheel.server.errors import ResourceExhausted, StoreFailed, Unavailable
from tickwheel.server.logs import get_logger
from tickwheel.server.metrics import Metrics
from tickwheel.server.model import MS_PER_DAY, JobRow, Ms, Row
from tickwheel.server.query import Applied, Due
from tickwheel.server.runner import Runner
from tickwheel.server.shard import Entry
from tickwheel.server.slot import Slot
from tickwheel.server.spec import decode_spec
from tickwheel.server.store import ShardStore
from tickwheel.server.table import GONE, Changes

log = get_logger(__name__)

READ_AHEAD_EVERY_MS = 250
LOOK_AGAIN_EVERY = 4
"""Rounds: what is in sight is mostly at hand, and looking at each entry of it four times a second costs 5 % of a burst."""

WIDEN_EVERY_MS = 5_000
WATCH_CLOCK_EVERY_MS = 200
HOLD_MS = 1_000
LONG_STEP_MS = 60_000
LONG_HOLD_MS = 5_000
FIRST_WINDOW_MS = 10_000
PAGE_ENTRIES = 20_000
READ_AHEAD_ROWS_MAX = 20_000
SHARDS_PER_FLUSH = 8
TRIM_EVERY_MS = 10_000
LEARN_EVERY_MS = 10_000
AGE_FEEDS_EVERY_MS = 1_000
LEARN_PAGE = 1_000
"""Keys that a filter learns before others get their turn: half a millisecond."""

KEY_MIN = -(1 << 63)
TRIM_AFTER = 100
"""Executions of one job that end before its history is held to its retention again."""


class Truncate(Protocol):
    """What the keeper asks of the WAL."""

    async def truncate_through(self, durable: dict[int, int]) -> list[str]:
        """Delete the segments that hold nothing newer than the durable index of each shard."""
        ...


class Keeper:
    """The background work of one node: the wheels of the shards that it leads, the stores of all that it holds."""

    def __init__(
        self,
        config: Config,
        runner: Runner,
        slots: dict[int, Slot],
        wal: Truncate,
        metrics: Metrics,
    ) -> None:
        self.config = config
        self._runner = runner
        self._slots = slots
        self._wal = wal
        self._metrics = metrics
        self._flush_lock = asyncio.Lock()
        self._stop = asyncio.Event()
        self._steps = StepDetector(runner.clock.now_ms(), runner.clock.monotonic_ms())
        self.flushed_ms = runner.clock.now_ms()
        self._rounds = 0
        self._looked_to_ms = 0
        runner.look_at_clock = self.look_at_clock

    # --- start and stop ---

    async def load_first(self, slot: Slot) -> None:
        """Fill a wheel with the next ten seconds, so that firing can begin before the rest is loaded."""
        await self._widen(slot, self._runner.clock.now_ms() + FIRST_WINDOW_MS)

    def start(self) -> None:
        """Begin the periodic work."""
        self._runner.spawn(self._every(READ_AHEAD_EVERY_MS, self.read_ahead))
        self._runner.spawn(self._every(WATCH_CLOCK_EVERY_MS, self.watch_clock))
        self._runner.spawn(self._every(WIDEN_EVERY_MS, self.widen, at_once=True))
        self._runner.spawn(self._every(self.config.flush_interval_ms, self.flush))
        self._runner.spawn(self._every(self.config.checkpoint_interval_ms, self.checkpoint))
        self._runner.spawn(self._every(MS_PER_DAY // 24, self.expire_history, at_once=True))
        self._runner.spawn(self._every(TRIM_EVERY_MS, self.trim_history))
        self._runner.spawn(self._every(LEARN_EVERY_MS, self.learn, at_once=True))
        self._runner.spawn(self._every(AGE_FEEDS_EVERY_MS, self.age_feeds))

    def stop(self) -> None:
        """End the periodic work; what is under way ends by itself."""
        self._stop.set()

    async def _every(
        self, period_ms: int, work: Callable[[], Awaitable[None]], *, at_once: bool = False
    ) -> None:
        while not self._stop.is_set():
            if at_once:
                await work()
            at_once = True
            with suppress(TimeoutError):
                async with asyncio.timeout(period_ms / 1000):
                    await self._stop.wait()

    # --- the wheels' windows ---

    async def widen(self) -> None:
        """Move every wheel's window on, as far as its share of the entries allows."""
        now_ms = self._runner.clock.now_ms()
        until_ms = now_ms + self.config.wheel_horizon_ms
        enough_ms = now_ms + self.config.wheel_horizon_ms * 3 // 4
        for slot in list(self._runner.slots.values()):
            self._shrink_if_full(slot)
            if slot.shard.horizon_ms < enough_ms:
                await self._widen(slot, until_ms)

    @property
    def _entries_max(self) -> int:
        return max(self.config.wheel_entries_max // max(len(self._runner.slots), 1), 1_000)

    @property
    def _page_entries(self) -> int:
        """Half a share, so that one page more than half of it is not more than all of it."""
        return min(PAGE_ENTRIES, self._entries_max // 2)

    def _shrink_if_full(self, slot: Slot) -> None:
        """Halve the window of a wheel that took more than its share, but never below what is due soon."""
        now_ms = self._runner.clock.now_ms()
        while len(slot.shard.wheel) > self._entries_max:
            ahead_ms = slot.shard.horizon_ms - now_ms
            if ahead_ms <= FIRST_WINDOW_MS:
                return
            slot.shard.shrink(now_ms + max(ahead_ms // 2, FIRST_WINDOW_MS))

    async def _widen(self, slot: Slot, until_ms: Ms) -> None:
        """Load [present end, until) page by page; stop early when the wheel has its share."""
        shard, wheel = slot.shard, slot.shard.wheel
        while shard.horizon_ms < until_ms and not self._has_share(slot):
            from_ms = shard.widen(until_ms)
            entries = await self._read_due(slot, from_ms, until_ms)
            if shard.wheel is not wheel:
                return  # the leadership ended meanwhile
            shard.load(entries)
            if len(entries) >= self._page_entries:
                shard.shrink(entries[-1][0] + 1)
            self._runner.touch(slot)

    async def _read_due(self, slot: Slot, from_ms: Ms, until_ms: Ms) -> list[Due]:
        """A page of what is due, and all that is due in its last millisecond."""

        limit = self._page_entries

        def read() -> list[Due]:
            entries = page = slot.store.due(from_ms, until_ms, limit)
            while len(page) == limit:
                page = slot.store.due(page[-1].due_ms, page[-1].due_ms + 1, limit, page[-1])
                entries += page
            return entries

        return await self._runner.read(read)

    def _has_share(self, slot: Slot) -> bool:
        """True when the wheel holds enough, and the near future among it."""
        near = slot.shard.horizon_ms <= self._runner.clock.now_ms() + FIRST_WINDOW_MS
        return len(slot.shard.wheel) > self._entries_max // 2 and not near

    # --- rows at hand ---

    async def read_ahead(self) -> None:
        """Read the rows of what is due soon, so that firing waits for no disk. What is due already fires, or is read then."""
        now_ms = self._runner.clock.now_ms()
        until_ms = now_ms + self.config.prefetch_ms
        self._rounds += 1
        again = self._rounds % LOOK_AGAIN_EVERY == 0
        after_ms = now_ms if again else max(now_ms, self._looked_to_ms)
        self._looked_to_ms = until_ms
        for slot in list(self._runner.slots.values()):
            entries = self._unread(slot, after_ms, until_ms)
            if entries:
                await self._runner.admit(slot, entries)

    def _unread(self, slot: Slot, after_ms: Ms, until_ms: Ms) -> list[Entry]:
        table = slot.shard.table
        entries: list[Entry] = []
        for entry in slot.shard.wheel.upcoming(until_ms, after_ms):
            _, row, generation = entry
            if generation > 0:
                known = table.job(row)
                lacking = not isinstance(known, JobRow) and known is not GONE
            else:
                lacking = not isinstance(table.execution(row), bytes)
            if lacking:
                entries.append(entry)
                if len(entries) >= READ_AHEAD_ROWS_MAX:
                    break
        return entries

    # --- names ---

    async def learn(self) -> None:
        """Tell the filters of shards that are led what their stores hold: those that know nothing, or are full."""
        for slot in list(self._runner.slots.values()):
            if slot.shard.table.bloom.wanting:
                try:
                    await self._learn(slot)
                except ResourceExhausted:
                    return  # lists come first
                except Exception:
                    if not slot.retired:  # else another store has taken its place
                        raise

    async def _learn(self, slot: Slot) -> None:
        """Page by page; the loop adds them, for it alone may touch a table."""
        table, store = slot.shard.table, slot.store
        table.bloom.begin(await self._runner.store.query(store.job_count))
        keys = await self._runner.store.query(partial(store.keys, KEY_MIN, LEARN_PAGE))
        while keys:
            table.bloom.learn(keys)
            keys = await self._runner.store.query(partial(store.keys, keys[-1] + 1, LEARN_PAGE))
        table.bloom.end()

    # --- the clock ---

    async def watch_clock(self) -> None:
        """Now and then, for a node that fires nothing."""
        self.look_at_clock()

    def look_at_clock(self) -> None:
        """A step of the host's clock: backward, the wheels turn back; forward, firing is held for a while.

        Nothing fires twice after a step back, for what was fired is logged. A wrong step forward would fire everything
        early. In a cluster the others tell within a second that it is wrong, and this node leads nothing then. Alone
        there is nobody to ask, so a long one is held long enough for an operator's alarm and for a second step that
        takes it back.
        """
        clock = self._runner.clock
        step_ms = self._steps.observe(clock.now_ms(), clock.monotonic_ms())
        if not step_ms:
            return
        self._metrics.clock_stepped(step_ms)
        log.warning("the host's clock stepped", extra={"step_ms": step_ms})
        if step_ms > 0:
            hold_ms = LONG_HOLD_MS if step_ms >= LONG_STEP_MS else HOLD_MS
            self._runner.hold_until_ms = clock.now_ms() + hold_ms
        else:
            self._runner.hold_until_ms = 0
            for slot in self._runner.slots.values():
                slot.shard.wheel.rebuild(clock.now_ms())
                self._runner.touch(slot)

    # --- the store ---

    async def flush(self) -> None:
        """Write what changed since the last flush, a few shards at a time, and forget it here once it is committed."""
        async with self._flush_lock:
            now_ms = self._runner.clock.now_ms()
            await self._flush_those(lambda slot: slot.shard.table.frozen is not None)
            if not self._runner.store_full:
                await self._flush_those(_has_news)
            if not self._runner.store_full:
                self.flushed_ms = now_ms

    async def _flush_those(self, wanted: Callable[[Slot], bool]) -> None:
        """First what an earlier flush could not write, then what is new: so that after a flush the store has it all."""
        slots = [slot for slot in self._slots.values() if wanted(slot)]
        for at in range(0, len(slots), SHARDS_PER_FLUSH):
            there = [slot for slot in slots[at : at + SHARDS_PER_FLUSH] if not slot.retired]
            await self._flush_some(there)

    async def _flush_some(self, slots: list[Slot]) -> None:
        """Flush these shards. On a full disk their sets stay frozen, new work is refused, and the next flush retries."""
        work = [(slot.store, *self._frozen(slot)) for slot in slots]
        try:
            seconds, keys = await self._runner.store.flush(lambda: self._flush_now(work))
        except StoreFailed as error:
            if error.reason != "STORE_FULL":
                raise
            if not self._runner.store_full:
                log.critical("the disk is full: changes wait in memory, new work is refused")
            self._runner.store_full = True
            return
        self._runner.store_full = False
        self._metrics.count_flushed(sum(changes.rows for _, changes, _ in work))
        self._metrics.observe_flush(seconds)
        keep_until_ms = self._runner.clock.now_ms() + self.config.prefetch_ms
        for slot, keys_of_slot in zip(slots, keys, strict=True):
            # Then thaw is the last to hold the set: a large one takes milliseconds to let go.
            del work[0]
            before_bytes = slot.shard.table.bytes_held
            slot.shard.table.thaw(keep_until_ms, keys_of_slot)
            self._runner.table_bytes += slot.shard.table.bytes_held - before_bytes
            await asyncio.sleep(0)

    def _frozen(self, slot: Slot) -> tuple[Changes, Applied]:
        """The shard's frozen set, frozen now unless an earlier flush of it failed."""
        table = slot.shard.table
        if table.frozen is None:
            slot.frozen_at = slot.applied_now()
            table.freeze()
        assert table.frozen is not None
        return table.frozen, slot.frozen_at

    def _flush_now(
        self, work: list[tuple[ShardStore, Changes, Applied]]
    ) -> tuple[float, list[Sequence[int]]]:
        """In the store's thread; the seconds it took, and the keys of each shard's jobs."""
        start_s = self._runner.clock.monotonic()
        keys = [
            store.flush(changes, applied) if store.applied.index < applied.index or changes else ()
            for store, changes, applied in work
        ]
        return self._runner.clock.monotonic() - start_s, keys

    async def checkpoint(self) -> None:
        """Make the stores durable, shard by shard, then let go of the WAL segments that they cover."""
        durable: dict[int, int] = {}
        for slot in list(self._slots.values()):
            if slot.retired:
                continue
            try:
                await self._runner.store.flush(slot.store.checkpoint)
            except StoreFailed as error:
                if error.reason != "STORE_FULL":
                    raise
                return  # the journal keeps what the stores can't; the flush says that the disk is full
            durable[slot.shard.number] = slot.store.durable.index
        for name in await self._wal.truncate_through(durable):
            log.info("journal segment deleted: the stores hold it durably", extra={"segment": name})

    async def expire_history(self) -> None:
        """Unlink the history files whose days are over."""
        day = (self._runner.clock.now_ms() - self.config.history_ms) // MS_PER_DAY
        for slot in list(self._slots.values()):
            if not slot.retired:
                await self._runner.store.flush(partial(slot.store.expire, day))

    async def age_feeds(self) -> None:
        """Forget what is too old for any watch."""
        self._runner.feeds.age(self._runner.clock.monotonic_ms())

    async def trim_history(self) -> None:
        """Hold busy jobs to their retention: the newest executions, of the last days."""
        now_ms = self._runner.clock.now_ms()
        for slot in list(self._slots.values()):
            busy = [row for row, count in slot.ended_since_trim.items() if count >= TRIM_AFTER]
            if busy and not slot.retired:
                await self._runner.store.flush(partial(_trim, slot, busy, now_ms))
                for row in busy:
                    del slot.ended_since_trim[row]

    # --- reads that must see everything ---

    async def flush_for_reading(self) -> Ms:
        """Bring the store up to what is applied now; the answer is the time that a following read speaks of.

        Raises Unavailable while the disk is full: the store does not know the newest changes.
        """
        now_ms = self._runner.clock.now_ms()
        await self.flush()
        if self._runner.store_full:
            raise Unavailable(
                "the disk is full: what changed last can't be listed; read without `consistent`",
                reason="STORE_FULL",
            )
        return now_ms


def _has_news(slot: Slot) -> bool:
    """True while the store lags behind the log, be it by entries that changed no row: a copy of it says how far it is."""
    return bool(slot.shard.table.active) or slot.store.applied.index < slot.applied


def _trim(slot: Slot, rows: list[Row], now_ms: Ms) -> None:
    """In the store's thread."""
    for row, job in slot.store.jobs(rows).items():
        spec = decode_spec(job.spec)
        slot.store.trim(row, spec.retention_count, now_ms - spec.retention_ms)
