"""The framing: sizes and bytes as the design's table says, and every kind of damage named."""

from struct import pack_into, unpack_from
from zlib import crc32

import pytest

from tickwheel.server import record as framing
from tickwheel.server.record import (
    Bad,
    Batch,
    Record,
    RecordType,
    SegmentHeader,
    ShardMark,
    advance,
    batch_ends,
    decode_segment_header,
    encode_batch,
    encode_record,
    encode_segment_header,
    judge,
    record_bytes,
    scan,
    segment_header_bytes,
    written_bytes,
)

SEGMENT = 7
ENTRY = Record(RecordType.ENTRY, 3, 5, 9, b"hello", framing.FLAG_COMPRESSED)
MARKS = {3: ShardMark(5, 1, 2, 8, 5), 1: ShardMark(promised=4)}
HEADER = SegmentHeader(b"c" * 16, b"s" * 16, SEGMENT, 41, MARKS)


def entries(count: int, size: int = 10) -> list[Record]:
    return [Record(RecordType.ENTRY, 1, 1, n + 1, bytes([n + 1]) * size) for n in range(count)]


def found(data: bytes, start: int = 0, sequence: int = 1) -> list[Batch | Bad]:
    return list(scan(data, SEGMENT, start, sequence))


def only_bad(data: bytes, start: int = 0, sequence: int = 1) -> Bad:
    last = found(data, start, sequence)[-1]
    assert isinstance(last, Bad)
    return last


# --- bytes -----------------------------------------------------------------------------------


def test_a_record_is_laid_out_as_the_table_says() -> None:
    data = encode_record(ENTRY, SEGMENT)
    assert len(data) == record_bytes(5) == 40
    assert unpack_from("<II", data, 4) == (5, crc32(b"hello", SEGMENT))
    assert unpack_from("<BBHQQ", data, 12) == (1, 1, 3, 5, 9)
    assert data[32:] == b"hello\0\0\0"
    assert unpack_from("<I", data)[0] == crc32(data[4:32], SEGMENT)


def test_a_batch_is_closed_by_its_end() -> None:
    data = encode_batch([ENTRY], SEGMENT, 12)
    body, end = data[:40], data[40:]
    assert len(end) == framing.BATCH_END_BYTES
    assert end[12] == RecordType.BATCH_END
    assert unpack_from("<QIIQ", end, 32) == (12, 1, crc32(body, SEGMENT), 40)


@pytest.mark.parametrize("size", range(18))
def test_batches_come_back_as_they_went(size: int) -> None:
    first, second = entries(3, size), entries(2, size + 1)
    data = encode_batch(first, SEGMENT, 4)
    middle = len(data)
    data += encode_batch(second, SEGMENT, 5)
    whole = data + bytes(100)
    assert found(whole, 0, 4) == [
        Batch(4, 0, middle, first),
        Batch(5, middle, len(data), second),
    ]


def test_a_segment_header_comes_back_as_it_went() -> None:
    data = encode_segment_header(HEADER)
    assert len(data) == segment_header_bytes(MARKS) == 32 + 64 + 2 * 48
    assert decode_segment_header(data + bytes(50), SEGMENT) == (HEADER, len(data))


def test_a_header_of_another_format_is_read_without_its_table() -> None:
    data = encode_segment_header(HEADER._replace(format=2))
    assert decode_segment_header(data, SEGMENT) == (HEADER._replace(format=2, shards={}), len(data))


def test_framing_is_not_for_callers_to_write() -> None:
    with pytest.raises(AssertionError):
        encode_batch([Record(RecordType.BATCH_END, 0, 0, 0)], SEGMENT, 1)
    with pytest.raises(AssertionError):
        encode_batch([], SEGMENT, 1)


