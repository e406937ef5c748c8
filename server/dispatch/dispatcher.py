"""Floor 3. Which attempt is sent when: bounded queues, fair over targets, on time before late.

    submit ─► target A: [on time] [late] ─┐   ready[on time]: A ► C ► A …
              target B: [on time] [late] ─┼─► ready[late]:    B ► A ► B …   ─► workers ─► transport ─► done
              target C: [on time] [late] ─┘   (targets that wait and have a free slot)

A target is (scheme, host, port). It has a bound of its own on attempts under way, so a slow one fills its own slots and
its own queue, and the others' turns come as before. Catch-up takes at most half of all slots, and of each target's.

Invariants: a target stands in `ready[lane]` at most once, and does whenever it could start something of that lane;
every submitted fire gets exactly one `done`, unless `drain` dropped it: then nothing is known, and after a restart it
is sent again. Each step is O(1): an end frees one slot, of both kinds if it was a late one, so at most two attempts
become startable.

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
from tickwheel.server.fire import Fire, Outcome, OutcomeKind
from tickwheel.server.model import Ms

FireGate = Callable[[Fire], Awaitable[bool]]
Done = Callable[[Fire, Outcome], None]
Key = tuple[str, str, int]

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


class _Work(NamedTuple):
    fire: Fire
    gate: FireGate
    done: Done


class _Target:
    """One target's queues and what it has under way."""

    __slots__ = ("busy", "busy_late", "key", "listed", "queues")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.queues: tuple[deque[_Work], deque[_Work]] = (
            deque(),  # bounded: by Limits.waiting
            deque(),  # bounded: by Limits.waiting
        )
        self.listed = [False, False]
        self.busy = 0
        self.busy_late = 0


class Dispatcher:
    """Sends fires and reports their outcomes, on one event loop.

    `observe` sees each outcome beside `done`. `on_room` is called when `room()` was 0 and an eighth of the queue is
    free again.
    """

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        limits: Limits,
        *,
        version: str,
        observe: Callable[[Fire, Outcome], None] | None = None,
        on_room: Callable[[], None] | None = None,
    ) -> None:
        assert min(limits) > 0, "every limit is at least 1"
        self.on_room = on_room
        self.waiting = 0
        self._transport = transport
        self._clock = clock
        self._limits = limits
        self._version = version
        self._observe = observe
        self._targets: dict[Key, _Target] = {}
        self._ready: tuple[deque[_Target], deque[_Target]] = (
            deque(),  # bounded: by the number of targets that wait
            deque(),  # bounded: by the number of targets that wait
        )
        self._workers: set[asyncio.Task[None]] = set()
        self._busy = 0
        self._busy_late = 0
        self._late_max = max(1, limits.concurrency // 2)
        self._target_late_max = max(1, limits.per_target // 2)
        self._full = False
        self._draining = False

    @property
    def in_flight(self) -> int:
        """Attempts under way."""
        return self._busy

    def room(self) -> int:
        """How many more fires `submit` takes now; 0 while draining."""
        return 0 if self._draining else max(0, self._limits.waiting - self.waiting)

    def submit(self, fire: Fire, gate: FireGate, done: Done) -> None:
        """Send it when its turn comes; `done` gets its outcome. Only while there is `room()`."""
        assert self.room() > 0, "ask room() before submit()"
        key = target_key(fire.target.url)
        target = self._targets.get(key)
        if target is None:
            target = self._targets[key] = _Target(key)
        lane = LATE if fire.late else ON_TIME
        target.queues[lane].append(_Work(fire, gate, done))
        self.waiting += 1
        if self.waiting >= self._limits.waiting:
            self._full = True
        self._list(target, lane)
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

    # --- whose turn it is ---

    def _list(self, target: _Target, lane: int) -> None:
        """Enter the target into the lane's round, if it has something there to start and is not in it yet."""
        if not target.listed[lane] and target.queues[lane] and self._has_slot(target, lane):
            target.listed[lane] = True
            self._ready[lane].append(target)

    def _has_slot(self, target: _Target, lane: int) -> bool:
        if target.busy >= self._limits.per_target:
            return False
        return lane == ON_TIME or target.busy_late < self._target_late_max

    def _take(self) -> tuple[_Target, _Work] | None:
        """Take the next attempt that may start now, and its slot."""
        if self._draining or self._busy >= self._limits.concurrency:
            return None
        for lane in LANES:
            if lane == LATE and self._busy_late >= self._late_max:
                return None
            target = self._next(lane)
            if target is not None:
                work = target.queues[lane].popleft()
                self._count(target, work.fire, 1)
                self._list(target, lane)
                self._left_queue()
                return target, work
        return None

    def _next(self, lane: int) -> _Target | None:
        """Pass over targets whose last slot was taken through the other lane; they come back when one is freed."""
        ready = self._ready[lane]
        while ready:
            target = ready.popleft()
            target.listed[lane] = False
            if target.queues[lane] and self._has_slot(target, lane):
                return target
        return None

    def _count(self, target: _Target, fire: Fire, step: int) -> None:
        self._busy += step
        target.busy += step
        if fire.late:
            self._busy_late += step
            target.busy_late += step

    def _left_queue(self) -> None:
        self.waiting -= 1
        if self._full and self.waiting <= self._limits.waiting * 7 // 8:
            self._full = False
            if self.on_room is not None:
                self.on_room()

    def _release(self, target: _Target, fire: Fire) -> None:
        self._count(target, fire, -1)
        for lane in LANES:
            self._list(target, lane)
        if not target.busy and not any(target.queues):
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
        fire = work.fire
        start_ms = self._clock.now_ms()

        async def gate() -> bool:
            nonlocal start_ms
            if not await work.gate(fire):
                return False
            start_ms = self._clock.now_ms()
            return True

        try:
            response = await self._transport.send(self._request(fire, start_ms), gate)
        except Withdrawn:
            return Outcome(OutcomeKind.WITHDRAWN, 0, "", b"", start_ms, start_ms, sent=False)
        except TransportError as error:
            return contract.judge_error(error, start_ms, self._clock.now_ms())
        except Exception:
            # A fault of ours must not lose the outcome: the execution would stay RUNNING until a restart.
            log.exception(
                "the transport failed in a way it does not declare", extra={"id": fire.id}
            )
            return Outcome(OutcomeKind.RETRY, 0, "internal", b"", start_ms, self._clock.now_ms())
        return contract.judge(fire.target, response, start_ms, self._clock.now_ms())

    def _request(self, fire: Fire, now_ms: Ms) -> Request:
        target = fire.target
        return Request(
            method=target.method,
            url=target.url,
            headers=build_headers(fire, now_ms, self._version),
            body=target.body,
            timeout_ms=target.timeout_ms,
            max_redirects=target.max_redirects,
        )


@lru_cache(maxsize=4_096)
def target_key(url: str) -> Key:
    """(scheme, host, port): what shares slots and, later, limits."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or DEFAULT_PORTS.get(parts.scheme, 0)
