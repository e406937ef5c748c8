"""One node of a simulated cluster: its disk and stores, which outlive it, and its lives, one after the other.

up ──kill, power cut, failed fsync──► dead ──(the supervisor, unless it is kept down)──► up
up ──stop in order──► dead            up ──pause──► held ──resume──► up
wipe: the disk and the stores are new, and so is the name
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from tests.sim.disk import PowerCut, SimDisk
from tests.sim.etcd import SimMemory, SimPort
from tests.sim.faults import KIB
from tests.sim.lives import Life, LifeLoop
from tests.sim.network import SimPeers
from tests.sim.ports import SlowLoop, SlowStore
from tests.sim.shelves import DictShelves
from tests.sim.store import DictStore
from tests.sim.target import SimTarget

from tickwheel.server.cluster import member
from tickwheel.server.cluster.health import Health
from tickwheel.server.cluster.peer_hello import Identity
from tickwheel.server.cluster.peer_port import Forwarded, Owner, Peers, SnapshotFiles
from tickwheel.server.cluster.registry import MetaRecord, NodeRecord
from tickwheel.server.clustered import ClusterDevices, ClusterNode
from tickwheel.server.config import Config
from tickwheel.server.dispatch.dispatcher import Dispatcher, Limits
from tickwheel.server.errors import Fatal, TickwheelError, WalFailed
from tickwheel.server.journal import Journal
from tickwheel.server.message import NodeId
from tickwheel.server.metrics import Metrics
from tickwheel.server.model import Ms
from tickwheel.server.node import Devices
from tickwheel.server.record import Record, ShardMark
from tickwheel.server.recovery import WalIdentity, WalOptions
from tickwheel.server.wal import InlineWal

if TYPE_CHECKING:
    from tests.sim.cluster_world import ClusterWorld

CLUSTER = "c" * 32
TTL_S = 3
DRAIN_MS = 3_000
STOP_S = 60.0
BOOT_RETRY_S = 0.5
TAIL_BYTES = 64 * KIB


@dataclass
class HostClock:
    """A host's clocks: its wall is off by so much, its boot clock a little fast or slow."""

    loop: LifeLoop
    offset_ms: int
    rate: float = 1.0

    def now_ms(self) -> Ms:
        return self.offset_ms + int(self.loop.now_s * 1000)

    def monotonic_ms(self) -> Ms:
        return int(self.loop.now_s * 1000 * self.rate)

    def monotonic(self) -> float:
        return self.loop.now_s


