"""Floor 2, pure. One shard's replicated log on one node: follow, stand, lead. No I/O, no clock, no chance.

                              led (we won the record)
    FOLLOWER ────────────────────────────────────────────► FENCING ──► FETCHING ──► STARTING ──► LEADING ──► RELEASED
       ▲        Qf promises       the best log        EPOCH_START          release: the last
       │                                              committed            proposed is committed
       ╰── a higher epoch (Fence, Append, Superseded, record), or no progress for give_up_ms ──────────────╯

Calls mutate the replica and fill its next Output; `take` hands that over (`turn` says what the driver does with it).

What always holds (a breach raises LogBroken, and the node stops):

    L1  one leader an epoch                            L5  an ack, a promise, one's own share of a commit: fsynced
    L2  promises and the entries' epochs never fall    L6  nothing at or below the commit index is truncated
    L3  same (index, epoch): same entry                L7  nothing is applied that is not committed, and on this disk
    L4  what is committed is in every later leader     L9  voters change one at a time, jointly, when caught up

Must never import: any driver; no I/O, no clock.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, ClassVar

from tickwheel.server.errors import NotLeader
from tickwheel.server.lead import Lead
from tickwheel.server.ledger import Ledger
from tickwheel.server.log import Recovered, recovered, require
from tickwheel.server.message import (
    Acked,
    Append,
    Fence,
    Fenced,
    FenceRefused,
    Fetch,
    Fetched,
    FetchRefused,
    LogEntry,
    Message,
    NodeId,
    Rejected,
    Superseded,
)
from tickwheel.server.record import RecordType
from tickwheel.server.takeover import Takeover
from tickwheel.server.turn import (
    CasWanted,
    Event,
    FenceFailed,
    Holding,
    Leadership,
    Leading,
    Mark,
    Outcome,
    Output,
    Released,
    ReplicaOptions,
    SnapshotWanted,
    SteppedDown,
    Why,
)

__all__ = [
    "CasWanted", "Event", "FenceFailed", "Leadership", "Leading", "Mark", "NotLeader", "Outcome", "Output",
    "Recovered", "Released", "Replica", "ReplicaOptions", "Role", "SnapshotWanted", "SteppedDown", "Why",
    "recovered",
]  # fmt: skip


class Role(IntEnum):
    """What the replica is at, in the order of a leadership."""

    FOLLOWER = 0
    FENCING = 1
    FETCHING = 2
    STARTING = 3
    LEADING = 4
    RELEASED = 5


class Replica:
    """One shard's log on this node.

    `epoch` is that of its own last leadership or candidacy (0: none in this life), `promised` the lowest that it still
    listens to, `leader` whom it follows ("" if unknown), `ignored` counts messages that said nothing new, by kind.
    """

    def __init__(
        self, shard: int, me: NodeId, found: Recovered, *, holds: Holding,
        options: ReplicaOptions | None = None,
    ) -> None:  # fmt: skip
        self.shard = shard
        self.me = me
        self.options = options or ReplicaOptions()
        self.role = Role.FOLLOWER
        self.epoch = 0
        self.promised = found.promised
        self.leader: NodeId = ""
        self.ignored: Counter[str] = Counter()  # bounded: a key a kind of message
        self._ledger = Ledger(shard, found.log)
        self._log = found.log
        self._holds = holds
        self._now_ms = 0
        self._takeover: Takeover | None = None
        self._lead: Lead | None = None
        self._installing = False
        self._giver: NodeId = ""
        self._unlinked: set[NodeId] = set()
        self._moved = False
        holds.promised(shard, self.promised)
        if found.void:
            self._ledger.record(RecordType.TRUNCATE, found.log.base_epoch, found.log.base_index)

    # --- what can be asked ---

    @property
    def leads(self) -> bool:
        """True from Leading until SteppedDown or Released."""
        return self.role == Role.LEADING

    @property
    def accepts(self) -> bool:
        """True while `propose` takes entries."""
        return self._lead is not None and self.role == Role.LEADING and not self._lead.released

    @property
    def stands(self) -> bool:
        """True while a leadership is on its way, or is being handed over."""
        return self.role not in {Role.FOLLOWER, Role.LEADING}

    @property
    def ready(self) -> bool:
        """True if `take` may have something to say."""
        return self._moved or self._ledger.ready

    @property
    def commit(self) -> int:
        """Committed up to there, as far as this replica knows; not all of it need be on this disk yet."""
        return self._ledger.commit

    @property
    def durable(self) -> int:
        """On this disk up to there."""
        return self._ledger.durable

    @property
    def last(self) -> tuple[int, int]:
        """(epoch, index) of the end of the log: the higher, the better it is to lead."""
        return self._log.last

    @property
    def applied_index(self) -> int:
        """What the driver said of it."""
        return self._log.applied

    @property
    def configs(self) -> tuple[tuple[NodeId, ...], ...]:
        """The voters whose quorum is needed: two sets while they change; none if this replica does not lead."""
        return self._lead.configs if self._lead is not None else ()

    @property
    def learners(self) -> tuple[NodeId, ...]:
        """Who is fed beside the voters."""
        return self._lead.learners if self._lead is not None else ()

    def matches(self) -> dict[NodeId, int]:
        """As leader: up to where each peer has acked."""
        return {name: peer.match for name, peer in self._lead.peers.items()} if self._lead else {}

    # --- the driver's calls: leadership ---

    def led(self, record: Leadership, now_ms: int) -> None:
        """We won the record. Said again it does nothing; for an epoch that is over it fails, so that it is released."""
        require(record.leader == self.me, "L1", f"told to lead by a record of {record.leader!r}")
        self._now_ms = now_ms
        if record.epoch < self.epoch or (record.epoch == self.epoch and self.role != Role.FOLLOWER):
            return
        self._step_down(Why.ANOTHER_LEADS, f"epoch {record.epoch} is this node's too")
        if record.epoch <= max(self.promised, self.epoch) or self._installing:
            self._ledger.event(FenceFailed(record.epoch))
            return
        self.epoch = record.epoch
        self.role = Role.FENCING
        self._takeover = Takeover(self.shard, self.me, record, self.options, now_ms)
        self._ask(self._takeover, now_ms)

    def following(self, record: Leadership, now_ms: int) -> None:
        """The record names somebody else, or nobody, at this epoch."""
        self._now_ms = now_ms
        if record.epoch >= self.epoch and record.leader != self.me:
            require(
                record.epoch > self.epoch or not record.leader or self.role == Role.FOLLOWER,
                "L1",
                f"epoch {record.epoch} belongs to {record.leader} and to this node",
            )
            self._step_down(Why.ANOTHER_LEADS, f"epoch {record.epoch} of {record.leader!r}")

    def step_down(self, detail: str) -> None:
        """Lead no more, and stand no more, for a reason of the driver's."""
        self._step_down(Why.GAVE_UP, detail)

    def release(self) -> None:
        """Take nothing more; Released comes when what was proposed is committed. Raises NotLeader."""
        self._leading().released = True
        self._moved = True

    def _step_down(self, why: Why, detail: str = "") -> None:
        if self.role == Role.FOLLOWER:
            return
        self.role = Role.FOLLOWER
        self._takeover = self._lead = None
        self._ledger.event(SteppedDown(self.epoch, why, detail))

    def _leading(self) -> Lead:
        if self._lead is None or not self.accepts:
            raise NotLeader(
                f"this node does not lead shard {self.shard}",
                metadata={"shard": str(self.shard), "leader": self.leader},
            )
        return self._lead

    # --- the driver's calls: the log ---

    def propose(self, payload: bytes) -> int:
        """Append an entry; answers its index. It is done when it comes back as committed. Raises NotLeader."""
        assert payload, "an empty payload means EPOCH_START"
        lead = self._leading()
        index = self._log.last_index + 1
        self._ledger.append([LogEntry(index, lead.epoch, payload)])
        self._moved = True
        return index

    def persisted(self, mark: Mark) -> None:
        """The records of all outputs up to that mark are on disk."""
        self._ledger.persisted(mark)
        self._moved = True
        takeover = self._takeover
        if takeover is not None and takeover.granted(mark):
            self._promise_counts(takeover, self.me, self._log.last)

    def applied(self, index: int) -> None:
        """The driver's state holds everything up to there: entries may be forgotten."""
        if index > self._log.applied:
            long = self._lead is not None and self._lead.snapshotting
            options = self.options
            self._ledger.applied(
                index, options.snapshot_tail_bytes_max if long else options.tail_bytes_max
            )

    def tick(self, now_ms: int) -> bool:
        """Time passed. True if there is something to take."""
        self._now_ms = now_ms
        if self._takeover is not None:
            self._tick_takeover(self._takeover, now_ms)
        if self._lead is not None:
            self._tick_lead(self._lead, now_ms)
        return self.ready

    def connected(self, peer: NodeId) -> None:
        """The way to a peer is open again; what was sent before may be lost: a leader asks anew.

        A follower says again what it has: its leader does not ask while it waits for word of a copy.
        """
        self._unlinked.discard(peer)
        if self._lead is not None:
            self._lead.linked(peer, up=True)
            self._moved = True
        elif peer in {self.leader, self._giver}:
            self._ledger.ack_again(peer, Acked(self.shard, self.promised, self.commit))

    def disconnected(self, peer: NodeId) -> None:
        """There is no way to a peer: send it nothing until `connected`."""
        self._unlinked.add(peer)
        if self._lead is not None:
            self._lead.linked(peer, up=False)

    def not_offered(self, peer: NodeId) -> None:
        """SnapshotWanted was not told to the peer, which otherwise would be said again after `snapshot_ms` only."""
        if self._lead is not None:
            self._lead.not_offered(peer)
            self._moved = True

    def take(self) -> Output:
        """What is to be done now. The lists are the caller's."""
        if self._moved and self._lead is not None:
            self._advance(self._lead)
            self._feed(self._lead)
        self._moved = False
        return self._ledger.take()

    def _promise(self, epoch: int) -> None:
        """Join nothing below `epoch` any more."""
        require(epoch > self.promised, "L2", f"a promise of {epoch} after one of {self.promised}")
        self.promised = epoch
        self.leader = ""
        self._holds.promised(self.shard, epoch)
        self._ledger.record(RecordType.PROMISE, epoch, 0)

    # --- messages ---

    def receive(self, sender: NodeId, message: Message, now_ms: int) -> None:
        """A peer said something about this shard."""
        self._now_ms = now_ms
        self._HANDLERS[type(message)](self, sender, message)

    def _ignore(self, message: Message) -> None:
        self.ignored[type(message).__name__] += 1

    def _send(self, to: NodeId, message: Message) -> None:
        self._ledger.send(to, message)

    def _stale(self, sender: NodeId, epoch: int) -> bool:
        """True, and said so, if the sender speaks for an epoch that is over."""
        if epoch < self.promised:
            self._send(sender, Superseded(self.shard, epoch, self.promised))
            return True
        return False

    # --- following ---

    def _on_append(self, sender: NodeId, message: Append) -> None:
        if self._stale(sender, message.epoch):
            return
        if self._installing:
            self._ignore(message)
            return
        self._follow(sender, message.epoch)
        prev_index, prev_epoch = message.prev_index, message.prev_epoch
        if not self._log.holds(prev_index, prev_epoch):
            require(prev_index > self.commit, "L4", f"a leader without the committed {prev_index}")
            self._send(sender, Rejected(self.shard, message.epoch, self._hint(message)))
            return
        match = self._ledger.merge(prev_index, message.entries)
        self._ledger.commit_to(min(message.commit, match))
        acked = Acked(self.shard, message.epoch, max(match, self.commit))
        self._ledger.ack(sender, acked)

    def _follow(self, sender: NodeId, epoch: int) -> None:
        """The sender leads `epoch`, and proved it: it would not append before enough voters promised."""
        own = self.role != Role.FOLLOWER and epoch == self.epoch
        require(not own, "L1", f"{sender} leads epoch {epoch}, and so does this node")
        if self.role != Role.FOLLOWER and epoch > self.epoch:
            self._step_down(Why.FENCED, f"{sender} leads epoch {epoch}")
        if epoch > self.promised:
            self._promise(epoch)
        require(self.leader in {"", sender}, "L1", f"{sender} and {self.leader} lead epoch {epoch}")
        self.leader = sender

    def _hint(self, message: Append) -> int:
        """The highest index that may agree; everything committed does."""
        below = min(message.prev_index - 1, self._log.last_index)
        return max(self._log.may_agree(below, message.prev_epoch) or 0, self.commit)

    def _on_fence(self, sender: NodeId, message: Fence) -> None:
        epoch = message.epoch
        if self._stale(sender, epoch):
            return
        own = self.role != Role.FOLLOWER and epoch == self.epoch
        require(not own, "L1", f"{sender} stands for epoch {epoch}, and so does this node")
        if epoch > self.promised:
            released = message.released
            wait_ms = self._holds.wait_ms(self.shard, epoch, self._now_ms, released=released)
            if wait_ms > 0:
                self._send(sender, FenceRefused(self.shard, epoch, wait_ms))
                return
            self._step_down(Why.FENCED, f"{sender} stands for epoch {epoch}")
            self._promise(epoch)
        last_epoch, last_index = self._log.last
        self._ledger.when_synced(sender, Fenced(self.shard, epoch, last_index, last_epoch))

    def _on_fetch(self, sender: NodeId, message: Fetch) -> None:
        if self._stale(sender, message.epoch):
            return
        if message.epoch > self.promised:
            self._ignore(message)  # an answer is worth something only after our promise
            return
        log = self._log
        index = log.may_agree(message.after_index, message.after_epoch)
        if index is None:
            refusal = FetchRefused(self.shard, message.epoch, log.base_index + 1)
            self._send(sender, refusal)
            return
        entries = log.behind(index, self.options.append_bytes_max)
        self._send(
            sender,
            Fetched(self.shard, message.epoch, index, log.epoch_at(index), entries, log.last_index),
        )

    # --- standing ---

    def _on_fenced(self, sender: NodeId, message: Fenced) -> None:
        takeover = self._takeover
        if takeover is None or message.epoch != self.epoch or self.role != Role.FENCING:
            self._ignore(message)
            return
        self._promise_counts(takeover, sender, (message.last_epoch, message.last_index))

    def _on_fence_refused(self, sender: NodeId, message: FenceRefused) -> None:
        if self._takeover is None or message.epoch != self.epoch:
            self._ignore(message)
            return
        self._takeover.refused(sender, message.wait_ms, self._now_ms)

    def _on_superseded(self, sender: NodeId, message: Superseded) -> None:
        if self.role == Role.FOLLOWER or message.epoch != self.epoch:
            self._ignore(message)
            return
        self._step_down(Why.SUPERSEDED, f"{sender} promised epoch {message.promised}")

    def _ask(self, takeover: Takeover, now_ms: int) -> None:
        """Promise ourselves as soon as our own hold permits it, like any voter; ask the others."""
        if takeover.granted_mark is None:
            released = takeover.record.released
            if not self._holds.wait_ms(self.shard, self.epoch, now_ms, released=released):
                self._promise(self.epoch)
                takeover.granted_mark = self._ledger.next_mark
        self._ledger.send_all(takeover.asks(now_ms))

    def _promise_counts(self, takeover: Takeover, voter: NodeId, last: tuple[int, int]) -> None:
        if takeover.fenced(voter, last, self._now_ms):
            if takeover.best == self.me or takeover.target == self._log.last:
                self._start(takeover)
            else:
                self.role = Role.FETCHING
                self._ledger.send_all(takeover.fetch(self._log, self._now_ms))

    def _on_fetched(self, sender: NodeId, message: Fetched) -> None:
        takeover = self._takeover
        if (
            takeover is None
            or self.role != Role.FETCHING
            or (sender, message.epoch) != (takeover.best, self.epoch)
            or not takeover.expects(message.prev_index)
        ):
            self._ignore(message)
            return
        prev_index, prev_epoch = message.prev_index, message.prev_epoch
        if not self._log.holds(prev_index, prev_epoch):
            require(prev_index > self.commit, "L4", f"the best log lacks committed {prev_index}")
            sends = takeover.step_back(self._log, prev_index - 1, prev_epoch, self._now_ms)
            self._ledger.send_all(sends)
            return
        agreed = self._ledger.merge(prev_index, message.entries)
        if agreed < message.last_index:
            self._ledger.send_all(takeover.got_on(self._log, agreed, self._now_ms))
            return
        require(self._log.last == takeover.target, "L4", "the best log is not what it was")
        self._start(takeover)

    def _on_fetch_refused(self, sender: NodeId, message: FetchRefused) -> None:
        takeover = self._takeover
        if takeover is None or sender != takeover.best or message.epoch != self.epoch:
            self._ignore(message)
            return
        self._fail(sender)

    def _fail(self, best: NodeId = "") -> None:
        """Stand no more; whoever has the best log should."""
        self.role = Role.FOLLOWER
        self._takeover = self._lead = None
        self._ledger.event(FenceFailed(self.epoch, best))

    def _tick_takeover(self, takeover: Takeover, now_ms: int) -> None:
        if takeover.overdue(now_ms):
            self._fail()
        else:
            self._ask(takeover, now_ms)

    # --- leading ---

    def _start(self, takeover: Takeover) -> None:
        """The log holds all that may be committed: begin the epoch with an entry of it."""
        self._takeover = None
        self.role = Role.STARTING
        self.leader = self.me
        self._lead = Lead(
            self.me, takeover.record, self._ledger,
            options=self.options, unlinked=self._unlinked, now_ms=self._now_ms,
        )  # fmt: skip
        self._ledger.append([LogEntry(self._log.last_index + 1, self.epoch, b"")])
        self._moved = True

    def _on_acked(self, sender: NodeId, message: Acked) -> None:
        lead = self._lead
        if lead is None or message.epoch != self.epoch:
            # Its copy may be of an epoch before, and it has not heard of this one yet.
            self.not_offered(sender)
            self._ignore(message)
        elif lead.acked(sender, message.match, self._now_ms):
            self._moved = True
        else:
            self._ignore(message)

    def _on_rejected(self, sender: NodeId, message: Rejected) -> None:
        lead = self._lead
        if lead is None or message.epoch != self.epoch or not lead.rejected(sender, message.hint):
            self._ignore(message)
        else:
            lead.moved_ms = self._now_ms
            self._moved = True

    def _advance(self, lead: Lead) -> None:
        """Commit what is on enough disks, if it is of this epoch, and say what follows from it."""
        index = lead.committed()
        if index >= lead.start_index:
            self._ledger.commit_to(index)
        if self.role == Role.STARTING and self._ledger.deliverable >= lead.start_index:
            self.role = Role.LEADING
            lead.active = True
            self._ledger.event(Leading(self.epoch))
        if (wanted := lead.cas_wanted()) is not None:
            self._ledger.event(wanted)
        done = self._ledger.deliverable == self._log.last_index
        if lead.released and self.role == Role.LEADING and done:
            self.role = Role.RELEASED
            self._ledger.event(Released(self.epoch))

    def _feed(self, lead: Lead) -> None:
        """What the peers are to be sent."""
        for item in lead.appends(self._now_ms):
            if isinstance(item, SnapshotWanted):
                self._ledger.event(item)
            else:
                self._ledger.send(*item)

    def _tick_lead(self, lead: Lead, now_ms: int) -> None:
        stuck = now_ms - lead.moved_ms >= self.options.give_up_ms and not lead.snapshotting
        if self.role == Role.STARTING and stuck:
            self._fail()
            return
        self._ledger.send_all(lead.tick(now_ms))
        self._moved = self._moved or lead.waiting

    # --- voters ---

    def reconfigure(self, voters: Sequence[NodeId], learners: Sequence[NodeId]) -> None:
        """Change the voters: CasWanted comes when the new ones are caught up. Raises NotLeader, LogBroken (L9)."""
        self._leading().reconfigure(tuple(voters), tuple(learners), self._now_ms)
        self._moved = True

    def reconfigured(self, outcome: Outcome) -> None:
        """How the change of the record ended. UNKNOWN: commits go on needing both sets; ask again, or say the end."""
        lead = self._lead
        if lead is None or outcome is Outcome.UNKNOWN:
            return
        if outcome is Outcome.REFUSED:
            self._step_down(Why.RECORD_LOST)
            return
        lead.reconfigured(self._now_ms)
        self._moved = True

    def abandon_reconfigure(self) -> bool:
        """Give a change of voters up. False if it is too late, because CasWanted was said."""
        lead = self._lead
        self._moved = True
        return lead is not None and lead.abandon(self._now_ms)

    def set_learners(self, learners: Sequence[NodeId]) -> None:
        """Feed these beside the voters, and nobody else. Raises NotLeader."""
        self._leading().set_learners(tuple(learners), self._now_ms)
        self._moved = True

    # --- snapshots ---

    def installing(self, index: int) -> bool:
        """May a snapshot of `index` be put in place now? If so, Appends are ignored until it is, or was given up."""
        self._installing = self.role == Role.FOLLOWER and index > self.commit
        return self._installing

    def install_failed(self) -> None:
        """The store is as it was."""
        self._installing = False

    def snapshot_installed(self, index: int, epoch: int, giver: NodeId) -> None:
        """The store holds a snapshot of (index, epoch). The log keeps what comes after it only if it holds that.

        Its giver leads, heard of or not, and waits for word of it.
        """
        assert self.role == Role.FOLLOWER, "ask `installing` first"
        self._installing = False
        if epoch > self.promised:
            self._promise(epoch)
        self._giver = giver
        self._ledger.install(index, epoch)
        self._ledger.ack(self.leader or giver, Acked(self.shard, self.promised, index))

    _HANDLERS: ClassVar[dict[type, Callable[["Replica", NodeId, Any], None]]] = {
        Append: _on_append,
        Acked: _on_acked,
        Rejected: _on_rejected,
        Superseded: _on_superseded,
        Fence: _on_fence,
        Fenced: _on_fenced,
        FenceRefused: _on_fence_refused,
        Fetch: _on_fetch,
        Fetched: _on_fetched,
        FetchRefused: _on_fetch_refused,
    }
