"""Floor 3. Which attempt is sent when: bounded queues, fair over targets, on time before late.

    submit ─► target A: [on time] [late] ─┐   ranks[on time]: 0 under way: C ► D   1: A   7: B
              target B: [on time] [late] ─┼─► ranks[late]:    0 under way: B                    ─► workers ─► transport ─► done
              target C: [on time] [late] ─┘   (targets that wait, by what they have under way; in turn among equals)

A target is (scheme, host, port). Whoever has the least under way goes first. And a target gets no more than what it
leaves free, of the slots as of the places in the queue (the dynamic thresholds of Choudhury and Hahne, 1998): one
that hangs takes at most half, k of them a (k + 1)-th each, and the last share stays free for those that don't hang.
Of the slots it gets at most `per_target` besides. Catch-up takes at most half of all slots, and of each target's.

What finds no place for its target is not submitted: who fires asks `crowded` first and keeps it, and `on_room` tells
when places of that target are free again.

Invariants: a target stands in `ranks[lane]`, at its rank, whenever it waits there below its own bounds; every submitted
fire gets exactly one `done`, unless `drain` dropped it: then nothing is known, and after a restart it is sent again.
Each step is O(1), but for the last of the queue to leave, who tells everyone.

Must never import: a room above, aiohttp.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from tickwheel.server.dispatch import contract
from tickwheel.server.dispatch.guard import DEFAULT_PORTS
from tickwheel.server.dispatch.headers import build_headers
from tickwheel.server.dispatch.transport import Request, Transport, TransportError, Withdrawn
from tickwheel.server.fire import Fire, Outcome, OutcomeKind, TargetKey
from tickwheel.server.model import Ms

FireGate = Callable[[Fire], Awaitable[bool]]
Done = Callable[[Fire, Outcome], None]

ON_TIME, LATE = 0, 1
LANES = (ON_TIME, LATE)

log = logging.getLogger(__name__)


class Clock(Protocol):
    """What dispatch asks of the clock."""

    def now_ms(self) -> Ms:
        """Wall time."""
        ...


class Limits(NamedTuple):
    """Bounds: attempts under way, of one target, and those that wait."""

    concurrency: int = 1_000
    per_target: int = 100
    waiting: int = 20_000


class _Work:
    """One attempt that waits or is under way. It is its own gate: when that opens, the attempt starts."""

    __slots__ = ("clock", "done", "fire", "may_send", "start_ms")

    def __init__(self, fire: Fire, may_send: FireGate, done: Done, clock: Clock) -> None:
        self.fire = fire
        self.may_send = may_send
        self.done = done
        self.clock = clock
        self.start_ms: Ms = 0

    async def gate(self) -> bool:
        if not await self.may_send(self.fire):
            return False
        self.start_ms = self.clock.now_ms()
        return True


class _Target:
    """One target's queues and what it has under way. `ranks` are where it stands, -1 for nowhere."""

    __slots__ = ("busy", "busy_late", "key", "promised", "queues", "ranks")

    def __init__(self, key: TargetKey) -> None:
        self.key = key
        self.queues: tuple[deque[_Work], deque[_Work]] = (
            deque(),  # bounded: by Limits.waiting
            deque(),  # bounded: by Limits.waiting
        )
        self.ranks = [-1, -1]
        self.promised = 0
        self.busy = 0
        self.busy_late = 0

    @property
    def waiting(self) -> int:
        """Places it has in the queue."""
        return len(self.queues[0]) + len(self.queues[1]) + self.promised


class _Ranks:
    """Targets by a small number, those of one number in the order in which they came."""

    __slots__ = ("_levels", "_occupied")

    def __init__(self, levels: int) -> None:
        self._levels: list[dict[_Target, None]] = [{} for _ in range(levels)]
        self._occupied = 0

    def put(self, target: _Target, rank: int) -> None:
        self._levels[rank][target] = None
        self._occupied |= 1 << rank

    def drop(self, target: _Target, rank: int) -> None:
        level = self._levels[rank]
        del level[target]
        if not level:
            self._occupied ^= 1 << rank

    def first(self) -> tuple[int, _Target] | None:
        """The least number that somebody has, and who has had it longest."""
        if not self._occupied:
            return None
        rank = (self._occupied & -self._occupied).bit_length() - 1
        return rank, next(iter(self._levels[rank]))


