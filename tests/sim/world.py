"""One simulated node and everything around it: disk, stores, target, clock. A seed decides all of it.

    users ──► Node (real) ──► Runner, Shard, Keeper (real) ──► InlineWal on SimDisk · DictStore · Dispatcher (real)
                                                                                                  │
    Ledger ◄── acknowledgements                       arrivals ◄── SimTarget (delays, failures) ◄─╯
    Mirror ◄── what went to the journal, applied again

A *life* is one start of the node until it stops or crashes. A crash abandons the loop in the middle of whatever it did:
the disk loses what was not synced, the stores what was not checkpointed, dispatch and memory everything.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from random import Random
from typing import Any

from prometheus_client import CollectorRegistry
from tests.sim import probes
from tests.sim.disk import PowerCut, SimDisk
from tests.sim.faults import KIB, End, Fate, draw_weather
from tests.sim.ledger import Arrival, Ledger
from tests.sim.loop import VirtualLoop
from tests.sim.mirror import Mirror
from tests.sim.ports import SlowLoop, SlowStore
from tests.sim.store import DictStore

from tickwheel.server import node
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
from tickwheel.server.errors import WalFailed
from tickwheel.server.journal import Journal
from tickwheel.server.metrics import Metrics
from tickwheel.server.model import Ms
from tickwheel.server.record import Record, RecordType, ShardMark
from tickwheel.server.recovery import WalIdentity, WalOptions
from tickwheel.server.shard import Fired
from tickwheel.server.wal import InlineWal

START_MS = 1_800_000_000_000
SHARDS = 3
HOLD_FROM_S, HOLD_UNTIL_S = 0.4, 5.0
"""After a far step forward: the watch looks every 200 ms, then nothing is fired until 5 s after the step."""
BACK_EXCUSES_S = 30.0
"""What was due before a step back may still be on its way for so long."""
CATCH_UP_S = 5.0
LATE_MS = 100


@dataclass
class SimClock:
    """Wall time on the virtual loop's time."""

    loop: VirtualLoop
    offset_ms: int

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
        self._trouble = world.weather.target_trouble

    async def send(self, request: Request, gate: Gate) -> Response:
        rng = self._world.rng
        await asyncio.sleep(rng.choice((0.0, 0.001, 0.02, 0.3)))
        if not await gate():
            raise Withdrawn
        headers = {name.lower(): value for name, value in request.headers}
        self._world.record_arrival(headers)
        await asyncio.sleep(rng.choice((0.0, 0.002, 0.05, 1.5)))
        return self._answer(rng.random(), headers["webhook-id"][:32])

    def _answer(self, chance: float, uid: str) -> Response:
        if chance >= 0.22 * self._trouble:
            return Response(200, {}, b"ok")
        if chance < 0.01:
            self._world.ledger.gone.add(uid)
            return Response(410, {}, b"gone")
        if chance < 0.05:
            return Response(400, {"tickwheel-retry": "no"}, b"never")
        if chance < 0.09:
            raise TransportError(ErrorKind.RESET, sent=True)
        return Response(503, {"retry-after": "1"} if chance < 0.13 else {}, b"busy")

    async def close(self) -> None:
        return None


