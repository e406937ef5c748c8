"""Floor 3. One node's membership: its session in etcd, the watch, the first placement, whom to talk to.

    session held ──► election looks at every shard          news of the watch ──► view ──► peers, election
    enough hosts registered, a shard without a record ──► whoever comes first writes it (compare-and-swap)
    the cluster was restored from a backup            ──► its founder alone writes them, and is the only voter at first

Must never import: gRPC, protobuf, `runner`, `store`, the doors.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from tickwheel.server.cluster import registry
from tickwheel.server.cluster.elect import Election
from tickwheel.server.cluster.peer_port import Member as Peer
from tickwheel.server.cluster.peer_port import Peers
from tickwheel.server.cluster.ports import (
    Done,
    Etcd,
    Held,
    LeaseMemory,
    Put,
    Registration,
    Session,
    absent,
)
from tickwheel.server.cluster.registry import (
    MetaRecord,
    NodeRecord,
    ShardRecord,
    decode,
    first_guards,
    shard_key,
)
from tickwheel.server.cluster.tasks import Tasks
from tickwheel.server.cluster.view import View
from tickwheel.server.errors import FailedPrecondition, TickwheelError
from tickwheel.server.logs import get_logger
from tickwheel.server.message import NodeId
from tickwheel.server.placement import Site, place

log = get_logger(__name__)

RETRY_S = 0.5
FOUND_EVERY_S = 0.2
PLACED_AT_ONCE = 32
"""Records of one transaction: etcd takes 128 operations."""


async def join(etcd: Etcd, wanted: MetaRecord) -> MetaRecord:
    """The cluster that is there, or the one that this node makes. Raises FailedPrecondition when they disagree."""
    there: MetaRecord | None = None
    while there is None:
        there = await _found_or_made(etcd, wanted)
    if (there.shards, there.format) != (wanted.shards, wanted.format):
        raise FailedPrecondition(
            f"the cluster has {there.shards} shards and format {there.format}; this node is configured for "
            f"{wanted.shards} shards and knows format {wanted.format}",
            reason="CLUSTER_DIFFERS",
            metadata={"shards": str(there.shards), "configured": str(wanted.shards)},
        )
    return there


async def _found_or_made(etcd: Etcd, wanted: MetaRecord) -> MetaRecord | None:
    found = await etcd.get(registry.META)
    if found is not None:
        return decode(MetaRecord, found.item)
    made = await etcd.transact([absent(registry.META)], [Put(registry.META, wanted.encode())])
    return wanted if isinstance(made, Done) else None


async def found(etcd: Etcd, wanted: MetaRecord, prefix: str) -> MetaRecord:
    """Begin the cluster of a restored directory, or go on with it if an earlier start got so far.

    Raises FailedPrecondition (CLUSTER_EXISTS) when there is another one: what it acknowledged must not be mixed with
    what was restored. Raises Unavailable, OutcomeUnknown: start again.
    """
    assert wanted.founder, "only a restored directory begins a cluster that has jobs"
    await etcd.transact(
        [absent(registry.META), absent(shard_key(0))], [Put(registry.META, wanted.encode())]
    )
    found = await etcd.get(registry.META)
    there = decode(MetaRecord, found.item) if found else None
    if there is None or there.cluster != wanted.cluster:
        raise FailedPrecondition(
            f"etcd holds another cluster below {prefix}, and this directory was restored to begin a new one. Choose "
            "another --cluster NAME, for all nodes, and start this node first, the others on empty directories. Or, if "
            f"that cluster is gone for good and no node of it runs: etcdctl del --prefix {prefix}",
            reason="CLUSTER_EXISTS",
            metadata={"prefix": prefix, "cluster": there.cluster if there else ""},
        )
    return there


@dataclass(frozen=True, slots=True, kw_only=True)
class Self:
    """This node, for the others."""

    id: NodeId
    record: NodeRecord
    ttl_s: int
    healthy: Callable[[], bool]
    memory: LeaseMemory


class Member:
    """Keeps one node in the cluster."""

    def __init__(  # noqa: PLR0913 - it is where etcd, peers and election meet
        self, myself: Self, meta: MetaRecord, etcd: Etcd, view: View, *, election: Election,
        peers: Peers, tasks: Tasks, hold: Callable[[int], None], promised: Callable[[int], int],
    ) -> None:  # fmt: skip
        """`hold` begins to hold a shard; `promised` is the highest epoch that this node's copy of one knows."""
        self._self = myself
        self._meta = meta
        self._etcd = etcd
        self._view = view
        self._election = election
        self._peers = peers
        self._tasks = tasks
        self._hold = hold
        self._promised = promised
        self._session: Session | None = None
        self._changed: list[Callable[[], None]] = []
        self._stop = asyncio.Event()

    def start(self) -> None:
        """Register, and watch."""
        self._session = self._etcd.session(
            Registration(
                key=registry.node_key(self._self.id),
                value=self._self.record.encode(),
                ttl_s=self._self.ttl_s,
                healthy=self._self.healthy,
                on_held=self._on_held,
                on_lost=self._on_lost,
                memory=self._self.memory,
            )
        )
        self._tasks.spawn(self._watch())
        self._tasks.spawn(self._found())

    async def stop(self) -> None:
        """Leave: the session is revoked, so that nobody waits for it to expire."""
        self._stop.set()
        self._election.stopped = True
        await self._tasks.cancel()
        if self._session is not None:
            await self._session.close()

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call this whenever the view changed."""
        self._changed.append(callback)

    # --- session ---

    def _on_held(self, held: Held) -> None:
        log.info("registered", extra={"session": held.create_revision})
        self._peers.set_session(held.create_revision)
        self._election.session_held(held)

    def _on_lost(self, held: Held) -> None:
        log.warning("the session in etcd is lost", extra={"session": held.create_revision})
        self._election.session_lost()

    # --- the watch ---

    async def _watch(self) -> None:
        """For as long as the node lives; a refusal by etcd (a password that changed) is tried again."""
        while not self._stop.is_set():
            try:
                async with aclosing(self._etcd.watch("", 0)) as news:
                    async for item in news:
                        if self._stop.is_set():
                            return
                        self._view.take(item)
                        self._look()
            except TickwheelError as error:
                log.error("watching etcd failed: %s", error)  # noqa: TRY400 - it is told, not a fault of ours
                await asyncio.sleep(RETRY_S)

    def _look(self) -> None:
        me = self._self.id
        self._peers.set_members(
            {
                node: Peer(seen.record.peer, seen.session)
                for node, seen in self._view.nodes.items()
                if node != me
            }
        )
        for number, seen in self._view.shards.items():
            if me in seen.record.voters or me in seen.record.learners:
                self._hold(number)
        self._election.consider_all()
        for callback in self._changed:
            callback()

    # --- the first placement ---

    async def _found(self) -> None:
        """Write the records that are missing, once there are hosts enough for every copy."""
        while not self._stop.is_set():
            if await self._place_missing():
                return
            await asyncio.sleep(FOUND_EVERY_S)

    async def _place_missing(self) -> bool:
        """True when every shard has a record."""
        view, meta = self._view, self._meta
        missing = [number for number in range(meta.shards) if number not in view.shards]
        if not view.revision or (missing and not self._may_place()):
            return False
        sites = view.sites(view.may_lead)
        for at in range(0, len(missing), PLACED_AT_ONCE):
            chunk = missing[at : at + PLACED_AT_ONCE]
            guards = [guard for number in chunk for guard in first_guards(number)]
            puts = [Put(shard_key(n), self._first_record(n, sites).encode()) for n in chunk]
            try:
                await self._etcd.transact(guards, puts)
            except TickwheelError as error:
                log.warning("placing shards failed: %s", error, extra={"first": chunk[0]})
                return False
        return not missing

    def _first_record(self, number: int, sites: Mapping[NodeId, Site]) -> ShardRecord:
        """Of a cluster that begins empty any nodes; of a restored one its founder, at an epoch above all of before."""
        if self._meta.founder:
            return ShardRecord((self._self.id,), epoch=self._promised(number))
        return ShardRecord(place(number, sites, self._meta.replicas))

    def _may_place(self) -> bool:
        founder = self._meta.founder
        return founder == self._self.id if founder else self._hosts_enough()

    def _hosts_enough(self) -> bool:
        hosts = {site.host for site in self._view.sites(self._view.may_lead).values()}
        return len(hosts) >= self._meta.replicas
