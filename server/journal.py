"""Floor 3. The journal of one node: segments of batches, all shards in one file. No threads, no clock: `wal` drives it.

    %020d.log     1 [header|batch|batch|...]   2 [header|batch|batch|00000]   3 [000000000000000]
                  sealed: goes when durable    current: appended to           reserve: made ahead

Invariants:
- One batch is one write and one fdatasync, and the next write starts only after that came back. So a crash can tear the
  last batch only, and `record.judge` can tell a crash from rot.
- After an error of a write or a sync nothing is known about the pages: the journal is unusable for ever.
- There is always a reserve, or `space_low` says that there is none and creates have to stop.
- A segment may go when every ENTRY in it is durable elsewhere; promises and log ends live on in later headers.

Must never import: `wal`, `store`, `shard`; no I/O but through `Files`.
"""

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from tickwheel.server.errors import ResourceExhausted, WalFailed
from tickwheel.server.files import Files, Handle
from tickwheel.server.record import (
    ALIGN_BYTES,
    BATCH_END_BYTES,
    HEADER_BYTES,
    Record,
    SegmentHeader,
    ShardMark,
    encode_batch,
    encode_segment_header,
    record_bytes,
)
from tickwheel.server.recovery import (
    Position,
    Recovery,
    Segment,
    WalIdentity,
    WalOptions,
    recover,
    segment_name,
)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(slots=True)
class Counters:
    """What metrics read. Seconds are of `pwrite` and `fdatasync` together."""

    batches: int = 0
    records: int = 0
    bytes: int = 0
    commit_seconds: float = 0.0
    last_batch_bytes: int = 0
    last_batch_records: int = 0
    last_commit_seconds: float = 0.0
    segments: int = 0


