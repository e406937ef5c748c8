"""The port through which batches become committed, on this disk alone."""

import asyncio
from collections.abc import Sequence

import pytest

from tickwheel.server.cluster.health import LOOP_MS_MAX, WRITE_MS_MAX, Health
from tickwheel.server.commit import OwnDisk, Proposal
from tickwheel.server.errors import TickwheelError, Unavailable, WalFailed
from tickwheel.server.record import Record


class FakeWal:
    space_low = False
    record_bytes_max = 1_000
    waiting_bytes = 7
    closed = False

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def submit(self, records: Sequence[Record]) -> "asyncio.Future[None]":
        if self.closed:
            raise WalFailed("closed")
        self.records += records
        return self.future


class Caller:
    def __init__(self) -> None:
        self.told: list[tuple[list[int], TickwheelError | None]] = []
        self.died: list[BaseException] = []

    def done(self, places: Sequence[int], error: TickwheelError | None) -> None:
        self.told.append((list(places), error))


def make() -> tuple[FakeWal, Caller, OwnDisk]:
    wal, caller = FakeWal(), Caller()
    return wal, caller, OwnDisk(wal, {3: 10, 5: 0}, caller.died.append)  # type: ignore[arg-type]


BATCH = [Proposal(3, 2, b"a"), Proposal(5, 2, b"b")]


async def test_a_batch_is_committed_when_the_journal_has_it() -> None:
    wal, caller, disk = make()
    assert disk.append(BATCH, caller.done) == [11, 1]
    assert [(r.shard, r.epoch, r.index, r.payload) for r in wal.records] == [
        (3, 2, 11, b"a"),
        (5, 2, 1, b"b"),
    ]
    assert not caller.told
    wal.future.set_result(None)
    await asyncio.sleep(0)
    assert caller.told == [([0, 1], None)]
    assert not caller.died
    assert disk.append([Proposal(3, 2, b"c")], caller.done) == [12]


async def test_a_failed_journal_leaves_the_outcome_open_and_stops_the_node() -> None:
    wal, caller, disk = make()
    disk.append(BATCH, caller.done)
    wal.future.set_exception(WalFailed("disk"))
    await asyncio.sleep(0)
    ((places, error),) = caller.told
    assert places == [0, 1]
    assert isinstance(error, Unavailable)
    assert [type(died) for died in caller.died] == [WalFailed]


async def test_what_goes_wrong_in_applying_stops_the_node_too() -> None:
    wal, caller, disk = make()

    def done(places: Sequence[int], error: TickwheelError | None) -> None:
        raise AssertionError(f"{places} {error}")

    disk.append(BATCH, done)
    wal.future.set_result(None)
    await asyncio.sleep(0)
    assert [type(died) for died in caller.died] == [AssertionError]


async def test_a_refused_submit_appends_nothing() -> None:
    wal, caller, disk = make()

    wal.closed = True
    with pytest.raises(WalFailed):
        disk.append(BATCH, caller.done)
    wal.closed = False
    assert disk.append(BATCH, caller.done) == [11, 1]


async def test_the_lock_on_the_directory_is_the_right_to_act() -> None:
    _, _, disk = make()
    assert disk.may_act(3)
    assert not disk.may_act(4)
    assert (disk.space_low, disk.record_bytes_max, disk.waiting_bytes) == (False, 1_000, 7)


def test_a_node_is_well_while_its_loop_beats_and_its_disk_writes() -> None:
    now = [0]
    health = Health(lambda: now[0])
    now[0] = LOOP_MS_MAX
    assert health.well()
    now[0] += 1
    assert health.ailing() == "the event loop stands still"
    health.beat()
    assert health.well()
    health.writing_since_ms = now[0]
    now[0] += WRITE_MS_MAX
    health.beat()
    assert health.well()
    now[0] += 1
    assert health.ailing() == "the journal's disk does not answer"
    health.writing_since_ms = 0
    assert health.well()
