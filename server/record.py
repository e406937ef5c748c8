"""Floor 1. Records of the journal to bytes and back, and the judgement of a segment's bytes.

    offset  size  field
      0      4    header crc     zlib.crc32(bytes 4..32, segment id)
      4      4    payload length in bytes
      8      4    payload crc    zlib.crc32(payload, segment id)
     12      1    type           RecordType; never 0, so 32 zero bytes are no record: the end of what was written
     13      1    flags          1 compressed, 2 sealed
     14      2    shard
     16      8    epoch
     24      8    index
     32           payload, zero-padded to 8

Little-endian. A segment is one SEGMENT_HEADER and then batches: records closed by a BATCH_END. The crcs are seeded with
the segment's id, so a record that strayed from another segment is not taken for one of this.

What a crash can do decides how damage is read. A segment is zeros before it is written, a batch is one write, and the
next write starts only after the last one is synced. So after a crash only the LAST batch can be incomplete: cut at any
byte, or with whole 512-byte sectors still zero. Anything else is rot (`judge`).

Must never import: `files`, `journal`, `wal`; no I/O, no clock.
"""

from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from struct import Struct
from typing import NamedTuple
from zlib import crc32

MAGIC = b"TICKWHEL"
FORMAT = 1

FLAG_COMPRESSED = 1
FLAG_SEALED = 2

SECTOR_BYTES = 512
"""The unit that a disk writes wholly or not at all."""

HEADER_BYTES = 32
ALIGN_BYTES = 8
BATCH_END_BYTES = HEADER_BYTES + 24
"""What closing a batch costs."""

_HEADER = Struct("<IIIBBHQQ")
_HEADER_BODY = Struct("<IIBBHQQ")
_CRC = Struct("<I")
_BATCH_END = Struct("<QIIQ")
_SEGMENT_HEADER = Struct("<8sII16s16sQQ")
_SHARD_MARK = Struct("<H6xQQQQQ")
_PADDING = tuple(bytes(-length % ALIGN_BYTES) for length in range(ALIGN_BYTES))
_NO_RECORD = bytes(HEADER_BYTES)
_ZEROS = bytes(1 << 16)

assert _HEADER.size == HEADER_BYTES
assert _BATCH_END.size % ALIGN_BYTES == 0, (
    "the crc of a batch covers padding, its own record needs none"
)
assert _SEGMENT_HEADER.size % ALIGN_BYTES == 0
assert _SHARD_MARK.size % ALIGN_BYTES == 0


class RecordType(IntEnum):
    """What a record says. Stored, so numbers never change meaning.

    ENTRY       the shard's log at `index` is this payload, of `epoch`
    PROMISE     the shard joins no epoch below `epoch` any more
    TRUNCATE    the shard's log ends at (`index`, `epoch`) now; what came after it is void
    SNAPSHOT_BASE  the shard's state up to (`index`, `epoch`) is a snapshot, not entries
    SHARD_DROP  this store keeps nothing of the shard any more, but its promise
    """

    ENTRY = 1
    PROMISE = 2
    TRUNCATE = 3
    SNAPSHOT_BASE = 4
    SHARD_DROP = 5
    BATCH_END = 6
    SEGMENT_HEADER = 7


_TYPES = {int(kind): kind for kind in RecordType}
_FRAMING = frozenset({RecordType.BATCH_END, RecordType.SEGMENT_HEADER})
_SHARD_TYPES = frozenset(_TYPES) - _FRAMING
_BATCH_END_TAIL = bytes([RecordType.BATCH_END]) + bytes(19)
"""Bytes 12..32 of every BATCH_END: type, and zeros for flags, shard, epoch and index."""


class Record(NamedTuple):
    """One record, without its framing. (Its `index` hides the tuple's method of that name, which nobody needs.)"""

    type: RecordType
    shard: int
    epoch: int
    index: int  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride]
    payload: bytes = b""
    flags: int = 0


class ShardMark(NamedTuple):
    """What a journal knows of a shard's log: the promise, and (index, epoch) of its base and of its last entry."""

    promised: int = 0
    base_index: int = 0
    base_epoch: int = 0
    last_index: int = 0
    last_epoch: int = 0


