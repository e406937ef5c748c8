"""etcd in memory, on the loop's time: the same port, the same session, and everything that may go wrong with it.

    node ─► SimPort ─► request (delay, lost, late) ─► EtcdStore ─► answer (delay, lost) ─► node
                                                        │
            watch ◄── events (delay, stall) ◄───────────╯       timer: leases end

A request is under way by itself: it arrives though whoever sent it has died, or has given up on it. `Life` (the
session's program) is the real one, driven here by a task.

Faults that somebody calls: `down`, `cut`, `heal`, `change_leader`, `end_lease`, `stale_leader`, `compact`,
`stall_watches`. Faults that come by themselves, by the seed: those of `EtcdWeather`; and `storm` calls the others.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from random import Random
from typing import TypeVar

from tests.sim.etcd_store import EtcdStore

from tickwheel.server.cluster import etcd_life as life
from tickwheel.server.cluster.etcd_life import Fault, Life, Reply
from tickwheel.server.cluster.etcd_wire import check
from tickwheel.server.cluster.ports import (
    Batch,
    Change,
    Compare,
    Done,
    Found,
    Held,
    Item,
    Lease,
    LeaseGone,
    Listing,
    OutcomeUnknown,
    Put,
    Refused,
    Registration,
    Reset,
    absent,
)
from tickwheel.server.errors import TickwheelError, Unavailable

T = TypeVar("T")

TIMEOUT_S = 3.0
TRY_S = 1.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class EtcdWeather:
    """What happens by itself. Times are the longest, in seconds; shares are of 1."""

    delay_s: float = 0.002
    slow_share: float = 0.0
    slow_s: float = 1.0
    unknown_share: float = 0.0
    watch_delay_s: float = 0.005
    watch_stall_share: float = 0.0
    watch_stall_s: float = 5.0


def draw_etcd_weather(rng: Random) -> EtcdWeather:
    """A third of the seeds have a calm etcd."""
    if rng.random() < 0.33:
        return EtcdWeather()
    return EtcdWeather(
        delay_s=rng.choice((0.001, 0.01, 0.1)),
        slow_share=rng.choice((0.0, 0.01, 0.1)),
        slow_s=rng.choice((0.5, 2.0, 4.0)),
        unknown_share=rng.choice((0.0, 0.02, 0.2)),
        watch_delay_s=rng.choice((0.001, 0.05, 0.5)),
        watch_stall_share=rng.choice((0.0, 0.02, 0.1)),
    )


class Way(Enum):
    """What becomes of one write's request and answer."""

    FINE = "both arrive"
    NO_REQUEST = "the request is lost"
    NO_ANSWER = "the answer is lost"
    LATE = "the request arrives after its sender gave up"
    RESET = "the connection breaks at once; the request may have arrived"


@dataclass
class Reach:
    """What of a node's traffic gets through."""

    requests: bool = True
    answers: bool = True
    watch_until_s: float = 0.0


@dataclass
class SimMemory:
    """Implements `LeaseMemory`; give the same one to a node's next life."""

    lease: int = 0

    def load(self) -> int:
        return self.lease

    def save(self, lease: int) -> None:
        self.lease = lease