# --- the table of shards ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "mark"),
    [
        (Record(RecordType.ENTRY, 1, 6, 9), ShardMark(5, 2, 3, 9, 6)),
        (Record(RecordType.TRUNCATE, 1, 4, 7), ShardMark(5, 2, 3, 7, 4)),
        (Record(RecordType.PROMISE, 1, 6, 0), ShardMark(6, 2, 3, 8, 4)),
        (Record(RecordType.PROMISE, 1, 4, 0), ShardMark(5, 2, 3, 8, 4)),
        (Record(RecordType.SNAPSHOT_BASE, 1, 4, 7), ShardMark(5, 7, 4, 8, 4)),
        (Record(RecordType.SNAPSHOT_BASE, 1, 6, 20), ShardMark(5, 20, 6, 20, 6)),
        (Record(RecordType.SHARD_DROP, 1, 0, 0), ShardMark(promised=5)),
    ],
)
def test_each_type_moves_its_part_of_the_mark(record: Record, mark: ShardMark) -> None:
    marks = {1: ShardMark(5, 2, 3, 8, 4)}
    advance(marks, [record])
    assert marks == {1: mark}


def test_a_new_shard_gets_a_mark() -> None:
    marks: dict[int, ShardMark] = {}
    advance(marks, [Record(RecordType.ENTRY, 6, 2, 1)])
    assert marks == {6: ShardMark(last_index=1, last_epoch=2)}


def test_records_count_in_their_order() -> None:
    marks: dict[int, ShardMark] = {}
    three = [Record(RecordType.ENTRY, 1, 1, index) for index in (1, 2, 3)]
    advance(marks, [*three, Record(RecordType.TRUNCATE, 1, 1, 1)])
    assert marks == {1: ShardMark(last_index=1, last_epoch=1)}
    advance(marks, [Record(RecordType.ENTRY, 1, 2, 2), Record(RecordType.PROMISE, 1, 3, 0), *three])
    assert marks == {1: ShardMark(promised=3, last_index=3, last_epoch=1)}


def test_framing_moves_no_mark() -> None:
    with pytest.raises(AssertionError):
        advance({}, [Record(RecordType.BATCH_END, 0, 0, 0)])


# --- damage ----------------------------------------------------------------------------------


def test_zeros_alone_are_a_good_end() -> None:
    assert found(bytes(4096)) == []
    assert found(b"") == []


@pytest.mark.parametrize("written", [0, 1, 65_535, 65_536, 65_537, 200_000, 262_144])
def test_the_zeros_at_the_end_are_told_from_what_was_written(written: int) -> None:
    for size in (written, written + 1, written + 65_536, written + 100_000):
        data = b"\0" * max(written - 1, 0) + b"x" * min(written, 1)
        assert written_bytes(data.ljust(size, b"\0")) == written


def test_an_end_of_another_size_is_bad() -> None:
    data = encode_record(Record(RecordType.BATCH_END, 0, 0, 0, bytes(8)), SEGMENT)
    assert "says 8 bytes" in only_bad(data).what


def test_a_damaged_header_is_named() -> None:
    data = bytearray(encode_batch(entries(2), SEGMENT, 1))
    data[48 + 20] ^= 1
    bad = only_bad(bytes(data))
    assert (bad.offset, bad.batch_start) == (48, 0)
    assert "header is wrong" in bad.what


def test_a_damaged_payload_is_named() -> None:
    data = bytearray(encode_batch(entries(2), SEGMENT, 1))
    data[48 + 32] ^= 1
    bad = only_bad(bytes(data))
    assert (bad.offset, bad.end) == (48, 96)
    assert "payload is wrong" in bad.what


def test_damaged_padding_is_found_by_the_crc_of_the_batch() -> None:
    data = bytearray(encode_batch(entries(2), SEGMENT, 1))
    data[32 + 10] = 1
    assert "batch is wrong" in only_bad(bytes(data)).what


@pytest.mark.parametrize(
    ("cut", "what"),
    [(20, "cut off"), (40, "runs past"), (48, "zeros where"), (100, "cut off")],
)
def test_a_cut_is_named(cut: int, what: str) -> None:
    data = encode_batch(entries(2), SEGMENT, 1)[:cut]
    data += bytes(40) + b"x" if what.startswith("zeros") else b""
    assert what in only_bad(data).what