class SegmentHeader(NamedTuple):
    """The first record of a segment. `shards` is the state before `first_sequence`, so older segments can go."""

    cluster: bytes
    store: bytes
    segment_id: int
    first_sequence: int
    shards: dict[int, ShardMark]
    format: int = FORMAT


class Batch(NamedTuple):
    """A whole batch: bytes [start, end) of its segment, its BATCH_END included."""

    sequence: int
    start: int
    end: int
    records: list[Record]


class Bad(NamedTuple):
    """The first place of a segment that is not as it was written.

    `offset` is the bad record's and `end` where it ends, as far as that is known; `batch_start` is where its batch
    begins, and the place up to which everything is whole.
    """

    offset: int
    end: int
    batch_start: int
    what: str


class BatchEnd(NamedTuple):
    """An intact BATCH_END at `offset`, whatever is before it."""

    offset: int
    sequence: int


# --- the shards' table -----------------------------------------------------------------------


def advance(marks: dict[int, ShardMark], records: Sequence[Record]) -> None:
    """Bring a table of shards up to date with records that became durable.

    Of a run of a shard's entries only the last one counts, so a batch costs one new mark a shard and not one a record.
    """
    ends: dict[int, Record] = {}
    for record in records:
        if record.type is RecordType.ENTRY:
            ends[record.shard] = record
        else:
            _move(marks, ends.pop(record.shard, None))
            _move(marks, record)
    for record in ends.values():
        _move(marks, record)


def _move(marks: dict[int, ShardMark], record: Record | None) -> None:
    if record is not None:
        marks[record.shard] = _advanced(marks.get(record.shard, ShardMark()), record)


def _advanced(mark: ShardMark, record: Record) -> ShardMark:
    promised, base_index, base_epoch, last_index, last_epoch = mark
    match record.type:
        case RecordType.ENTRY | RecordType.TRUNCATE:
            last_index, last_epoch = record.index, record.epoch
        case RecordType.PROMISE:
            promised = max(promised, record.epoch)
        case RecordType.SNAPSHOT_BASE:
            base_index, base_epoch = record.index, record.epoch
            if last_index < base_index:
                last_index, last_epoch = base_index, base_epoch
        case RecordType.SHARD_DROP:
            return ShardMark(promised=promised)
        case _:
            raise AssertionError(f"{record.type.name} is framing, not a shard's record")
    return ShardMark(promised, base_index, base_epoch, last_index, last_epoch)


# --- to bytes --------------------------------------------------------------------------------


def record_bytes(payload_bytes: int) -> int:
    """The size on disk of a record whose payload has that many bytes."""
    return HEADER_BYTES + payload_bytes + -payload_bytes % ALIGN_BYTES


def encode_record(record: Record, segment_id: int) -> bytes:
    """One record, framed and padded."""
    parts: list[bytes] = []
    _frame(parts, record, segment_id & 0xFFFFFFFF)
    return b"".join(parts)


def _frame(parts: list[bytes], record: Record, seed: int) -> None:
    kind, shard, epoch, index, payload, flags = record
    length = len(payload)
    body = _HEADER_BODY.pack(length, crc32(payload, seed), kind, flags, shard, epoch, index)
    parts += (_CRC.pack(crc32(body, seed)), body, payload, _PADDING[length % ALIGN_BYTES])


def encode_batch(records: Sequence[Record], segment_id: int, sequence: int) -> bytes:
    """A batch, closed by its BATCH_END {sequence u64, count u32, crc u32 of all before it, bytes u64 before it}."""
    assert records, "an empty batch says nothing"
    seed = segment_id & 0xFFFFFFFF
    parts: list[bytes] = []
    for record in records:
        assert record.type not in _FRAMING, "framing is this module's to write"
        _frame(parts, record, seed)
    body = b"".join(parts)
    payload = _BATCH_END.pack(sequence, len(records), crc32(body, seed), len(body))
    return body + encode_record(Record(RecordType.BATCH_END, 0, 0, 0, payload), segment_id)


def encode_segment_header(header: SegmentHeader) -> bytes:
    """The first record of a segment: a fixed part, then 48 bytes a shard in the order of their numbers."""
    parts = [
        _SEGMENT_HEADER.pack(
            MAGIC,
            header.format,
            len(header.shards),
            header.cluster,
            header.store,
            header.segment_id,
            header.first_sequence,
        )
    ]
    parts += (_SHARD_MARK.pack(shard, *mark) for shard, mark in sorted(header.shards.items()))
    record = Record(RecordType.SEGMENT_HEADER, 0, 0, 0, b"".join(parts))
    return encode_record(record, header.segment_id)