class SimNode:
    """A machine with a disk, and the process that runs on it, if one does."""

    def __init__(self, world: "ClusterWorld", number: int, clock: HostClock) -> None:
        self.world = world
        self.number = number
        self.name = f"n{number}"
        self.address = f"{self.name}:1"
        self.clock = clock
        self.lives = 0
        self.kept_down = 0
        self.struck = False
        self.stall_s = 0.0
        self.node: ClusterNode | None = None
        self.life: Life | None = None
        self._rng = Random(f"{world.seed}:{self.name}")
        self._make_empty(0)

    def _make_empty(self, generation: int) -> None:
        self.generation = generation
        self.id: NodeId = f"{self.number + 1:02x}{generation:02x}" * 8
        self.disk = SimDisk(Random(f"{self.world.seed}:{self.name}:{generation}:disk"))
        self.stores: dict[int, DictStore] = {}
        self.memory = SimMemory()
        self.shelves = DictShelves(self.stores, self.world.scratch / self.name)
        self._port: SimPort | None = None
        self._peers: SimPeers | None = None

    @property
    def up(self) -> bool:
        """True while the process serves, though it may be paused."""
        return self.node is not None and self.life is not None and self.life.alive

    @property
    def running(self) -> bool:
        """True while it does, and is not paused."""
        return self.up and self.life is not None and not self.life.paused

    # --- starting ---

    def boot(self) -> None:
        """Begin a life."""
        assert self.life is None or not self.life.alive
        self.lives += 1
        self.life = Life(self.world.loop, f"{self.name}.{self.lives}")
        self.life.spawn(self._live(self.life))

    async def _live(self, life: Life) -> None:
        try:
            await self._start()
        except (PowerCut, Fatal) as error:
            self.die(error)
        except TickwheelError as error:  # the process ends, and is started again
            self.world.marks[f"start: {error.reason}"] += 1
            self._end(life)

    async def _start(self) -> None:
        world = self.world
        port = self._port = world.etcd.port(self.name)
        meta = await member.join(port, MetaRecord(CLUSTER, world.shards, world.replicas))
        self.dispatcher = Dispatcher(
            SimTarget(world, self), self.clock, Limits(16, 8, 64), version="sim"
        )
        health = Health(self.clock.monotonic_ms)
        node = ClusterNode(
            self._config(),
            Devices(
                clock=self.clock,
                store=SlowStore(world.loop, self._up_to(world.weather.store_s)),
                dispatch=self.dispatcher,
                open_store=self._open_store,  # type: ignore[arg-type]
                open_wal=self._open_wal,
            ),
            ClusterDevices(
                etcd=port,
                make_peers=self._make_peers,
                meta=meta,
                myself=member.Self(
                    id=self.id,
                    record=NodeRecord(self.address, "", "", self.name, "", "sim", "sim"),
                    ttl_s=TTL_S,
                    healthy=health.well,
                    memory=self.memory,
                ),
                health=health,
                stored=lambda: sorted(self.stores),
                shelves=self.shelves,
            ),
            Metrics(CollectorRegistry()),
            seed=world.seed * 1000 + self.number * 100 + self.lives,
            on_fatal=self.die,
        )
        world.log.attach(self, node)
        await node.start()
        self.node = node

    def _config(self) -> Config:
        """As everybody's; but one node in two may remember more of its logs than others."""
        config = copy(self.world.config)
        if self.world.weather.tails_differ and self.number % 2:
            object.__setattr__(config, "tail_bytes", TAIL_BYTES)
        return config

    def _open_store(self, number: int) -> DictStore:
        if number not in self.stores:
            self.stores[number] = DictStore(number)
        return self.stores[number]

    def _open_wal(self) -> tuple[Mapping[int, ShardMark], Iterable[Record], InlineWal]:
        segment_bytes = self.world.weather.segment_bytes
        options = WalOptions(
            segment_bytes=segment_bytes,
            batch_bytes_max=16 * KIB,
            low_water_bytes=2 * segment_bytes,
        )
        identity = WalIdentity(bytes.fromhex(CLUSTER), bytes.fromhex(self.id))
        journal, recovery = Journal.open(self.disk, options, identity, seconds=self.clock.monotonic)
        self.world.marks["torn tail"] += recovery.dropped_bytes > 0
        write_s = self._up_to(self.world.weather.wal_s)
        slow = SlowLoop(self.world.loop, lambda: self.stall_s or write_s())
        self.world.log.watch_journal(self.id, journal)
        wal = InlineWal(journal, slow, self.die)  # type: ignore[arg-type]
        return recovery.shards, list(recovery.records()), wal

    def _up_to(self, longest_s: float) -> Callable[[], float]:
        return (lambda: self._rng.random() * longest_s) if longest_s else (lambda: 0.0)

    # --- the network reaches the process in its own turns ---

    async def _make_peers(self, owner: Owner) -> Peers:
        life = self.life
        assert life is not None

        async def on_forward(call: Forwarded) -> bytes:
            return await life.ask(_awaited(owner.on_forward(call)))

        async def open_snapshot(shard: int) -> SnapshotFiles:
            return await life.ask(_awaited(owner.open_snapshot(shard)))

        inside = Owner(
            on_messages=lambda sender, session, messages: life.enter(
                owner.on_messages, sender, session, messages
            ),
            on_connected=lambda peer: life.enter(owner.on_connected, peer),
            on_disconnected=lambda peer: life.enter(owner.on_disconnected, peer),
            on_forward=on_forward,
            open_snapshot=open_snapshot,
        )
        peers = self.world.network.join(self.address, Identity(CLUSTER, self.id), inside)
        self._peers = peers
        self.world.log.watch_peers(self.id, peers)
        return peers

    # --- ending ---

    def die(self, error: BaseException) -> None:
        """The process ends at once; whether it should have is judged by what was injected."""
        if self.life is None or not self.life.alive:
            return
        disk = self.disk
        power = isinstance(error, PowerCut)
        if power:
            self.world.marks["power cut in a call"] += 1
        elif isinstance(error, WalFailed) and disk.fail_sync_at and disk.syncs >= disk.fail_sync_at:
            self.world.marks["fsync failed"] += 1
        elif isinstance(error, WalFailed) and disk.left is not None:
            self.world.marks["journal full"] += 1
            disk.left = None
        else:
            self.world.blame(f"fatal on {self.life.name}: {error!r}")
        self.crash(power=power or self._rng.random() < 0.3)

    def crash(self, *, power: bool) -> None:
        """What a dead process or a power cut leaves."""
        if self.life is None or not self.life.alive:
            return
        self._end(self.life)
        self.disk.left = None
        if power:
            self.disk.crash()
        else:
            self.disk.kill()
        for number in sorted(self.stores):
            keep_main = not power or self._rng.random() < 0.5
            keep_history = keep_main or self._rng.random() < 0.5
            self.stores[number].crash(keep_main=keep_main, keep_history=keep_history)

    def _end(self, life: Life) -> None:
        life.end()
        self.node = None
        self.world.tell(f"{life.name} is gone")
        if self._peers is not None:
            self._peers.crash()
        if self._port is not None:
            self._port.kill()
        self.world.when_dead(self)

    def wipe(self) -> None:
        """The machine is set up anew."""
        assert self.life is None or not self.life.alive
        self._make_empty(self.generation + 1)

    async def stop(self) -> None:
        """As the application does it, in bounded time; goes on even if nobody waits for it any more."""
        await asyncio.shield(asyncio.ensure_future(self._stop_in_time()))

    async def _stop_in_time(self) -> None:
        life = self.life
        if life is None or not self.up:
            return
        stopping = life.spawn(self._stop())
        await asyncio.wait([stopping], timeout=STOP_S)
        if not life.alive:
            return
        if not stopping.done():
            self.world.blame(f"{life.name} does not stop")
        elif stopping.exception() is not None:
            self.world.blame(f"{life.name} fails to stop: {stopping.exception()!r}")
        self._end(life)

    async def _stop(self) -> None:
        node, port = self.node, self._port
        assert node is not None
        assert port is not None
        node.runner.stop_firing()
        await self.dispatcher.drain(DRAIN_MS)
        await node.stop()
        await port.close()
        await node.wal.close()
        for slot in node.slots.values():
            slot.store.close()
        self.world.marks["clean stop"] += 1

    def pause(self) -> None:
        """SIGSTOP."""
        if self.life is not None and self.life.alive:
            self.life.pause()
            self.world.network.pause(self.address)

    def resume(self) -> None:
        """SIGCONT."""
        if self.life is not None and self.life.paused:
            self.life.resume()
            self.world.network.resume(self.address)

    def leads(self) -> Sequence[int]:
        """The shards that it may act for at this moment."""
        node = self.node
        if node is None:
            return ()
        return [number for number in node.runner.slots if node.host.may_act(number)]


async def _awaited(answer: Any) -> Any:
    return await answer
