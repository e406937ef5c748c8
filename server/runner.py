"""Floor 4. The loop of a node: the only place where the order of things is spelled.

    read ──► decide ──► append ──► fsync ──► apply ──► reply          commands, one batch a shard
    due ──► send (waits for nothing) and Due (a command of the next batch) ──► outcome ──► Ended (a command)

All shards that have commands waiting and no batch under way form one group: one read, one WAL write, one fsync. While a
group is under way the next gathers, so batches grow with load and no timer is needed.

Invariants: a shard has one batch at a time; what the leader does itself goes before users' commands, so that a cancel
sees a due that happened before it; nothing is answered before it is durable; nothing is sent early.

Must never import: the doors, `node`. It alone knows both the machine (`shard`) and the devices (`wal`, `store`,
`dispatch`).
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import chain
from typing import TypeVar

from tickwheel.server import codec
from tickwheel.server.command import (
    Command,
    Create,
    Ended,
    NamedCommand,
    Redrive,
    Reply,
    Run,
    Update,
)
from tickwheel.server.commit import Commits, Proposal
from tickwheel.server.config import Config
from tickwheel.server.draft import Rows
from tickwheel.server.errors import Fatal, ResourceExhausted, TickwheelError, Unavailable
from tickwheel.server.feed import Feeds
from tickwheel.server.fire import Fire, Outcome, OutcomeKind, TargetKey
from tickwheel.server.logs import get_logger
from tickwheel.server.metrics import Metrics
from tickwheel.server.model import ExecutionState, Ms
from tickwheel.server.ports import Clock, Dispatch
from tickwheel.server.reading import Wants, merge
from tickwheel.server.shard import Entry
from tickwheel.server.slot import (
    Room,
    Shelf,
    Slot,
    Ticket,
    Work,
    is_known,
    leadership_lost,
    read_all,
    read_entries,
    split,
)
from tickwheel.server.store import StorePort

T = TypeVar("T")

_NEW_WORK = (Create, Update, Run, Redrive)
_STATE_NAMES = {state: state.name for state in ExecutionState}
_OUTCOME_NAMES = {kind: kind.name for kind in OutcomeKind}

log = get_logger(__name__)

GROUP_COMMANDS_MAX = 2_000
"""Commands of one group: about 20 ms of deciding, so that firing is never held up longer."""

GROUP_BYTES_MAX = 8 << 20
"""Journal bytes of one group, so that its entries fit into the WAL's queue and into a segment."""

WAL_WAITING_BYTES_MAX = 16 << 20
"""No further group is formed while this much waits for the disk."""


FIRE_SLICE = 128
"""Entries of one shard fired before others get their turn."""

FIRE_ROUND = 512
"""Entries of all shards fired before the loop reads responses and requests again: about 10 ms."""

CREATES_STOP_SHARE = 0.8
"""Of `table_bytes_max`: from here on creates wait for the store."""

STORE_BUSY_S = 0.01

BLOCKED_S = 0.005
"""How soon a shard is looked at again that has something due but may not fire."""

IDLE_MS = 500
"""The longest sleep of the firing timer: how soon a step of the host's clock is noticed."""