def segment_header_bytes(shards: Mapping[int, ShardMark]) -> int:
    """The size on disk of a SEGMENT_HEADER for that many shards."""
    return record_bytes(_SEGMENT_HEADER.size + _SHARD_MARK.size * len(shards))


# --- from bytes ------------------------------------------------------------------------------


def written_bytes(data: bytes) -> int:
    """Where the zeros to the end of a segment begin; 0 for one that nothing was written to."""
    end = len(data)
    while data.endswith(_ZEROS, 0, end):
        end -= len(_ZEROS)
    start = max(end - len(_ZEROS), 0)
    return start + len(data[start:end].rstrip(b"\0"))


def _read(data: bytes, at: int, batch_start: int, seed: int) -> tuple[Record, int] | Bad:
    """The record at `at` and where it ends, or why there is none."""
    header = data[at : at + HEADER_BYTES]
    known = min(at + HEADER_BYTES, len(data))
    if len(header) < HEADER_BYTES:
        return Bad(at, known, batch_start, "a record's header is cut off by the segment's end")
    if header == _NO_RECORD:
        return Bad(at, known, batch_start, "zeros where a record should be")
    crc, length, payload_crc, kind, flags, shard, epoch, index = _HEADER.unpack(header)
    if crc32(header[4:], seed) != crc:
        return Bad(at, known, batch_start, "the crc of a record's header is wrong")
    body = at + HEADER_BYTES
    end = body + length
    if end > len(data):
        return Bad(at, len(data), batch_start, "a record runs past the segment's end")
    payload = data[body:end]
    end += -length % ALIGN_BYTES
    if crc32(payload, seed) != payload_crc:
        return Bad(at, end, batch_start, "the crc of a record's payload is wrong")
    if kind not in _TYPES:
        return Bad(at, end, batch_start, f"a record of the unknown type {kind}")
    return Record(_TYPES[kind], shard, epoch, index, payload, flags), end


def decode_segment_header(data: bytes, segment_id: int) -> tuple[SegmentHeader, int] | Bad:
    """The SEGMENT_HEADER and where it ends. Whose it is and which format it has is the caller's to judge."""
    found = _read(data, 0, 0, segment_id & 0xFFFFFFFF)
    if isinstance(found, Bad):
        return found
    record, end = found
    payload = record.payload
    if record.type is not RecordType.SEGMENT_HEADER or not payload.startswith(MAGIC):
        return Bad(0, end, 0, "the segment does not begin with a SEGMENT_HEADER")
    _, version, count, cluster, store, own_id, first = _SEGMENT_HEADER.unpack_from(payload)
    marks: dict[int, ShardMark] = {}
    if version == FORMAT:
        assert len(payload) == _SEGMENT_HEADER.size + count * _SHARD_MARK.size
        for shard, *mark in _SHARD_MARK.iter_unpack(payload[_SEGMENT_HEADER.size :]):
            marks[shard] = ShardMark(*mark)
    return SegmentHeader(cluster, store, own_id, first, marks, version), end


def scan(data: bytes, segment_id: int, start: int, sequence: int) -> Iterator[Batch | Bad]:
    """Yield the batches of a segment from `start`, numbered from `sequence`, and at last a Bad if they end badly.

    They end well where nothing but zeros follows a batch.
    """
    written = written_bytes(data)
    at = start
    while at < written:
        found = _read_batch(data, segment_id, at, sequence)
        yield found
        if isinstance(found, Bad):
            return
        at = found.end
        sequence += 1


def _read_batch(data: bytes, segment_id: int, start: int, sequence: int) -> Batch | Bad:
    seed = segment_id & 0xFFFFFFFF
    return _whole_batch(data, start, seed, sequence) or _read_slowly(data, start, seed, sequence)


