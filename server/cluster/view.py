"""Floor 3. The cluster as this node saw it last in etcd: fed by a watch, asked by everyone, and never the truth.

Every decision made on it is checked again by a transaction's compares.

Must never import: gRPC, protobuf; no I/O, no clock.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from tickwheel.server.cluster import registry
from tickwheel.server.cluster.ports import Batch, Item, Reset
from tickwheel.server.cluster.registry import (
    MemberRecord,
    MemberState,
    MoveRecord,
    NodeRecord,
    ShardRecord,
    decode,
)
from tickwheel.server.errors import FailedPrecondition
from tickwheel.server.message import NodeId
from tickwheel.server.placement import Site


class NodeSeen(NamedTuple):
    """A node that is registered; `session` is the create revision of its key, `lease` what keeps it there."""

    record: NodeRecord
    session: int
    lease: int

    @property
    def site(self) -> Site:
        """Where it stands."""
        return Site(self.record.host, self.record.zone)


class ShardSeen(NamedTuple):
    """A shard's record, and the item to compare with."""

    record: ShardRecord
    item: Item


class View:
    """Nodes, members, shards and wishes, by key. `thin`: the shards that have fewer voters than `min_copies`."""

    def __init__(self, min_copies: int = 1) -> None:
        self.thin: set[int] = set()
        self._min_copies = min_copies
        self.nodes: dict[NodeId, NodeSeen] = {}
        self.members: dict[NodeId, MemberState] = {}
        self.shards: dict[int, ShardSeen] = {}
        self.moves: dict[int, NodeId] = {}
        self.revision = 0

    def take(self, news: Batch | Reset) -> None:
        """Bring the view up to date with what a watch yielded."""
        if isinstance(news, Reset):
            newer = [(n, seen.item) for n, seen in self.shards.items() if _is_newer(seen, news)]
            self.nodes, self.members, self.shards, self.moves = {}, {}, {}, {}
            self.thin.clear()
            self._take_items(news.listing.items)
            for number, item in newer:
                self.took(number, item)
            self.revision = news.listing.revision
            return
        for event in news.events:
            self._take(event.key, event.item)
        self.revision = news.revision

    def _take_items(self, items: Iterable[Item]) -> None:
        for item in items:
            self._take(item.key, item)

    def took(self, number: int, item: Item) -> None:
        """What this node wrote itself, or read in a refusal, counts at once; the watch repeats it later."""
        known = self.shards.get(number)
        if known is None or known.item.mod_revision < item.mod_revision:
            record = decode(ShardRecord, item)
            self.shards[number] = ShardSeen(record, item)
            if len(record.voters) < self._min_copies:
                self.thin.add(number)
            else:
                self.thin.discard(number)

    def _take(self, key: str, item: Item | None) -> None:
        """Raises FailedPrecondition for what this version does not know: it is no reason to stop the node."""
        try:
            self._put(key, item)
        except ValueError as error:
            raise FailedPrecondition(
                f"etcd holds {key!r}, which this version can't read: {error}",
                reason="ETCD_RECORD_UNKNOWN",
                metadata={"key": key},
            ) from error

    def _put(self, key: str, item: Item | None) -> None:
        kind, _, name = key.partition("/")
        match f"{kind}/":
            case registry.NODES:
                if item is None:
                    self.nodes.pop(name, None)
                else:
                    self.nodes[name] = NodeSeen(
                        decode(NodeRecord, item), item.create_revision, item.lease
                    )
            case registry.MEMBERS:
                if item is None:
                    self.members.pop(name, None)
                else:
                    self.members[name] = MemberState(decode(MemberRecord, item).state)
            case registry.SHARDS:
                if item is not None:
                    self.took(int(name), item)
            case registry.MOVES:
                if item is None:
                    self.moves.pop(int(name), None)
                else:
                    self.moves[int(name)] = decode(MoveRecord, item).leader
            case _:
                return  # meta never changes

    # --- questions ---

    def is_alive(self, node: NodeId, session: int) -> bool:
        """True while that life of the node is registered."""
        seen = self.nodes.get(node)
        return seen is not None and seen.session == session

    def may_lead(self, node: NodeId) -> bool:
        """True for a node that is here and that nobody wants empty."""
        return node in self.nodes and self.state(node) == MemberState.ACTIVE

    def state(self, node: NodeId) -> MemberState:
        """What was said of a node; nothing means active."""
        return self.members.get(node, MemberState.ACTIVE)

    def sites(self, wanted: Callable[[NodeId], bool]) -> dict[NodeId, Site]:
        """Where those of the registered nodes stand that are wanted."""
        return {node: seen.site for node, seen in self.nodes.items() if wanted(node)}

    def is_leaderless(self, record: ShardRecord) -> bool:
        """True when somebody has to take the shard over."""
        return not record.leader or not self.is_alive(record.leader, record.session)


def _is_newer(seen: ShardSeen, news: Reset) -> bool:
    """True for what this node wrote after the listing was made: the watch has yet to tell of it."""
    return seen.item.mod_revision > news.listing.revision
