"""Floor 5. The cluster's own service: the map, once and as it changes; draining, moving.

Must never import: rooms below but `errors`, `topology`; nothing of a transport.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Final

from tickwheel.server.api import limits
from tickwheel.server.api.times import timestamp
from tickwheel.server.errors import InvalidArgument, ResourceExhausted, Violation
from tickwheel.server.topology import ClusterPort, NodeInfo, ShardInfo, Standing, Topology
from tickwheel.v1 import cluster_service_pb2 as pb

_STATES = {
    "active": pb.NODE_STATE_ACTIVE,
    "draining": pb.NODE_STATE_DRAINING,
    "suspect": pb.NODE_STATE_SUSPECT,
    "removed": pb.NODE_STATE_REMOVED,
}
_STANDINGS = {
    Standing.SERVING: pb.SHARD_STATE_SERVING,
    Standing.STARTING: pb.SHARD_STATE_STARTING,
    Standing.MOVING: pb.SHARD_STATE_MOVING,
    Standing.LEADERLESS: pb.SHARD_STATE_LEADERLESS,
}


SPACE_S: Final = 0.05
SPACE_A_WATCHER_S: Final = 0.001
"""Between two maps of one watch: a fail-over changes the map once a shard, and every watcher wants the last one only."""

RETRY_AFTER_MS: Final = 30_000


class ClusterDoor:
    """Requests of `ClusterService`."""

    def __init__(self, cluster: ClusterPort) -> None:
        self._cluster = cluster
        self._watchers = 0
        self._told: tuple[Topology | None, pb.Cluster] = (None, pb.Cluster())

    async def get_cluster(self, _request: pb.GetClusterRequest) -> pb.Cluster:
        """The map."""
        return cluster_message(self._cluster.topology())

    async def watch_cluster(
        self, request: pb.WatchClusterRequest
    ) -> AsyncIterator[pb.WatchClusterResponse]:
        """The map, and again whenever it changed. Raises ResourceExhausted when too many watch."""
        if self._watchers >= limits.WATCHERS_MAX:
            raise ResourceExhausted(
                f"{self._watchers} watch the cluster already; ask for it now and then",
                reason="WATCHERS_MAX",
                retry_after_ms=RETRY_AFTER_MS,
            )
        self._watchers += 1
        try:
            async for topology in self._cluster.watch(request.after_revision):
                yield pb.WatchClusterResponse(cluster=self._message(topology))
                await asyncio.sleep(max(SPACE_S, SPACE_A_WATCHER_S * self._watchers))
        finally:
            self._watchers -= 1

    def _message(self, topology: Topology) -> pb.Cluster:
        """All watchers are told the same, made once."""
        known, message = self._told
        if known is not topology:
            message = cluster_message(topology)
            self._told = topology, message
        return message

    async def drain_node(self, request: pb.DrainNodeRequest) -> pb.Node:
        """Empty a node."""
        node = parse_node("name", request.name)
        return node_message(await self._cluster.drain(node, undo=request.undo))

    async def move_shard(self, request: pb.MoveShardRequest) -> pb.Shard:
        """Hand a shard over."""
        number = parse_shard(request.name, self._cluster.shard_count)
        node = parse_node("node", request.node)
        return shard_message(await self._cluster.move(number, node, request.epoch))


def parse_node(field: str, text: str) -> str:
    """`nodes/{node}` → the uuid. Raises InvalidArgument."""
    found = re.fullmatch(r"nodes/([0-9a-f]{32})", text)
    if found is None:
        words = f"must be nodes/ and 32 hexadecimal digits, not {text[:80]!r}"
        raise InvalidArgument.of([Violation(field, words, "NODE_NAME")])
    return found[1]


def parse_shard(text: str, shard_count: int) -> int:
    """`shards/{number}` → the number. Raises InvalidArgument."""
    found = re.fullmatch(r"shards/([0-9]{1,6})", text)
    if found is None or int(found[1]) >= shard_count:
        words = f"must be shards/0 to shards/{shard_count - 1}, not {text[:80]!r}"
        raise InvalidArgument.of([Violation("name", words, "SHARD_NAME")])
    return int(found[1])


def cluster_message(topology: Topology) -> pb.Cluster:
    """The API's form of the map."""
    return pb.Cluster(
        uid=topology.cluster,
        shard_count=topology.shard_count,
        nodes=[node_message(node) for node in topology.nodes],
        shards=[shard_message(shard) for shard in topology.shards],
        revision=topology.revision,
        read_time=timestamp(topology.read_ms),
    )


def node_message(node: NodeInfo) -> pb.Node:
    """The API's form of a node."""
    return pb.Node(
        name=_node_name(node.name),
        state=_STATES[node.state],
        alive=node.alive,
        grpc_address=node.grpc,
        http_address=node.http,
        host=node.host,
        zone=node.zone,
        version=node.version,
        tzdata_version=node.tzdata,
    )


def shard_message(shard: ShardInfo) -> pb.Shard:
    """The API's form of a shard."""
    return pb.Shard(
        name=f"shards/{shard.number}",
        number=shard.number,
        epoch=shard.epoch,
        leader=_node_name(shard.leader) if shard.leader else "",
        voters=[_node_name(node) for node in shard.voters],
        learners=[_node_name(node) for node in shard.learners],
        state=_STANDINGS[shard.standing],
    )


def _node_name(node: str) -> str:
    return f"nodes/{node}"