class World:
    """Builds lives of a node one after the other, over one disk and one set of stores."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.weather = draw_weather(Random(f"{seed}:weather"))
        self.ledger = Ledger()
        self.mirror = Mirror(SHARDS)
        self.marks: Counter[str] = Counter()
        self.disk = SimDisk(Random(f"{seed}:disk"))
        self.stores = [DictStore(number) for number in range(SHARDS)]
        self.now_s: float = 0.0
        self.ended_ms = START_MS
        self.offset_ms = START_MS
        self.life = 0
        self.closing = self.booted = False
        self.wrong: list[str] = []
        self.died: BaseException | None = None
        self.steps: list[tuple[float, Ms]] = []
        self._held: tuple[float, float] | None = None
        self.mutate: Callable[[World, node.Started], None] = lambda _world, _started: None
        self.config = Config(
            data_dir="/simulated",
            shards=SHARDS,
            wal_low_water_bytes=0,
            flush_interval_ms=700,
            checkpoint_interval_ms=2_500,
            wheel_horizon_ms=60_000,
        )
        # Smaller than a real node may be told, so that it fills within seconds.
        object.__setattr__(self.config, "table_bytes_max", self.weather.table_bytes_max)

    # --- a life ---

    def begin(self) -> tuple[VirtualLoop, SimClock]:
        """A fresh loop that goes on where the last one ended."""
        self.life += 1
        self.closing = self.booted = False
        self.died = None
        self._held = None
        self.loop = VirtualLoop(self.now_s, self._stall)
        self.loop.set_exception_handler(self._on_failure)
        self.clock = SimClock(self.loop, self.offset_ms)
        return self.loop, self.clock

    async def boot(self) -> node.Started:
        """Start a node on what the disk and the stores hold."""
        self.dispatcher = Dispatcher(
            SimTarget(self),
            self.clock,
            Limits(16, 8, 64),
            version="sim",
            observe=lambda fire, outcome: probes.count_outcome(self.marks, fire, outcome),
        )
        devices = node.Devices(
            clock=self.clock,
            store=SlowStore(self.loop, self._up_to(self.weather.store_s)),
            dispatch=self.dispatcher,
            open_store=lambda number: self.stores[number],  # type: ignore[arg-type,return-value]
            open_wal=self._open_wal,
        )
        started = await node.start(
            self.config,
            devices,
            Metrics(CollectorRegistry()),
            seed=self.seed * 1000 + self.life,
            on_fatal=self.die,
        )
        self.booted = True
        probes.attach(self, started)
        self.check_state(started)
        self.mutate(self, started)
        return started

    def _open_wal(self) -> tuple[Mapping[int, ShardMark], Iterable[Record], InlineWal]:
        segment_bytes = self.weather.segment_bytes
        options = WalOptions(
            segment_bytes=segment_bytes,
            batch_bytes_max=16 * KIB,
            low_water_bytes=2 * segment_bytes,
        )
        identity = WalIdentity(b"c" * 16, b"s" * 16)
        journal, recovery = Journal.open(self.disk, options, identity, seconds=self.clock.monotonic)
        self.marks["torn tail"] += recovery.dropped_bytes > 0
        slow = SlowLoop(self.loop, self._up_to(self.weather.wal_s))
        wal = InlineWal(journal, slow, self.die)  # type: ignore[arg-type]
        submit = wal.submit

        def noted(records: Sequence[Record]) -> "asyncio.Future[None]":
            self.mirror.note(records)
            return submit(records)

        wal.submit = noted  # type: ignore[method-assign]
        return recovery.shards, self._count_replayed(recovery.records()), wal

    def _count_replayed(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            entry = record.type == RecordType.ENTRY
            self.marks["replayed"] += (
                entry and record.index > self.stores[record.shard].applied.index
            )
            yield record

    def _up_to(self, longest_s: float) -> Callable[[], float]:
        return (lambda: self.rng.random() * longest_s) if longest_s else (lambda: 0.0)

    def _stall(self) -> float:
        share = self.weather.stall_share
        return self.rng.random() * 0.05 if share and self.rng.random() < share else 0.0

    # --- what goes wrong ---

    def die(self, error: BaseException) -> None:
        """The process ends at once; whether it should have is judged by what was injected."""
        if self.died is None:
            self.died = error
            self._judge_death(error)
        self.loop.stop()

    def _judge_death(self, error: BaseException) -> None:
        disk = self.disk
        if isinstance(error, PowerCut):
            self.marks["power cut in a call"] += 1
        elif isinstance(error, WalFailed) and disk.fail_sync_at and disk.syncs >= disk.fail_sync_at:
            self.marks["fsync failed"] += 1
        elif isinstance(error, WalFailed) and disk.left is not None:
            self.marks["journal full"] += 1
        else:
            self.wrong.append(f"fatal: {error!r}")

    def _on_failure(self, _loop: object, context: dict[str, Any]) -> None:
        """A callback raised: only a power cut may do so."""
        error = context.get("exception")
        if isinstance(error, PowerCut):
            self.die(error)
        else:
            self.wrong.append(f"unhandled: {context.get('message')} {error!r}")

    def arm(self, fate: Fate) -> None:
        """Prepare the disk for the end that this life will have."""
        disk = self.disk
        if fate.end in {End.CUT, End.CUT_EARLY}:
            disk.cut_at = disk.steps + fate.at
        elif fate.end == End.SYNC:
            disk.fail_sync_at = disk.syncs + fate.at
        elif fate.end == End.FULL:
            disk.left = self.weather.segment_bytes * (fate.at % 2)

    def crash(self, fate: Fate) -> None:
        """What a dead process or a power cut leaves, and how long nobody comes."""
        self.ended_ms = self.unhandled_since_ms()
        self.now_s = self.loop.now_s + fate.down_s
        self.marks["long outage"] += fate.down_s >= 60
        power = fate.power_too or fate.end in {End.POWER, End.CUT, End.CUT_EARLY}
        if fate.end == End.STOP and self.died is None:
            power = fate.power_too
        self.disk.left = None
        if power:
            self.disk.crash()
        else:
            self.disk.kill()
            self.marks["killed"] += 1
        for store in self.stores:
            store.full = False
            keep_main = not power or self.rng.random() < 0.5
            store.crash(keep_main=keep_main, keep_history=keep_main or self.rng.random() < 0.5)

    def latest_ms(self) -> Ms:
        """What the clock says that is furthest ahead of those by which jobs are decided."""
        return self.clock.now_ms()

    def unhandled_since_ms(self) -> Ms:
        """What fell due from here on may not be handled yet: a moment ago; soon after a start, since a life that caught up."""
        if self.loop.now_s - self.now_s < CATCH_UP_S:
            return self.ended_ms
        return self.clock.now_ms() - LATE_MS

    def step_clock(self, step_ms: int) -> None:
        """Somebody sets the host's clock."""
        now_s = self.loop.now_s
        self.steps.append((now_s, self.clock.now_ms()))
        self.offset_ms += step_ms
        self.clock.offset_ms = self.offset_ms
        self.marks["clock back" if step_ms < 0 else "clock forward"] += 1
        if step_ms >= 60_000:
            self._held = (now_s + HOLD_FROM_S, now_s + HOLD_UNTIL_S)
            self.marks["firing held"] += 1

    # --- observation ---

    @property
    def succeeded(self) -> int:
        """Outcomes that dispatch reported as successes so far."""
        return self.marks["SUCCEEDED"]

    def check_state(self, started: node.Started) -> None:
        """Hold every shard against the log."""
        for slot in started.runner.slots.values():
            self.wrong += self.mirror.check(slot)

    def judge_hold(self, fired: Fired) -> None:
        """Nothing is fired while a far step forward is held."""
        if fired.fires and self._held and self._held[0] < self.loop.now_s < self._held[1]:
            self.wrong.append(f"I2 fired at {self.loop.now_s:.3f} s while the clock's step is held")

    def record_arrival(self, headers: dict[str, str]) -> None:
        """The target saw a request."""
        now_ms = self.clock.now_ms()
        recent = [ms for at_s, ms in self.steps if self.loop.now_s - at_s < BACK_EXCUSES_S]
        self.ledger.arrivals.append(
            Arrival(
                now_ms,
                max(now_ms, *recent) if recent else now_ms,
                headers["webhook-id"].replace("_", ":"),
                headers["tickwheel-job"],
                _ms(headers["tickwheel-scheduled-time"]),
                int(headers["tickwheel-attempt"]),
                int(headers["tickwheel-epoch"]),
                self.life,
            )
        )


def _ms(text: str) -> Ms:
    return round(datetime.fromisoformat(text).timestamp() * 1000)
