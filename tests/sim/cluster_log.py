"""The rules of the replicated log (I11), watched on every node of a simulated cluster from outside.

journal.append ──► what is durable, node by node        acks and promises that leave ──► were they durable?
replica.take   ──► committed, once for all              every later leader has it; nobody applies anything else
host.may_act   ──► nobody else's right at that moment
slot           ──► the log applied again by simpler means (`mirror`): the same rows at the same index
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tests.sim.mirror import Content, unlike
from tests.sim.network import SimPeers

from tickwheel.server import codec
from tickwheel.server.clustered import ClusterNode
from tickwheel.server.journal import Journal
from tickwheel.server.message import Acked, Fenced, LogEntry, Message, NodeId
from tickwheel.server.model import Effects
from tickwheel.server.record import Record, RecordType
from tickwheel.server.replica import Replica
from tickwheel.server.turn import Leading, Output

if TYPE_CHECKING:
    from tests.sim.cluster_node import SimNode
    from tests.sim.cluster_world import ClusterWorld

At = tuple[NodeId, int]


class Watch:
    """What is known of all logs. `committed[shard][i]` is entry i + 1."""

    def __init__(self, world: "ClusterWorld") -> None:
        self._world = world
        self.committed: list[list[LogEntry]] = [[] for _ in range(world.shards)]
        self.leaders: dict[tuple[int, int], NodeId] = {}
        self._effects: dict[tuple[int, int], Effects] = {}
        self._entries: dict[tuple[int, int, int], bytes] = {}
        self._logs: defaultdict[At, dict[int, int]] = defaultdict(dict)
        self._durable: dict[At, int] = {}
        self._promised: dict[At, int] = {}
        self._contents: dict[At, Content] = {}

    def _blame(self, what: str) -> None:
        self._world.blame(f"I11 {what}")

    # --- attaching ---

    def attach(self, sim: "SimNode", node: ClusterNode) -> None:
        """A node has recovered, and does nothing yet."""
        shelf, host = node._shelf, node.host
        hold, may_act, submit = shelf.hold, host.may_act, node.wal.submit

        def held(number: int) -> Replica:
            replica = hold(number)
            self._watch_replica(replica)
            return replica

        def right(shard: int) -> bool:
            may = may_act(shard)
            if may:
                self._world.check_right(sim, shard)
            return may

        def submitted(records: Sequence[Record]) -> object:
            self._note(sim.id, records)
            return submit(records)

        shelf.hold = held  # type: ignore[method-assign]
        host.may_act = right  # type: ignore[method-assign]
        node.wal.submit = submitted  # type: ignore[method-assign,assignment]
        for replica in shelf.replicas.values():
            self._watch_replica(replica)

    def watch_journal(self, node: NodeId, journal: Journal) -> None:
        """What is appended is durable when that returns."""
        append = journal.append

        def appended(records: Sequence[Record]) -> None:
            append(records)
            self._take_durable(node, records)

        journal.append = appended  # type: ignore[method-assign]

    def watch_peers(self, node: NodeId, peers: SimPeers) -> None:
        """What is said must be true when it is said."""
        send = peers.send

        def sent(peer: NodeId, messages: Sequence[Message]) -> None:
            for message in messages:
                self._check_said(node, message)
            send(peer, messages)

        peers.send = sent  # type: ignore[method-assign]

    def _watch_replica(self, replica: Replica) -> None:
        at, log = (replica.me, replica.shard), replica._log
        if replica.promised < self._promised.get(at, 0):
            self._blame(f"{self._name(at[0])} forgot a promise of shard {at[1]}")
        self._durable[at] = log.last_index
        self._promised[at] = replica.promised
        self._logs[at] = {e.index: e.epoch for e in log.between(log.base_index, log.last_index)}
        take = replica.take

        def taken() -> Output:
            out = take()
            self._take_output(replica, out)
            return out

        replica.take = taken  # type: ignore[method-assign]

    # --- journals ---

    def _note(self, node: NodeId, records: Iterable[Record]) -> None:
        """On its way to a journal."""
        for record in records:
            at = node, record.shard
            log = self._logs[at]
            if record.type == RecordType.ENTRY:
                key = record.shard, record.index, record.epoch
                if self._entries.setdefault(key, record.payload) != record.payload:
                    self._blame(f"two entries {key}, one on {self._name(node)}")
                log[record.index] = record.epoch
            elif record.type == RecordType.TRUNCATE:
                self._check_cut(at, record)

    def _check_cut(self, at: At, record: Record) -> None:
        log, committed = self._logs[at], self.committed[record.shard]
        for index in [index for index in log if index > record.index]:
            epoch = log.pop(index)
            if index <= len(committed) and committed[index - 1].epoch == epoch:
                self._blame(
                    f"{self._name(at[0])} cuts shard {record.shard} to {record.index}, "
                    f"and ({index}, {epoch}) is committed"
                )

    def _take_durable(self, node: NodeId, records: Iterable[Record]) -> None:
        for record in records:
            at = node, record.shard
            match record.type:
                case RecordType.ENTRY | RecordType.TRUNCATE:
                    self._durable[at] = record.index
                case RecordType.SNAPSHOT_BASE:
                    self._durable[at] = max(self._durable.get(at, 0), record.index)
                case RecordType.PROMISE:
                    self._promised[at] = max(self._promised.get(at, 0), record.epoch)
                case _:
                    pass

    def _check_said(self, node: NodeId, message: Message) -> None:
        if isinstance(message, Acked) and message.match > self._durable.get(
            (node, message.shard), 0
        ):
            self._blame(
                f"{self._name(node)} acks {message.match} of shard {message.shard}, and it is not durable"
            )
        if isinstance(message, Fenced):
            promised = self._promised.get((node, message.shard), 0)
            if message.epoch > promised:
                self._blame(
                    f"{self._name(node)} says it promised epoch {message.epoch} of shard {message.shard}; "
                    f"durable is {promised}"
                )

    # --- replicas ---

    def _take_output(self, replica: Replica, out: Output) -> None:
        if replica._lead is not None:
            self._commit(replica)
        for entry in out.committed:
            self._check_delivered(replica, entry)
        for event in out.events:
            if isinstance(event, Leading):
                self._check_leader(replica, event.epoch)

    def _commit(self, replica: Replica) -> None:
        """What the leader calls committed is so, for ever."""
        committed, log = self.committed[replica.shard], replica._log
        while len(committed) < replica.commit:
            index = len(committed) + 1
            if index <= log.base_index:
                self._blame(
                    f"shard {replica.shard}: {index} is behind a base, and nobody committed it"
                )
                return
            committed.append(log.at(index))

    def _check_delivered(self, replica: Replica, entry: LogEntry) -> None:
        committed, shard = self.committed[replica.shard], replica.shard
        name = self._name(replica.me)
        if entry.index > len(committed):
            self._blame(f"{name} applies {entry.index} of shard {shard}, and nobody committed it")
        elif committed[entry.index - 1] != entry:
            self._blame(f"{name} applies another entry {entry.index} of shard {shard}")
        elif entry.index > self._durable.get((replica.me, shard), 0):
            self._blame(f"{name} applies {entry.index} of shard {shard} before it is on its disk")

    def _check_leader(self, replica: Replica, epoch: int) -> None:
        shard, name = replica.shard, self._name(replica.me)
        self._world.tell(f"{name} leads shard {shard} in epoch {epoch}")
        self._world.marks["leaderships"] += 1
        if self.leaders.setdefault((shard, epoch), replica.me) != replica.me:
            self._blame(f"{name} leads shard {shard} in epoch {epoch}, and so did another")
        committed, log = self.committed[shard], replica._log
        for index in range(max(log.base_index, 1), len(committed) + 1):
            if committed[index - 1].epoch > epoch:
                return  # of a later leader: this one was paused, and hears only now that it led
            if not log.holds(index, committed[index - 1].epoch):
                self._blame(f"{name} leads shard {shard} without the committed {index}")
                return

    # --- states ---

    def check_node(self, sim: "SimNode") -> None:
        """Hold every shard of a node against the log."""
        if sim.node is None:
            return
        for number, slot in sim.node.slots.items():
            known = len(self.committed[number])
            if slot.applied > known:
                self._blame(f"{sim.name} applied {slot.applied} of shard {number} of {known}")
                continue
            content = self._content((sim.id, number), slot.applied)
            for what in unlike(content, slot):
                self._blame(f"{sim.name} shard {number} at {slot.applied}: {what}")
                break

    def _content(self, at: At, index: int) -> Content:
        content = self._contents.get(at)
        if content is None or content.index > index:
            content = self._contents[at] = Content()
        while content.index < index:
            content.index += 1
            effects = self._effects_of(at[1], content.index)
            if effects is not None:
                content.apply(effects)
        return content

    def _effects_of(self, shard: int, index: int) -> Effects | None:
        payload = self.committed[shard][index - 1].payload
        if not payload:
            return None
        key = shard, index
        if key not in self._effects:
            self._effects[key] = codec.decode_effects(payload)
        return self._effects[key]

    def truth(self, shard: int) -> Content:
        """The shard as the whole log has it."""
        return self._content(("", shard), len(self.committed[shard]))

    def _name(self, node: NodeId) -> str:
        return f"n{int(node[:2], 16) - 1}"
