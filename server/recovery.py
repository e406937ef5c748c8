"""Floor 3. Opening a journal: read every segment, tell a crash from rot, and only then touch anything.

    a bad place ──┬── something begun after its batch was synced is there ──────────► rot: refuse, change nothing
                  ├── its batch's own end is intact, and no lost sector explains it ► rot: refuse, change nothing
                  └── otherwise ► torn tail: zero it, sync, report the bytes, go on

The last batch is written again as it is and synced before anyone acts on it: it may be whole only in the page cache,
and after a failed fsync the kernel takes such pages for clean.

Must never import: `journal`, `wal`, `store`, `shard`; no I/O but through `Files`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tickwheel.server import record as framing
from tickwheel.server.errors import FailedPrecondition, WalRot
from tickwheel.server.files import TEMPORARY_SUFFIX, Files
from tickwheel.server.record import (
    BATCH_END_BYTES,
    Bad,
    Batch,
    Record,
    RecordType,
    SegmentHeader,
    ShardMark,
)

MIB = 1 << 20
SEGMENT_BYTES_MIN = 4096


_NAME = re.compile(r"(\d{20})\.log")


@dataclass(frozen=True, slots=True)
class WalOptions:
    """Sizes in bytes. `low_water_bytes`: with less free on the disk than that, `space_low` is true.

    `batch_bytes_max` bounds a batch unless one record alone is larger. `queue_bytes_max` is what may wait for the disk.
    """

    segment_bytes: int = 64 * MIB
    batch_bytes_max: int = MIB
    low_water_bytes: int = 1024 * MIB
    queue_bytes_max: int = 64 * MIB

    def __post_init__(self) -> None:
        """Hold the relations between the sizes."""
        assert self.segment_bytes >= SEGMENT_BYTES_MIN
        assert self.segment_bytes % framing.SECTOR_BYTES == 0
        assert 0 < self.batch_bytes_max <= self.segment_bytes
        assert self.low_water_bytes >= 0
        assert self.queue_bytes_max > 0

    @property
    def record_bytes_max(self) -> int:
        """The longest payload of one record: a batch of it alone fills half a segment; the rest is for the header."""
        return self.segment_bytes // 2 - framing.HEADER_BYTES - BATCH_END_BYTES

    @property
    def batch_limit(self) -> int:
        """The most bytes of records that share a batch."""
        return min(self.batch_bytes_max, self.segment_bytes // 2 - BATCH_END_BYTES)


@dataclass(frozen=True, slots=True)
class WalIdentity:
    """Whose journal this is: 16 bytes each. A segment that says otherwise is refused."""

    cluster: bytes
    store: bytes

    def __post_init__(self) -> None:
        """Hold the lengths."""
        assert len(self.cluster) == len(self.store) == 16  # noqa: PLR2004 - the bytes of a uuid


@dataclass(slots=True)
class Segment:
    """One file that holds batches. `highest` is the highest index of an ENTRY in it, by shard."""

    id: int
    highest: dict[int, int] = field(default_factory=dict[int, int])

    @property
    def name(self) -> str:
        """The file's name."""
        return segment_name(self.id)

    def note(self, records: Sequence[Record]) -> None:
        """Remember the indexes of the entries among `records`."""
        highest = self.highest
        for entry in records:
            if entry.type is RecordType.ENTRY and entry.index > highest.get(entry.shard, 0):
                highest[entry.shard] = entry.index


@dataclass(slots=True)
class Position:
    """Where a journal stands: what `recovery` finds out and `Journal` goes on from."""

    sequence: int = 1
    shards: dict[int, ShardMark] = field(default_factory=dict[int, ShardMark])
    segments: list[Segment] = field(default_factory=list[Segment])
    offset: int = 0
    capacity: int = 0
    reserve: int = 0

    @property
    def next_id(self) -> int:
        """The id of the segment after the current one."""
        return self.segments[-1].id + 1 if self.segments else 1

    def took(self, records: Sequence[Record]) -> None:
        """`records` are on disk in the current segment."""
        self.segments[-1].note(records)
        framing.advance(self.shards, records)
        for dropped in (entry.shard for entry in records if entry.type is RecordType.SHARD_DROP):
            for segment in self.segments:
                segment.highest.pop(dropped, None)