class Journal:
    """Appends batches and makes them durable.

    One caller at a time for `append`; `prepare_next` and `truncate_through` may run beside it in one other thread, if
    `open` was given a lock. What the two share is changed in an order that is right at every step: see `_roll`.
    """

    def __init__(
        self,
        files: Files,
        options: WalOptions,
        identity: WalIdentity,
        position: Position,
        *,
        seconds: Callable[[], float],
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        self.options = options
        self.identity = identity
        self.counters = Counters(segments=len(position.segments))
        self.space_low = False
        self.failed: WalFailed | None = None
        self._files = files
        self._at = position
        self._seconds = seconds
        self._lock = lock or nullcontext()
        self._handle: Handle | None = None
        if position.segments:
            self._handle = files.open(position.segments[-1].name)

    @classmethod
    def open(
        cls,
        files: Files,
        options: WalOptions,
        identity: WalIdentity,
        *,
        seconds: Callable[[], float],
        lock: AbstractContextManager[object] | None = None,
    ) -> "tuple[Journal, Recovery]":
        """Open the journal in a directory, an empty one too; what it held is in the Recovery.

        `seconds` is any clock that only grows; `lock` guards the making of the reserve where threads are about. Raises
        WalRot (nothing was changed), FailedPrecondition (another's journal, or a format of the future), WalFailed.
        """
        try:
            position, recovery = recover(files, options, identity)
            journal = cls(files, options, identity, position, seconds=seconds, lock=lock)
        except OSError as error:
            raise WalFailed(f"the journal could not be opened: {error}") from error
        return journal, recovery

    @property
    def shards(self) -> Mapping[int, ShardMark]:
        """What is durable of each shard."""
        return self._at.shards

    @property
    def reserve_ready(self) -> bool:
        """True while a segment waits to be the next."""
        return bool(self._at.reserve)

    # --- append ---

    def check(self, records: Sequence[Record]) -> int:
        """The bytes that `records` will take. Raises ResourceExhausted if one does not fit a segment."""
        total = 0
        limit = self.options.record_bytes_max
        for entry in records:
            length = len(entry.payload)
            if length > limit:
                raise ResourceExhausted(
                    f"a record of {length} bytes is longer than the {limit} that a journal segment takes",
                    reason="RECORD_TOO_LARGE",
                    metadata={"bytes": str(length), "bytes_max": str(limit)},
                )
            total += HEADER_BYTES + length + -length % ALIGN_BYTES
        return total

    def append(self, records: Sequence[Record]) -> None:
        """Make `records` durable: when this returns they are. Raises WalFailed, then and ever after.

        Records of more than `batch_bytes_max` become several batches, each synced before the next is written.
        """
        if self.failed is not None:
            raise self.failed
        total = self.check(records)
        if not records:
            return
        try:
            if total <= self.options.batch_limit:
                self._append_batch(records, total)
                return
            for batch, size in split(records, self.options.batch_limit):
                self._append_batch(batch, size)
        except OSError as error:
            raise self._fail(f"the journal could not be written: {error}") from error

    def _append_batch(self, records: Sequence[Record], size: int) -> None:
        begun = self._seconds()
        at = self._at
        full = at.offset + size + BATCH_END_BYTES > at.capacity
        data = self._roll() if full else b""
        data += encode_batch(records, at.segments[-1].id, at.sequence)
        assert at.offset + len(data) <= at.capacity, "a batch must not span segments"
        assert self._handle is not None
        self._handle.pwrite(data, at.offset)
        self._handle.fdatasync()
        at.offset += len(data)
        at.sequence += 1
        at.took(records)
        self._count(records, len(data), self._seconds() - begun)

    def _roll(self) -> bytes:
        """Make the reserve the current segment; the answer is its header, to be written with its first batch.

        `offset` is 0 before the segment is listed, so that `truncate_through` spares the one before it until the header
        is durable; it is listed before `reserve` is 0, so that `prepare_next` never makes it again.
        """
        at = self._at
        if not at.reserve:
            with self._lock:
                self._make_reserve()
        if not at.reserve:
            raise self._fail("the disk is full and the reserved segment is used up")
        if self._handle is not None:
            self._handle.close()
        segment = Segment(at.reserve)
        self._handle = self._files.open(segment.name)
        at.offset, at.capacity = 0, self.options.segment_bytes
        at.segments.append(segment)
        at.reserve = 0
        self.counters.segments = len(at.segments)
        owner = self.identity
        return encode_segment_header(
            SegmentHeader(owner.cluster, owner.store, segment.id, at.sequence, at.shards)
        )

    def _count(self, records: Sequence[Record], size: int, seconds: float) -> None:
        counters = self.counters
        counters.batches += 1
        counters.records += len(records)
        counters.bytes += size
        counters.commit_seconds += seconds
        counters.last_batch_bytes = size
        counters.last_batch_records = len(records)
        counters.last_commit_seconds = seconds

    def _fail(self, message: str) -> WalFailed:
        self.failed = WalFailed(message)
        return self.failed

    # --- space ---

    def prepare_next(self) -> None:
        """Make the reserve if there is none, and look how full the disk is. Raises WalFailed."""
        with self._lock:
            if self.failed is not None:
                raise self.failed
            try:
                self._make_reserve()
                low = self._files.free_bytes() < self.options.low_water_bytes
            except OSError as error:
                raise self._fail(f"the next segment could not be made: {error}") from error
            self.space_low = low or not self._at.reserve

    def _make_reserve(self) -> None:
        """A full disk leaves things as they are; every other error is the caller's."""
        at = self._at
        size = self.options.segment_bytes
        if at.reserve or self._files.free_bytes() < size:
            return
        segment_id = at.next_id
        try:
            self._files.create_filled(segment_name(segment_id), size)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            return
        at.reserve = segment_id

    # --- truncation ---

    def truncate_through(self, durable: Mapping[int, int]) -> list[str]:
        """Delete old segments whose every ENTRY has an index of at most `durable` of its shard; answers their names.

        From the oldest on, up to the first that must stay. Each unlink is made durable before the next, so that a crash
        leaves no hole in the row of segments. Raises WalFailed.
        """
        gone: list[str] = []
        if self.failed is not None:
            raise self.failed
        try:
            while self._may_go(durable):
                name = self._at.segments[0].name
                self._files.unlink(name)
                self._files.sync_directory()
                del self._at.segments[0]
                gone.append(name)
        except OSError as error:
            raise self._fail(f"an old segment could not be deleted: {error}") from error
        self.counters.segments = len(self._at.segments)
        return gone

    def _may_go(self, durable: Mapping[int, int]) -> bool:
        """The current segment never goes, nor the one before it while its successor has no durable header."""
        segments = list(self._at.segments)
        behind = segments[:-1] if self._at.offset else segments[:-2]
        if not behind:
            return False
        highest = list(behind[0].highest.items())
        return all(index <= durable.get(shard, 0) for shard, index in highest)

    def close(self) -> None:
        """Give the file back. Everything appended is durable already."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None
        self.failed = self.failed or WalFailed("the journal is closed")


def split(records: Sequence[Record], bytes_max: int) -> Iterator[tuple[Sequence[Record], int]]:
    """Cut records into runs of at most `bytes_max` on disk, each with its size; a longer record is a run of its own."""
    start = size = 0
    for position, entry in enumerate(records):
        more = record_bytes(len(entry.payload))
        if size + more > bytes_max and position > start:
            yield records[start:position], size
            start, size = position, 0
        size += more
    if start < len(records):
        yield records[start:], size