@dataclass
class SimEtcd:
    """The cluster. Make it in, or for, the loop whose time it lives on; `port` gives each node its view."""

    loop: asyncio.AbstractEventLoop
    rng: Random
    weather: EtcdWeather = EtcdWeather()
    store: EtcdStore = field(default_factory=EtcdStore)
    down: bool = False

    def __post_init__(self) -> None:
        self.context = copy_context()
        self._reach: dict[str, Reach] = {}
        self._stale_until_s = 0.0
        self._stale: dict[int, int] = {}
        self._news: dict[asyncio.Event, None] = {}  # in the order they came: a set has none
        self._scan: asyncio.TimerHandle | None = None
        self._leases = 0

    def port(self, node: str) -> "SimPort":
        """What a node sees; a new life of it takes a new one."""
        return SimPort(self, node)

    # --- faults ---

    def cut(self, node: str, *, requests: bool = True, answers: bool = True) -> None:
        """Lose what a node says, what it is told, or both."""
        reach = self.reach(node)
        reach.requests, reach.answers = not requests, not answers

    def heal(self, node: str) -> None:
        """Lose no more of it."""
        reach = self.reach(node)
        reach.requests = reach.answers = True

    def change_leader(self) -> None:
        """Each lease gets its whole time again."""
        self.store.extend_all(self.loop.time())

    def stale_leader(self, for_s: float) -> None:
        """For a while an old leader answers keep-alives that no longer count."""
        self._stale_until_s = self.loop.time() + for_s
        self._stale = {lease: found.ttl_s for lease, found in self.store.leases.items()}

    def end_lease(self, lease: int) -> bool:
        """A lease ends before its time."""
        ended = self.store.revoke(lease)
        self._announce()
        return ended

    def compact(self) -> None:
        """Forget all history before now."""
        if self.store.compacted < self.store.revision:
            self.store.compact(self.store.revision)

    def stall_watches(self, node: str, for_s: float) -> None:
        """A node hears nothing of its watches for a while."""
        self.reach(node).watch_until_s = self.loop.time() + for_s

    def calm(self) -> None:
        """From here on nothing goes wrong by itself, and no watch is late."""
        self.weather = EtcdWeather()
        self._stale_until_s = 0.0
        for reach in self._reach.values():
            reach.watch_until_s = 0.0

    def write(self, key: str, value: bytes) -> None:
        """Somebody else's hand, at once."""
        self.do(lambda: self.store.transact([], [Put(key, value)]))

    async def storm(self, rng: Random, nodes: Sequence[str], for_s: float) -> None:
        """Call faults at random, one after the other, and heal everything at the end."""
        until_s = self.loop.time() + for_s
        while self.loop.time() < until_s:
            await asyncio.sleep(rng.choice((0.05, 0.5, 2.0)) * rng.random())
            await self.strike(rng, rng.choice(nodes))
        for node in nodes:
            self.heal(node)

    async def strike(self, rng: Random, node: str) -> None:
        """One fault, from its beginning to its end."""
        match rng.randrange(8):
            case 0:
                self.down = True
                await asyncio.sleep(rng.choice((0.2, 2.0, 10.0)))
                self.down = False
                self.change_leader()
            case 1:
                one_way = rng.choice(((True, True), (True, False), (False, True)))
                self.cut(node, requests=one_way[0], answers=one_way[1])
                await asyncio.sleep(rng.choice((0.2, 2.0, 8.0)))
                self.heal(node)
            case 2:
                self.change_leader()
            case 3:
                self.stale_leader(rng.choice((0.5, 4.0)))
            case 4 if self.store.leases:
                self.end_lease(rng.choice(sorted(self.store.leases)))
            case 5:
                self.compact()
            case _:
                self.stall_watches(node, rng.choice((0.5, 5.0)))

    # --- for the ports ---

    def reach(self, node: str) -> Reach:
        """What of a node's traffic gets through."""
        return self._reach.setdefault(node, Reach())

    def hears(self, node: str) -> bool:
        """Whether a request of a node arrives now."""
        return not self.down and self.reach(node).requests

    def tells(self, node: str) -> bool:
        """Whether an answer to a node arrives now."""
        return not self.down and self.reach(node).answers

    def delay_s(self) -> float:
        """How long one way takes."""
        slow = self.weather.slow_share and self.rng.random() < self.weather.slow_share
        return self.rng.random() * (self.weather.slow_s if slow else self.weather.delay_s)

    def draw_way(self) -> Way:
        """What becomes of a write."""
        if self.weather.unknown_share and self.rng.random() < self.weather.unknown_share:
            return self.rng.choice([way for way in Way if way != Way.FINE])
        return Way.FINE

    def do(self, work: Callable[[], T]) -> T:
        """A request has arrived: do it, and let the watches know."""
        revision = self.store.revision
        try:
            return work()
        finally:
            if self.store.revision != revision:
                self._announce()
            self._arm()

    def draw_lease(self) -> int:
        """An id that nobody had."""
        self._leases += 1
        return self._leases << 16 | self.rng.getrandbits(16)

    def renew(self, lease: int) -> int:
        """What a keep-alive is answered; a stale leader answers as if it counted."""
        now_s = self.loop.time()
        if now_s < self._stale_until_s and lease in self._stale:
            return self._stale[lease]
        return self.store.renew(lease, now_s)

    def listen(self, event: asyncio.Event) -> None:
        """Set it whenever something changes."""
        self._news[event] = None

    def forget(self, event: asyncio.Event) -> None:
        """No more."""
        self._news.pop(event, None)

    def _announce(self) -> None:
        for event in self._news:
            event.set()

    def _arm(self) -> None:
        """Look at the leases every quarter of a second, as long as there is one."""
        if self._scan is None and self.store.leases:
            self._scan = self.loop.call_later(0.25, self._expire, context=self.context)

    def _expire(self) -> None:
        self._scan = None
        if not self.down and self.store.expire(self.loop.time(), self.rng):
            self._announce()
        self._arm()


