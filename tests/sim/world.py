"""One simulated node and everything around it: disk, stores, target, clock. A seed decides all of it.

    users ──► Node (real) ──► Runner, Shard, Keeper (real) ──► InlineWal on SimDisk · DictStore · Dispatcher (real)
                                                                                                  │
    Ledger ◄── acknowledgements                       arrivals ◄── SimTarget (delays, failures) ◄─╯

A *life* is one start of the node until it stops or crashes. A crash abandons the loop in the middle of whatever it did:
the disk loses what was not synced, the stores what was not checkpointed, dispatch and memory everything.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from random import Random

from prometheus_client import CollectorRegistry
from tests.sim.disk import SimDisk
from tests.sim.ledger import Arrival, Ledger
from tests.sim.loop import VirtualLoop
from tests.sim.store import DictStore

from tickwheel.server import node, schedule
from tickwheel.server.command import Prepared
from tickwheel.server.config import Config
from tickwheel.server.dispatch.dispatcher import Dispatcher, Limits
from tickwheel.server.dispatch.transport import (
    ErrorKind,
    Gate,
    Request,
    Response,
    TransportError,
    Withdrawn,
)
from tickwheel.server.journal import Journal
from tickwheel.server.metrics import Metrics
from tickwheel.server.model import Every, Ms, Once, Window
from tickwheel.server.record import Record
from tickwheel.server.recovery import WalIdentity, WalOptions
from tickwheel.server.store import InlineStore
from tickwheel.server.wal import InlineWal
from tickwheel.v1 import job_pb2

START_MS = 1_800_000_000_000
SHARDS = 3
NAMES = 24


@dataclass
class SimClock:
    """Wall time on the virtual loop's time."""

    loop: VirtualLoop
    offset_ms: int = START_MS

    def now_ms(self) -> Ms:
        return self.offset_ms + int(self.loop.now_s * 1000)

    def monotonic_ms(self) -> Ms:
        return int(self.loop.now_s * 1000)

    def monotonic(self) -> float:
        return self.loop.now_s


class SimTarget:
    """A transport to a target that is slow, fails, and counts."""

    def __init__(self, world: "World") -> None:
        self._world = world

    async def send(self, request: Request, gate: Gate) -> Response:
        rng = self._world.rng
        await asyncio.sleep(rng.choice((0.0, 0.001, 0.02, 0.3)))
        if not await gate():
            raise Withdrawn
        self._world.record_arrival({name.lower(): value for name, value in request.headers})
        await asyncio.sleep(rng.choice((0.0, 0.002, 0.05, 1.5)))
        chance = rng.random()
        if chance < 0.80:
            return Response(200, {}, b"ok")
        if chance < 0.93:
            return Response(503, {"retry-after": "1"} if chance < 0.85 else {}, b"busy")
        if chance < 0.97:
            raise TransportError(ErrorKind.RESET, sent=True)
        return Response(400, {"tickwheel-retry": "no"}, b"never")

    async def close(self) -> None:
        return None


def spec_bytes(once_ms: Ms, period_ms: int, salt: int) -> bytes:
    """The stored form of a small job."""
    target = job_pb2.Job().http_target
    target.url, target.method, target.body = "http://target.test/hook", "POST", b"%d" % salt
    job = job_pb2.Job(http_target=target)
    if once_ms:
        job.schedule.once.scheduled_time.FromMilliseconds(once_ms)
    else:
        job.schedule.every.period.FromMilliseconds(period_ms)
    job.overlap_policy = (
        job_pb2.OVERLAP_POLICY_ALLOW_ALL if once_ms else job_pb2.OVERLAP_POLICY_SKIP
    )
    job.misfire.policy = job_pb2.MISFIRE_POLICY_LATEST
    job.delivery = job_pb2.DELIVERY_AT_LEAST_ONCE
    job.retention.duration.FromSeconds(86_400)
    retry = job.retry_policy
    retry.max_attempts, retry.max_doublings = 4, 4
    retry.min_backoff.FromMilliseconds(200)
    retry.max_backoff.FromMilliseconds(2_000)
    return job.SerializeToString(deterministic=True)


def prepared(once_ms: Ms, period_ms: int, salt: int) -> Prepared:
    """What a door would hand over."""
    spec = spec_bytes(once_ms, period_ms, salt)
    plan = schedule.compile(Once(time_ms=once_ms) if once_ms else Every(period_ms), Window())
    digest = blake2b(spec, digest_size=16).digest()
    return Prepared(spec, digest, plan, once=bool(once_ms), jitter_ms=0, labels="", past_ok=False)


class World:
    """Builds lives of a node one after the other, over one disk and one set of stores."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.ledger = Ledger()
        self.disk = SimDisk(Random(f"{seed}:disk"))
        self.stores = [DictStore(number) for number in range(SHARDS)]
        self.now_s = 0.0
        self.life = 0
        self.fatal: list[BaseException] = []
        self.mutate: Callable[[World, node.Started], None] = lambda _world, _started: None
        self.config = Config(
            data_dir="/simulated",
            shards=SHARDS,
            wal_low_water_bytes=0,
            flush_interval_ms=700,
            checkpoint_interval_ms=2_500,
            wheel_horizon_ms=60_000,
        )

    # --- a life ---

    def begin(self) -> tuple[VirtualLoop, SimClock]:
        """A fresh loop that goes on where the last one ended."""
        self.life += 1
        self.loop = VirtualLoop(self.now_s)
        self.clock = SimClock(self.loop)
        return self.loop, self.clock

    async def boot(self) -> node.Started:
        """Start a node on what the disk and the stores hold."""
        dispatch = Dispatcher(SimTarget(self), self.clock, Limits(16, 8, 64), version="sim")
        devices = node.Devices(
            clock=self.clock,
            store=InlineStore(self.loop),
            dispatch=dispatch,
            open_store=lambda number: self.stores[number],  # type: ignore[arg-type,return-value]
            open_wal=self._open_wal,
        )
        started = await node.start(
            self.config,
            devices,
            Metrics(CollectorRegistry()),
            seed=self.seed * 1000 + self.life,
            on_fatal=self.fatal.append,
        )
        self.mutate(self, started)
        return started

    def _open_wal(self) -> tuple[Iterable[Record], InlineWal]:
        options = WalOptions(segment_bytes=64 * 1024, batch_bytes_max=16 * 1024, low_water_bytes=0)
        identity = WalIdentity(b"c" * 16, b"s" * 16)
        journal, recovery = Journal.open(self.disk, options, identity, seconds=self.clock.monotonic)
        return recovery.records(), InlineWal(journal, self.loop, self.fatal.append)

    def crash(self) -> None:
        """Power off: keep what was synced, and by chance some of the rest."""
        self.now_s = self.loop.now_s + self.rng.choice((0.2, 1.0, 4.0))
        self.disk.crash()
        for store in self.stores:
            keep_main = self.rng.random() < 0.5
            store.crash(keep_main=keep_main, keep_history=keep_main or self.rng.random() < 0.5)

    # --- observation ---

    def record_arrival(self, headers: dict[str, str]) -> None:
        """The target saw a request."""
        self.ledger.arrivals.append(
            Arrival(
                self.clock.now_ms(),
                headers["webhook-id"],
                headers["tickwheel-job"],
                _ms(headers["tickwheel-scheduled-time"]),
                int(headers["tickwheel-attempt"]),
                int(headers["tickwheel-epoch"]),
                self.life,
            )
        )


def _ms(text: str) -> Ms:
    return round(datetime.fromisoformat(text).timestamp() * 1000)
