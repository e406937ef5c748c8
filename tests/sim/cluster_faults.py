"""What may go wrong in a simulated cluster: its weather, and the strikes that fall on it, at most two at a time.

troublemaker ──► sleep ──► strike a node, a path or etcd ──► wait ──► take it back ──► sleep ──► ...
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING

from tests.sim.etcd import EtcdWeather, draw_etcd_weather
from tests.sim.faults import KIB
from tests.sim.network import NetworkWeather

from tickwheel.server.cluster.registry import node_key

if TYPE_CHECKING:
    from tests.sim.cluster_node import SimNode
    from tests.sim.cluster_world import ClusterWorld

Strike = tuple[str, Callable[[], Awaitable[None]]]
USURP_S = 4.0
STEPS_MS = (-2_500, -400, 1_500, 20_000)


@dataclass(frozen=True, slots=True)
class ClusterWeather:
    """One seed's world. Delays are the longest, in seconds."""

    nodes: int
    shards: int
    wal_s: float
    store_s: float
    segment_bytes: int
    tail_bytes: int
    tails_differ: bool
    skew_ms: int
    clock_steps: bool
    wipes: bool
    target_trouble: float
    troubles: int
    replace_ms: int
    min_copies: int
    pace: int
    quiet_s: float
    network: NetworkWeather
    etcd: EtcdWeather


def draw_cluster_weather(rng: Random) -> ClusterWeather:
    """One seed in eight is calm: what it finds needs no excuse.

    In three of four seeds the nodes look at their timers more seldom, and the end is short: what they do then is mostly
    nothing, and costs half of the time.
    """
    thorough = rng.random() < 0.25
    return ClusterWeather(
        nodes=rng.choice((3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 2, 2, 2, 1, 4, 4, 5)),
        shards=rng.choice((1, 1, 2, 2, 3)),
        wal_s=rng.choice((0.0, 0.002, 0.008, 0.03)),
        store_s=rng.choice((0.0, 0.002, 0.02)),
        segment_bytes=rng.choice((32, 64)) * KIB,
        tail_bytes=rng.choice((64, 2)) * KIB,
        tails_differ=rng.random() < 0.5,
        skew_ms=rng.choice((0, 20, 400)),
        clock_steps=rng.random() < 0.2,
        wipes=rng.random() < 0.3,
        target_trouble=rng.choice((0.0, 1.0)),
        troubles=rng.choice((0, 1, 1, 1, 2, 2, 2, 2)),
        replace_ms=rng.choice((2_000, 300_000)),
        min_copies=rng.choice((1, 2)),
        pace=1 if thorough else 4,
        quiet_s=22.0 if thorough else 8.0,
        network=NetworkWeather(
            delay_s=rng.choice(((0.000_2, 0.001), (0.001, 0.01), (0.001, 0.08))),
            loss=rng.choice((0.0, 0.0, 0.001, 0.01)),
            copy_s=rng.choice((0.0, 4.0)),
        ),
        etcd=draw_etcd_weather(rng),
    )


