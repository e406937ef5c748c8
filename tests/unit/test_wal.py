"""The journal and its two drivers: what is acknowledged is on disk, errors are for ever, old segments go in time."""

import asyncio
import errno
import threading
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from random import Random

import pytest
from tests.sim.disk import SimDisk, SimHandle

from tickwheel.server.errors import FailedPrecondition, ResourceExhausted, WalFailed, WalRot
from tickwheel.server.files import Files, OsFiles
from tickwheel.server.journal import Journal, split
from tickwheel.server.record import Record, RecordType, ShardMark, record_bytes
from tickwheel.server.recovery import Recovery, WalIdentity, WalOptions, segment_name
from tickwheel.server.wal import InlineWal, Queue, Submission, Wal, WalThread

IDENTITY = WalIdentity(b"c" * 16, b"s" * 16)
SMALL = WalOptions(4096, 1024, 0, 1 << 20)


def entry(index: int, shard: int = 1, size: int = 100, epoch: int = 1) -> Record:
    return Record(RecordType.ENTRY, shard, epoch, index, bytes([index % 251]) * size)


def ticking() -> Callable[[], float]:
    ticks = count()
    return lambda: float(next(ticks))


def opened(disk: Files, options: WalOptions = SMALL) -> tuple[Journal, Recovery]:
    return Journal.open(disk, options, IDENTITY, seconds=ticking(), lock=threading.Lock())


def reopened(disk: Files, options: WalOptions = SMALL) -> list[Record]:
    return list(opened(disk, options)[1].records())


def sim() -> SimDisk:
    return SimDisk(Random(1))


def filled(disk: SimDisk, records: int, size: int = 100) -> Journal:
    journal, _ = opened(disk)
    for index in range(1, records + 1):
        journal.append([entry(index, size=size)])
        journal.prepare_next()
    return journal


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


def test_more_than_a_batch_holds_is_synced_batch_by_batch() -> None:
    disk = sim()
    journal, _ = opened(disk)
    journal.append([entry(n) for n in range(20)])
    assert disk.writes == disk.syncs == journal.counters.batches == 3


def test_records_are_cut_into_runs() -> None:
    one = record_bytes(100)
    records = [entry(1), entry(2), entry(3, size=500), entry(4)]
    assert [len(run) for run in split(records, 2 * one)] == [2, 1, 1]
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


# --- the drivers -----------------------------------------------------------------------------

Drive = Callable[[Journal, Callable[[Exception], None]], Wal]


@pytest.fixture(params=[InlineWal, WalThread])
def drive(request: pytest.FixtureRequest) -> Drive:
    return lambda journal, fatal: request.param(journal, asyncio.get_running_loop(), fatal)


def never(error: Exception) -> None:
    raise AssertionError(f"fatal: {error}")


async def test_many_submissions_share_batches(drive: Drive) -> None:
    disk = sim()
    wal = drive(opened(disk, WalOptions(1 << 16, 1 << 13, 0, 1 << 20))[0], never)
    records = [[entry(n, n % 4), entry(n, 5)] for n in range(500)]
    await asyncio.gather(*(wal.submit(pair) for pair in records))
    assert wal.counters.records == 1000
    assert wal.counters.batches < 100
    assert wal.waiting_bytes == 0
    assert reopened(disk.clone(), WalOptions(1 << 16, 1 << 13, 0)) == [
        record for pair in records for record in pair
    ]
    await wal.close()
    with pytest.raises(WalFailed, match="closed"):
        wal.submit([entry(1)])


async def test_close_answers_what_waits(drive: Drive) -> None:
    disk = sim()
    wal = drive(opened(disk)[0], never)
    waiting = [wal.submit([entry(n)]) for n in range(40)]
    await wal.close()
    assert all(future.done() and future.exception() is None for future in waiting)
    assert len(reopened(disk)) == 40


async def test_old_segments_go_through_the_driver(drive: Drive) -> None:
    disk = sim()
    wal = drive(opened(disk)[0], never)
    for index in range(1, 80):
        await wal.submit([entry(index)])
    gone = await wal.truncate_through({1: 79})
    assert gone[0] == segment_name(1)
    assert gone[0] not in disk.list()
    assert not wal.space_low
    await wal.close()
    assert await wal.truncate_through({1: 79}) == []