class SimPort:
    """Implements `ports.Etcd` for one life of a node."""

    def __init__(self, etcd: SimEtcd, node: str) -> None:
        self.etcd = etcd
        self.node = node
        self.closed = False
        self._sessions: list[SimSession] = []

    # --- the port ---

    async def get(self, key: str) -> Found | None:
        """See `ports.Etcd`."""
        return await self._read(lambda: self.etcd.store.get(key))

    async def list(self, prefix: str) -> Listing:
        """See `ports.Etcd`."""
        return await self._read(lambda: self.etcd.store.list(prefix))

    async def transact(self, compares: Sequence[Compare], then: Sequence[Change]) -> Done | Refused:
        """See `ports.Etcd`."""
        check(compares, then)
        trip = self._write if then else self._read
        return await trip(lambda: self.etcd.store.transact(compares, then))

    async def grant(self, ttl_s: int) -> Lease:
        """See `ports.Etcd`."""
        lease = self.etcd.draw_lease()
        now_s = self.etcd.loop.time
        granted_s = await self._write(lambda: self.etcd.store.grant(ttl_s, lease, now_s()))
        return Lease(lease, granted_s)

    async def revoke(self, lease: int) -> bool:
        """See `ports.Etcd`."""
        return await self._write(lambda: self.etcd.store.revoke(lease))

    async def watch(
        self, prefix: str, from_revision: int = 0
    ) -> AsyncGenerator[Batch | Reset, None]:
        """See `ports.Etcd`."""
        revision = from_revision
        news = asyncio.Event()
        self.etcd.listen(news)
        try:
            while True:
                if revision == 0:
                    listing = await self._list_patiently(prefix)
                    revision = listing.revision + 1
                    yield Reset(listing)
                news.clear()
                if self.etcd.store.revision < revision:
                    await news.wait()
                await self._hear()
                events = self.etcd.store.events(prefix, revision)
                if events:
                    revision = events[-1].revision + 1
                    yield Batch(events, events[-1].revision)
                else:
                    revision = 0 if events is None else self.etcd.store.revision + 1
        finally:
            self.etcd.forget(news)

    def session(self, registration: Registration) -> "SimSession":
        """See `ports.Etcd`."""
        session = SimSession(self, registration)
        self._sessions.append(session)
        return session

    async def close(self) -> None:
        """See `ports.Etcd`."""
        self.closed = True

    # --- faults ---

    def kill(self) -> None:
        """The process dies: its leases run out, what it sent arrives all the same. Cancel its tasks, too."""
        self.closed = True
        for session in self._sessions:
            session.kill()

    # --- traffic ---

    async def _list_patiently(self, prefix: str) -> Listing:
        while True:
            try:
                return await self.list(prefix)
            except Unavailable:
                if self.closed:
                    raise
                await asyncio.sleep(POLL_S)

    async def _hear(self) -> None:
        """News take their time, and wait while nothing gets through."""
        weather = self.etcd.weather
        rng = self.etcd.rng
        await asyncio.sleep(rng.random() * weather.watch_delay_s)
        if weather.watch_stall_share and rng.random() < weather.watch_stall_share:
            await asyncio.sleep(rng.random() * weather.watch_stall_s)
        while not self._hears_news():
            if self.closed:
                raise Unavailable("closed")
            await asyncio.sleep(POLL_S)

    def _hears_news(self) -> bool:
        late = self.etcd.loop.time() < self.etcd.reach(self.node).watch_until_s
        return self.etcd.tells(self.node) and self.etcd.hears(self.node) and not late

    def send(self, work: Callable[[], T], way: Way = Way.FINE) -> "asyncio.Future[T]":
        """Send a request on its way; the answer comes to the future, or never."""
        loop, context = self.etcd.loop, self.etcd.context
        answer: asyncio.Future[T] = loop.create_future()

        def arrive() -> None:
            if way == Way.NO_REQUEST or not self.etcd.hears(self.node):
                return
            try:
                settle = partial(answer.set_result, self.etcd.do(work))
            except TickwheelError as refused:
                settle = partial(answer.set_exception, refused)
            if way == Way.FINE:
                loop.call_later(self.etcd.delay_s(), deliver, settle, context=context)

        def deliver(settle: Callable[[], None]) -> None:
            if not answer.done() and self.etcd.tells(self.node):
                settle()

        late_s = TIMEOUT_S + self.etcd.rng.random() * 5.0 if way == Way.LATE else 0.0
        loop.call_later(late_s + self.etcd.delay_s(), arrive, context=context)
        return answer

    async def _read(self, work: Callable[[], T]) -> T:
        until_s = self.etcd.loop.time() + TIMEOUT_S
        while self.etcd.loop.time() < until_s and not self.closed:
            try:
                async with asyncio.timeout(TRY_S):
                    return await self.send(work)
            except TimeoutError:
                continue
        raise Unavailable("no answer", reason="ETCD_UNAVAILABLE")

    async def _write(self, work: Callable[[], T]) -> T:
        until_s = self.etcd.loop.time() + TIMEOUT_S
        while not self.etcd.hears(self.node) and self.etcd.rng.random() < 0.9:
            if (
                self.etcd.loop.time() >= until_s or self.closed
            ):  # no connection: known, and tried again
                raise Unavailable("no connection", reason="ETCD_UNAVAILABLE")
            await asyncio.sleep(POLL_S)
        if self.closed:
            raise Unavailable("closed", reason="ETCD_CLOSED")
        way = self.etcd.draw_way()
        answer = self.send(work, way)
        if way == Way.RESET:
            await asyncio.sleep(self.etcd.delay_s())
            raise OutcomeUnknown("the connection broke")
        try:
            async with asyncio.timeout_at(until_s):
                return await answer
        except TimeoutError:
            raise OutcomeUnknown("no answer") from None