class Trouble:
    """One source of strikes; give two of them the same world, and strikes overlap."""

    def __init__(self, world: "ClusterWorld", rng: Random) -> None:
        self._world = world
        self._rng = rng
        self._strikes = self._node_strikes() + self._world_strikes()

    def _node_strikes(self) -> list[Strike]:
        once: list[Strike] = [
            ("stop", self._stop),
            ("fsync", self._fsync),
            ("cut in a call", self._cut_in_call),
            ("disk full", self._full),
            ("drain", self._drain),
            ("move", self._move),
            ("move", self._move),
            ("evict", self._evict),
            ("evict", self._evict),
            ("late acks", self._late_acks),
            ("hasty", self._hasty),
            ("usurp", self._usurp),
            ("stall", self._stall),
        ]
        if self._world.weather.clock_steps:
            once.append(("clock", self._clock))
        if self._world.weather.wipes:
            once.append(("wipe", self._wipe))
        often: list[Strike] = [("kill", self._kill), ("pause", self._pause), ("power", self._power)]
        return often * 3 + once

    def _world_strikes(self) -> list[Strike]:
        return [
            ("isolate", self._isolate),
            ("isolate", self._isolate),
            ("path", self._path),
            ("path", self._path),
            ("reset", self._reset),
            ("etcd", self._etcd),
            ("etcd", self._etcd),
            ("doubt", self._doubt),
        ]

    async def run(self) -> None:
        """Until cancelled; a strike is always taken back."""
        rng = self._rng
        while True:
            await asyncio.sleep(rng.choice((0.1, 1.0, 4.0)) * rng.random())
            name, strike = rng.choice(self._strikes)
            self._world.marks[f"strike: {name}"] += 1
            await strike()

    # --- nodes ---

    def _pick(self) -> "SimNode | None":
        """A node that nothing else happens to; more often than not one that leads."""
        free = [node for node in self._world.nodes if node.running and not node.struck]
        leaders = [node for node in free if node.leads()]
        if leaders and self._rng.random() < 0.6:
            free = leaders
        return self._rng.choice(free) if free else None

    async def _down(self, *, power: bool) -> None:
        node = self._pick()
        if node is None:
            return
        self._world.tell(f"{'power cut' if power else 'kill'} {node.name}")
        node.kept_down += 1
        node.crash(power=power)
        try:
            await asyncio.sleep(self._rng.choice((0.1, 0.5, 2.0, 6.0)))
        finally:
            self._world.let_up(node)

    async def _kill(self) -> None:
        await self._down(power=False)

    async def _power(self) -> None:
        await self._down(power=True)

    async def _pause(self) -> None:
        node = self._pick()
        if node is None:
            return
        self._world.tell(f"pause {node.name}")
        node.struck = True
        node.pause()
        try:
            await asyncio.sleep(self._rng.choice((0.1, 0.9, 1.5, 3.0, 6.0)))
        finally:
            node.struck = False
            self._world.tell(f"resume {node.name}")
            node.resume()

    async def _evict(self) -> None:
        """A leader that lives loses its session, and learns of it late: its right to act is all that it has."""
        world, rng, node = self._world, self._rng, self._pick()
        if node is None:
            return
        world.tell(f"evict {node.name}")
        self._end_session(node)
        if rng.random() < 0.5:
            node.struck = True
            node.pause()
        else:
            self._cut_off(node, "both", etcd=True)
        try:
            await asyncio.sleep(rng.choice((0.2, 0.5, 0.8, 1.5)))
        finally:
            node.struck = False
            node.resume()
            world.heal_paths()

    async def _late_acks(self) -> None:
        """What a leader is told arrives when it goes on after a pause, and somebody else leads by then."""
        world, node = self._world, self._pick()
        if node is None:
            return
        world.tell(f"late acks for {node.name}")
        node.struck = True
        try:
            self._cut_off(node, "in", etcd=False)
            await asyncio.sleep(self._rng.choice((0.1, 0.3, 0.5)))
            node.pause()
            self._end_session(node)
            world.heal_paths()
            await asyncio.sleep(self._rng.choice((1.2, 1.6, 2.5)))
        finally:
            node.struck = False
            node.resume()
            world.heal_paths()

    async def _hasty(self) -> None:
        """A voter dies and is back at once, while a leader that rests on its word loses its session, not its way to it."""
        world, rng = self._world, self._rng
        leaders = [
            node for node in world.nodes if node.running and not node.struck and node.leads()
        ]
        others = [node for node in world.nodes if node.running and not node.struck]
        if not leaders or len(others) < 2:
            return
        leader = rng.choice(leaders)
        voter = rng.choice([node for node in others if node is not leader])
        world.tell(f"hasty {voter.name}, and {leader.name} leads")
        try:
            for other in world.nodes:
                if other not in {leader, voter}:
                    self._block(leader, other, "both")
            await asyncio.sleep(rng.choice((0.0, 1.05, 1.3)))
            world.etcd.cut(leader.name)
            self._end_session(leader)
            voter.kept_down += 1
            voter.crash(power=rng.random() < 0.3)
            await asyncio.sleep(0.02)
            world.let_up(voter)
            await asyncio.sleep(rng.choice((0.8, 1.5)))
        finally:
            world.heal_paths()

    async def _usurp(self) -> None:
        """Who leads since a moment ago is cut off at once and loses its session: it has said nothing of it to anybody."""
        world, leader = self._world, self._pick()
        if leader is None or not leader.leads():
            return
        begun = len(world.log.leaders)
        world.tell(f"usurp {leader.name}")
        try:
            self._end_session(leader)
            self._cut_off(leader, "both", etcd=True)
            async with asyncio.timeout(USURP_S):
                while len(world.log.leaders) == begun:  # noqa: ASYNC110 - bounded
                    await asyncio.sleep(0.001)
            world.heal_paths()
            fresh = [*world.log.leaders.values()][-1]
            for node in world.nodes:
                if node.id == fresh and node is not leader:
                    self._cut_off(node, "both", etcd=True)
                    self._end_session(node)
            await asyncio.sleep(self._rng.choice((0.8, 1.2)))
        except TimeoutError:
            pass
        finally:
            world.heal_paths()

    def _end_session(self, node: "SimNode") -> None:
        item = self._world.etcd.store.items.get(node_key(node.id))
        if item is not None:
            self._world.etcd.end_lease(item.lease)

    async def _stall(self) -> None:
        """A disk answers late, but answers; often the node dies meanwhile."""
        node, rng = self._pick(), self._rng
        if node is None:
            return
        self._world.tell(f"the disk of {node.name} stalls")
        node.stall_s = rng.choice((0.3, 1.2, 3.0))
        try:
            await asyncio.sleep(rng.choice((0.9, 1.8)))
            if rng.random() < 0.5:
                node.crash(power=rng.random() < 0.5)
        finally:
            node.stall_s = 0.0

    async def _stop(self) -> None:
        node = self._pick()
        if node is None:
            return
        self._world.tell(f"stop {node.name}")
        node.struck = True
        node.kept_down += 1
        try:
            await node.stop()
            await asyncio.sleep(self._rng.choice((0.1, 2.0)))
        finally:
            node.struck = False
            self._world.let_up(node)

    async def _fsync(self) -> None:
        node = self._pick()
        if node is not None:
            node.disk.fail_sync_at = node.disk.syncs + self._rng.randint(1, 20)
            self._world.tell(f"an fsync of {node.name} will fail")

    async def _cut_in_call(self) -> None:
        node = self._pick()
        if node is not None:
            node.disk.cut_at = node.disk.steps + self._rng.randint(1, 40)
            self._world.tell(f"the power of {node.name} will fail")

    async def _full(self) -> None:
        node = self._pick()
        if node is None:
            return
        self._world.tell(f"the disk of {node.name} is full")
        node.disk.left = 0
        await asyncio.sleep(self._rng.choice((1.0, 8.0)))
        node.disk.left = None

    async def _clock(self) -> None:
        node = self._pick()
        if node is not None:
            self._world.step_clock(node, self._rng.choice(STEPS_MS))

    async def _wipe(self) -> None:
        """One disk is lost, while the others hold everything."""
        world, node = self._world, self._pick()
        if node is None or not world.can_spare(node):
            return
        world.tell(f"wipe {node.name}")
        world.wiped = True
        node.kept_down += 1
        node.crash(power=True)
        node.wipe()
        await asyncio.sleep(self._rng.choice((0.1, 4.0)))
        world.let_up(node)

    # --- what operators do ---

    async def _drain(self) -> None:
        world, node, by = self._world, self._pick(), self._pick()
        if node is None or by is None:
            return
        world.tell(f"drain {node.name}")
        world.drained.add(node.id)
        await world.command(by, lambda control: control.drain(node.id, undo=False))
        await asyncio.sleep(self._rng.choice((0.5, 5.0)))

    async def _move(self) -> None:
        world, by = self._world, self._pick()
        if by is None or by.node is None or not by.node.view.shards:
            return
        shard = self._rng.choice(sorted(by.node.view.shards))
        to = self._rng.choice(by.node.view.shards[shard].record.voters)
        world.tell(f"move shard {shard} to {to[:4]}")
        await world.command(by, lambda control: control.move(shard, to, 0))

    # --- paths ---

    async def _isolate(self) -> None:
        """A node hears nobody, is heard by nobody, or both; perhaps etcd is beyond, too."""
        world, rng, node = self._world, self._rng, self._rng.choice(self._world.nodes)
        ways = rng.choice(("in", "out", "both", "both"))
        etcd = rng.choice((False, True))
        world.tell(f"isolate {node.name} {ways} {'and from etcd' if etcd else ''}")
        self._cut_off(node, ways, etcd=etcd)
        await asyncio.sleep(rng.choice((0.3, 1.5, 4.0, 9.0)))
        world.heal_paths()

    def _cut_off(self, node: "SimNode", ways: str, *, etcd: bool) -> None:
        for other in self._world.nodes:
            if other is not node:
                self._block(node, other, ways)
        if etcd:
            self._world.etcd.cut(node.name, requests=ways != "in", answers=ways != "out")

    async def _path(self) -> None:
        world, rng = self._world, self._rng
        one, other = rng.choice(world.nodes), rng.choice(world.nodes)
        if one is other:
            return
        ways = rng.choice(("in", "out", "both"))
        world.tell(f"block {one.name} {ways} {other.name}")
        self._block(one, other, ways)
        await asyncio.sleep(rng.choice((0.3, 2.0, 8.0)))
        world.heal_paths()

    def _block(self, node: "SimNode", other: "SimNode", ways: str) -> None:
        network = self._world.network
        if ways != "in":
            network.block(node.address, other.address)
        if ways != "out":
            network.block(other.address, node.address)

    async def _reset(self) -> None:
        nodes = self._world.nodes
        self._world.network.cut(self._rng.choice(nodes).address, self._rng.choice(nodes).address)

    async def _etcd(self) -> None:
        self._world.tell("etcd")
        await self._world.etcd.strike(self._rng, self._rng.choice(self._world.nodes).name)

    async def _doubt(self) -> None:
        """For a while nobody knows what became of a transaction."""
        etcd, weather = self._world.etcd, self._world.etcd.weather
        self._world.tell("doubt")
        etcd.weather = replace(weather, unknown_share=0.5)
        try:
            await asyncio.sleep(self._rng.choice((2.0, 6.0)))
        finally:
            etcd.weather = weather
