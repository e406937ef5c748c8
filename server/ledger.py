"""Floor 2, pure. A log together with what of it is on disk and what is committed, and the Output that is being filled.

    records ──take: mark 7──► journal ──persisted(7)──► durable = where the log ended in Output 7, unless truncated since
    acks, promises: leave with the Output whose records they speak of, or wait here for those of an earlier one

Here the rules hold that concern one replica alone: L2, L3, L5, L6, L7.

Must never import: any driver, `replica`; no I/O, no clock.
"""

from collections import deque
from collections.abc import Iterable, Sequence

from tickwheel.server.log import Log, require
from tickwheel.server.message import Acked, LogEntry, Message, NodeId
from tickwheel.server.record import Record, RecordType
from tickwheel.server.turn import Event, Mark, Output


class Ledger:
    """What a replica holds. `delivered`: handed out as committed; never above `durable`."""

    def __init__(self, shard: int, log: Log) -> None:
        self.shard = shard
        self.log = log
        self.commit = log.base_index
        self.delivered = log.base_index
        self.durable = log.last_index
        self.mark: Mark = 0
        self._out = Output()
        self._ack: tuple[NodeId, Acked] | None = None
        self._unsynced: deque[list[int]] = deque()  # bounded: by what waits for disk
        self._held: list[tuple[Mark, tuple[NodeId, Message]]] = []

    # --- what goes out ---

    @property
    def ready(self) -> bool:
        """True if `take` has something."""
        return bool(self._out) or self._ack is not None or self.deliverable > self.delivered

    @property
    def next_mark(self) -> Mark:
        """The mark of the records that are added now."""
        return self.mark + 1

    @property
    def deliverable(self) -> int:
        """Committed, and on this disk: so the journal is never behind what is applied (L7)."""
        return min(self.commit, self.durable)

    def send(self, to: NodeId, message: Message) -> None:
        """At once."""
        self._out.now.append((to, message))

    def send_all(self, pairs: Iterable[tuple[NodeId, Message]]) -> None:
        """At once, in order."""
        self._out.now += pairs

    def when_synced(self, to: NodeId, message: Message) -> None:
        """When all records so far are on disk (L5)."""
        self._out.synced.append((to, message))

    def ack(self, to: NodeId, message: Acked) -> None:
        """When all records so far are on disk (L5); of several only the last."""
        self._ack = (to, message)

    def ack_again(self, to: NodeId, message: Acked) -> None:
        """As `ack`, unless there is something newer to say."""
        if self._ack is None:
            self.ack(to, message)

    def event(self, event: Event) -> None:
        """Tell the driver."""
        self._out.events.append(event)

    def take(self) -> Output:
        """The Output, and begin the next."""
        out, self._out = self._out, Output()
        if out.records:
            self.mark += 1
            self._unsynced.append([self.mark, self.log.last_index])
        out.mark = self.mark
        if self._ack is not None:
            out.synced.append(self._ack)
            self._ack = None
        if out.synced and not out.records:
            self._hold_back(out)
        if self.deliverable > self.delivered:
            out.committed = self.log.between(self.delivered, self.deliverable)
            self.delivered = self.deliverable
        return out

    def _hold_back(self, out: Output) -> None:
        """These speak of records of earlier Outputs: they wait here until those are on disk."""
        if self._unsynced:
            self._held += [(self.mark, pair) for pair in out.synced]
        else:
            out.now += out.synced
        out.synced = []

    def persisted(self, mark: Mark) -> None:
        """The records of all Outputs up to that mark are on disk."""
        while self._unsynced and self._unsynced[0][0] <= mark:
            self.durable = self._unsynced.popleft()[1]
        if self._held:
            self._out.now += [pair for at, pair in self._held if at <= mark]
            self._held = [(at, pair) for at, pair in self._held if at > mark]

    # --- what changes the log ---

    def record(self, kind: RecordType, epoch: int, index: int, payload: bytes = b"") -> None:
        """To the journal."""
        self._out.records.append(Record(kind, self.shard, epoch, index, payload))

    def append(self, entries: Iterable[LogEntry]) -> None:
        """Put entries behind the last."""
        for entry in entries:
            self.log.append(entry)
            self.record(RecordType.ENTRY, entry.epoch, entry.index, entry.payload)

    def merge(self, prev_index: int, entries: Sequence[LogEntry]) -> int:
        """Take entries that follow an index that agrees; answers up to where the log agrees now.

        What is there already stays: a late message must not cut off what later ones brought.
        """
        log = self.log
        for place, entry in enumerate(entries):
            if entry.index <= log.base_index:
                continue
            if entry.index <= log.last_index and log.epoch_at(entry.index) == entry.epoch:
                same = log.at(entry.index).payload == entry.payload
                require(same, "L3", f"there are two entries ({entry.index}, {entry.epoch})")
                continue
            if entry.index <= log.last_index:
                self.truncate(entry.index - 1)
            self.append(entries[place:])
            break
        return prev_index + len(entries)

    def truncate(self, index: int) -> None:
        """End the log at `index`: what comes after it is not in the log of the leader, or of the best."""
        require(index >= self.commit, "L6", f"truncating to {index}, committed is {self.commit}")
        self.log.truncate(index)
        self._void(index)
        self.record(RecordType.TRUNCATE, self.log.epoch_at(index), index)

    def _void(self, index: int) -> None:
        """What is on disk, or on its way there, above `index` counts no more."""
        self.durable = min(self.durable, index)
        for item in self._unsynced:
            item[1] = min(item[1], index)

    def commit_to(self, index: int) -> None:
        """Committed up to there, if it was not already."""
        assert index <= self.log.last_index
        self.commit = max(self.commit, index)

    def applied(self, index: int, tail_bytes_max: int) -> None:
        """The driver's state holds everything up to there."""
        require(index <= self.delivered, "L7", f"{index} is applied, {self.delivered} delivered")
        self.log.apply_to(index, tail_bytes_max)

    def install(self, index: int, epoch: int) -> None:
        """The store holds a snapshot of (index, epoch)."""
        require(index >= self.commit, "L6", f"a snapshot of {index}, committed is {self.commit}")
        longer = self.log.last_index > index
        kept = self.log.install(index, epoch)
        self.record(RecordType.SNAPSHOT_BASE, epoch, index)
        if not kept:
            self._void(index)
            if longer:
                self.record(RecordType.TRUNCATE, epoch, index)
        self.commit = self.delivered = index
