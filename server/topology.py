"""Floor 0. The cluster as the doors see it: nodes, shards, who leads what, and how to reach the leader.

A node that runs alone is a cluster of one, so the doors have one way to speak of both.

Must never import: anything of this project but `model`; no I/O, no clock.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from tickwheel.server.model import Ms

SCATTER: Final = "scatter/"
"""What the methods begin with by which a node asks another one for its part of a list."""

NodeName = str
"""The uuid of a node's store, 32 hexadecimal digits."""


class Standing(StrEnum):
    """Where a shard stands."""

    SERVING = "serving"
    STARTING = "starting"
    MOVING = "moving"
    LEADERLESS = "leaderless"


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node: `state` is active, draining, suspect or removed; the addresses are `host:port`."""

    name: NodeName
    state: str
    alive: bool
    grpc: str
    http: str
    host: str
    zone: str
    version: str
    tzdata: str


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """A shard. `leader` is empty while there is none."""

    number: int
    epoch: int
    leader: NodeName
    voters: tuple[NodeName, ...]
    learners: tuple[NodeName, ...]
    standing: Standing


@dataclass(frozen=True, slots=True)
class Topology:
    """The whole cluster at a revision."""

    cluster: str
    shard_count: int
    nodes: tuple[NodeInfo, ...]
    shards: tuple[ShardInfo, ...]
    revision: int
    read_ms: Ms


class ClusterPort(Protocol):
    """What the doors may ask of the cluster. Raises `errors`."""

    @property
    def shard_count(self) -> int:
        """How many shards there are."""
        ...

    def topology(self) -> Topology:
        """The cluster as this node knows it."""
        ...

    def watch(self, after_revision: int) -> AsyncIterator[Topology]:
        """The cluster whenever it changed; a slow reader gets the latest only."""
        ...

    async def drain(self, node: NodeName, *, undo: bool) -> NodeInfo:
        """Have a node hand its shards over, and take none. NotFound, FailedPrecondition."""
        ...

    async def move(self, shard: int, node: NodeName, epoch: int) -> ShardInfo:
        """Hand a shard's leadership to a node; returns when that is done. NotFound, Aborted, FailedPrecondition."""
        ...

    def led(self) -> tuple[int, ...]:
        """The shards that this node answers for at this moment."""
        ...

    def leader_of(self, shard: int) -> NodeName:
        """Who leads a shard, as far as is known: this node itself is "". Raises Unavailable when nobody does."""
        ...

    async def forward(self, node: NodeName, method: str, request: bytes) -> bytes:
        """Have another node answer a call of the public API; its errors are raised here. Unavailable."""
        ...

    def others(self) -> tuple[NodeName, ...]:
        """The other nodes that lead something: whom a list has to ask too."""
        ...
