"""Floor 3. The cluster for the doors: the map, who leads what, forwarding, and what an operator may change.

A change is a record in etcd; who it concerns sees it by the watch and acts. So it survives whoever asked for it.

Must never import: gRPC, protobuf, `runner`, `store`, the doors.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from tickwheel.server.cluster import registry
from tickwheel.server.cluster.host import Host
from tickwheel.server.cluster.peer_port import Peers
from tickwheel.server.cluster.ports import Delete, Etcd, Held, LeaseGone, Put, value_is
from tickwheel.server.cluster.registry import (
    MemberRecord,
    MemberState,
    MetaRecord,
    MoveRecord,
    NodeRecord,
)
from tickwheel.server.cluster.view import View
from tickwheel.server.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    NotLeader,
    TickwheelError,
    Unavailable,
)
from tickwheel.server.logs import get_logger
from tickwheel.server.message import NodeId
from tickwheel.server.ports import Clock
from tickwheel.server.topology import SCATTER, NodeInfo, ShardInfo, Standing, Topology

log = get_logger(__name__)

RETRY_AFTER_MS = 200
FORWARD_S = 30.0
MOVE_S = 20.0


class Control:
    """Implements `topology.ClusterPort`."""

    def __init__(  # noqa: PLR0913 - what it shows and what it reaches
        self, me: NodeId, meta: MetaRecord, view: View, host: Host, *, etcd: Etcd, peers: Peers,
        clock: Clock, led: Callable[[], tuple[int, ...]], held: Callable[[], Held | None],
    ) -> None:  # fmt: skip
        self._me = me
        self._meta = meta
        self._view = view
        self._host = host
        self._etcd = etcd
        self._peers = peers
        self._clock = clock
        self._led = led
        self._held = held
        self._news = asyncio.Event()
        self._shown: Topology | None = None
        self.forwarded = 0
        """Calls that another node was asked to answer, but for its part of a list."""

    # --- the map ---

    @property
    def shard_count(self) -> int:
        """How many shards there are."""
        return self._meta.shards

    def changed(self) -> None:
        """The view is not what it was."""
        self._shown = None
        news, self._news = self._news, asyncio.Event()
        news.set()

    def topology(self) -> Topology:
        """The cluster as this node knows it."""
        view = self._view
        names = sorted({*view.nodes, *view.members})
        return Topology(
            cluster=self._meta.cluster,
            shard_count=self._meta.shards,
            nodes=tuple(self._node(name) for name in names),
            shards=tuple(self._shard(number) for number in sorted(view.shards)),
            revision=view.revision,
            read_ms=self._clock.now_ms(),
        )

    def _node(self, name: NodeId) -> NodeInfo:
        seen = self._view.nodes.get(name)
        record = seen.record if seen else NodeRecord("", "", "", "", "", "", "")
        return NodeInfo(
            name=name, state=self._view.state(name), alive=seen is not None, grpc=record.grpc,
            http=record.http, host=record.host, zone=record.zone, version=record.version,
            tzdata=record.tzdata,
        )  # fmt: skip

    def _shard(self, number: int) -> ShardInfo:
        record = self._view.shards[number].record
        leaderless = self._view.is_leaderless(record)
        standing = Standing.LEADERLESS if leaderless else Standing.SERVING
        if not leaderless and record.leader == self._me and number not in self._led():
            standing = Standing.STARTING
        if not leaderless and number in self._view.moves:
            standing = Standing.MOVING
        leader = "" if leaderless else record.leader
        return ShardInfo(number, record.epoch, leader, record.voters, record.learners, standing)

    async def watch(self, after_revision: int) -> AsyncIterator[Topology]:
        """The cluster whenever it changed; a slow reader gets the latest only."""
        shown: Topology | None = None
        while True:
            news = self._news
            if self._shown is None:
                self._shown = self.topology()
            found = self._shown
            # A shard that begins to be served here is news, too, though nothing is written for it.
            changed = shown is not None and replace(found, read_ms=shown.read_ms) != shown
            if changed or found.revision > after_revision:
                shown, after_revision = found, found.revision
                yield found
            else:
                await news.wait()

    # --- routing ---

    def led(self) -> tuple[int, ...]:
        """The shards that this node answers for at this moment."""
        return self._led()

    def leader_of(self, shard: int) -> NodeId:
        """Who leads a shard; "" for this node."""
        seen = self._view.shards.get(shard)
        if seen is None or self._view.is_leaderless(seen.record):
            raise NotLeader(
                f"shard {shard} has no leader at this moment",
                reason="LEADERLESS",
                metadata={"shard": str(shard)},
                retry_after_ms=RETRY_AFTER_MS,
            )
        return "" if seen.record.leader == self._me else seen.record.leader

    def others(self) -> tuple[NodeId, ...]:
        """The other nodes that lead something."""
        leaders = {seen.record.leader for seen in self._view.shards.values()}
        return tuple(sorted(leaders - {"", self._me}))

    async def forward(self, node: NodeId, method: str, request: bytes) -> bytes:
        """Have another node answer."""
        self.forwarded += not method.startswith(SCATTER)
        return await self._peers.forward(node, method, request, FORWARD_S)

    # --- changes ---

    async def drain(self, node: NodeId, *, undo: bool) -> NodeInfo:
        """Mark a node as draining, or as active again."""
        if node not in self._view.nodes and node not in self._view.members:
            raise NotFound(f"no node {node!r}", reason="NODE_NOT_FOUND", metadata={"node": node})
        state = MemberState.ACTIVE if undo else MemberState.DRAINING
        others = [n for n in self._view.nodes if n != node and self._view.may_lead(n)]
        if not undo and not others:
            raise FailedPrecondition(
                "there is no other node that could take its shards", reason="NOWHERE_TO_GO"
            )
        key = f"{registry.MEMBERS}{node}"
        await self._etcd.transact([], [Put(key, MemberRecord(state.value).encode())])
        self._view.members[node] = state
        return self._node(node)

    async def move(self, shard: int, node: NodeId, epoch: int) -> ShardInfo:
        """Wish for another leader, and wait until it leads. The wish hangs on this node's lease: it ends with who waits."""
        seen = self._view.shards.get(shard)
        if seen is None:
            raise NotFound(f"no shard {shard}", reason="SHARD_NOT_FOUND")
        if epoch and seen.record.epoch != epoch:
            raise Aborted(
                f"shard {shard} is at epoch {seen.record.epoch}, not {epoch}",
                reason="EPOCH_CHANGED",
            )
        if node not in seen.record.voters or node not in self._view.nodes:
            raise FailedPrecondition(
                f"node {node!r} is no living voter of shard {shard}", reason="NOT_A_VOTER"
            )
        key, wish = f"{registry.MOVES}{shard}", MoveRecord(node).encode()
        await self._wish(key, wish)
        try:
            async with asyncio.timeout(MOVE_S):
                await self._until(lambda: self._leads(shard, node))
        except TimeoutError:
            raise DeadlineExceeded(
                f"shard {shard} is still led by {self._view.shards[shard].record.leader}",
                reason="MOVE_SLOW",
            ) from None
        finally:
            await self._take_back(key, wish)
        return self._shard(shard)

    async def _wish(self, key: str, wish: bytes) -> None:
        """Raises Unavailable, OutcomeUnknown."""
        held = self._held()
        try:
            if held is not None:
                await self._etcd.transact([], [Put(key, wish, held.lease)])
                return
        except LeaseGone:
            pass
        raise Unavailable("this node is not registered in etcd at present", reason="NOT_REGISTERED")

    async def _take_back(self, key: str, wish: bytes) -> None:
        """Wish no more, unless somebody wishes for something else by now. One that stays asks for what is so already."""
        try:
            await self._etcd.transact([value_is(key, wish)], [Delete(key)])
        except TickwheelError as error:
            log.warning("a wish stays in etcd: %s", error, extra={"key": key})

    def _leads(self, shard: int, node: NodeId) -> bool:
        record = self._view.shards[shard].record
        return record.leader == node and not self._view.is_leaderless(record)

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._news.wait()