def _whole_batch(data: bytes, start: int, seed: int, sequence: int) -> Batch | None:
    """The batch if it is as it was written. Its own crc covers all of it, so the records' are not computed."""
    records: list[Record] = []
    at = start
    last = len(data) - HEADER_BYTES
    while at <= last:
        _, length, _, kind, flags, shard, epoch, index = _HEADER.unpack_from(data, at)
        if kind == RecordType.BATCH_END:
            return _closed(data, seed, Batch(sequence, start, at, records))
        if kind not in _SHARD_TYPES:
            return None
        body = at + HEADER_BYTES
        payload = data[body : body + length]
        records.append(Record(_TYPES[kind], shard, epoch, index, payload, flags))
        at = body + length + -length % ALIGN_BYTES
    return None


def _closed(data: bytes, seed: int, batch: Batch) -> Batch | None:
    """The batch with its BATCH_END at `batch.end` taken in, if that agrees."""
    end = _read(data, batch.end, batch.start, seed)
    if isinstance(end, Bad):
        return None
    body = memoryview(data)[batch.start : batch.end]
    if _closing_fault(end[0].payload, body, len(batch.records), seed, batch.sequence):
        return None
    return batch._replace(end=end[1])


def _read_slowly(data: bytes, start: int, seed: int, sequence: int) -> Bad:
    """Record by record, to name what is wrong with a batch."""
    count = 0
    at = start
    while True:
        found = _read(data, at, start, seed)
        if isinstance(found, Bad):
            return found
        record, end = found
        if record.type is RecordType.BATCH_END:
            break
        if record.type is RecordType.SEGMENT_HEADER:
            return Bad(at, end, start, "a SEGMENT_HEADER inside a segment")
        count += 1
        at = end
    fault = _closing_fault(record.payload, memoryview(data)[start:at], count, seed, sequence)
    assert fault, "a batch that is not whole has a fault"
    return Bad(start, start, start, fault)


def _closing_fault(payload: bytes, body: memoryview, count: int, seed: int, sequence: int) -> str:
    """What a BATCH_END says that is not so; empty if it agrees."""
    if len(payload) != _BATCH_END.size:
        return f"the end of a batch says {len(payload)} bytes, not {_BATCH_END.size}"
    told_sequence, told_count, crc, size = _BATCH_END.unpack(payload)
    if told_sequence != sequence:
        return f"batch {told_sequence} where batch {sequence} should be"
    if (told_count, size) != (count, len(body)):
        return f"a batch of {count} records whose end tells of {told_count}"
    if crc32(body, seed) != crc:
        return "the crc of a batch is wrong, though its records' are right"
    return ""


# --- torn or rotten --------------------------------------------------------------------------


def batch_ends(data: bytes, segment_id: int, start: int) -> Iterator[BatchEnd]:
    """Yield every intact BATCH_END at or after `start`, whatever lies between."""
    seed = segment_id & 0xFFFFFFFF
    tail_offset = HEADER_BYTES - len(_BATCH_END_TAIL)
    at = data.find(_BATCH_END_TAIL, start)
    while at >= 0:
        offset = at - tail_offset
        if offset >= start and offset % ALIGN_BYTES == 0:
            found = _read(data, offset, offset, seed)
            if not isinstance(found, Bad) and len(found[0].payload) == _BATCH_END.size:
                yield BatchEnd(offset, _BATCH_END.unpack(found[0].payload)[0])
        at = data.find(_BATCH_END_TAIL, at + 1)


def judge(data: bytes, segment_id: int, bad: Bad, sequence: int) -> str:
    """Why a bad place in the batch `sequence` is rot; empty if a crash while that batch was written explains it.

    1. The end of any other batch is intact behind it: that batch was begun only after this one was synced.
    2. This batch's own end is intact, yet no sector that the bad record touches is still as zero as before the write:
       everything was written, and changed later.
    """
    for end in batch_ends(data, segment_id, bad.batch_start):
        if end.sequence != sequence:
            return f"{bad.what}, and batch {end.sequence} lies intact behind it at {end.offset}"
        if not lost_sector(data, bad, end.offset):
            return f"{bad.what}, and the end of its batch lies intact behind it at {end.offset}"
    return ""


def lost_sector(data: bytes, bad: Bad, batch_end: int) -> bool:
    """True if the bad record touches a sector whose share of the batch is all zeros: it never reached the disk."""
    first = bad.offset - bad.offset % SECTOR_BYTES
    for sector in range(first, bad.end, SECTOR_BYTES):
        share = data[max(sector, bad.batch_start) : min(sector + SECTOR_BYTES, batch_end)]
        if share and not any(share):
            return True
    return False
