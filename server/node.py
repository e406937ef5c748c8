"""Floor 5. One node: which shards are its own, how they come up after a crash, and the `Scheduler` that the doors call.

    open        lock the directory, open the stores, recover the journal
    replay      entries behind each store's applied index ──► shard.apply
    lead        epoch + 1: a PROMISE and an empty EPOCH_START entry a shard, fsynced
    load        the next ten seconds into the wheels; then serve and fire; then widen

Embedded, the quorum is this disk: a shard is led by whoever holds the directory's lock, and each start is a new epoch,
so that a target can tell a late request of a dead process (`Tickwheel-Epoch`).

Must never import: the doors.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import partial
from random import Random

from tickwheel.server import codec
from tickwheel.server.command import Get, JobView, NamedCommand, Reply
from tickwheel.server.commit import OwnDisk
from tickwheel.server.config import Config
from tickwheel.server.draft import Rows
from tickwheel.server.errors import NotFound, NotLeader, TickwheelError, Unavailable, WalRot
from tickwheel.server.feed import Feed, Feeds
from tickwheel.server.keeper import Keeper
from tickwheel.server.logs import get_logger
from tickwheel.server.metrics import Metrics
from tickwheel.server.model import Effects, Execution, Ms, Row
from tickwheel.server.placement import shard_of
from tickwheel.server.ports import Clock, Dispatch
from tickwheel.server.query import (
    ExecutionHit,
    ExecutionQuery,
    Grouping,
    JobCounts,
    JobHit,
    JobQuery,
    Read,
    merge_counts,
    merge_executions,
    merge_jobs,
)
from tickwheel.server.reading import collect, merge
from tickwheel.server.record import Record, RecordType, ShardMark
from tickwheel.server.runner import Runner
from tickwheel.server.shard import Shard
from tickwheel.server.slot import Slot, read_wants
from tickwheel.server.store import ShardStore, StorePort
from tickwheel.server.table import Table
from tickwheel.server.wal import Wal as WalPort
from tickwheel.server.watch import Watch

log = get_logger(__name__)

RETRY_AFTER_MS = 200
"""A shard without a leader has one again soon."""


def replay(
    slots: dict[int, Slot], records: Iterable[Record], table_bytes_max: int
) -> tuple[int, int]:
    """Apply what the stores do not have yet. Returns (the highest epoch seen, entries applied).

    A log longer than memory is flushed on the way, so that recovery is bounded too. Raises WalRot on a gap.
    """
    epoch = applied = 0
    share_bytes = max(table_bytes_max // max(len(slots), 1), 1 << 20)
    for record in records:
        epoch = max(epoch, record.epoch)
        if record.type != RecordType.ENTRY:
            continue
        slot = slots[record.shard]
        if record.index <= slot.index:
            recall(slot.feed, record.index, record.payload)
            continue
        slot.feed.join(slot.index)
        if record.index != slot.index + 1:
            raise WalRot(
                f"shard {record.shard}: the journal goes on at entry {record.index}, the store ends at {slot.index}; "
                "entries between them are missing",
                metadata={
                    "shard": str(record.shard),
                    "index": str(record.index),
                    "applied": str(slot.index),
                },
            )
        effects = codec.decode_effects(record.payload)
        slot.shard.apply(effects)
        slot.reached(record.index, effects)
        slot.index = record.index
        slot.shard.epoch = record.epoch
        applied += 1
        if slot.shard.table.bytes_held > share_bytes:
            flush_now(slot)
    for slot in slots.values():
        slot.feed.join(slot.index)
    return epoch, applied


def recall(feed: Feed, index: int, payload: bytes) -> None:
    """Tell a feed of an entry that the store has: what happened right before a restart is news still to who watches."""
    effects = codec.decode_executions(payload)
    feed.recall(index, effects.time_ms, effects.live, effects.ended)


def flush_now(slot: Slot) -> None:
    """Flush one shard in this thread: for recovery, when nothing else runs."""
    shard = slot.shard
    keys = slot.store.flush(shard.table.freeze(), slot.applied_now())
    shard.table.thaw(0, keys)


def open_slot(
    config: Config, number: int, open_store: Callable[[int], ShardStore], *, feeds: Feeds,
    start_ms: Ms, seed: int,
) -> Slot:  # fmt: skip
    """A shard as far as its store knows it; the log brings the rest."""
    store = open_store(number)
    applied = store.applied
    shard = Shard(
        number,
        applied.epoch,
        start_ms=max(start_ms, applied.time_ms),
        next_row=applied.next_row,
        table=Table(config.spec_cache_bytes // config.shards),
        rng=Random(f"{seed}:{number}"),  # noqa: S311 - ids and jitter, no secrets
    )
    return Slot(shard, store, applied.index, applied.index, feed=feeds.open(applied.index))


def open_slots(
    config: Config,
    open_store: Callable[[int], ShardStore],
    *,
    feeds: Feeds,
    start_ms: Ms,
    seed: int,
) -> dict[int, Slot]:
    """A slot a shard."""
    return {
        number: open_slot(config, number, open_store, feeds=feeds, start_ms=start_ms, seed=seed)
        for number in range(config.shards)
    }


def lead_all(slots: dict[int, Slot], epoch: int, start_ms: Ms) -> list[Record]:
    """Begin a leadership on every shard: the records to append, with the empty entries applied already."""
    records: list[Record] = []
    for number, slot in slots.items():
        shard = slot.shard
        shard.epoch = epoch
        shard.start_ms = max(start_ms, shard.last_ms)
        slot.index += 1
        effects = Effects(shard.last_ms, shard.next_row, [], [], [], [], [])
        records.append(Record(RecordType.PROMISE, number, epoch, 0, b""))
        records.append(
            Record(RecordType.ENTRY, number, epoch, slot.index, codec.encode_effects(effects))
        )
        slot.applied = slot.index
    return records


class Node:
    """The `Scheduler` of this process: routes to its shards, gathers over all of them."""

    def __init__(
        self, config: Config, runner: Runner, keeper: Keeper, thin: AbstractSet[int] = frozenset()
    ) -> None:
        """`thin`: the shards that have too few copies to take changes of clients, at each moment."""
        self._config = config
        self._thin = thin
        self._runner = runner
        self._keeper = keeper
        self._watch = Watch(runner)

    def now_ms(self) -> Ms:
        """The node's wall time."""
        return self._runner.clock.now_ms()

    def _shard_of(self, namespace: str, name: str) -> int:
        return shard_of(namespace, name, self._config.shards)

    def _slot_of(self, namespace: str, name: str) -> Slot:
        """The shard of a job, if this node may answer for it. Raises NotLeader."""
        number = self._shard_of(namespace, name)
        slot = self._runner.slots.get(number)
        if slot is None or not self._runner.may_act(number):
            raise _not_led(number)
        return slot

    # --- commands ---

    async def call(self, command: NamedCommand) -> Reply:
        """Carry one command to its shard."""
        (reply,) = await self.call_many([command])
        if isinstance(reply, TickwheelError):
            raise reply
        return reply

    async def call_many(self, commands: Sequence[NamedCommand]) -> list[Reply | TickwheelError]:
        """Carry many; one answer each, in order."""
        if not commands:
            return []
        shards = self._config.shards
        placed = [(shard_of(c.namespace, c.name, shards), c) for c in commands]
        led, thin = self._runner.slots, self._thin
        if not thin and all(number in led for number, _ in placed):
            return await self._runner.call(placed)
        refused = [self._refusal(number) for number, _ in placed]
        taken = [pair for pair, error in zip(placed, refused, strict=True) if error is None]
        answers = iter(await self._runner.call(taken) if taken else ())
        return [next(answers) if error is None else error for error in refused]

    def _refusal(self, number: int) -> TickwheelError | None:
        """Why nothing may be changed on a shard through this node now."""
        if number not in self._runner.slots:
            return _not_led(number)
        if number in self._thin:
            return Unavailable(
                f"shard {number} has fewer copies than min_copies asks for ({self._config.min_copies}): nothing is "
                "changed there until another disk has caught up; what is scheduled fires",
                reason="TOO_FEW_COPIES",
                metadata={"shard": str(number), "min_copies": str(self._config.min_copies)},
                retry_after_ms=RETRY_AFTER_MS,
            )
        return None

    # --- reads ---

    async def get_job(self, namespace: str, name: str) -> JobView:
        """The job as applied: it sees every change that was answered before."""
        slot = self._slot_of(namespace, name)
        table = slot.shard.table
        look = Get(namespace, name)
        rows = Rows()
        while wants := collect(table, [look], rows):
            thaws = table.thaws
            found = await self._runner.store.read(partial(read_wants, slot.store, wants))
            if table.thaws == thaws:
                merge(rows, wants, found)
            else:
                rows = Rows()
        self._slot_of(
            namespace, name
        )  # still: what was read may be old if the leadership ended meanwhile
        row = rows.names.get((namespace, name), 0)
        job = rows.jobs.get(row) if row else None
        if job is None:
            raise _no_job(namespace, name)
        return slot.shard.view(row, job)

    def _acting(self) -> dict[int, Slot]:
        """The shards that this node may answer for at this moment."""
        return {n: slot for n, slot in self._runner.slots.items() if self._runner.may_act(n)}

    async def _read_time(self, *, consistent: bool) -> Ms:
        if consistent:
            return await self._keeper.flush_for_reading()
        return self._keeper.flushed_ms

    async def list_jobs(
        self, query: JobQuery, *, consistent: bool
    ) -> tuple[list[JobView], list[JobHit], Ms]:
        """A page over all shards: views and their keys, and the time it speaks of."""
        read_ms = await self._read_time(consistent=consistent)
        slots = self._acting()
        hits = await self._runner.store.query(
            lambda: merge_jobs(
                [slot.store.list_jobs(query) for slot in slots.values()], query.limit
            )
        )
        views = [slots[hit.key.shard].shard.view(hit.key.row, hit.job) for hit in hits]
        return views, hits, read_ms

    async def count_jobs(
        self, query: JobQuery, grouping: Grouping, *, consistent: bool
    ) -> tuple[JobCounts, Ms]:
        """Counts over all shards, and the time they speak of."""
        read_ms = await self._read_time(consistent=consistent)
        stores = [slot.store for slot in self._acting().values()]
        counts = await self._runner.store.query(
            lambda: merge_counts([store.count_jobs(query, grouping) for store in stores])
        )
        return counts, read_ms

    async def list_executions(
        self, query: ExecutionQuery, *, consistent: bool
    ) -> tuple[list[tuple[ExecutionHit, Execution]], Ms]:
        """A page over the shards concerned, newest first, and the time it speaks of."""
        read_ms = await self._read_time(consistent=consistent)
        slots = list(self._acting().values())
        if query.job:
            slots = [self._slot_of(query.namespace, query.job)]
        stores = [slot.store for slot in slots]
        hits = await self._runner.store.query(
            lambda: merge_executions(
                [store.list_executions(query) for store in stores], query.limit
            )
        )
        return [(hit, codec.decode_execution(hit.data)) for hit in hits], read_ms

    async def changes(
        self, query: ExecutionQuery, after: Mapping[int, int | None], *, wait_ms: int
    ) -> tuple[list[Execution], list[Read]]:
        """What happened to executions after an entry of each shard's log."""
        return await self._watch.changes(query, after, wait_ms)

    async def _live_execution(
        self, slot: Slot, namespace: str, name: str, execution_id: str
    ) -> tuple[Row, Execution] | None:
        """The execution if it has not ended and is in memory: what was started a moment ago is."""
        try:
            view = await self.get_job(namespace, name)
        except NotFound:
            return None  # its job is gone, its record may still be there
        for row in view.status.live:
            execution = _of_table(slot, row)
            if execution is not None and execution.id == execution_id:
                return row, execution
        return None

    async def get_execution(
        self, namespace: str, name: str, execution_id: str
    ) -> tuple[Row, Execution]:
        """One execution of a job, by its id; it sees every change that was answered before."""
        slot = self._slot_of(namespace, name)
        live = await self._live_execution(slot, namespace, name, execution_id)
        if live is not None:
            return live
        await self._keeper.flush()
        query = ExecutionQuery(namespace=namespace, job=name, limit=1000)
        while True:
            hits = await self._runner.store.query(partial(slot.store.list_executions, query))
            for hit in hits:
                execution = codec.decode_execution(hit.data)
                if execution.id == execution_id:
                    return hit.key.row, execution
            if len(hits) < query.limit:
                break
            query = replace(query, after=hits[-1].key)
        raise NotFound(
            f"job {name!r} has no execution {execution_id!r}; it may be past its retention",
            reason="EXECUTION_NOT_FOUND",
            metadata={"job": name, "namespace": namespace, "execution": execution_id},
        )


