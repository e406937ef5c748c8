"""A node of `logs` with its disk, and the judge who sees all nodes and says what is wrong."""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from tickwheel.server.lease import Holds, Rights
from tickwheel.server.log import Log, recovered
from tickwheel.server.message import Acked, Fenced, LogEntry, Message, NodeId
from tickwheel.server.quorum import commit_quorum
from tickwheel.server.record import Record, RecordType, ShardMark
from tickwheel.server.replica import CasWanted, Leadership, Replica, ReplicaOptions

SHARD = 7
RATES = (0.9996, 1.0, 1.0004)


class Wrong(Exception):
    """A rule does not hold."""


class Batch(NamedTuple):
    """An Output's records on their way to disk."""

    mark: int
    records: list[Record]
    synced: list[tuple[NodeId, Message]]
    base: tuple[LogEntry, ...] | None


class Snapshot(NamedTuple):
    """A pseudo-message: all that the sender has applied."""

    state: tuple[LogEntry, ...]


class Flight(NamedTuple):
    """Something on its way."""

    sender: NodeId
    to: NodeId
    message: Message | Snapshot


class Swap(NamedTuple):
    """A compare-and-swap that may still be carried out."""

    revision: int
    new: Leadership


def end_of(state: Sequence[LogEntry]) -> tuple[int, int]:
    """(index, epoch) of what a state has applied."""
    return (state[-1].index, state[-1].epoch) if state else (0, 0)


class Node:
    """One node: a journal, a store that is flushed now and then, and the machines of this life."""

    def __init__(self, name: NodeId, options: ReplicaOptions, rng: Random) -> None:
        self.name = name
        self.options = options
        self.rate = rng.choice(RATES)
        self.offset_ms = rng.randrange(10_000)
        self.life = 0
        self.alive = False
        self.mark = ShardMark()
        self.journal: list[Record] = []
        self.unsynced: list[Batch] = []
        self.flushed: tuple[LogEntry, ...] = ()
        self.state: list[LogEntry] = []
        self.promised_on_disk = 0
        self.revision = 0
        self.wanted: CasWanted | None = None
        self.replica: Replica
        self.holds: Holds
        self.rights: Rights

    def now_ms(self, world_ms: int) -> int:
        """Its boot time."""
        return int(world_ms * self.rate) + self.offset_ms

    def start(self, now_ms: int) -> None:
        """A new life, from what is on disk."""
        self.life += 1
        self.alive = True
        self.wanted = None
        self.holds = Holds(now_ms)
        self.rights = Rights(self.name, now_ms)
        self.state = list(self.flushed)
        found = recovered(self.mark, self.journal, *end_of(self.flushed))
        self.replica = Replica(SHARD, self.name, found, holds=self.holds, options=self.options)

    def disk(self) -> Log:
        """Its log as a crash right now would leave it at least."""
        return recovered(self.mark, self.journal, *end_of(self.flushed)).log

    def has_on_disk(self, index: int, epoch: int) -> bool:
        """True if that entry would survive."""
        return self.disk().holds(index, epoch)

    def acts(self, world_ms: int) -> bool:
        """True if it may fire."""
        if not (self.alive and self.replica.leads):
            return False
        return self.rights.until_ms(SHARD, self.replica.configs) > self.now_ms(world_ms)


