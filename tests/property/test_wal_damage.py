"""A small journal, damaged in every way there is room for: each cut, each bit, each set of lost sectors.

The log has two shards and a border between segments. Whatever the damage, what recovers is an exact prefix of the
batches that were written, or the journal is refused with file and offset named and nothing changed.
"""

from functools import cache
from itertools import chain
from random import Random
from typing import NamedTuple

import pytest
from tests.sim.disk import SimDisk

from tickwheel.server.errors import WalRot
from tickwheel.server.journal import Journal
from tickwheel.server.record import SECTOR_BYTES, Record, RecordType
from tickwheel.server.recovery import Recovery, WalIdentity, WalOptions, segment_name

IDENTITY = WalIdentity(b"c" * 16, b"s" * 16)
OPTIONS = WalOptions(4096, 2048, 0, 1 << 20)


class Written(NamedTuple):
    """A batch that was acknowledged: where it lies. A segment's first one begins with the header."""

    segment: int
    start: int
    end: int
    records: list[Record]


def entry(index: int, shard: int, size: int) -> Record:
    return Record(RecordType.ENTRY, shard, 3, index, Random(index).randbytes(size))


def opened(disk: SimDisk) -> tuple[Journal, Recovery]:
    return Journal.open(disk, OPTIONS, IDENTITY, seconds=lambda: 0.0)


def append(journal: Journal, records: list[Record]) -> Written:
    begun = journal._at.offset
    segments = len(journal._at.segments)
    journal.append(records)
    start = begun if len(journal._at.segments) == segments else 0
    return Written(journal._at.segments[-1].id, start, journal._at.offset, records)


