"""What a campaign sees of the cluster while it does harm: who leads what, is it served, and since when.

Every node is asked for its map again and again. A shard is served when the node that leads it by the newest map of all
says itself, a moment ago, that it serves it at that epoch. So neither a dead node nor a stale map counts.
"""

import asyncio
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import grpc
import grpc.aio
from bench import calls
from bench.cluster import ClusterNode

from tickwheel.v1.cluster_service_pb2 import Cluster as Map
from tickwheel.v1.cluster_service_pb2 import GetClusterRequest, ShardState
from tickwheel.v1.cluster_service_pb2_grpc import ClusterServiceStub

ASK_S = 0.1
ANSWER_S = 2.0
FRESH_MS = 1_000
_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.use_local_subchannel_pool", 1),
]


class Seen(NamedTuple):
    """A node's map, and when it was asked for it."""

    at_ms: int
    map: Map


class Led(NamedTuple):
    """By whom (a host), at which epoch."""

    epoch: int
    host: str


class Changed(NamedTuple):
    """A shard has another leader: not yet at `before_ms`, already at `seen_ms`."""

    shard: int
    before_ms: int
    seen_ms: int
    epoch: int


@dataclass(slots=True)
class Watch:
    """Asks while `run` runs."""

    nodes: list[ClusterNode]
    replicas: int = 3
    seen: dict[str, Seen | None] = field(default_factory=dict[str, Seen | None])
    led: dict[int, Led] = field(default_factory=dict[int, Led])
    changes: list[Changed] = field(default_factory=list[Changed])
    looks: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """When it looked, and how many shards were not served."""

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for node in self.nodes:
                tasks.create_task(self._ask(node))
            tasks.create_task(self._look())

    async def _ask(self, node: ClusterNode) -> None:
        async with grpc.aio.insecure_channel(node.target, options=_OPTIONS) as channel:
            stub: Any = ClusterServiceStub(channel)
            while True:
                at_ms = calls.now_ms()
                try:
                    shown = await stub.GetCluster(GetClusterRequest(), timeout=ANSWER_S)
                    self.seen[node.name] = Seen(at_ms, shown)
                    self._learn(shown)
                except grpc.aio.AioRpcError:
                    self.seen[node.name] = None
                await asyncio.sleep(ASK_S)

    def _learn(self, shown: Map) -> None:
        hosts = {node.name: node.host for node in shown.nodes}
        now_ms = calls.now_ms()
        for shard in shown.shards:
            known = self.led.get(shard.number)
            host = hosts.get(shard.leader, "")
            if known is None or shard.epoch > known.epoch:
                self.led[shard.number] = Led(shard.epoch, host)
                if known is not None:
                    before_ms = self.looks[-1][0] if self.looks else now_ms
                    self.changes.append(Changed(shard.number, before_ms, now_ms, shard.epoch))
            elif host and shard.epoch == known.epoch and not known.host:
                self.led[shard.number] = Led(shard.epoch, host)

    async def _look(self) -> None:
        while True:
            self.looks.append((calls.now_ms(), len(self.unserved())))
            await asyncio.sleep(ASK_S / 2)

    # --- questions ---

    def fresh(self, host: str) -> Map | None:
        """A node's map, if it answered a moment ago."""
        seen = self.seen.get(host)
        if seen is None or calls.now_ms() - seen.at_ms > FRESH_MS:
            return None
        return seen.map

    def unserved(self) -> set[int]:
        """The shards that nobody serves, as far as one can tell from here."""
        served: set[int] = set()
        for node in self.nodes:
            shown = self.fresh(node.name)
            if shown is None:
                continue
            me = {n.name for n in shown.nodes if n.host == node.name}
            served |= {
                s.number
                for s in shown.shards
                if s.leader in me
                and s.state in (ShardState.SHARD_STATE_SERVING, ShardState.SHARD_STATE_MOVING)
                and s.epoch == self.led[s.number].epoch
            }
        return set(self.led) - served

    def lacking(self) -> list[str]:
        """What is missing until the cluster is whole: all answer, all agree, every shard has all its living voters."""
        lacks = [f"shard {number} is not served" for number in sorted(self.unserved())]
        newest = max((s.map.revision for s in self.seen.values() if s), default=0)
        for node in self.nodes:
            shown = self.fresh(node.name)
            if shown is None:
                lacks.append(f"{node.name} does not answer")
                continue
            if shown.revision < newest:
                lacks.append(f"{node.name} is at revision {shown.revision}, not {newest}")
            alive = {n.name for n in shown.nodes if n.alive}
            if len(alive) != len(self.nodes):
                lacks.append(f"{node.name} sees {len(alive)} nodes")
            lacks += [
                f"{node.name}: shard {s.number} has {len(alive & set(s.voters))} of {len(s.voters)} voters"
                for s in shown.shards
                if len(alive & set(s.voters)) != self.replicas or len(s.voters) != self.replicas
            ]
        return lacks

    async def whole(self, timeout_s: float) -> None:
        """Wait until nothing lacks. Raises TimeoutError that names what does."""
        until = time.monotonic() + timeout_s
        since = calls.now_ms()
        while True:
            lacks = self.lacking()
            if not lacks and self._answered_since(since):
                return
            if time.monotonic() > until:
                raise TimeoutError("; ".join(lacks[:8]))
            await asyncio.sleep(ASK_S / 2)

    def _answered_since(self, at_ms: int) -> bool:
        return all(seen is not None and seen.at_ms >= at_ms for seen in self.seen.values())

    async def until_served(self, timeout_s: float) -> bool:
        """Whether every shard is served within this time, by those who are left."""
        until = time.monotonic() + timeout_s
        await asyncio.sleep(FRESH_MS / 1_000)
        while self.unserved():
            if time.monotonic() > until:
                return False
            await asyncio.sleep(ASK_S / 2)
        return True

    def leads(self) -> dict[str, list[int]]:
        """The shards of each host."""
        found: dict[str, list[int]] = {node.name: [] for node in self.nodes}
        for number, led in self.led.items():
            found.setdefault(led.host, []).append(number)
        return found

    def served_again_ms(self, start_ms: int, end_ms: int) -> int:
        """When all were served for good between two moments; the first if they always were."""
        looks = [(at, count) for at, count in self.looks if start_ms <= at <= end_ms]
        last_bad = max((at for at, count in looks if count), default=0)
        if not last_bad:
            return start_ms
        return min((at for at, _ in looks if at > last_bad), default=end_ms)

    def unserved_ms(self, start_ms: int, end_ms: int) -> int:
        """For how long, between two moments, some shard was not served."""
        looks = [(at, count) for at, count in self.looks if start_ms <= at <= end_ms]
        return sum(after[0] - at for (at, count), after in pairwise(looks) if count)