class Runner:
    """Drives the shards of one node on one event loop."""

    def __init__(  # noqa: PLR0913 - it is where all devices meet
        self,
        config: Config,
        clock: Clock,
        *,
        commits: Commits,
        store: StorePort,
        dispatch: Dispatch,
        metrics: Metrics,
        feeds: Feeds,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self.config = config
        self.clock = clock
        self.slots: dict[int, Slot] = {}
        self.waiting_count = 0
        self.firing = False
        self.hold_until_ms = 0
        self.look_at_clock: Callable[[], None] = lambda: None
        self.store = store
        self.store_full = False
        self.feeds = feeds
        self.table_bytes = 0
        self._commits = commits
        self._dispatch = dispatch
        self._metrics = metrics
        self._on_fatal = on_fatal
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready: dict[int, Slot] = {}
        self._pumping = False
        self._timer: asyncio.TimerHandle | None = None
        self._wake_ms: Ms | None = None
        self._first = 0
        self._shelf = Shelf()
        self._roomy: dict[TargetKey, None] = {}  # bounded: by the targets on the shelf
        dispatch.on_room = self._on_room

    # --- commands in ---

    def call(
        self, commands: Sequence[tuple[int, NamedCommand]]
    ) -> "asyncio.Future[list[Reply | TickwheelError]]":
        """Carry (shard, command) pairs to their shards; one answer each, in order, when all are durable.

        Raises ResourceExhausted when the queue is full: then nothing was taken.
        """
        if self.waiting_count + len(commands) > self.config.queue_commands_max:
            raise ResourceExhausted(
                "the queue of commands is full",
                reason="QUEUE_FULL",
                metadata={"queue_commands_max": str(self.config.queue_commands_max)},
                retry_after_ms=200,
            )
        self._check_bounds(commands)
        ticket = Ticket(len(commands), self._loop)
        self.waiting_count += len(commands)
        slots, ready = self.slots, self._ready
        for position, (number, command) in enumerate(commands):
            slot = slots[number]
            slot.waiting.append(command)
            slot.tickets.append((ticket, position))
            ready[number] = slot
        self._kick()
        return ticket.future

    def _check_bounds(self, commands: Sequence[tuple[int, NamedCommand]]) -> None:
        """Refuse what makes more work while memory or the disk is short; ends, cancels and deletes always pass."""
        full = self.table_bytes >= self.config.table_bytes_max * CREATES_STOP_SHARE
        if not (full or self._commits.space_low or self.store_full):
            return
        if any(isinstance(command, _NEW_WORK) for _, command in commands):
            reason = "TABLE_FULL" if full else "DISK_FULL"
            what = "changes wait to be written to the store" if full else "the disk is almost full"
            raise ResourceExhausted(
                f"{what}: new work is refused for now",
                reason=reason,
                retry_after_ms=500 if full else 10_000,
            )

    def lead(self, slot: Slot, command: Command) -> None:
        """Queue a command of the leader itself. Never refused: what happened must be logged."""
        slot.leading.append(command)
        self._ready[slot.shard.number] = slot
        self._kick()

    def _kick(self) -> None:
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Form a group of all shards that are free and have something to do."""
        self._pumping = False
        if self._commits.waiting_bytes > WAL_WAITING_BYTES_MAX:
            return  # the end of a group under way pumps again
        group: list[Work] = []
        room = Room(GROUP_COMMANDS_MAX, min(GROUP_BYTES_MAX, self._commits.record_bytes_max // 4))
        for number in list(self._ready):
            slot = self._ready[number]
            if slot.busy or (slot.paused and not slot.leading):
                continue
            if room.full:
                self._kick()
                break
            group.append(self._take(slot, room))
            if not (slot.waiting or slot.leading):
                del self._ready[number]
        if group:
            self.spawn(self._run_group(group))

    def _take(self, slot: Slot, room: Room) -> Work:
        leading, slot.leading = split(slot.leading, room.take(slot.leading))
        count = 0 if slot.paused else room.take(slot.waiting)
        taken, slot.waiting = split(slot.waiting, count)
        tickets, slot.tickets = split(slot.tickets, count)
        self.waiting_count -= count
        slot.busy = True
        slot.settled.clear()
        return Work(slot, [*leading, *taken], tickets, len(leading))

    # --- the order, spelled once ---

    async def _run_group(self, group: list[Work]) -> None:
        try:
            await self._read(group)
            group = self._still_led(group)
            proposals = self._decide(group)
            self._finish([work for work in group if work.effects is None])
            if proposals:
                await self._commit([work for work in group if work.effects is not None], proposals)
        except TickwheelError as error:
            # Whether the group is in the log is unknown now, so nothing more may be decided: the node stops, and
            # recovery tells. Callers repeat with the same request_id.
            self._refuse(group, Unavailable("the node is stopping", reason="NODE_STOPPING"))
            self._on_fatal(error)

    async def _commit(self, works: list[Work], proposals: list[Proposal]) -> None:
        """Append; each shard's part goes on by itself once it is committed. Returns when all of them are decided."""
        ended: asyncio.Future[None] = self._loop.create_future()
        left = len(works)

        def decided(places: Sequence[int], error: TickwheelError | None) -> None:
            nonlocal left
            those = works if len(places) == len(works) else [works[place] for place in places]
            if error is None:
                self._finish(those)
            else:
                self._refuse(those, error)
            left -= len(places)
            if not left and not ended.done():
                ended.set_result(None)

        for work, index in zip(works, self._commits.append(proposals, decided), strict=True):
            work.slot.index = index
        await ended

    def _still_led(self, group: list[Work]) -> list[Work]:
        """A leadership may have ended while rows were read."""
        lost = [work for work in group if not work.slot.leads(work.epoch)]
        if not lost:
            return group
        self._refuse(lost, leadership_lost())
        return [work for work in group if work.slot.leads(work.epoch)]

    def _finish(self, works: list[Work]) -> None:
        """Committed: apply, then reply, then let the next batch in."""
        self._apply(works)
        self._reply(works)
        self._release(works)

    async def _read(self, group: list[Work]) -> None:
        """Read what the commands name and the table does not hold; all shards in one trip to the store's thread.

        What fires meanwhile is not held yet. So its commands join the batch, or a cancel would not see it.
        """
        while True:
            lacking: list[tuple[Work, Wants]] = []
            for work in group:
                work.join_leading()
                if work.read:
                    continue
                wants = work.slot.shard.collect(work.commands, work.rows)
                if wants:
                    lacking.append((work, wants))
                else:
                    work.read = True
            if not lacking:
                return
            thaws = [work.slot.shard.table.thaws for work, _ in lacking]
            stores = [(work.slot.store, wants) for work, wants in lacking]
            answers = await self.store.read(partial(read_all, stores))
            for (work, wants), found, thawed in zip(lacking, answers, thaws, strict=True):
                if work.slot.shard.table.thaws != thawed:
                    work.rows = Rows()
                else:
                    work.read = merge(work.rows, wants, found)

    def _decide(self, group: list[Work]) -> list[Proposal]:
        now_ms = self.clock.now_ms()
        proposals: list[Proposal] = []
        kinds = Counter(chain.from_iterable(map(type, work.commands) for work in group))
        for kind, count in kinds.items():
            self._metrics.count_command(kind.__name__, count)
        for work in group:
            shard = work.slot.shard
            work.effects, work.replies, work.ended = shard.decide(work.commands, work.rows, now_ms)
            if work.effects is not None:
                payload = codec.encode_effects(work.effects)
                proposals.append(Proposal(shard.number, shard.epoch, payload))
        return proposals

    def _apply(self, group: list[Work]) -> None:
        for work in group:
            if work.effects is not None:
                table = work.slot.shard.table
                before_bytes = table.bytes_held
                work.slot.shard.settle(work.commands[: work.leader_count], work.effects)
                work.slot.reached(work.slot.index, work.effects)
                for job_row, state in work.ended:
                    self._metrics.count_ended(_STATE_NAMES[state])
                    work.slot.ended_since_trim[job_row] += 1
                self.table_bytes += table.bytes_held - before_bytes

    def _reply(self, group: list[Work]) -> None:
        for work in group:
            if work.effects is None and not self._commits.may_act(work.slot.shard.number):
                self._refuse([work], leadership_lost())
                continue
            for (ticket, position), reply in zip(
                work.tickets, work.replies[work.leader_count :], strict=True
            ):
                ticket.answer(position, reply)

    def _refuse(self, group: list[Work], error: TickwheelError) -> None:
        for work in group:
            for ticket, position in work.tickets:
                ticket.answer(position, error)

    # --- leaderships ---

    def may_act(self, number: int) -> bool:
        """True while this node has the right to fire for the shard and to answer for it."""
        return self._commits.may_act(number)

    def begin(self, slot: Slot) -> None:
        """Drive this shard from now on: its leadership has begun."""
        slot.led = True
        self.slots[slot.shard.number] = slot
        self.touch(slot)

    def pause(self, slot: Slot) -> None:
        """Fire nothing more of this shard and take nothing new, but log what the leader has to: it is handed over."""
        slot.paused = True

    def resume(self, slot: Slot) -> None:
        """It was not handed over after all."""
        slot.paused = False
        self._ready[slot.shard.number] = slot
        self._kick()
        self.touch(slot)
        self._arm()

    def resign(self, number: int) -> None:
        """Let go of a shard: who waits is told to ask again, what is in flight may not be sent any more."""
        slot = self.slots.pop(number, None)
        if slot is None:
            return
        self._ready.pop(number, None)
        tickets, slot.tickets = slot.tickets, []
        slot.waiting = []
        self.waiting_count -= len(tickets)
        slot.end()
        for ticket, position in tickets:
            ticket.answer(position, leadership_lost())

    def _release(self, group: list[Work]) -> None:
        for work in group:
            slot = work.slot
            slot.busy = False
            slot.settled.set()
            if slot.waiting or slot.leading:
                self._ready[slot.shard.number] = slot
            self.touch(slot)
        if self._ready:
            self._kick()

    # --- firing ---

    def touch(self, slot: Slot) -> None:
        """The shard's wheel may have changed: see whether the timer must ring earlier."""
        slot.next_ms = slot.shard.wheel.next_ms()
        if (
            self.firing
            and slot.next_ms is not None
            and (self._wake_ms is None or slot.next_ms < self._wake_ms)
        ):
            self._arm()

    def overdue_ms(self) -> int:
        """How late the earliest entry of any wheel is; 0 when nothing is overdue."""
        heads = [slot.next_ms for slot in self.slots.values() if slot.next_ms is not None]
        return max(self.clock.now_ms() - min(heads), 0) if heads else 0

    def start_firing(self) -> None:
        """From here on what is due is sent."""
        self.firing = True
        self._arm()

    def stop_firing(self) -> None:
        """Nothing more is taken from the wheels."""
        self.firing = False
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        """Sleep exactly until the next due slot of any shard; the clock is compared again before anything is sent."""
        if self._timer is not None:
            self._timer.cancel()
        now_ms = self.clock.now_ms()
        idle_ms = now_ms + IDLE_MS
        self._wake_ms = min(
            (s.next_ms for s in self.slots.values() if s.next_ms is not None), default=idle_ms
        )
        if self._roomy:
            self._wake_ms = 0
        self._wake_ms = min(max(self._wake_ms, self.hold_until_ms), idle_ms)
        delay_s = max(self._wake_ms - now_ms, 0) / 1000
        self._timer = self._loop.call_later(delay_s, self._ring)

    def _ring(self) -> None:
        """Fire; an error nobody foresaw must not end firing in silence."""
        try:
            if self.firing:
                self._fire_all()
        except Exception as error:
            log.exception("firing failed")
            self._on_fatal(error)

    def _fire_all(self) -> None:
        """Fire a slice of every shard that has something due, then sleep or come again at once."""
        self.look_at_clock()  # after a step forward much seems to be due
        now_ms = self.clock.now_ms()
        room = self._dispatch.room()
        if room <= 0:
            self._timer = self._loop.call_later(0.001, self._ring)
        elif now_ms >= self.hold_until_ms and self._fire_round(now_ms, min(room, FIRE_ROUND)):
            self._timer = self._loop.call_later(BLOCKED_S, self._ring)
        else:
            self._arm()

    def _fire_round(self, now_ms: Ms, room: int) -> bool:
        """Fire so many entries, beginning with the shard where the last round ended. True: a shard may not fire now."""
        for key in list(self._roomy):
            self._take_down(key)
        slots = list(self.slots.values())
        blocked = False
        for turn in range(len(slots)):
            at = (self._first + turn) % len(slots)
            slot = slots[at]
            if slot.next_ms is None or slot.next_ms > now_ms:
                continue
            if slot.paused or not self._commits.may_act(slot.shard.number):
                blocked = True
                continue
            room -= self._fire_slot(slot, now_ms, min(FIRE_SLICE, room))
            if room <= 0:
                self._first = at + 1
                return False
        return blocked

    def _fire_slot(self, slot: Slot, now_ms: Ms, limit: int) -> int:
        fired = slot.shard.fire(now_ms, limit, self._dispatch.crowded)
        for command in fired.commands:
            self.lead(slot, command)
        if fired.crowded:
            self._metrics.count_put_off(len(fired.crowded))
            for key, entry in fired.crowded:  # before anything is submitted: that may call for them
                self._shelf.put(key, slot.shard.number, entry)
        for fire in fired.fires:
            self._dispatch.submit(fire, self._gate, self._done)
        if fired.cold:
            slot.cold += fired.cold
            self.spawn(self._warm(slot))
        slot.next_ms = slot.shard.wheel.next_ms()
        return fired.entries

    # --- what waits for a place of its target ---

    def _on_room(self, key: TargetKey) -> None:
        """Dispatch takes more of a target: in the next round, so that it takes all it can at once."""
        if key in self._shelf:
            self._roomy[key] = None
            if self.firing and self._wake_ms != 0:
                self._arm()

    def _take_down(self, key: TargetKey) -> None:
        """Give entries back to their wheels: those that now find a place, earliest due first."""
        places = min(self._dispatch.places(key), FIRE_SLICE)
        for number, entry in self._shelf.take(key, places):
            slot = self.slots.get(number)
            if slot is not None:
                slot.shard.load([entry])
                slot.next_ms = slot.shard.wheel.next_ms()
        if not places or key not in self._shelf:
            del self._roomy[key]

    @property
    def put_off_count(self) -> int:
        """Due requests that wait for a place of their target."""
        return len(self._shelf)

    async def _gate(self, fire: Fire) -> bool:
        """May the first byte leave? Waits while a batch that names the job is under way."""
        slot = self.slots.get(fire.shard)
        while slot is not None and fire.job_row in slot.shard.held:
            await slot.settled.wait()
        return (
            slot is not None
            and not slot.paused
            and self._commits.may_act(fire.shard)
            and slot.shard.may_send(fire)
        )

    def _done(self, fire: Fire, outcome: Outcome) -> None:
        slot = self.slots.get(fire.shard)
        if slot is None or slot.shard.epoch != fire.epoch:
            # Its leadership is over: the successor knows nothing of this outcome, and sends it again.
            self._metrics.count_attempt("ORPHANED")
            return
        if outcome.kind == OutcomeKind.WITHDRAWN:
            slot.shard.landed(fire, withdrawn=True)
            self.touch(slot)
            return
        self._metrics.observe_lag(max(outcome.start_ms - fire.due_ms, 0), late=fire.late)
        self._metrics.count_attempt(_OUTCOME_NAMES[outcome.kind])
        self.lead(slot, Ended(fire, outcome))

    # --- rows that must be in memory before they fire ---

    async def _warm(self, slot: Slot) -> None:
        """Read the rows of due entries that were not in memory, and put the entries back."""
        if slot.warming:
            return
        slot.warming = True
        try:
            while slot.cold:
                entries, slot.cold = slot.cold, []
                if not await self.admit(slot, entries):
                    slot.cold += entries
                    continue
                known = [entry for entry in entries if is_known(slot, entry)]
                slot.shard.load(known)
                self.touch(slot)
        except Fatal as error:
            self._on_fatal(error)
        finally:
            slot.warming = False

    async def admit(self, slot: Slot, entries: Sequence[Entry]) -> bool:
        """Read the rows behind wheel entries into the table's cache. False: a flush ended meanwhile, try again."""
        table = slot.shard.table
        thaws = table.thaws
        jobs = [row for _, row, generation in entries if generation > 0]
        live = [row for _, row, generation in entries if generation < 0]
        known = [data for row in live if isinstance(data := table.execution(row), bytes)]
        jobs += [codec.decode_execution(data).job_row for data in known]
        found = await self.read(lambda: read_entries(slot.store, jobs, live))
        if table.thaws != thaws:
            return False
        table.admit(found.jobs.items(), found.live.items())
        return True

    async def read(self, work: Callable[[], T]) -> T:
        """Read from the store, waiting while its queue is full: what the node itself needs is never refused."""
        while True:
            try:
                return await self.store.read(work)
            except ResourceExhausted:
                await asyncio.sleep(STORE_BUSY_S)

    # --- tasks ---

    def spawn(self, work: "Awaitable[None]") -> None:
        """Run a task that nobody awaits; an error nobody foresaw stops the node rather than a part of it."""
        task = asyncio.ensure_future(work)
        assert isinstance(task, asyncio.Task)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the runner failed", exc_info=error)
            self._on_fatal(error)

    async def drain(self) -> None:
        """Wait until every command that was taken is answered."""
        while self._tasks or self._ready:
            await asyncio.sleep(0)
            if self._tasks:
                await asyncio.wait(list(self._tasks))
