"""The journal: what is appended is on disk, errors are for ever, space runs low in time, old segments go in time."""

import errno
from collections.abc import Callable
from random import Random

import pytest
from tests.sim.disk import SimDisk
from tests.sim.journal import SMALL, entry, filled, opened, reopened, sim

from tickwheel.server.errors import ResourceExhausted, WalFailed
from tickwheel.server.journal import split
from tickwheel.server.record import (
    Record,
    RecordType,
    ShardMark,
    record_bytes,
)
from tickwheel.server.recovery import WalIdentity, WalOptions, segment_name

# --- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: WalOptions(segment_bytes=1024),
        lambda: WalOptions(segment_bytes=4097),
        lambda: WalOptions(batch_bytes_max=0),
        lambda: WalOptions(batch_bytes_max=1 << 30),
        lambda: WalOptions(low_water_bytes=-1),
        lambda: WalOptions(queue_bytes_max=0),
        lambda: WalIdentity(b"short", b"s" * 16),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(AssertionError):
        make()


# --- append ----------------------------------------------------------------------------------


def test_an_empty_directory_is_an_empty_journal() -> None:
    disk = sim()
    journal, recovery = opened(disk)
    assert list(recovery.records()) == []
    assert (recovery.shards, recovery.sequence, recovery.dropped_bytes) == ({}, 1, 0)
    assert recovery.lines == []
    assert disk.list() == []
    assert journal.shards == {}


def test_records_come_back_in_order_over_segments() -> None:
    disk = sim()
    records = [entry(n, n % 3, 150) for n in range(60)]
    journal, _ = opened(disk)
    for start in range(0, 60, 4):
        journal.append(records[start : start + 4])
    assert len(disk.list()) > 3
    assert reopened(disk) == records
    journal.append([entry(61)])
    journal, recovery = opened(disk)
    assert recovery.shards == {
        0: ShardMark(last_index=57, last_epoch=1),
        1: ShardMark(last_index=61, last_epoch=1),
        2: ShardMark(last_index=59, last_epoch=1),
    }
    assert journal.shards == recovery.shards


def test_recovered_records_end_where_the_journal_ended() -> None:
    disk = sim()
    filled(disk, 3)
    journal, recovery = opened(disk)
    journal.append([entry(4)])
    assert [record.index for record in recovery.records()] == [1, 2, 3]


def test_a_batch_is_one_write_and_one_sync() -> None:
    disk = sim()
    journal, _ = opened(disk)
    journal.append([entry(n) for n in range(5)])
    assert (disk.writes, disk.syncs) == (1, 1)
    assert journal.counters.batches == 1
    assert journal.counters.last_batch_records == journal.counters.records == 5
    assert journal.counters.last_batch_bytes == journal.counters.bytes
    assert journal.counters.commit_seconds == journal.counters.last_commit_seconds == 1.0


def test_nothing_to_append_writes_nothing() -> None:
    disk = sim()
    opened(disk)[0].append([])
    assert disk.steps == 0


def test_more_than_a_batch_holds_is_synced_batch_by_batch() -> None:
    disk = sim()
    journal, _ = opened(disk)
    journal.append([entry(n) for n in range(20)])
    assert disk.writes == disk.syncs == journal.counters.batches == 3


def test_records_are_cut_into_runs() -> None:
    one = record_bytes(100)
    records = [entry(1), entry(2), entry(3, size=500), entry(4)]
    assert [(len(run), size) for run, size in split(records, 2 * one)] == [
        (2, 2 * one),
        (1, record_bytes(500)),
        (1, one),
    ]
    assert list(split([], 10)) == []


def test_a_record_that_no_segment_takes_is_refused_before_anything_is_written() -> None:
    disk = sim()
    journal, _ = opened(disk)
    limit = SMALL.record_bytes_max
    with pytest.raises(ResourceExhausted) as raised:
        journal.append([entry(1), entry(2, size=limit + 1)])
    assert raised.value.reason == "RECORD_TOO_LARGE"
    assert disk.writes == 0
    journal.append([entry(1, size=limit)])
    assert reopened(disk) == [entry(1, size=limit)]


def test_a_closed_journal_takes_nothing() -> None:
    journal = filled(sim(), 1)
    journal.close()
    journal.close()
    with pytest.raises(WalFailed, match="closed"):
        journal.append([entry(2)])


# --- errors of the disk ----------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["fail_write_at", "fail_sync_at"])
def test_an_error_of_the_disk_is_for_ever(fault: str) -> None:
    disk = sim()
    journal = filled(disk, 2)
    setattr(disk, fault, 3)
    for _ in range(2):
        with pytest.raises(WalFailed, match="injected"):
            journal.append([entry(3)])
    for call in (journal.prepare_next, lambda: journal.truncate_through({})):
        with pytest.raises(WalFailed):
            call()
    assert disk.writes == 3, "never retried"
    assert reopened(disk)[:2] == [entry(1), entry(2)]


