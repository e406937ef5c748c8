"""Small journals on a simulated disk: what the tests of the journal, its recovery and its drivers share."""

import threading
from collections.abc import Callable
from itertools import count
from random import Random

from tests.sim.disk import SimDisk

from tickwheel.server.files import Files
from tickwheel.server.journal import Journal
from tickwheel.server.record import (
    Record,
    RecordType,
)
from tickwheel.server.recovery import Recovery, WalIdentity, WalOptions

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