def _of_table(slot: Slot, row: Row) -> Execution | None:
    data = slot.shard.table.execution(row)
    return codec.decode_execution(data) if isinstance(data, bytes) else None


def _not_led(number: int) -> NotLeader:
    return NotLeader(
        f"this node does not lead shard {number}; ask its leader",
        metadata={"shard": str(number)},
        retry_after_ms=RETRY_AFTER_MS,
    )


def _no_job(namespace: str, name: str) -> NotFound:
    return NotFound(
        f"no job {name!r} in namespace {namespace!r}",
        reason="JOB_NOT_FOUND",
        metadata={"job": name, "namespace": namespace},
    )


@dataclass(frozen=True, slots=True)
class Devices:
    """What a node stands on: real ones from `app`, simulated ones from the tests.

    `open_wal` recovers the journal: what it knows of each shard, its records in order, and the port to go on with.
    """

    clock: Clock
    store: StorePort
    dispatch: Dispatch
    open_store: Callable[[int], ShardStore]
    open_wal: Callable[[], tuple[Mapping[int, ShardMark], Iterable[Record], WalPort]]


@dataclass(frozen=True, slots=True)
class Started:
    """A node that serves: its parts, for the doors and for stopping."""

    node: "Node"
    runner: Runner
    keeper: Keeper
    wal: WalPort
    slots: dict[int, Slot]


