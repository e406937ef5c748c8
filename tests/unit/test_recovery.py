"""Opening a journal: rot is refused and nothing changed, a torn tail is mended and told."""

import pytest
from tests.sim.disk import SimDisk
from tests.sim.journal import SMALL, entry, filled, opened, reopened, sim, ticking

from tickwheel.server.errors import FailedPrecondition, WalRot
from tickwheel.server.journal import Journal
from tickwheel.server.record import (
    Bad,
    Record,
    RecordType,
    decode_segment_header,
    encode_record,
    encode_segment_header,
)
from tickwheel.server.recovery import WalIdentity, WalOptions, segment_name

# --- recovery refuses, and changes nothing ---------------------------------------------------


def refused(disk: SimDisk) -> str:
    before = {name: disk.read(name) for name in disk.list()}
    with pytest.raises(WalRot) as raised:
        opened(disk)
    assert {name: disk.read(name) for name in disk.list()} == before
    assert raised.value.metadata["file"] in str(raised.value)
    return str(raised.value)


def test_a_missing_segment_is_rot() -> None:
    disk = sim()
    filled(disk, 100)
    disk.unlink(segment_name(2))
    assert refused(disk).startswith(segment_name(2))


def test_an_emptied_segment_is_rot() -> None:
    disk = sim()
    filled(disk, 100)
    disk.files[segment_name(2)].cached[:] = bytes(4096)
    assert "the segment is empty, and segment 3 was begun" in refused(disk)


def test_a_journal_that_lost_its_beginning_is_rot() -> None:
    disk = sim()
    filled(disk, 100).truncate_through({1: 60})
    oldest = disk.list()[0]
    for name in disk.list()[1:]:
        disk.unlink(name)
    disk.files[oldest].cached[:] = bytes(4096)
    assert "it is not the first ever" in refused(disk)
    disk.files[oldest].cached[0] = 1
    assert "it is the oldest segment" in refused(disk)


def test_a_batch_that_vanished_at_a_segments_end_is_rot() -> None:
    disk = sim()
    journal = filled(disk, 100)
    found = journal.options.segment_bytes - 600
    data = disk.files[segment_name(1)].cached
    data[found:] = bytes(600)
    assert "segment 2 was begun after it" in refused(disk)


def test_whole_batches_that_vanished_show_in_the_next_header() -> None:
    disk = sim()
    journal, _ = opened(disk)
    journal.append([entry(1)])
    end = journal._at.offset
    while len(disk.list()) < 2:
        journal.append([entry(2)])
    data = disk.files[segment_name(1)].cached
    data[end:] = bytes(len(data) - end)
    assert "the segment before it ends before batch 2" in refused(disk)


def test_a_segment_under_another_name_is_rot() -> None:
    disk = sim()
    filled(disk, 100)
    disk.files[segment_name(1)] = disk.files[segment_name(2)]
    assert refused(disk).startswith(segment_name(1))


def test_a_flipped_bit_of_an_acknowledged_batch_is_rot() -> None:
    disk = sim()
    filled(disk, 3)
    disk.flip(segment_name(1), 8 * 300)
    assert "the end of its batch lies intact" in refused(disk)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"segment_id": 5}, "the header is that of segment 5"),
        ({"shards": {}}, "table of shards differs"),
    ],
)
def test_a_header_that_contradicts_the_records_before_it_is_rot(
    change: dict[str, object], what: str
) -> None:
    disk = sim()
    filled(disk, 100)
    data = disk.files[segment_name(2)].cached
    found = decode_segment_header(bytes(data), 2)
    assert not isinstance(found, Bad)
    forged = found[0]._replace(**change)  # type: ignore[arg-type]
    record = decode_record(encode_segment_header(forged))
    again = encode_record(record, 2)
    data[: len(again)] = again
    assert what in refused(disk)


def decode_record(data: bytes) -> Record:
    """The record that some bytes frame, its crcs not looked at."""
    length = int.from_bytes(data[4:8], "little")
    return Record(RecordType(data[12]), 0, 0, 0, data[32 : 32 + length])


@pytest.mark.parametrize(
    "identity", [WalIdentity(b"x" * 16, b"s" * 16), WalIdentity(b"c" * 16, b"x" * 16)]
)
def test_anothers_journal_is_refused(identity: WalIdentity) -> None:
    disk = sim()
    filled(disk, 1)
    with pytest.raises(FailedPrecondition) as raised:
        Journal.open(disk, SMALL, identity, seconds=ticking())
    assert raised.value.reason == "WAL_OF_ANOTHER_STORE"


def test_a_format_of_the_future_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = sim()
    with monkeypatch.context() as future:
        future.setattr("tickwheel.server.journal.SegmentHeader.__new__.__defaults__", (2,))
        filled(disk, 1)
    with pytest.raises(FailedPrecondition) as raised:
        opened(disk)
    assert raised.value.reason == "FORMAT_UNKNOWN"


# --- recovery mends --------------------------------------------------------------------------


def test_a_torn_tail_is_zeroed_and_told() -> None:
    disk = sim()
    journal = filled(disk, 2)
    end = journal._at.offset
    journal.append([entry(3)])
    data = disk.files[segment_name(1)].cached
    data[end + 50 :] = bytes(len(data) - end - 50)
    _, recovery = opened(disk)
    assert recovery.dropped_bytes == 50
    assert f"50 bytes dropped at offset {end}" in recovery.lines[0]
    assert list(recovery.records()) == [entry(1), entry(2)]
    assert disk.read(segment_name(1))[end:] == bytes(len(data) - end)
    assert opened(disk)[1].dropped_bytes == 0


def test_a_segment_whose_first_write_was_torn_is_begun_again() -> None:
    disk = sim()
    journal = filled(disk, 1)
    before = 1
    while len(journal._at.segments) == 1:
        before += 1
        journal.append([entry(before)])
    data = disk.files[segment_name(2)].cached
    data[20:] = bytes(len(data) - 20)
    journal, recovery = opened(disk)
    assert 0 < recovery.dropped_bytes <= 20
    assert journal.reserve_ready
    journal.append([entry(before)])
    journal.append([entry(before + 1)])
    assert [record.index for record in reopened(disk)] == list(range(1, before + 2))


def test_what_was_made_ahead_and_does_not_fit_is_removed() -> None:
    disk = sim()
    filled(disk, 1)
    disk.create_filled(segment_name(3), 4096)
    disk.create_filled(segment_name(4) + ".tmp", 4096)
    disk.create_filled("notes", 1)
    journal, recovery = opened(disk)
    assert disk.list() == [segment_name(1), segment_name(2), "notes"]
    assert len(recovery.lines) == 2
    assert journal.reserve_ready
    journal, _ = opened(disk, WalOptions(8192, 1024, 0, 1 << 20))
    assert disk.list() == [segment_name(1), "notes"]
    assert not journal.reserve_ready


def test_a_segment_that_changes_while_it_is_replayed_is_rot() -> None:
    disk = sim()
    filled(disk, 3)
    _, recovery = opened(disk)
    disk.flip(segment_name(1), 8 * 300)
    with pytest.raises(WalRot, match="a moment ago"):
        list(recovery.records())
