"""Floor 5. A node of a cluster: the same runner, keeper and doors as alone, over a replicated log.

    open        lock the directory, open the stores that are there, recover the journal
    recover     each shard's log: what the store has applied, and the entries behind it, that may be committed or not
    join        listen for peers, register in etcd, watch the records
    follow      apply what the leaders commit
    lead        as elections have it, shard by shard (`leading`)

Must never import: the doors.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from tickwheel.server.agreement import STATE_HASH, Agreement
from tickwheel.server.cluster.beats import Beats
from tickwheel.server.cluster.control import Control
from tickwheel.server.cluster.elect import Election
from tickwheel.server.cluster.gauges import Gauges
from tickwheel.server.cluster.health import Health
from tickwheel.server.cluster.host import Host
from tickwheel.server.cluster.member import Member, Self
from tickwheel.server.cluster.peer_port import Forwarded, Owner, Peers
from tickwheel.server.cluster.ports import Etcd
from tickwheel.server.cluster.registry import MetaRecord
from tickwheel.server.cluster.reshape import Patience, Reshape
from tickwheel.server.cluster.tasks import Tasks
from tickwheel.server.cluster.view import View
from tickwheel.server.config import Config
from tickwheel.server.copies import TAKE_SNAPSHOT, Copies, Shelves
from tickwheel.server.errors import NotLeader
from tickwheel.server.feed import Feeds
from tickwheel.server.handover import HandOver
from tickwheel.server.keeper import Keeper
from tickwheel.server.leading import Leaderships
from tickwheel.server.lease import Holds, Rights
from tickwheel.server.log import recovered
from tickwheel.server.message import Message, NodeId
from tickwheel.server.metrics import Metrics
from tickwheel.server.node import RETRY_AFTER_MS, Devices, Node, open_slot, recall
from tickwheel.server.record import Record, ShardMark
from tickwheel.server.replica import Replica
from tickwheel.server.runner import Runner
from tickwheel.server.slot import Slot
from tickwheel.server.turn import Event, Leading, ReplicaOptions, SnapshotWanted
from tickwheel.server.wal import Wal

CLOSE_S = 3.0
"""How long a stop waits for the others to be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterDevices:
    """What a node of a cluster stands on beside a node's devices."""

    etcd: Etcd
    make_peers: Callable[[Owner], Awaitable[Peers]]
    meta: MetaRecord
    myself: Self
    health: Health
    stored: Callable[[], list[int]]
    shelves: Shelves