class Judge:
    """Knows everything, and says Wrong.

    one leader an epoch · same (index, epoch), same entry and same predecessor · what is handed out as committed is the
    same everywhere and is on a quorum of disks when a leader hands it out · a leader has all that was committed before
    it · acks and promises are on disk when they leave, entries when they are applied · no committed entry is truncated · no two nodes may act at once
    """

    def __init__(self) -> None:
        self.leaders: dict[int, NodeId] = {}
        self.entries: dict[tuple[int, int], tuple[bytes, int]] = {}
        self.committed: dict[int, LogEntry] = {}
        self.committed_by: dict[int, int] = {}
        """The epoch in which each index was first known to be committed, or a later one."""

    def journaled(self, node: Node, records: Sequence[Record], log: Log) -> None:
        """These go to a node's disk."""
        for one in records:
            if one.type is RecordType.TRUNCATE:
                self._truncated(node, one)
            elif one.type is RecordType.ENTRY and log.base_index < one.index <= log.last_index:
                self._entry(log, one)

    def _entry(self, log: Log, one: Record) -> None:
        if log.epoch_at(one.index) != one.epoch:
            return
        said = one.payload, log.epoch_at(one.index - 1)
        known = self.entries.setdefault((one.index, one.epoch), said)
        if known != said:
            raise Wrong(f"log matching: ({one.index}, {one.epoch}) is {known} and {said}")

    def _truncated(self, node: Node, one: Record) -> None:
        disk = node.disk()
        for index in range(max(one.index, disk.base_index) + 1, disk.last_index + 1):
            known = self.committed.get(index)
            if known is None or self.committed_by[index] > node.replica.promised:
                continue  # a copy that nobody counted may go: a leader from before the commit knows no better
            if known.epoch == disk.epoch_at(index):
                raise Wrong(f"truncation: {node.name} cuts off the committed {index}")

    def started(self, node: Node) -> None:
        """A node begins to lead."""
        replica = node.replica
        if replica.epoch in self.leaders:
            if self.leaders[replica.epoch] != node.name:
                raise Wrong(f"two leaders: epoch {replica.epoch}")
            return
        self.leaders[replica.epoch] = node.name
        for index, entry in self.committed.items():
            earlier = self.committed_by[index] < replica.epoch
            if earlier and not replica._log.holds(index, entry.epoch):
                raise Wrong(f"leader completeness: {node.name}, epoch {replica.epoch}, {index}")

    def handed_out(self, node: Node, entries: Sequence[LogEntry]) -> None:
        """A node was told that these are committed."""
        if not node.has_on_disk(entries[-1].index, entries[-1].epoch):
            raise Wrong(f"apply: {entries[-1].index} is not on the disk of {node.name}")
        for entry in entries:
            self.committed_by.setdefault(entry.index, node.replica.promised)
            if self.committed.setdefault(entry.index, entry) != entry:
                raise Wrong(f"committed sequence: {entry.index} on {node.name}")

    def commits(self, node: Node, nodes: list[Node]) -> None:
        """A leader moved its commit index."""
        index, log = node.replica.commit, node.replica._log
        for voters in node.replica.configs if index > log.base_index else ():
            epoch = log.epoch_at(index)
            if epoch != node.replica.epoch:
                raise Wrong(f"commit: {index} is of epoch {epoch}, not {node.replica.epoch}")
            disks = sum(n.has_on_disk(index, epoch) for n in nodes if n.name in voters)
            if disks < commit_quorum(len(voters)):
                raise Wrong(f"commit: {index} is on {disks} disks of {voters}")

    def leaves(self, node: Node, message: Message, nodes: list[Node]) -> None:
        """A node says something."""
        if isinstance(message, Fenced) and node.promised_on_disk < message.epoch:
            raise Wrong(f"promise: {node.name} said {message.epoch} before it was on disk")
        if isinstance(message, Acked) and message.epoch >= node.promised_on_disk:
            # an ack of an epoch that is over says what was: it is no different from one that was long under way
            disk = node.disk()
            if disk.last_index < message.match:
                raise Wrong(f"ack: {node.name} said {message.match} before it was on disk")
            for leader in nodes:
                if leader.alive and leader.replica.epoch == message.epoch and leader.replica._lead:
                    self._same(node, disk, leader.replica._log, message.match)

    def _same(self, node: Node, disk: Log, log: Log, match: int) -> None:
        for index in range(max(disk.base_index, log.base_index), match + 1):
            if index > log.last_index or disk.epoch_at(index) != log.epoch_at(index):
                raise Wrong(f"ack: {node.name} has another {index} than its leader")

    def acting(self, nodes: list[Node], world_ms: int) -> None:
        """Time passed."""
        acting = [node.name for node in nodes if node.acts(world_ms)]
        if len(acting) > 1:
            raise Wrong(f"lease: {acting} may act at the same time")