@cache
def log() -> tuple[SimDisk, list[Written]]:
    """Five batches in segment 1, three in segment 2, and the reserve."""
    disk = SimDisk(Random(1))
    journal, _ = opened(disk)
    batches: list[Written] = []
    for number, size in enumerate([200, 433, 8, 900, 417, 255, 1, 613], start=1):
        records = [entry(number, 1, size), entry(number, 2, size // 2 + 1)]
        records.append(Record(RecordType.PROMISE, number % 2, number, 0))
        batches.append(append(journal, records))
        journal.prepare_next()
    assert [batch.segment for batch in batches].count(2) >= 3
    assert len(disk.list()) == 3
    return disk, batches


def damaged(segment: int, data: bytes, *, alone: bool = False) -> SimDisk:
    """The log with one segment's content exchanged; `alone`: and the later ones lost."""
    disk, _ = log()
    twin = disk.clone()
    file = twin.files[segment_name(segment)]
    file.cached, file.durable = bytearray(data), data
    if alone:
        for name in disk.list()[segment:]:
            del twin.files[name]
    return twin


def recovers(disk: SimDisk, expected: list[Written], *, onward: bool = True) -> Recovery:
    """Exactly these batches come back; `onward`: the journal goes on from there, through another start."""
    journal, recovery = opened(disk)
    records = flat(expected)
    assert list(recovery.records()) == records
    assert recovery.sequence == len(expected) + 1
    assert bool(recovery.dropped_bytes) == any(
        "bytes dropped at" in line for line in recovery.lines
    )
    if not onward:
        return recovery
    more = entry(999, 1, 50)
    journal.append([more])
    _, again = opened(disk)
    assert list(again.records()) == [*records, more]
    assert again.dropped_bytes == 0
    return recovery


def flat(batches: list[Written]) -> list[Record]:
    return list(chain.from_iterable(batch.records for batch in batches))


def refuses(disk: SimDisk) -> WalRot:
    before = {name: disk.read(name) for name in disk.list()}
    with pytest.raises(WalRot) as raised:
        opened(disk)
    assert {name: disk.read(name) for name in disk.list()} == before
    return raised.value


def whole_after(segment: int, data: bytes) -> list[Written]:
    """The batches up to the first whose bytes are not in `data` as they were written, zeros behind it added."""
    disk, batches = log()
    original = disk.read(segment_name(segment))
    found: list[Written] = []
    for batch in batches:
        if batch.segment == segment:
            part = data[batch.start : batch.end].ljust(batch.end - batch.start, b"\0")
            if len(data) < batch.end or part != original[batch.start : batch.end]:
                break
        elif batch.segment > segment:
            break
        found.append(batch)
    return found


@pytest.mark.parametrize("segment", [1, 2])
def test_cut_at_every_byte_and_zeros_behind(segment: int) -> None:
    disk, _ = log()
    original = disk.read(segment_name(segment))
    for cut in range(len(original)):
        data = original[:cut] + bytes(len(original) - cut)
        recovers(damaged(segment, data, alone=True), whole_after(segment, data))


@pytest.mark.parametrize("segment", [1, 2])
def test_cut_at_every_byte_and_the_file_ends(segment: int) -> None:
    disk, _ = log()
    original = disk.read(segment_name(segment))
    for cut in range(len(original)):
        data = original[:cut]
        recovers(damaged(segment, data, alone=True), whole_after(segment, data))


def test_cut_at_every_byte_of_a_segment_that_was_followed_is_rot() -> None:
    disk, batches = log()
    original = disk.read(segment_name(1))
    written = max(batch.end for batch in batches if batch.segment == 1)
    whole = 0
    for cut in range(written):
        data = original[:cut] + bytes(len(original) - cut)
        if data == original:
            whole += 1
        else:
            assert refuses(damaged(1, data)).metadata["file"] <= segment_name(2)
    assert whole < 16


@pytest.mark.parametrize("segment", [1, 2])
@pytest.mark.parametrize("quarter", range(4))
def test_every_flipped_bit_is_refused_or_drops_the_tail(segment: int, quarter: int) -> None:
    disk, batches = log()
    last = batches[-1]
    size = len(disk.read(segment_name(segment)))
    for byte in range(quarter * size // 4, (quarter + 1) * size // 4):
        for bit in range(8):
            twin = disk.clone()
            twin.flip(segment_name(segment), byte * 8 + bit)
            _judge_flip(twin, segment, byte, batches, last)


def _judge_flip(
    disk: SimDisk, segment: int, byte: int, batches: list[Written], last: Written
) -> None:
    if segment == last.segment and byte >= last.end:
        assert recovers(disk, batches, onward=False).dropped_bytes == byte + 1 - last.end
        return
    before = {name: disk.read(name) for name in disk.list()}
    found = _opened_or_refused(disk)
    if isinstance(found, WalRot):
        assert {name: disk.read(name) for name in disk.list()} == before
        assert found.metadata["file"] == segment_name(segment)
        assert _begun(segment, byte, batches) <= int(found.metadata["offset"]) <= byte
    else:
        assert (segment, byte >= last.start) == (last.segment, True), "acknowledged, not the last"
        assert list(found.records()) == flat(batches[:-1])
        assert found.dropped_bytes > 0


def _opened_or_refused(disk: SimDisk) -> Recovery | WalRot:
    try:
        return opened(disk)[1]
    except WalRot as rot:
        return rot


def _begun(segment: int, byte: int, batches: list[Written]) -> int:
    """Where the batch begins that a byte of a segment belongs to, or what is written ends."""
    mine = [batch for batch in batches if batch.segment == segment]
    return next((batch.start for batch in mine if byte < batch.end), mine[-1].end)


def test_flipped_bits_of_the_reserve_cost_nothing() -> None:
    disk, batches = log()
    for bit in range(0, 4096 * 8, 101):
        twin = disk.clone()
        twin.flip(segment_name(3), bit)
        assert recovers(twin, batches).dropped_bytes == bit // 8 + 1


@pytest.mark.parametrize("first", [False, True])
def test_every_set_of_lost_sectors_of_the_last_write_is_torn(first: bool) -> None:
    disk = SimDisk(Random(1))
    journal, _ = opened(disk)
    batches = [append(journal, [entry(n, 1, 70)]) for n in range(1, 4)] if not first else []
    last = append(journal, [entry(n, 2, 300) for n in range(1, 6)])
    original = disk.read(segment_name(1))
    touched = range(last.start // SECTOR_BYTES, -(-last.end // SECTOR_BYTES))
    for lost in range(1, 1 << len(touched)):
        data = bytearray(original)
        for position, sector in enumerate(touched):
            if lost >> position & 1:
                low = max(sector * SECTOR_BYTES, last.start)
                high = sector * SECTOR_BYTES + SECTOR_BYTES
                data[low:high] = bytes(high - low)
        twin = disk.clone()
        twin.files[segment_name(1)].cached[:] = data
        twin.files[segment_name(1)].durable = bytes(data)
        recovers(twin, batches)
