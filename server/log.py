"""Floor 2, pure. The log of one shard as far as it is in memory, and how it is built from the journal at a start.

         base            applied             commit        last
    ······│━━━━━━━━━━━━━━━━━│━━━━━━━━━━━━━━━━━━━│╌╌╌╌╌╌╌╌╌╌╌│
     gone   a bounded tail    committed, waits    may still be replaced

Everything above `applied` is always there. Below `base` everything is committed, so it is the same on every replica
that has it, and `holds` says so without looking.

Must never import: any driver; no I/O, no clock.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tickwheel.server.errors import LogBroken
from tickwheel.server.message import LogEntry
from tickwheel.server.record import Record, RecordType, ShardMark

ENTRY_OVERHEAD_BYTES = 64
"""What an entry costs in memory and on the wire beside its payload, roughly."""


def require(holds: bool, rule: str, what: str) -> None:
    """Hold a rule of the log. Raises LogBroken, which stops the node: going on could lose what was promised."""
    if not holds:
        raise LogBroken(f"{rule} of the replicated log is broken: {what}", metadata={"rule": rule})


def _size(entry: LogEntry) -> int:
    return len(entry.payload) + ENTRY_OVERHEAD_BYTES


def _epoch(entry: LogEntry) -> int:
    return entry.epoch


class Log:
    """Entries behind (base_index, base_epoch), without a gap, their epochs never falling."""

    __slots__ = ("_entries", "_tail_bytes", "applied", "base_epoch", "base_index")

    def __init__(
        self, base_index: int = 0, base_epoch: int = 0, entries: Iterable[LogEntry] = ()
    ) -> None:
        self.base_index = base_index
        self.base_epoch = base_epoch
        self.applied = base_index
        self._tail_bytes = 0
        self._entries: list[LogEntry] = []
        for entry in entries:
            self.append(entry)

    @property
    def last_index(self) -> int:
        """Where it ends."""
        return self.base_index + len(self._entries)

    @property
    def last_epoch(self) -> int:
        """The epoch of its last entry."""
        return self._entries[-1].epoch if self._entries else self.base_epoch

    @property
    def last(self) -> tuple[int, int]:
        """(epoch, index) of its end: the higher, the better the log."""
        return self.last_epoch, self.last_index

    def epoch_at(self, index: int) -> int:
        """The epoch of the entry at an index that is in [base_index, last_index]."""
        assert self.base_index <= index <= self.last_index
        if index == self.base_index:
            return self.base_epoch
        return self._entries[index - self.base_index - 1].epoch

    def at(self, index: int) -> LogEntry:
        """The entry at an index above the base."""
        assert index > self.base_index
        return self._entries[index - self.base_index - 1]

    def holds(self, index: int, epoch: int) -> bool:
        """True if this log has that entry. What is below the base is committed, so every leader has the same."""
        if index < self.base_index:
            return True
        return index <= self.last_index and self.epoch_at(index) == epoch

    def may_agree(self, index: int, epoch: int) -> int | None:
        """The highest index <= `index` whose epoch is <= `epoch`; None if that is below the base.

        Of a log that ends at (index, epoch) nothing above can be the same as here: its epochs never fall either.
        """
        if index < self.base_index or epoch < self.base_epoch:
            return None
        count = min(index, self.last_index) - self.base_index
        return self.base_index + bisect_right(self._entries, epoch, 0, count, key=_epoch)

    def behind(self, index: int, bytes_max: int) -> tuple[LogEntry, ...]:
        """The entries that follow an index, as many as fit, but at least one if there is any."""
        start = end = index - self.base_index
        assert start >= 0
        size = 0
        while end < len(self._entries):
            size += _size(self._entries[end])
            if size > bytes_max and end > start:
                break
            end += 1
        return tuple(self._entries[start:end])

    def between(self, index: int, through: int) -> list[LogEntry]:
        """The entries in (index, through]."""
        return self._entries[index - self.base_index : through - self.base_index]

    def append(self, entry: LogEntry) -> None:
        """Put an entry behind the last."""
        require(
            entry.index == self.last_index + 1,
            "L3",
            f"entry {entry.index} can't follow entry {self.last_index}",
        )
        require(
            entry.epoch >= self.last_epoch,
            "L2",
            f"entry {entry.index} of epoch {entry.epoch} follows one of epoch {self.last_epoch}",
        )
        self._entries.append(entry)

    def truncate(self, index: int) -> None:
        """Forget the entries above an index."""
        assert index >= self.applied, "what is applied is committed"
        del self._entries[index - self.base_index :]

    def apply_to(self, index: int, tail_bytes_max: int) -> None:
        """Everything up to `index` is applied: keep a tail of it, forget the rest."""
        for entry in self.between(self.applied, index):
            self._tail_bytes += _size(entry)
        self.applied = max(self.applied, index)
        if self._tail_bytes > tail_bytes_max + tail_bytes_max // 4:  # seldom: it moves the list
            self._trim(tail_bytes_max)

    def _trim(self, tail_bytes_max: int) -> None:
        count = 0
        while self._tail_bytes > tail_bytes_max:
            self._tail_bytes -= _size(self._entries[count])
            count += 1
        self.base_epoch = self._entries[count - 1].epoch
        self.base_index += count
        del self._entries[:count]

    def install(self, index: int, epoch: int) -> bool:
        """A snapshot of (index, epoch) takes the place of what is up to there. True if what comes after could stay."""
        kept = self.holds(index, epoch)
        self._entries = self.between(index, self.last_index) if kept else []
        self.base_index = self.applied = index
        self.base_epoch = epoch
        self._tail_bytes = 0
        return kept


# --- from the journal ------------------------------------------------------------------------


class Recovered(NamedTuple):
    """A shard's log as the journal has it. `void`: the journal holds entries that must be truncated away.

    `past` are the entries up to what is applied, as far as the journal still has them.
    """

    log: Log
    promised: int
    void: bool
    past: Sequence[LogEntry] = ()


def recovered(
    mark: ShardMark, records: Iterable[Record], applied_index: int, applied_epoch: int
) -> Recovered:
    """Build the log behind what the store has applied, from the shard's records in the order of their writing.

    `mark` is the journal's own table: it knows the promises of segments that are gone. Raises LogBroken if entries
    between the store and the end of the journal are missing.
    """
    walk = _Walk()
    for record in records:
        walk.take(record)
    entries = walk.entries
    first = entries[0].index if entries else applied_index + 1
    last = entries[-1].index if entries else 0
    if last <= applied_index:
        kept, void = [], False
    else:
        require(
            first <= applied_index + 1,
            "L3",
            f"the store has entries up to {applied_index}, the journal begins at {first}",
        )
        at = applied_index - first
        void = at >= 0 and entries[at].epoch != applied_epoch
        kept = [] if void else entries[at + 1 :]
    log = Log(applied_index, applied_epoch, kept)
    promised = max(mark.promised, walk.promised, log.last_epoch)
    return Recovered(log, promised, void, _past(entries, applied_index, applied_epoch))


def _past(entries: list[LogEntry], applied_index: int, applied_epoch: int) -> list[LogEntry]:
    """The entries that lead up to the applied one, if it is among them: what comes before it then is its own past."""
    count = applied_index - entries[0].index + 1 if entries else 0
    if not 0 < count <= len(entries) or entries[count - 1].epoch != applied_epoch:
        return []
    return entries[:count]


class _Walk:
    """The records of one shard, in order: what of its log they leave."""

    def __init__(self) -> None:
        self.promised = 0
        self.entries: list[LogEntry] = []

    def take(self, record: Record) -> None:
        match record.type:
            case RecordType.ENTRY:
                self._append(record)
            case RecordType.TRUNCATE:
                self._truncate(record)
            case RecordType.SNAPSHOT_BASE:
                if self.entries and self.entries[-1].index <= record.index:
                    self.entries = []
            case RecordType.PROMISE:
                self.promised = max(self.promised, record.epoch)
            case RecordType.SHARD_DROP:
                self.entries = []
            case _:
                raise AssertionError(f"{record.type.name} is no record of a shard")

    def _append(self, record: Record) -> None:
        if self.entries and record.index > self.entries[-1].index + 1:
            self.entries = []  # a snapshot lies between, and its record is in a segment that is gone
        if self.entries:
            require(
                record.index == self.entries[-1].index + 1,
                "L3",
                f"the journal has entry {record.index} twice, and no truncation between",
            )
        self.entries.append(LogEntry(record.index, record.epoch, record.payload))

    def _truncate(self, record: Record) -> None:
        """Cut. If the log is to end in an entry that is another than here, a snapshot brought that: all here is void."""
        if self.entries:
            del self.entries[max(record.index - self.entries[0].index + 1, 0) :]
        if self.entries and self.entries[-1].epoch != record.epoch:
            self.entries = []