async def start(
    config: Config,
    devices: Devices,
    metrics: Metrics,
    *,
    seed: int,
    on_fatal: Callable[[BaseException], None],
) -> Started:
    """Bring a node up: recover, replay, lead, load the next seconds, fire. Raises Fatal."""
    start_ms = devices.clock.now_ms()
    feeds = Feeds(config.watch_bytes)
    feeds.age(devices.clock.monotonic_ms())
    slots = open_slots(config, devices.open_store, feeds=feeds, start_ms=start_ms, seed=seed)
    _, records, wal = devices.open_wal()
    epoch, entries = replay(slots, records, config.table_bytes_max)
    epoch = max(epoch, *(slot.shard.epoch for slot in slots.values())) + 1
    await wal.submit(lead_all(slots, epoch, start_ms))
    log.info("recovered", extra={"epoch": epoch, "entries_replayed": entries})
    ends = {number: slot.index for number, slot in slots.items()}
    runner = Runner(
        config,
        devices.clock,
        commits=OwnDisk(wal, ends, on_fatal),
        store=devices.store,
        dispatch=devices.dispatch,
        metrics=metrics,
        feeds=feeds,
        on_fatal=on_fatal,
    )
    runner.table_bytes = sum(slot.shard.table.bytes_held for slot in slots.values())
    keeper = Keeper(config, runner, slots, wal, metrics)
    for slot in slots.values():
        await keeper.load_first(slot)
        runner.begin(slot)
    runner.start_firing()
    keeper.start()
    return Started(Node(config, runner, keeper), runner, keeper, wal, slots)


async def stop(started: Started) -> None:
    """Stop in order: nothing new is fired, what was taken is answered, the store is brought up to date."""
    started.runner.stop_firing()
    started.keeper.stop()
    await started.runner.drain()
    await started.keeper.flush()
    await started.keeper.checkpoint()
