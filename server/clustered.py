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
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from random import Random

from tickwheel.server.cluster.beats import Beats
from tickwheel.server.cluster.control import Control
from tickwheel.server.cluster.elect import Election
from tickwheel.server.cluster.health import Health
from tickwheel.server.cluster.host import Host
from tickwheel.server.cluster.member import Member, Self
from tickwheel.server.cluster.peer_port import Forwarded, Owner, Peers, SnapshotFiles
from tickwheel.server.cluster.ports import Etcd
from tickwheel.server.cluster.registry import MetaRecord
from tickwheel.server.cluster.reshape import Patience, Reshape
from tickwheel.server.cluster.tasks import Tasks
from tickwheel.server.cluster.view import View
from tickwheel.server.config import Config
from tickwheel.server.errors import NotLeader, Unavailable
from tickwheel.server.handover import HandOver
from tickwheel.server.keeper import Keeper
from tickwheel.server.leading import Leaderships
from tickwheel.server.lease import Holds, Rights
from tickwheel.server.log import recovered
from tickwheel.server.logs import get_logger
from tickwheel.server.metrics import Metrics
from tickwheel.server.node import RETRY_AFTER_MS, Devices, Node, open_slot
from tickwheel.server.record import Record, ShardMark
from tickwheel.server.replica import Replica
from tickwheel.server.runner import Runner
from tickwheel.server.slot import Slot
from tickwheel.server.turn import Event, ReplicaOptions
from tickwheel.server.wal import Wal

log = get_logger(__name__)

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


class Forwards:
    """Calls that other nodes forward; the door answers them, once it is there."""

    def __init__(self) -> None:
        self.door: Callable[[str, bytes], Awaitable[bytes]] | None = None

    async def answer(self, call: Forwarded) -> bytes:
        """Have the door answer. Raises TickwheelError."""
        if self.door is None:
            raise NotLeader("this node is starting", retry_after_ms=RETRY_AFTER_MS)
        async with asyncio.timeout(call.timeout_s):
            return await self.door(call.method, call.request)


@dataclass(frozen=True, slots=True)
class Joined:
    """A node that is part of a cluster: its parts, for the doors and for stopping."""

    node: Node
    runner: Runner
    keeper: Keeper
    wal: Wal
    host: Host
    member: Member
    election: Election
    view: View
    peers: Peers
    beats: Beats
    slots: dict[int, Slot]
    control: Control
    hand_over: HandOver
    reshape: Reshape
    forwards: Forwards


async def start(
    config: Config,
    devices: Devices,
    cluster: ClusterDevices,
    metrics: Metrics,
    *,
    seed: int,
    on_fatal: Callable[[BaseException], None],
) -> Joined:
    """Bring a node up and into its cluster; it leads nothing yet when this returns. Raises Fatal, OSError."""
    start_ms = devices.clock.now_ms()
    me = cluster.myself.id
    marks, records, wal = devices.open_wal()
    by_shard = _by_shard(records)
    holds = Holds(devices.clock.monotonic_ms())
    slots: dict[int, Slot] = {}
    replicas: dict[int, Replica] = {}
    options = ReplicaOptions(tail_bytes_max=config.tail_bytes // config.shards)

    def hold(number: int) -> None:
        if number in slots:
            return
        slots[number] = slot = open_slot(
            config, number, devices.open_store, start_ms=start_ms, seed=seed
        )
        applied = slot.store.applied
        found = recovered(
            marks.get(number, ShardMark()), by_shard.pop(number, []), applied.index, applied.epoch
        )
        host.adopt(Replica(number, me, found, options=options, holds=holds))

    rights = Rights(me, devices.clock.monotonic_ms())
    host = Host(
        me, replicas, wal=wal, rights=rights, clock=devices.clock, health=cluster.health,
        on_fatal=on_fatal,
    )  # fmt: skip
    runner = Runner(
        config, devices.clock, commits=host, store=devices.store, dispatch=devices.dispatch,
        metrics=metrics, on_fatal=on_fatal,
    )  # fmt: skip
    for number in sorted({*cluster.stored(), *by_shard}):
        hold(number)
    keeper = Keeper(config, runner, slots, wal, metrics)
    view = View()
    tasks = Tasks(on_fatal)
    election = Election(
        me, cluster.etcd, view, host, clock=devices.clock, rng=Random(f"{seed}:election"),  # noqa: S311
        spawn=tasks.spawn,
    )  # fmt: skip
    reshape = Reshape(
        me, view, host, election, replicas=cluster.meta.replicas,
        now_ms=devices.clock.monotonic_ms, patience=Patience(config.replace_ms, config.shrink_ms),
    )  # fmt: skip

    def more(number: int, event: Event) -> None:
        election.event(number, event)
        reshape.event(number, event)

    leaderships = Leaderships(slots, runner, keeper, host, more)
    beats = Beats(me, view, holds, rights, clock=devices.clock, etcd=cluster.etcd, tasks=tasks)
    forwards = Forwards()
    peers = await cluster.make_peers(
        Owner(
            on_messages=lambda sender, _session, messages: host.receive(
                sender, beats.receive(sender, messages)
            ),
            on_connected=host.connected,
            on_disconnected=host.disconnected,
            on_forward=forwards.answer,
            open_snapshot=_no_snapshot,
        )
    )
    member = Member(
        cluster.myself, cluster.meta, cluster.etcd, view, election=election, peers=peers,
        tasks=tasks, hold=hold,
    )  # fmt: skip
    host.start(peers, leaderships)
    beats.start(peers, election.watch_rights)
    member.start()
    hand_over = HandOver(me, view, host, runner, devices.clock.monotonic_ms)
    runner.spawn(hand_over.run())
    runner.spawn(reshape.run())
    runner.start_firing()
    keeper.start()
    control = Control(
        me, cluster.meta, view, host, etcd=cluster.etcd, peers=peers, clock=devices.clock,
        led=lambda: tuple(runner.slots),
    )  # fmt: skip
    member.on_change(control.changed)
    node = Node(config, runner, keeper)
    return Joined(
        node, runner, keeper, wal,
        host, member, election, view, peers, beats, slots, control, hand_over, reshape,
        forwards,
    )  # fmt: skip


async def _no_snapshot(shard: int) -> SnapshotFiles:
    raise Unavailable(f"no snapshot of shard {shard} yet")


def _by_shard(records: Iterable[Record]) -> dict[int, list[Record]]:
    found: defaultdict[int, list[Record]] = defaultdict(list)
    for record in records:
        found[record.shard].append(record)
    return dict(found)


async def stop(joined: Joined) -> None:
    """Leave in order: firing ends, what was taken is answered, shards are released, the session is revoked."""
    joined.runner.stop_firing()
    joined.keeper.stop()
    joined.hand_over.stop()
    joined.reshape.stop()
    await joined.runner.drain()
    await joined.election.release_all(CLOSE_S)
    joined.beats.stop()
    joined.host.stop()
    await joined.member.stop()
    await joined.peers.close()
    await joined.keeper.flush()
    await joined.keeper.checkpoint()
