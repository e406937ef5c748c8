"""Floor 5. A node that runs alone, as a cluster of one: it leads every shard, and there is nobody to hand one to.

Must never import: the doors.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

from tickwheel.server.errors import FailedPrecondition, Unavailable
from tickwheel.server.model import Ms
from tickwheel.server.slot import Slot
from tickwheel.server.topology import NodeInfo, NodeName, ShardInfo, Standing, Topology


class Alone:
    """Implements `topology.ClusterPort`."""

    def __init__(
        self, cluster: str, me: NodeInfo, slots: dict[int, Slot], now_ms: Callable[[], Ms]
    ) -> None:
        self._cluster = cluster
        self._me = me
        self._slots = slots
        self._now_ms = now_ms

    @property
    def shard_count(self) -> int:
        """How many shards there are."""
        return len(self._slots)

    def topology(self) -> Topology:
        """One node, all shards."""
        name = self._me.name
        shards = tuple(
            ShardInfo(number, slot.shard.epoch, name, (name,), (), Standing.SERVING)
            for number, slot in sorted(self._slots.items())
        )
        return Topology(self._cluster, len(shards), (self._me,), shards, 1, self._now_ms())

    async def watch(self, after_revision: int) -> AsyncIterator[Topology]:
        """The map; it never changes."""
        if after_revision < 1:
            yield self.topology()
        await asyncio.get_running_loop().create_future()

    async def drain(self, node: NodeName, *, undo: bool) -> NodeInfo:
        """Nowhere to go."""
        raise FailedPrecondition(
            f"node {node!r} can't be drained (undo: {undo}): this server runs alone",
            reason="NOWHERE_TO_GO",
        )

    async def move(self, shard: int, node: NodeName, epoch: int) -> ShardInfo:
        """Nowhere to go."""
        raise FailedPrecondition(
            f"shard {shard} (epoch {epoch}) can't be moved to {node!r}: this server runs alone",
            reason="NOWHERE_TO_GO",
        )

    def led(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(self._slots)

    def leader_of(self, shard: int) -> NodeName:
        """This node, whatever the shard."""
        assert shard >= 0
        return ""

    async def forward(self, node: NodeName, method: str, request: bytes) -> bytes:
        """There is nobody."""
        raise Unavailable(
            f"there is no node {node!r} to forward {method} ({len(request)} bytes) to"
        )

    def others(self) -> tuple[NodeName, ...]:
        """Nobody."""
        return ()