@pytest.mark.parametrize("fault", ["fail_write_at", "fail_sync_at"])
async def test_a_failed_disk_acknowledges_nothing_and_is_fatal_once(
    drive: Drive, fault: str
) -> None:
    disk = sim()
    told: list[Exception] = []
    wal = drive(opened(disk)[0], told.append)
    await wal.submit([entry(1)])
    setattr(disk, fault, 2)
    answers = await asyncio.gather(
        *(wal.submit([entry(n)]) for n in range(2, 50)), return_exceptions=True
    )
    assert {type(answer) for answer in answers} == {WalFailed}
    with pytest.raises(WalFailed):
        wal.submit([entry(99)])
    await wal.close()
    assert [type(error) for error in told] == [WalFailed]
    assert (disk.writes, disk.syncs) == (2, 2 if fault == "fail_sync_at" else 1)


async def test_a_reserve_that_cannot_be_made_is_fatal(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    disk = sim()
    fatal = asyncio.Event()
    monkeypatch.setattr(disk, "create_filled", broken)
    wal = drive(opened(disk)[0], lambda _: fatal.set())
    await asyncio.wait_for(fatal.wait(), 10)
    assert await wal.truncate_through({}) == []
    await wal.close()


async def test_a_full_queue_refuses_and_takes_nothing(drive: Drive) -> None:
    disk = sim()
    wal = drive(opened(disk, WalOptions(4096, 1024, 0, 1000))[0], never)
    taken: list[asyncio.Future[None]] = []
    with pytest.raises(ResourceExhausted) as raised:  # noqa: PT012
        while True:
            taken.append(wal.submit([entry(1)]))
    assert raised.value.reason == "WAL_QUEUE_FULL"
    assert raised.value.retry_after_ms
    assert wal.record_bytes_max == SMALL.record_bytes_max
    with pytest.raises(ResourceExhausted, match="longer than"):
        wal.submit([entry(1, size=5000)])
    await asyncio.gather(*taken)
    await wal.close()
    assert len(reopened(disk)) == len(taken)


async def test_a_caller_who_left_harms_nobody(drive: Drive) -> None:
    wal = drive(opened(sim())[0], never)
    left, stays = wal.submit([entry(1)]), wal.submit([entry(2)])
    left.cancel()
    await stays
    await wal.close()


async def test_an_unforeseen_error_in_the_writer_strands_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def surprising(_: Journal, records: Sequence[Record]) -> None:
        raise ValueError(f"{len(records)} surprises")

    monkeypatch.setattr(Journal, "append", surprising)
    told: list[Exception] = []
    wal = WalThread(opened(sim())[0], asyncio.get_running_loop(), told.append)
    with pytest.raises(WalFailed, match="1 surprises"):
        await wal.submit([entry(1)])
    await wal.close()
    assert len(told) == 1


async def test_the_disk_stands_still_and_what_comes_meanwhile_is_one_batch() -> None:
    entered, go = threading.Event(), threading.Event()
    disk = sim()

    class Slow(SimHandle):
        def fdatasync(self) -> None:
            entered.set()
            assert go.wait(10)
            super().fdatasync()

    disk.open = lambda name: Slow(disk, name)  # type: ignore[method-assign]
    wal = WalThread(opened(disk)[0], asyncio.get_running_loop(), never)
    first = wal.submit([entry(1)])
    assert await asyncio.get_running_loop().run_in_executor(None, entered.wait, 10)
    rest = [wal.submit([entry(n)]) for n in range(2, 9)]
    assert wal.waiting_bytes == 7 * record_bytes(100)
    assert not first.done()
    go.set()
    await asyncio.gather(first, *rest)
    assert wal.counters.batches == 2
    await wal.close()


async def test_on_a_real_disk(tmp_path: Path) -> None:
    options = WalOptions(1 << 18, 1 << 15, 0, 1 << 22)
    wal = WalThread(opened(OsFiles(tmp_path), options)[0], asyncio.get_running_loop(), never)

    async def writer(shard: int) -> None:
        for index in range(1, 101):
            await wal.submit([entry(index, shard, 300)])

    await asyncio.gather(*(writer(shard) for shard in range(40)))
    gone = await wal.truncate_through(dict.fromkeys(range(40), 20))
    assert gone
    await wal.close()
    _, recovery = opened(OsFiles(tmp_path), options)
    last: dict[int, int] = {}
    for record in recovery.records():
        assert record.index == last.get(record.shard, record.index - 1) + 1
        last[record.shard] = record.index
    assert last == dict.fromkeys(range(40), 100)
    assert {mark.last_index for mark in recovery.shards.values()} == {100}


async def test_the_queue_takes_one_submission_of_any_size() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    queue = Queue(10)
    queue.put(Submission([], 100, future))
    with pytest.raises(ResourceExhausted):
        queue.put(Submission([], 1, future))
    assert len(queue.take(5)) == 1
    assert not queue
    assert queue.bytes_held == 0
