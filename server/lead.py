"""Floor 2, pure. A leader's side of the log: where each peer is, what to send it, what is committed, who votes.

    a peer      PROBE ── acked ──► STREAM ── its log ends below our base ──► SNAPSHOT
                  ▲  one message at a time   window of bytes                  │
                  ╰──── rejected, no ack for ack_ms, reconnected ◄────────────╯ acked, or snapshot_ms over

    voters      V ──reconfigure──► V and V' ── V' caught up: CasWanted ── done ──► V'
                                            ╰─ refused: step down; unknown: stay

Commit counts only entries of the leader's own epoch: those before are committed with its EPOCH_START.

Must never import: any driver, `replica`; no I/O, no clock.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum

from tickwheel.server.ledger import Ledger
from tickwheel.server.log import ENTRY_OVERHEAD_BYTES, require
from tickwheel.server.message import Append, NodeId
from tickwheel.server.quorum import reached
from tickwheel.server.turn import (
    CasWanted,
    Leadership,
    ReplicaOptions,
    SnapshotWanted,
)


class Pace(Enum):
    """How a peer is fed."""

    PROBE = "probe"
    STREAM = "stream"
    SNAPSHOT = "snapshot"


class Peer:
    """One other replica, as the leader knows it. `match` is acked and so fsynced; `next` is to be sent."""

    __slots__ = (
        "acked_ms", "commit_sent", "linked", "match", "next", "pace", "sent_ms", "unacked",
        "unacked_bytes", "waiting",
    )  # fmt: skip

    def __init__(self, next_index: int, now_ms: int) -> None:
        self.match = 0
        self.next = next_index
        self.pace = Pace.PROBE
        self.linked = True
        self.waiting = False
        self.commit_sent = 0
        self.sent_ms = now_ms
        self.acked_ms = now_ms
        self.unacked: deque[tuple[int, int]] = deque()  # bounded: by window_bytes_max
        self.unacked_bytes = 0

    def probe(self, next_index: int) -> None:
        """Ask where it is, one message at a time."""
        self.pace = Pace.PROBE
        self.next = next_index
        self.waiting = False
        self.unacked.clear()
        self.unacked_bytes = 0

    def acked(self, match: int, now_ms: int) -> None:
        """It has everything up to `match` on disk."""
        self.acked_ms = now_ms
        if self.pace is not Pace.STREAM:
            self.probe(self.match + 1)
            self.pace = Pace.STREAM
        self.next = max(self.next, self.match + 1)
        while self.unacked and self.unacked[0][0] <= match:
            self.unacked_bytes -= self.unacked.popleft()[1]

    def sent(self, message: Append, now_ms: int) -> None:
        """It was sent that."""
        self.sent_ms = now_ms
        self.commit_sent = message.commit
        if self.pace is Pace.PROBE:
            self.waiting = True
        elif message.entries:
            if not self.unacked:
                self.acked_ms = now_ms
            self.next = message.entries[-1].index + 1
            size = sum(len(entry.payload) + ENTRY_OVERHEAD_BYTES for entry in message.entries)
            self.unacked.append((self.next - 1, size))
            self.unacked_bytes += size


class Lead:
    """What a leader knows, from its EPOCH_START on."""

    def __init__(
        self, me: NodeId, record: Leadership, ledger: Ledger,
        *, options: ReplicaOptions, unlinked: AbstractSet[NodeId], now_ms: int,
    ) -> None:  # fmt: skip
        self.epoch = record.epoch
        self.start_index = ledger.log.last_index + 1
        self.configs: tuple[tuple[NodeId, ...], ...] = (record.voters,)
        self.learners = record.learners
        self.active = False
        self.released = False
        self.moved_ms = now_ms
        self.peers: dict[NodeId, Peer] = {}
        self._me = me
        self._ledger = ledger
        self._log = ledger.log
        self._options = options
        self._new_learners = record.learners
        self._cas_asked = False
        self._unlinked = unlinked
        self._fit_peers(now_ms)

    # --- peers ---

    def _fit_peers(self, now_ms: int) -> None:
        """A peer for everyone in a configuration, in a fixed order."""
        wanted = {*self.learners, *self._new_learners}.union(*self.configs) - {self._me}
        known = self.peers
        self.peers = {name: known.get(name) or self._peer(name, now_ms) for name in sorted(wanted)}

    def _peer(self, name: NodeId, now_ms: int) -> Peer:
        peer = Peer(self._log.last_index + 1, now_ms)
        peer.linked = name not in self._unlinked
        return peer

    @property
    def snapshotting(self) -> bool:
        """True while a peer takes a snapshot."""
        return any(peer.pace is Pace.SNAPSHOT for peer in self.peers.values())

    def acked(self, name: NodeId, match: int, now_ms: int) -> bool:
        """False if it can't be: no such peer, or an index that this log has not reached."""
        peer = self.peers.get(name)
        if peer is None or match > self._log.last_index:
            return False
        news = match > peer.match
        if news:
            self.moved_ms = now_ms
        peer.match = max(peer.match, match)
        if peer.pace is not Pace.SNAPSHOT or match >= self._log.base_index:
            peer.acked(match, now_ms)
        elif news:
            # Its copy is in place, and too old by now: it has to take another.
            peer.probe(match + 1)
        return True

    def rejected(self, name: NodeId, hint: int) -> bool:
        """False if it says nothing new: it answers something older, or denies what was acked."""
        peer = self.peers.get(name)
        if peer is None or peer.pace is Pace.SNAPSHOT:
            return False
        if hint < peer.match or hint >= peer.next - 1:
            return False
        peer.probe(hint + 1)
        return True

    def linked(self, name: NodeId, *, up: bool) -> None:
        """The way to a peer opened (what was sent before may be lost) or closed."""
        peer = self.peers.get(name)
        if peer is not None:
            peer.linked = up
            self._probe_anew(peer)

    def not_offered(self, name: NodeId) -> None:
        """A peer was not told that it has to take a copy: ask it where it is, and it will be told again."""
        peer = self.peers.get(name)
        if peer is not None and peer.pace is Pace.SNAPSHOT:
            self._probe_anew(peer)

    def _probe_anew(self, peer: Peer) -> None:
        """Ask the peer where it is: behind what it acked, or, if that is gone here, by the end of the log."""
        known = peer.match >= self._log.base_index and peer.match > 0
        peer.probe((peer.match if known else self._log.last_index) + 1)

    # --- what to send ---

    def appends(self, now_ms: int) -> Iterator[tuple[NodeId, Append] | SnapshotWanted]:
        """Yield what every peer is to be sent now: a probe, or what its window has room for."""
        for name, peer in self.peers.items():
            while self._has_turn(peer):
                if peer.next <= self._log.base_index:
                    peer.pace = Pace.SNAPSHOT
                    peer.sent_ms = now_ms
                    yield SnapshotWanted(name)
                else:
                    yield name, self._append(peer, now_ms)

    @property
    def waiting(self) -> bool:
        """True if `appends` has something for somebody."""
        return any(self._has_turn(peer) for peer in self.peers.values())

    def _has_turn(self, peer: Peer) -> bool:
        if peer.pace is Pace.STREAM:
            room = peer.unacked_bytes < self._options.window_bytes_max
            return peer.linked and room and peer.next <= self._log.last_index
        return peer.linked and peer.pace is Pace.PROBE and not peer.waiting

    def _append(self, peer: Peer, now_ms: int) -> Append:
        options, prev = self._options, peer.next - 1
        probing = peer.pace is Pace.PROBE
        bytes_max = options.probe_bytes_max if probing else options.append_bytes_max
        message = Append(
            self._ledger.shard, self.epoch, prev, self._log.epoch_at(prev),
            self._log.behind(prev, bytes_max), self._ledger.commit,
        )  # fmt: skip
        peer.sent(message, now_ms)
        return message

    def tick(self, now_ms: int) -> Iterator[tuple[NodeId, Append]]:
        """Ask those again who did not answer; yield the commit index for those who have all else."""
        options, last = self._options, self._log.last_index
        for name, peer in self.peers.items():
            silent_ms = now_ms - peer.sent_ms
            if peer.pace is Pace.PROBE:
                peer.waiting = peer.waiting and silent_ms < options.probe_ms
            elif peer.pace is Pace.SNAPSHOT:
                if silent_ms >= options.snapshot_ms:
                    self._probe_anew(peer)
            elif peer.unacked and now_ms - peer.acked_ms >= options.ack_ms:
                self._probe_anew(peer)
            elif peer.next > last and (
                peer.commit_sent < self._ledger.commit or silent_ms >= options.refresh_ms
            ):
                yield name, self._append(peer, now_ms)

    # --- what is committed ---

    def committed(self) -> int:
        """The highest index that is on enough disks: of each configuration, while there are two."""
        return min(self._reached(voters) for voters in self.configs)

    def _reached(self, voters: Sequence[NodeId]) -> int:
        durable = self._ledger.durable
        return reached([durable if name == self._me else self.peers[name].match for name in voters])

    # --- who votes ---

    def reconfigure(
        self, voters: tuple[NodeId, ...], learners: tuple[NodeId, ...], now_ms: int
    ) -> None:
        """Begin to change the voters: from here on a commit needs both sets."""
        require(self.active, "L9", "voters change before the EPOCH_START is committed")
        require(len(self.configs) == 1, "L9", "voters change while another change is open")
        require(self._me in voters, "L9", "the leader is not among the new voters")
        self.configs = (*self.configs, voters)
        self._new_learners = learners
        self._cas_asked = False
        self._fit_peers(now_ms)

    def cas_wanted(self) -> CasWanted | None:
        """Once: the new voters by themselves hold everything that is committed."""
        if len(self.configs) == 1 or self._cas_asked:
            return None
        voters = self.configs[1]
        if self._reached(voters) < self._ledger.commit:
            return None
        self._cas_asked = True
        return CasWanted(self.epoch, voters, self._new_learners)

    def reconfigured(self, now_ms: int) -> None:
        """The record has the new voters: they alone count."""
        require(self._cas_asked, "L9", "voters changed before they were caught up")
        self.configs = self.configs[1:]
        self.learners = self._new_learners
        self._cas_asked = False
        self._fit_peers(now_ms)

    def abandon(self, now_ms: int) -> bool:
        """Go back to the old voters. False if it is too late: the change may be in the record."""
        if len(self.configs) == 1 or self._cas_asked:
            return False
        self.configs = self.configs[:1]
        self._new_learners = self.learners
        self._fit_peers(now_ms)
        return True

    def set_learners(self, learners: tuple[NodeId, ...], now_ms: int) -> None:
        """Feed these beside the voters."""
        require(len(self.configs) == 1, "L9", "learners change while a change of voters is open")
        self.learners = self._new_learners = learners
        self._fit_peers(now_ms)