def test_records_of_another_segment_are_strangers() -> None:
    data = encode_batch(entries(1), SEGMENT + 1, 1)
    assert "header is wrong" in only_bad(data).what


def test_a_batch_out_of_sequence_is_rot() -> None:
    data = encode_batch(entries(1), SEGMENT, 3)
    bad = only_bad(data, 0, 2)
    assert bad.what == "batch 3 where batch 2 should be"
    assert "batch 3 lies intact" in judge(data, SEGMENT, bad, 2)


def test_a_batch_that_lacks_a_record_is_rot() -> None:
    data = encode_batch(entries(2), SEGMENT, 1)[48:]
    bad = only_bad(data)
    assert "1 records whose end tells of 2" in bad.what
    assert judge(data, SEGMENT, bad, 1) != ""


def test_an_unknown_type_is_bad() -> None:
    data = bytearray(encode_record(ENTRY, SEGMENT))
    data[12] = 99
    pack_into("<I", data, 0, crc32(data[4:32], SEGMENT))
    assert "unknown type 99" in only_bad(bytes(data)).what


def test_a_segment_header_belongs_first_and_nothing_else_does() -> None:
    assert "inside a segment" in only_bad(encode_segment_header(HEADER)).what
    other = decode_segment_header(encode_record(ENTRY, SEGMENT), SEGMENT)
    assert isinstance(other, Bad)
    assert "does not begin with" in other.what
    blank = decode_segment_header(bytes(64), SEGMENT)
    assert isinstance(blank, Bad)


# --- torn or rotten --------------------------------------------------------------------------


def test_a_cut_batch_is_torn() -> None:
    whole = encode_batch(entries(3), SEGMENT, 1)
    for cut in range(1, len(whole.rstrip(b"\0"))):
        data = whole[:cut] + bytes(200)
        assert judge(data, SEGMENT, only_bad(data), 1) == ""


def test_damage_before_an_intact_end_is_rot() -> None:
    data = bytearray(encode_batch(entries(3), SEGMENT, 1))
    data[50] ^= 4
    assert "end of its batch" in judge(bytes(data), SEGMENT, only_bad(bytes(data)), 1)


@pytest.mark.parametrize("lost", [0, 1, 2, 3])
def test_a_lost_sector_before_an_intact_end_is_torn(lost: int) -> None:
    start = 200
    before = b"p" * start
    data = bytearray(before + encode_batch(entries(4, 500), SEGMENT, 1))
    low, high = max(lost * 512, start), lost * 512 + 512
    data[low:high] = bytes(high - low)
    torn = bytes(data)
    assert judge(torn, SEGMENT, only_bad(torn, start), 1) == ""


def test_a_lost_sector_excuses_no_other_damage() -> None:
    data = bytearray(encode_batch(entries(6, 500), SEGMENT, 1))
    data[40] ^= 1
    data[1024:1536] = bytes(512)
    assert judge(bytes(data), SEGMENT, only_bad(bytes(data)), 1) != ""


def test_damage_before_a_later_batch_is_rot() -> None:
    first = bytearray(encode_batch(entries(3), SEGMENT, 1))
    first[-40:] = bytes(40)
    data = bytes(first) + encode_batch(entries(1), SEGMENT, 2)
    why = judge(data, SEGMENT, only_bad(data), 1)
    assert "batch 2 lies intact" in why


def test_a_payload_that_looks_like_an_end_is_none() -> None:
    fake = encode_record(Record(RecordType.BATCH_END, 0, 0, 0, bytes(24)), SEGMENT + 1)
    short = encode_record(Record(RecordType.BATCH_END, 0, 0, 0, bytes(8)), SEGMENT)
    shifted = b"x" + encode_batch(entries(1), SEGMENT, 3)
    data = encode_batch([Record(RecordType.ENTRY, 1, 1, 1, fake + short + shifted)], SEGMENT, 9)
    assert [end.sequence for end in batch_ends(data, SEGMENT, 0)] == [9]
