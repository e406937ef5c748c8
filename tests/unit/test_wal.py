"""The two drivers, one suite: groups share a batch, failures strand nobody, what is acknowledged is on disk."""

import asyncio
import errno
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from tests.sim.disk import SimHandle
from tests.sim.journal import SMALL, entry, opened, reopened, sim

from tickwheel.server.errors import ResourceExhausted, WalFailed
from tickwheel.server.files import OsFiles
from tickwheel.server.journal import Journal
from tickwheel.server.record import (
    Record,
    record_bytes,
)
from tickwheel.server.recovery import WalOptions, segment_name
from tickwheel.server.wal import InlineWal, Queue, Submission, Wal, WalThread

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


async def test_a_segment_that_cannot_be_deleted_is_fatal_and_answers(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    disk = sim()
    fatal = asyncio.Event()
    wal = drive(opened(disk)[0], lambda _: fatal.set())
    for index in range(1, 60):
        await wal.submit([entry(index)])
    monkeypatch.setattr(disk, "unlink", broken)
    assert await asyncio.wait_for(wal.truncate_through({1: 59}), 10) == []
    await asyncio.wait_for(fatal.wait(), 10)
    await wal.close()


async def test_two_failures_in_one_call_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "input/output error")

    disk = sim()
    told: list[Exception] = []
    wal = InlineWal(opened(disk)[0], asyncio.get_running_loop(), told.append)
    monkeypatch.setattr(disk, "free_bytes", broken)
    assert await wal.truncate_through({}) == []
    await wal.close()
    await asyncio.sleep(0)
    assert len(told) == 1


async def test_who_gave_up_waiting_for_a_truncation_harms_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered, go = threading.Event(), threading.Event()

    def slow(self: Journal, durable: Mapping[int, int]) -> list[str]:
        entered.set()
        assert go.wait(10)
        return []

    monkeypatch.setattr(Journal, "truncate_through", slow)
    loop = asyncio.get_running_loop()
    wal = WalThread(opened(sim())[0], loop, never)
    task = asyncio.ensure_future(wal.truncate_through({}))
    await asyncio.sleep(0)
    assert await loop.run_in_executor(None, entered.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go.set()
    await wal.submit([entry(1)])
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