class Shelf:
    """The shards that this node holds: their stores, and their logs as the journal has them."""

    def __init__(
        self, config: Config, devices: Devices, seed: int,
        opened: tuple[Mapping[int, ShardMark], Iterable[Record], Wal], feeds: Feeds,
    ) -> None:  # fmt: skip
        self._feeds = feeds
        self.slots: dict[int, Slot] = {}
        self.replicas: dict[int, Replica] = {}
        self._config = config
        self._open_store = devices.open_store
        self._start_ms = devices.clock.now_ms()
        self._seed = seed
        self._marks = opened[0]
        self._records: defaultdict[int, list[Record]] = defaultdict(list)
        for record in opened[1]:
            self._records[record.shard].append(record)
        self._holds: Holds
        self._options = ReplicaOptions(tail_bytes_max=config.tail_bytes // config.shards)

    def recover(self, me: NodeId, stored: Iterable[int], holds: Holds) -> None:
        """Open everything that is there. Raises StoreFailed, LogBroken."""
        self._me, self._holds = me, holds
        for number in sorted({*stored, *self._records}):
            self.hold(number)

    def hold(self, number: int) -> Replica:
        """Open a shard, one without any history if need be."""
        slot = self.slots[number] = self.open(number)
        applied = slot.store.applied
        found = recovered(
            self._marks.get(number, ShardMark()),
            self._records.pop(number, []),
            applied.index,
            applied.epoch,
        )
        for entry in found.past:
            recall(slot.feed, entry.index, entry.payload)
        slot.feed.join(applied.index)
        replica = Replica(number, self._me, found, options=self._options, holds=self._holds)
        self.replicas[number] = replica
        return replica

    def open(self, number: int) -> Slot:
        """A shard's store, and what is in memory of it."""
        return open_slot(
            self._config, number, self._open_store, feeds=self._feeds, start_ms=self._start_ms,
            seed=self._seed,
        )  # fmt: skip


class ClusterNode:
    """A node that is part of a cluster: its parts, and the order in which they start and stop."""

    def __init__(
        self, config: Config, devices: Devices, cluster: ClusterDevices, metrics: Metrics, *,
        seed: int, on_fatal: Callable[[BaseException], None],
    ) -> None:  # fmt: skip
        self._cluster = cluster
        clock, me = devices.clock, cluster.myself.id
        opened = devices.open_wal()
        self.wal = opened[2]
        feeds = Feeds(config.watch_bytes)
        feeds.age(clock.monotonic_ms())
        self._shelf = Shelf(config, devices, seed, opened, feeds)
        self.slots = self._shelf.slots
        holds = Holds(clock.monotonic_ms())
        rights = Rights(me, clock.monotonic_ms())
        self.host = Host(
            me, self._shelf.replicas, wal=self.wal, rights=rights, clock=clock,
            health=cluster.health, on_fatal=on_fatal,
        )  # fmt: skip
        self.runner = Runner(
            config, clock, commits=self.host, store=devices.store, dispatch=devices.dispatch,
            metrics=metrics, feeds=feeds, on_fatal=on_fatal,
        )  # fmt: skip
        self._shelf.recover(me, cluster.stored(), holds)
        self.keeper = Keeper(config, self.runner, self.slots, self.wal, metrics)
        self.view = View(config.min_copies)
        self.node = Node(config, self.runner, self.keeper, self.view.thin)
        self.tasks = Tasks(on_fatal)
        self.election = Election(
            me, cluster.etcd, self.view, self.host, clock=clock,
            rng=Random(f"{seed}:election"), spawn=self.tasks.spawn,  # noqa: S311 - spreads tries
        )  # fmt: skip
        self.reshape = Reshape(
            me, self.view, self.host, self.election, replicas=cluster.meta.replicas,
            now_ms=clock.monotonic_ms, patience=Patience(config.replace_ms, config.shrink_ms),
        )  # fmt: skip
        self.beats = Beats(
            me, self.view, holds, rights, clock=clock, etcd=cluster.etcd, tasks=self.tasks
        )
        self.election.barred = lambda: self.beats.wall_wrong
        self.copies = Copies(
            cluster.shelves, self.slots, self.runner, self.keeper, self.host,
            reopen=self._shelf.open,
        )  # fmt: skip
        self.agreement = Agreement(
            cluster.shelves.hashing, self.slots, self.runner, self.keeper, self.host
        )
        self.hand_over = HandOver(me, self.view, self.host, self.runner, clock.monotonic_ms)
        self.leaderships = Leaderships(self.slots, self.runner, self.keeper, self.host, self._event)
        self.gauges = Gauges(self.view, self.host, self.election, lambda: self.agreement.differing)
        metrics.watch_more(self.gauges.present, self.gauges.totals)
        self.door: Callable[[str, bytes], Awaitable[bytes]] | None = None
        self.answers: dict[str, Callable[[bytes], Awaitable[bytes]]] = {}
        """Calls of other nodes that the rooms above this one answer; both are set before the doors open."""
        self.peers: Peers
        self.control: Control
        self._clock = clock
        self._member: Member

    async def start(self) -> None:
        """Listen, register, follow; leaderships come by themselves. Raises OSError."""
        cluster, me = self._cluster, self._cluster.myself.id
        self.peers = self.copies.peers = await cluster.make_peers(
            Owner(
                on_messages=self._receive,
                on_connected=self.host.connected,
                on_disconnected=self.host.disconnected,
                on_forward=self._answer,
                open_snapshot=self.copies.open,
            )
        )
        self.control = Control(
            me, cluster.meta, self.view, self.host, etcd=cluster.etcd, peers=self.peers,
            clock=self._clock, led=self._led, held=lambda: self.election.held,
        )  # fmt: skip
        self.gauges.forwarded = lambda: self.control.forwarded
        self.gauges.wall_off_ms = lambda: self.beats.wall_off_ms
        self._member = Member(
            cluster.myself, cluster.meta, cluster.etcd, self.view, election=self.election,
            peers=self.peers, tasks=self.tasks, hold=self._hold,
            promised=lambda number: self._shelf.replicas[number].promised,
        )  # fmt: skip
        self._member.on_change(self.control.changed)
        self.leaderships.on_change = self.control.changed
        self.host.start(self.peers, self.leaderships)
        self.beats.start(self.peers, self.election.watch_rights)
        self._member.start()
        self.tasks.spawn(self.hand_over.run())
        self.tasks.spawn(self.reshape.run())
        self.tasks.spawn(self.agreement.run(self.peers))
        self.runner.start_firing()
        self.keeper.start()

    def unready(self) -> list[str]:
        """What keeps the node from leading; empty when nothing does."""
        if not self.beats.wall_wrong:
            return []
        return [f"the wall clock is {-self.beats.wall_off_ms} ms from the majority's"]

    async def stop(self) -> None:
        """Leave in order: firing ends, what was taken is answered, shards are released, the session is revoked."""
        self.runner.stop_firing()
        self.keeper.stop()
        self.hand_over.stop()
        self.reshape.stop()
        self.agreement.stop()
        self.copies.stop()
        await self.runner.drain()
        await self.election.release_all(CLOSE_S)
        self.beats.stop()
        self.host.stop()
        await self._member.stop()
        await self.peers.close()
        await self.keeper.flush()
        await self.keeper.checkpoint()

    def _led(self) -> tuple[int, ...]:
        """The shards that this node may answer for: a leader that is cut off does not speak for what it led."""
        return tuple(number for number in self.runner.slots if self.host.may_act(number))

    def _hold(self, number: int) -> None:
        if number not in self._shelf.replicas:
            self.host.adopt(self._shelf.hold(number))

    def _receive(self, sender: NodeId, _session: int, messages: Sequence[Message]) -> None:
        self.host.receive(sender, self.beats.receive(sender, messages))

    def _event(self, number: int, event: Event) -> None:
        if isinstance(event, SnapshotWanted):
            self.tasks.spawn(self.copies.offer(number, event.peer))
        elif isinstance(event, Leading):
            self.beats.soon()
        self.election.event(number, event)
        self.reshape.event(number, event)

    async def _answer(self, call: Forwarded) -> bytes:
        """What another node asks of this one. Raises TickwheelError."""
        if call.method == TAKE_SNAPSHOT:
            self.copies.take(int(call.request), call.sender)
            return b""
        if call.method == STATE_HASH:
            return await self.agreement.answer(int(call.request))
        if call.method in self.answers:
            return await self.answers[call.method](call.request)
        if self.door is None:
            raise NotLeader("this node is starting", retry_after_ms=RETRY_AFTER_MS)
        async with asyncio.timeout(call.timeout_s):
            return await self.door(call.method, call.request)