class SimSession:
    """Implements `ports.Session`: the real `Life`, driven by a task instead of a thread."""

    def __init__(self, port: SimPort, registration: Registration) -> None:
        self._port = port
        self._etcd = port.etcd
        self._registration = registration
        self._held: Held | None = None
        self._life = Life(registration, registration.memory.load(), self._etcd.draw_lease)
        self._try_s = registration.ttl_s / 4
        self._task = self._etcd.loop.create_task(self._run())

    @property
    def held(self) -> Held | None:
        """See `ports.Session`."""
        return self._held

    @property
    def deadline_ms(self) -> int:
        """See `ports.Session`."""
        return self._life.deadline_ms

    async def close(self) -> None:
        """See `ports.Session`."""
        self.kill()
        self._held = None
        if self._life.lease:
            await self._do(life.Revoke(self._life.lease))
            self._life.deadline_ms = 0

    def kill(self) -> None:
        """No more renewals, and no revocation."""
        self._task.cancel()

    async def _run(self) -> None:
        program = self._life.run()
        ask = next(program)
        while True:
            ask = program.send(await self._do(ask))

    def _now_ms(self) -> int:
        return int(self._etcd.loop.time() * 1_000)

    async def _do(self, ask: life.Ask) -> Reply:
        reply = Reply(self._now_ms(), 0)
        try:
            async with asyncio.timeout(self._try_s if not isinstance(ask, life.Pause) else None):
                reply = await self._perform(ask, reply)
        except TimeoutError:
            reply = reply._replace(fault=Fault.FAILED)
        except LeaseGone:
            reply = reply._replace(fault=Fault.LEASE_GONE)
        return reply._replace(now_ms=self._now_ms())

    async def _perform(self, ask: life.Ask, reply: Reply) -> Reply:
        store, now_s, way = self._etcd.store, self._etcd.loop.time, self._etcd.draw_way
        send = self._port.send
        match ask:
            case life.Pause(ms):
                await asyncio.sleep(ms / 1_000)
            case life.Revoke(lease):
                await send(lambda: store.revoke(lease), way())
            case life.Grant(lease, ttl_s):
                granted = send(lambda: store.grant(ttl_s, lease, now_s()), way())
                return reply._replace(ttl_s=await granted)
            case life.Renew(lease):
                return reply._replace(ttl_s=await send(lambda: self._etcd.renew(lease), way()))
            case life.Probe(lease):
                return reply._replace(ttl_s=int(await send(lambda: lease in store.leases)))
            case life.Register():
                registered = send(lambda: self._register(ask), way())
                return reply._replace(item=await registered)
            case _:
                self._note(ask)
        return reply

    def _note(self, ask: life.Ask) -> None:
        match ask:
            case life.Save(lease):
                self._registration.memory.save(lease)
            case life.Gained(held):
                self._held = held
                self._registration.on_held(held)
            case life.Lost(held):
                self._held = None
                self._registration.on_lost(held)
            case _:
                assert isinstance(ask, life.Blocked), ask

    def _register(self, ask: life.Register) -> Item:
        store = self._etcd.store
        store.transact([absent(ask.key)], [Put(ask.key, ask.value, ask.lease)])
        return store.items[ask.key]