class Dispatcher:
    """Sends fires and reports their outcomes, on one event loop.

    `observe` sees each outcome beside `done`. `on_room(key)` is called when a target that was found crowded has places
    again; it must not submit at once.
    """

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        limits: Limits,
        *,
        version: str,
        observe: Callable[[Fire, Outcome], None] | None = None,
        on_room: Callable[[TargetKey], None] | None = None,
    ) -> None:
        assert min(limits) > 0, "every limit is at least 1"
        self.on_room = on_room
        self.waiting = 0
        self._transport = transport
        self._clock = clock
        self._limits = limits
        self._version = version
        self._observe = observe
        self._targets: dict[TargetKey, _Target] = {}
        self._ranks = (_Ranks(limits.per_target), _Ranks(limits.per_target))
        self._workers: set[asyncio.Task[None]] = set()
        self._busy = 0
        self._busy_late = 0
        self._late_max = max(1, limits.concurrency // 2)
        self._target_late_max = max(1, limits.per_target // 2)
        self._promised = 0
        self._refused: dict[
            TargetKey, None
        ] = {}  # bounded: by the targets that somebody was refused for
        self._draining = False

    @property
    def in_flight(self) -> int:
        """Attempts under way."""
        return self._busy

    def room(self) -> int:
        """How many more fires `submit` takes now; 0 while draining."""
        return 0 if self._draining else max(0, self._limits.waiting - self.waiting)

    def crowded(self, url: str) -> TargetKey | None:
        """None if the URL's target has a place for one more: it is kept until the `submit` that must follow.

        Else the target's key: `on_room` will be called with it.
        """
        key = target_key(url)
        target = self._targets.get(key)
        if (0 if target is None else target.waiting) >= self._free_places():
            self._refused[key] = None
            return key
        if target is None:
            target = self._targets[key] = _Target(key)
        target.promised += 1
        self._promised += 1
        return None

    def places(self, key: TargetKey) -> int:
        """How many places a target may take before it is crowded. If 0, `on_room` will be called."""
        free = self._free_places() - self._waiting_of(key)
        if free <= 0:
            self._refused[key] = None
            return 0
        return (free + 1) // 2

    def submit(self, fire: Fire, gate: FireGate, done: Done) -> None:
        """Send it when its turn comes; `done` gets its outcome. Only while there is `room()`."""
        assert self.room() > 0, "ask room() before submit()"
        key = target_key(fire.target.url)
        target = self._targets.get(key)
        if target is None:
            target = self._targets[key] = _Target(key)
        elif target.promised:
            target.promised -= 1
            self._promised -= 1
        lane = LATE if fire.late else ON_TIME
        target.queues[lane].append(_Work(fire, gate, done, self._clock))
        self.waiting += 1
        if target.ranks[lane] < 0:
            self._rank(target, lane)
        self._start_more()

    def _start_more(self) -> None:
        """Start what may start, each in a worker of its own."""
        while (started := self._take()) is not None:
            worker = asyncio.get_running_loop().create_task(self._work(*started))
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def drain(self, timeout_ms: int) -> int:
        """Start nothing more, wait for what is under way, then cancel the rest. Return how many ends nobody saw."""
        self._draining = True
        if not self._workers:
            return 0
        _, pending = await asyncio.wait(self._workers, timeout=timeout_ms / 1000)
        for worker in pending:
            worker.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        return len(pending)

    # --- places in the queue ---

    def _free_places(self) -> int:
        return self._limits.waiting - self.waiting - self._promised

    def _waiting_of(self, key: TargetKey) -> int:
        target = self._targets.get(key)
        return 0 if target is None else target.waiting

    def _left_queue(self, key: TargetKey) -> None:
        """A place is free: tell those that it lets in. One of the others is looked at each time, so all are in turn."""
        self.waiting -= 1
        if not self._refused:
            return
        if self.waiting == 0:
            told, self._refused = list(self._refused), {}
            for each in told:
                self._tell(each)
            return
        for each in {key: None, next(iter(self._refused)): None}:
            if each in self._refused:
                del self._refused[each]
                waiting = self._waiting_of(each)
                if (
                    waiting + waiting // 8 < self._free_places()
                ):  # some at once: each telling costs a turn
                    self._tell(each)
                else:
                    self._refused[each] = None

    def _tell(self, key: TargetKey) -> None:
        if self.on_room is not None:
            self.on_room(key)

    # --- whose turn it is ---

    def _rank(self, target: _Target, lane: int) -> None:
        """Let it stand where it belongs: by what it has under way, nowhere if it has nothing to start or no slot."""
        before, rank = target.ranks[lane], self._rank_of(target, lane)
        if before == rank:
            return
        if before >= 0:
            self._ranks[lane].drop(target, before)
        if rank >= 0:
            self._ranks[lane].put(target, rank)
        target.ranks[lane] = rank

    def _rank_of(self, target: _Target, lane: int) -> int:
        if not target.queues[lane] or target.busy >= self._limits.per_target:
            return -1
        if lane == LATE and target.busy_late >= self._target_late_max:
            return -1
        return target.busy

    def _take(self) -> tuple[_Target, _Work] | None:
        """Take the next attempt that may start now, and its slot."""
        if self._draining:
            return None
        free = self._limits.concurrency - self._busy
        for lane in LANES:
            if lane == LATE and self._busy_late >= self._late_max:
                return None
            found = self._ranks[lane].first()
            if found is not None and found[0] < free:
                target = found[1]
                work = target.queues[lane].popleft()
                self._count(target, work.fire, 1)
                self._left_queue(target.key)
                return target, work
        return None

    def _count(self, target: _Target, fire: Fire, step: int) -> None:
        """Take a slot, or give it back: the target's rank is another one then."""
        self._busy += step
        target.busy += step
        if fire.late:
            self._busy_late += step
            target.busy_late += step
        self._rank(target, ON_TIME)
        if target.queues[LATE] or target.ranks[LATE] >= 0:
            self._rank(target, LATE)

    def _release(self, target: _Target, fire: Fire) -> None:
        self._count(target, fire, -1)
        if not target.busy and not target.waiting:
            del self._targets[target.key]

    # --- the work ---

    async def _work(self, target: _Target, work: _Work) -> None:
        """Carry out one attempt after the other, as long as there is one to start: a task costs more than a turn."""
        taken: tuple[_Target, _Work] | None = (target, work)
        while taken is not None:
            target, work = taken
            try:
                outcome = await self._attempt(work)
            finally:
                self._release(target, work.fire)
            self._report(work, outcome)
            taken = self._take()
            self._start_more()  # the end of a late one may let another late one in, beside the one that took its slot

    def _report(self, work: _Work, outcome: Outcome) -> None:
        try:
            if self._observe is not None:
                self._observe(work.fire, outcome)
            work.done(work.fire, outcome)
        except Exception:
            # A fault of whom we report to must not take this worker, and the turns of others, with it.
            log.exception("an outcome could not be reported", extra={"id": work.fire.id})

    async def _attempt(self, work: _Work) -> Outcome:
        fire, clock = work.fire, self._clock
        work.start_ms = clock.now_ms()
        try:
            response = await self._transport.send(self._request(fire, work.start_ms), work.gate)
        except Withdrawn:
            return Outcome(
                OutcomeKind.WITHDRAWN, 0, "", b"", work.start_ms, work.start_ms, sent=False
            )
        except TransportError as error:
            return contract.judge_error(error, work.start_ms, clock.now_ms())
        except Exception:
            # A fault of ours must not lose the outcome: the execution would stay RUNNING until a restart.
            log.exception(
                "the transport failed in a way it does not declare", extra={"id": fire.id}
            )
            return Outcome(OutcomeKind.RETRY, 0, "internal", b"", work.start_ms, clock.now_ms())
        return contract.judge(fire.target, response, work.start_ms, clock.now_ms())

    def _request(self, fire: Fire, now_ms: Ms) -> Request:
        target = fire.target
        headers = build_headers(fire, now_ms, self._version)
        return Request(
            target.method, target.url, headers, target.body, target.timeout_ms, target.max_redirects
        )


@lru_cache(maxsize=4_096)
def target_key(url: str) -> TargetKey:
    """(scheme, host, port): what shares slots and, later, limits."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or DEFAULT_PORTS.get(parts.scheme, 0)
