"""Floor 3. Drives the replicas of one node: whatever happens goes into them, what they answer goes to disk and peers.

    runner ──append──►┐                        ┌──► journal: one submit for all shards of a turn
    peers ──receive──►├─► Replica ──► Output ──┼──► peers: Appends at once, acks and promises when they are fsynced
    clock ──tick─────►│                        ├──► committed: the runner's batch, or apply to a follower's table
    etcd ──led───────►┘                        └──► events: to `elect`, to the node

Things that happen in one turn of the loop are answered together: one write to the journal, one frame a peer.

Invariants: an ack or a promise leaves only after its records are durable; what is committed reaches `apply` or the
runner once and in order; a batch that was under way when a leadership ended is answered before the shard is let go.

Must never import: gRPC, protobuf, `runner`, `store`, the doors.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from tickwheel.server.cluster.health import Health
from tickwheel.server.cluster.peer_port import Peers
from tickwheel.server.commit import Done, Proposal
from tickwheel.server.errors import NotLeader, TickwheelError, Unavailable
from tickwheel.server.lease import Rights
from tickwheel.server.logs import get_logger
from tickwheel.server.message import LogEntry, Message, NodeId
from tickwheel.server.ports import Clock
from tickwheel.server.record import Record
from tickwheel.server.replica import Replica
from tickwheel.server.turn import Event, Leading, Mark, Output, Released, SteppedDown
from tickwheel.server.wal import Wal

log = get_logger(__name__)

TICK_S = 0.02
"""How often replicas are asked whether something has to be repeated or given up."""

WAL_WAITING_BYTES_MAX = 16 << 20
"""While this much waits for the disk, outputs wait too."""


class Hooks(Protocol):
    """What the host asks of the node above it."""

    def apply(self, shard: int, entries: Sequence[LogEntry]) -> None:
        """Committed, on a shard that the runner does not drive: bring its table up to date."""
        ...

    def resign(self, shard: int) -> None:
        """The leadership is over: stop firing and answering for the shard, now."""
        ...

    def event(self, shard: int, event: Event) -> None:
        """Something that takes more than a turn: a leadership begins, a snapshot or a change of voters is wanted."""
        ...


class _Pending(NamedTuple):
    """A batch of the runner that is not decided yet."""

    epoch: int
    place: int
    done: Done


class Host:
    """The replicas of this node. Implements `Commits` for the shards that it leads."""

    def __init__(  # noqa: PLR0913 - where log, disk and peers meet
        self, me: NodeId, replicas: dict[int, Replica], *, wal: Wal, rights: Rights,
        clock: Clock, health: Health, on_fatal: Callable[[BaseException], None],
    ) -> None:  # fmt: skip
        self.me = me
        self.replicas = replicas
        self.rights = rights
        self.leaderships = self.leaderships_ended = 0
        self._wal = wal
        self._health = health
        self._writes: deque[int] = deque()  # bounded: by what may wait for the disk
        self._clock = clock
        self._on_fatal = on_fatal
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, _Pending] = {}
        self._serving: set[int] = set()
        self._dirty: set[int] = set()
        self._turning = False
        self._ticking: asyncio.TimerHandle | None = None
        self._peers: Peers
        self._hooks: Hooks

    def start(self, peers: Peers, hooks: Hooks) -> None:
        """Begin to listen to time, and to whatever the replicas have to say."""
        self._peers, self._hooks = peers, hooks
        self._dirty.update(self.replicas)
        self._kick()
        self._tick()

    def stop(self) -> None:
        """Listen no more."""
        if self._ticking is not None:
            self._ticking.cancel()

    def adopt(self, replica: Replica) -> None:
        """Hold one more shard from now on."""
        self.replicas[replica.shard] = replica
        self.poke(replica.shard)

    # --- Commits ---

    @property
    def space_low(self) -> bool:
        """True while creates have to be refused."""
        return self._wal.space_low

    @property
    def record_bytes_max(self) -> int:
        """The longest payload that a batch may have."""
        return self._wal.record_bytes_max

    @property
    def waiting_bytes(self) -> int:
        """What waits for the disk."""
        return self._wal.waiting_bytes

    def append(self, proposals: Sequence[Proposal], done: Done) -> Sequence[int]:
        """Propose one batch a shard: to this disk and to the voters at the same time."""
        indexes: list[int] = []
        for place, (shard, epoch, payload) in enumerate(proposals):
            try:
                index = self.replicas[shard].propose(payload)
            except NotLeader:
                self._loop.call_soon(done, [place], _lost())
                indexes.append(0)
                continue
            assert shard not in self._pending, "a shard has one batch under way"
            self._pending[shard] = _Pending(epoch, place, done)
            self._dirty.add(shard)
            indexes.append(index)
        self._turn()
        return indexes

    def may_act(self, shard: int) -> bool:
        """The quorum lease: enough voters promised to let nobody else begin before a moment that is still to come."""
        replica = self.replicas.get(shard)
        if replica is None or shard not in self._serving:
            return False
        return self.rights.until_ms(shard, replica.configs) > self._clock.monotonic_ms()

    # --- what happens ---

    def receive(self, sender: NodeId, messages: Sequence[Message]) -> None:
        """Messages of a peer, of its present session, in order; beats are not for here."""
        now_ms = self._clock.monotonic_ms()
        for message in messages:
            replica = self.replicas.get(message.shard)  # type: ignore[union-attr]
            if replica is not None:
                replica.receive(sender, message, now_ms)
                self._dirty.add(replica.shard)
        self._kick()

    def connected(self, peer: NodeId) -> None:
        """What was sent before may be lost."""
        for replica in self.replicas.values():
            replica.connected(peer)
            self._dirty.add(replica.shard)
        self._kick()

    def disconnected(self, peer: NodeId) -> None:
        """Nothing is sent to it for now."""
        for replica in self.replicas.values():
            replica.disconnected(peer)

    def poke(self, shard: int) -> None:
        """Something was said to this replica directly: look at its output."""
        self._dirty.add(shard)
        self._kick()

    def _tick(self) -> None:
        now_ms = self._clock.monotonic_ms()
        self._health.beat()
        for replica in self.replicas.values():
            if replica.tick(now_ms):
                self._dirty.add(replica.shard)
        if self._dirty:
            self._turn()
        self._ticking = self._loop.call_later(TICK_S, self._tick)

    def serve(self, shard: int) -> None:
        """From here on the runner drives the shard, and applies what is committed."""
        self._serving.add(shard)
        self.leaderships += 1

    def serves(self, shard: int) -> bool:
        """True while the runner drives it."""
        return shard in self._serving

    def applied(self, shard: int, index: int) -> None:
        """The table holds everything up to there."""
        self.replicas[shard].applied(index)

    # --- a turn ---

    def _kick(self) -> None:
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Take what the replicas have to say, and do it. An error nobody foresaw stops the node."""
        self._turning = False
        try:
            while self._dirty and self._wal.waiting_bytes <= WAL_WAITING_BYTES_MAX:
                self._round()
        except Exception as error:
            log.exception("driving the replicas failed")
            self._on_fatal(error)

    def _round(self) -> None:
        shards, self._dirty = sorted(self._dirty), set()
        outputs: list[tuple[int, Output]] = []
        for shard in shards:
            replica = self.replicas.get(shard)
            if replica is not None and replica.ready:
                outputs.append((shard, replica.take()))
        if not outputs:
            return
        self._persist(outputs)
        self._send([pair for _, output in outputs for pair in output.now])
        self._decide(outputs)
        for shard, output in outputs:
            self._end_if_lost(shard)
            self._apply(shard, output.committed)
            for event in output.events:
                if isinstance(event, Leading):
                    self.rights.lead(shard, event.epoch)
                elif isinstance(event, SteppedDown | Released):
                    self.rights.leave(shard)
                self._hooks.event(shard, event)

    def _persist(self, outputs: list[tuple[int, Output]]) -> None:
        records: list[Record] = [record for _, output in outputs for record in output.records]
        synced = [pair for _, output in outputs for pair in output.synced]
        if not records:
            self._send(synced)
            return
        marks = [(shard, output.mark) for shard, output in outputs]
        future = self._wal.submit(records)
        self._writes.append(self._clock.monotonic_ms())
        self._health.writing_since_ms = self._writes[0]
        future.add_done_callback(partial(self._persisted, marks, synced))

    def _persisted(
        self, marks: list[tuple[int, Mark]], synced: list[tuple[NodeId, Message]],
        future: "asyncio.Future[None]",
    ) -> None:  # fmt: skip
        if future.cancelled() or future.exception() is not None:
            return  # the journal failed, and says so itself: nothing is acknowledged any more
        self._writes.popleft()
        self._health.writing_since_ms = self._writes[0] if self._writes else 0
        for shard, mark in marks:
            replica = self.replicas.get(shard)
            if replica is not None:
                replica.persisted(mark)
                self._dirty.add(shard)
        self._send(synced)
        self._turn()

    def _send(self, pairs: Sequence[tuple[NodeId, Message]]) -> None:
        if not pairs:
            return
        by_peer: defaultdict[NodeId, list[Message]] = defaultdict(list)
        for peer, message in pairs:
            by_peer[peer].append(message)
        for peer, messages in by_peer.items():
            self._peers.send(peer, messages)

    def _decide(self, outputs: list[tuple[int, Output]]) -> None:
        """The runner's batches that are committed now, in one call for all shards of a batch."""
        if not self._pending:
            return
        decided: dict[Done, list[int]] = {}
        for shard, output in outputs:
            pending = self._pending.get(shard)
            if pending is None or not output.committed:
                continue
            first = output.committed[0]
            if first.epoch == pending.epoch:
                del self._pending[shard]
                decided.setdefault(pending.done, []).append(pending.place)
                self.replicas[shard].applied(first.index)
                output.committed.pop(0)
        for done, places in decided.items():
            done(places, None)

    def _end_if_lost(self, shard: int) -> None:
        if shard not in self._serving or self.replicas[shard].leads:
            return
        self._serving.discard(shard)
        self.leaderships_ended += 1
        self.rights.leave(shard)
        pending = self._pending.pop(shard, None)
        if pending is not None:
            pending.done([pending.place], _lost())
        self._hooks.resign(shard)

    def _apply(self, shard: int, entries: Sequence[LogEntry]) -> None:
        """What nobody here proposed: a follower's entries, or those of leaders before."""
        if entries:
            assert shard not in self._serving, "what a leader commits, its runner proposed"
            self._hooks.apply(shard, entries)
            self.replicas[shard].applied(entries[-1].index)


def _lost() -> TickwheelError:
    return Unavailable(
        "the leadership of the job's shard ended while this was written: it may be done or not; repeat it with the "
        "same request_id",
        reason="OUTCOME_UNKNOWN",
    )
