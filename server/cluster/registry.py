"""Floor 3. What the cluster keeps in etcd: keys, records and their JSON, and the compares that guard each change.

    meta                {format, cluster, shards, replicas, founder}      made once, by the first node
    nodes/<store>       {peer, grpc, http, host, zone, ...}      on the node's lease: its create revision is its session
    members/<store>     {state}                                  active, draining, suspect, removed; no key: active
    shards/<n>          {epoch, leader, session, released, voters, learners, config}     never leased
    moves/<n>           {leader}                                 an operator's wish, removed when it is fulfilled, and on
                                                                 the lease of the node that was asked

A shard's record changes by compare-and-swap only. Whoever takes it over proves three things in one transaction: nobody
changed it since it was read, its own session lives, and the old leader's session is over (or it released the shard).

Must never import: gRPC, protobuf; no I/O, no clock.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, TypeVar

from tickwheel.server.cluster.ports import (
    Compare,
    Item,
    absent,
    created_is,
    created_is_not,
    revision_is,
)
from tickwheel.server.errors import FailedPrecondition
from tickwheel.server.message import NodeId

FORMAT = 1
META = "meta"
NODES, MEMBERS, SHARDS, MOVES = "nodes/", "members/", "shards/", "moves/"

R = TypeVar("R", bound="Record")


@dataclass(frozen=True, slots=True)
class Record:
    """What a key's value says, as JSON with the names of the fields."""

    def encode(self) -> bytes:
        """The value."""
        return json.dumps(asdict(self), separators=(",", ":"), sort_keys=True).encode()


def decode(kind: type[R], item: Item) -> R:
    """The record of an item. Raises FailedPrecondition: somebody else writes below this prefix."""
    try:
        fields: dict[str, Any] = json.loads(item.value)
        return kind(**{name: _frozen(value) for name, value in fields.items()})
    except (ValueError, TypeError, AttributeError) as error:
        raise FailedPrecondition(
            f"etcd holds {item.key!r} with a value that this version can't read: {error}",
            reason="ETCD_RECORD_UNKNOWN",
            metadata={"key": item.key},
        ) from error


def _frozen(value: Any) -> Any:
    return value if isinstance(value, bool | int | str) else tuple(value)


@dataclass(frozen=True, slots=True)
class MetaRecord(Record):
    """What can't change any more once the cluster exists. `cluster` is a uuid, 32 hexadecimal digits.

    `founder`: a cluster that was restored from a backup begins on this node, which holds every shard, and on no other;
    "" for one that begins empty.
    """

    cluster: str
    shards: int
    replicas: int
    format: int = FORMAT
    founder: NodeId = ""


@dataclass(frozen=True, slots=True)
class NodeRecord(Record):
    """How a node is reached (`host:port` each), and where it stands: two voters of a shard never share a `host`."""

    peer: str
    grpc: str
    http: str
    host: str
    zone: str
    version: str
    tzdata: str


class MemberState(StrEnum):
    """What an operator, or a failed disk, said of a node."""

    ACTIVE = "active"
    DRAINING = "draining"
    SUSPECT = "suspect"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class MemberRecord(Record):
    """One node's state."""

    state: str


@dataclass(frozen=True, slots=True)
class MoveRecord(Record):
    """Who shall lead a shard."""

    leader: NodeId


@dataclass(frozen=True, slots=True)
class ShardRecord(Record):
    """Who leads a shard, at which epoch, and whose fsync counts.

    `session` is the create revision of the leader's node key. `released`: the last leader before this one (without a
    leader: the last one) stopped by itself and all that it had begun is committed, so its successor waits for nothing.
    `config` counts the sets of voters.
    """

    voters: tuple[NodeId, ...]
    learners: tuple[NodeId, ...] = ()
    epoch: int = 0
    leader: NodeId = ""
    session: int = 0
    released: bool = True
    config: int = 1

    def taken_over(self, me: NodeId, session: int, voters: Sequence[NodeId]) -> "ShardRecord":
        """This record after `me` took the shard over, with these voters (fewer only when two were all)."""
        config = self.config + (tuple(voters) != self.voters)
        return replace(
            self, epoch=self.epoch + 1, leader=me, session=session,
            released=self.released and not self.leader, voters=tuple(voters), config=config,
        )  # fmt: skip

    def with_session(self, session: int) -> "ShardRecord":
        """This record under a new session of the same leader, who led all the time."""
        return replace(self, session=session)

    def given_up(self, *, released: bool) -> "ShardRecord":
        """This record without a leader; `released` only after everything that was begun is committed."""
        return replace(self, leader="", session=0, released=released)


def shard_key(number: int) -> str:
    """`shards/7`."""
    return f"{SHARDS}{number}"


def node_key(node: NodeId) -> str:
    """`nodes/<store>`."""
    return f"{NODES}{node}"


def take_over_guards(item: Item, record: ShardRecord, me: NodeId, session: int) -> list[Compare]:
    """What must hold for `me` to take a shard over."""
    guards = [revision_is(item), created_is(node_key(me), session)]
    if record.leader and record.leader != me:
        guards.append(created_is_not(node_key(record.leader), record.session))
    return guards


def leader_guards(item: Item, me: NodeId, session: int) -> list[Compare]:
    """What must hold for the leader to change its own record."""
    return [revision_is(item), created_is(node_key(me), session)]


def first_guards(number: int) -> list[Compare]:
    """What must hold for a shard's first record."""
    return [absent(shard_key(number))]