def test_a_batch_that_only_the_page_cache_holds_is_written_again_at_the_next_start() -> None:
    disk = sim()
    journal = filled(disk, 2)
    disk.fail_sync_at = 3
    with pytest.raises(WalFailed):
        journal.append([entry(3)])
    assert reopened(disk) == [entry(1), entry(2), entry(3)]
    disk.crash()
    assert reopened(disk) == [entry(1), entry(2), entry(3)]


def test_an_error_while_opening_is_a_failure_of_the_journal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = sim()
    filled(disk, 1)
    disk.fail_sync_at = disk.syncs + 1
    with pytest.raises(WalFailed, match="could not be opened"):
        opened(disk)


def test_an_error_while_making_or_deleting_a_segment_is_fatal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    disk = sim()
    journal, _ = opened(disk)
    monkeypatch.setattr(disk, "create_filled", broken)
    with pytest.raises(WalFailed, match="could not be made"):
        journal.prepare_next()
    disk = sim()
    journal = filled(disk, 60)
    monkeypatch.setattr(disk, "unlink", broken)
    with pytest.raises(WalFailed, match="could not be deleted"):
        journal.truncate_through({1: 60})


# --- space -----------------------------------------------------------------------------------


def test_on_a_full_disk_the_reserve_is_used_up_and_then_the_journal_stops() -> None:
    disk = SimDisk(Random(1), capacity=2 * SMALL.segment_bytes)
    journal, _ = opened(disk)
    appended = 0
    while not journal.space_low:
        appended += 1
        journal.append([entry(appended)])
        journal.prepare_next()
    low_at = appended
    with pytest.raises(WalFailed, match="reserved segment is used up"):  # noqa: PT012
        while True:
            journal.append([entry(appended + 1)])
            appended += 1
    assert appended - low_at > 10, "a whole segment was left for outcomes"
    assert [record.index for record in reopened(disk)] == list(range(1, appended + 1))


def test_space_is_low_below_the_mark_and_recovers() -> None:
    options = WalOptions(4096, 1024, 20_000, 1 << 20)
    disk = SimDisk(Random(1), capacity=26_000)
    journal, _ = opened(disk, options)
    journal.prepare_next()
    assert not journal.space_low
    disk.capacity = 23_000
    journal.prepare_next()
    assert journal.space_low
    assert journal.reserve_ready
    disk.capacity = 26_000
    journal.prepare_next()
    assert not journal.space_low


def test_a_disk_that_fills_up_during_the_fill_counts_as_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    disk = sim()
    journal, _ = opened(disk)
    monkeypatch.setattr(disk, "create_filled", full)
    journal.prepare_next()
    assert journal.space_low
    assert not journal.reserve_ready


# --- truncation ------------------------------------------------------------------------------


def test_segments_go_from_the_oldest_when_all_their_entries_are_durable() -> None:
    disk = sim()
    journal = filled(disk, 100)
    first = [record.index for record in _segment_records(disk, 1)]
    assert journal.truncate_through({1: first[-1] - 1}) == []
    assert journal.truncate_through({2: 1000}) == []
    assert journal.truncate_through({1: first[-1]}) == [segment_name(1)]
    rest = [record.index for record in reopened(disk)]
    assert rest == list(range(first[-1] + 1, 101))
    assert journal.truncate_through({1: 1000})[-1] == disk_names(disk, -3)
    assert journal.counters.segments == 1
    journal.append([entry(101)])
    assert reopened(disk)[-1] == entry(101)


def disk_names(disk: SimDisk, position: int) -> str:
    """The name of the segment before those that still lie there, counted from the end."""
    newest = int(disk.list()[-1].removesuffix(".log"))
    return segment_name(newest + position + 1)


def _segment_records(disk: SimDisk, segment_id: int) -> list[Record]:
    alone = SimDisk(Random(1))
    alone.files = {segment_name(segment_id): disk.clone().files[segment_name(segment_id)]}
    return reopened(alone)


def test_promises_and_ends_outlive_their_segments() -> None:
    disk = sim()
    journal, _ = opened(disk)
    journal.append([Record(RecordType.PROMISE, 9, 77, 0), entry(5, shard=9)])
    for index in range(1, 60):
        journal.append([entry(index)])
    assert journal.truncate_through({1: 1000, 9: 5})
    _, recovery = opened(disk)
    assert recovery.shards[9] == ShardMark(promised=77, last_index=5, last_epoch=1)


def test_a_dropped_shard_holds_no_segment_back() -> None:
    disk = sim()
    journal, _ = opened(disk)
    journal.append([entry(1, shard=9)])
    for index in range(1, 60):
        journal.append([entry(index)])
    assert journal.truncate_through({1: 1000}) == []
    journal.append([Record(RecordType.SHARD_DROP, 9, 0, 0)])
    assert journal.truncate_through({1: 1000})


def test_the_segment_before_an_undurable_header_stays() -> None:
    disk = sim()
    journal = filled(disk, 1)
    while journal._at.offset + 300 < SMALL.segment_bytes:
        journal.append([entry(2)])
    disk.fail_sync_at = disk.syncs + 1
    with pytest.raises(WalFailed):
        journal.append([entry(3, size=300)])
    journal.failed = None
    assert [segment.id for segment in journal._at.segments] == [1, 2]
    assert journal.truncate_through({1: 1000}) == []