def segment_name(segment_id: int) -> str:
    """`00000000000000000042.log`: sorts as its number does."""
    return f"{segment_id:020d}.log"


def segment_ids(names: Sequence[str]) -> list[int]:
    """The ids of the segments among a directory's names, ascending."""
    return sorted(int(found[1]) for name in names if (found := _NAME.fullmatch(name)))


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was found. `shards` is each shard's promise, base and end; `lines` are for the log.

    `sequence` is the number of the batch that comes next.
    """

    shards: dict[int, ShardMark]
    sequence: int
    dropped_bytes: int
    lines: list[str]
    _files: Files
    _segments: list[tuple[int, int, int]]

    def records(self) -> Iterator[Record]:
        """All records in the order of their writing, segment by segment; to be read before anything is truncated."""
        for segment_id, sequence, start in self._segments:
            data = self._files.read(segment_name(segment_id))
            for batch in framing.scan(data, segment_id, start, sequence):
                if isinstance(batch, Bad):
                    raise _rot(
                        segment_id, batch.offset, f"{batch.what}, and a moment ago it was whole"
                    )
                if batch.sequence == self.sequence:
                    return
                yield from batch.records


@dataclass(slots=True)
class _Torn:
    """The tail to be zeroed: bytes [start, end) of a segment."""

    segment_id: int
    start: int
    end: int
    what: str


@dataclass(slots=True)
class _Tail:
    """Bytes [start, start + len(data)) of the current segment: its last batch, to be written again."""

    start: int = 0
    data: bytes = b""


@dataclass(slots=True)
class _Reading:
    """What the walk over the segments has found so far."""

    at: Position = field(default_factory=Position)
    found: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    torn: _Torn | None = None
    tail: _Tail = field(default_factory=_Tail)
    blank: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])


def recover(files: Files, options: WalOptions, identity: WalIdentity) -> tuple[Position, Recovery]:
    """Read and mend the journal in a directory. Raises WalRot, FailedPrecondition, OSError."""
    names = files.list()
    reading = _read_all(files, segment_ids(names), identity)
    lines = _mend(files, reading)
    lines += _tidy(files, reading, names, options)
    at, torn = reading.at, reading.torn
    dropped = torn.end - torn.start if torn else 0
    return at, Recovery(dict(at.shards), at.sequence, dropped, lines, files, reading.found)


# --- reading: nothing is changed -------------------------------------------------------------


def _read_all(files: Files, ids: list[int], identity: WalIdentity) -> _Reading:
    reading = _Reading()
    for position, segment_id in enumerate(ids):
        if segment_id != ids[0] + position:
            raise _rot(ids[0] + position, 0, "the segment is missing, and there is one after it")
        data = files.read(segment_name(segment_id))
        if framing.written_bytes(data):
            _check_place(reading, segment_id)
            _read_segment(reading, segment_id, data, identity)
        else:
            reading.blank.append((segment_id, len(data)))
    if ids and ids[0] != 1 and not reading.at.segments:
        raise _rot(ids[0], 0, "the oldest segment is empty, and it is not the first ever")
    return reading


def _check_place(reading: _Reading, segment_id: int) -> None:
    """A segment is begun only when all before it is synced: so nothing before it may be torn or empty."""
    behind = f", and segment {segment_id} was begun after it"
    if reading.torn is not None:
        raise _rot(reading.torn.segment_id, reading.torn.start, reading.torn.what + behind)
    if reading.blank:
        raise _rot(reading.blank[0][0], 0, f"the segment is empty{behind}")


def _read_segment(reading: _Reading, segment_id: int, data: bytes, identity: WalIdentity) -> None:
    at = reading.at
    header = framing.decode_segment_header(data, segment_id)
    if isinstance(header, Bad):
        if not at.segments and segment_id != 1:
            raise _rot(segment_id, 0, f"{header.what}, and it is the oldest segment")
        _judge(reading, segment_id, data, header)
        return
    told, start = header
    _check_owner(told, segment_id, identity)
    _check_follows(at, told, segment_id)
    at.sequence, at.shards = told.first_sequence, dict(told.shards)
    at.segments.append(Segment(segment_id))
    at.offset, at.capacity = start, len(data)
    reading.found.append((segment_id, at.sequence, start))
    reading.tail = _Tail(0, data[:start])
    for batch in framing.scan(data, segment_id, start, at.sequence):
        if isinstance(batch, Bad):
            _judge(reading, segment_id, data, batch)
            return
        _take(reading, data, batch, first=batch.start == start)


def _take(reading: _Reading, data: bytes, batch: Batch, *, first: bool) -> None:
    reading.at.took(batch.records)
    reading.at.sequence += 1
    reading.at.offset = batch.end
    begun = 0 if first else batch.start  # the header and the first batch are one write
    reading.tail = _Tail(begun, data[begun : batch.end])


def _check_owner(told: SegmentHeader, segment_id: int, identity: WalIdentity) -> None:
    name = segment_name(segment_id)
    if told.format != framing.FORMAT:
        raise FailedPrecondition(
            f"{name} has the journal format {told.format}, this version reads {framing.FORMAT}",
            reason="FORMAT_UNKNOWN",
            metadata={"file": name, "format": str(told.format)},
        )
    if (told.cluster, told.store) != (identity.cluster, identity.store):
        raise FailedPrecondition(
            f"{name} was written by store {told.store.hex()} of cluster {told.cluster.hex()}, "
            f"this is store {identity.store.hex()} of cluster {identity.cluster.hex()}",
            reason="WAL_OF_ANOTHER_STORE",
            metadata={"file": name, "store": told.store.hex(), "cluster": told.cluster.hex()},
        )


def _check_follows(at: Position, told: SegmentHeader, segment_id: int) -> None:
    """The header repeats what the segments before it say; what is missing between them shows here."""
    if told.segment_id != segment_id:
        raise _rot(segment_id, 0, f"the header is that of segment {told.segment_id}")
    if not at.segments:
        return
    if told.first_sequence != at.sequence:
        what = f"the header continues at batch {told.first_sequence}, the segment before it ends"
        raise _rot(segment_id, 0, f"{what} before batch {at.sequence}")
    if told.shards != at.shards:
        raise _rot(segment_id, 0, "the header's table of shards differs from the records before it")


def _judge(reading: _Reading, segment_id: int, data: bytes, bad: Bad) -> None:
    why = framing.judge(data, segment_id, bad, reading.at.sequence)
    if why:
        raise _rot(segment_id, bad.offset, why)
    end = framing.written_bytes(data)
    reading.torn = _Torn(segment_id, bad.batch_start, end, bad.what)
    if bad.batch_start == 0:
        reading.blank.append((segment_id, len(data)))


def _rot(segment_id: int, offset: int, what: str) -> WalRot:
    name = segment_name(segment_id)
    return WalRot(
        f"{name} is damaged at offset {offset}: {what}. A crash does not explain it, so nothing was changed",
        metadata={"file": name, "offset": str(offset)},
    )


# --- mending: the log is known to be whole up to its end -------------------------------------


def _mend(files: Files, reading: _Reading) -> list[str]:
    """Zero the torn tail, write the last batch again, sync. Either is harmless if a crash repeats it."""
    lines: list[str] = []
    if (torn := reading.torn) is not None:
        name = segment_name(torn.segment_id)
        _overwrite(files, name, torn.start, bytes(torn.end - torn.start))
        lines.append(
            f"{name}: {torn.end - torn.start} bytes dropped at offset {torn.start}, "
            f"the torn tail of a write that was never acknowledged ({torn.what})"
        )
    if reading.tail.data:
        name = reading.at.segments[-1].name
        _overwrite(files, name, reading.tail.start, reading.tail.data)
    return lines


def _overwrite(files: Files, name: str, offset: int, data: bytes) -> None:
    handle = files.open(name)
    try:
        handle.pwrite(data, offset)
        handle.fdatasync()
    finally:
        handle.close()


def _tidy(files: Files, reading: _Reading, names: list[str], options: WalOptions) -> list[str]:
    """Keep a blank segment that fits as the reserve; remove other blank ones and half-made files."""
    at = reading.at
    useless = [name for name in names if name.endswith(TEMPORARY_SUFFIX)]
    for segment_id, size in sorted(reading.blank, reverse=True):
        if segment_id == at.next_id and size == options.segment_bytes:
            at.reserve = segment_id
        else:
            useless.append(segment_name(segment_id))
    for name in useless:
        files.unlink(name)
        files.sync_directory()
    return [f"{name}: removed, it was made ahead and never used" for name in useless]
