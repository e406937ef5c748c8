"""Power cuts at any moment, again and again, on a disk that forgets all it may: no acknowledged record is lost.

A run is a list of rounds. In each the journal is opened, records are appended, old segments deleted, until the power
fails, at the opening itself too. What comes back must be what was acknowledged, less entries that were durable in the
stores, plus at most whole batches of the one append that was under way. And a power cut never looks like rot.
The same check is then held against journals and disks with planted faults: it has to find each of them.
"""

from collections.abc import Mapping
from contextlib import suppress
from random import Random
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sim.disk import PowerCut, SimDisk, SimHandle

from tickwheel.server.errors import WalRot
from tickwheel.server.journal import Journal
from tickwheel.server.record import Record, RecordType
from tickwheel.server.recovery import Recovery, WalIdentity, WalOptions

IDENTITY = WalIdentity(b"c" * 16, b"s" * 16)
OPTIONS = WalOptions(4096, 1024, 0, 1 << 20)
SHARDS = 3


class Lost(AssertionError):
    """What came back is not what was promised."""


class Append(NamedTuple):
    """Entries for these shards, each with a payload of `size`."""

    shards: list[int]
    size: int


class Truncate(NamedTuple):
    """The stores hold all but the last `lag` entries of each shard durably."""

    lag: int


class Round(NamedTuple):
    """What is done until the power fails at the `cut`th change of the disk, or at the end."""

    steps: list[Append | Truncate]
    cut: int


APPENDS = st.builds(
    Append, st.lists(st.integers(0, SHARDS - 1), min_size=1, max_size=12), st.integers(1, 700)
)
ROUNDS = st.lists(
    st.builds(
        Round,
        st.lists(APPENDS | st.builds(Truncate, st.integers(0, 10)), max_size=12),
        st.integers(1, 50),
    ),
    min_size=1,
    max_size=6,
)


class Run:
    """One journal's life. `history` is all that must or may come back, `acked` how much of it must."""

    def __init__(self, disk: SimDisk, kind: type[Journal]) -> None:
        self.disk = disk
        self.kind = kind
        self.history: list[Record] = []
        self.acked = 0
        self.gone = 0
        self.index = dict.fromkeys(range(SHARDS), 0)
        self.durable = dict.fromkeys(range(SHARDS), 0)

    def play(self, rounds: list[Round]) -> None:
        """Go through all rounds; raises Lost or WalRot."""
        for one in rounds:
            self.disk.cut_at = self.disk.steps + one.cut
            with suppress(PowerCut):
                self.one_life(one)
            self.disk.crash()
        self.disk.cut_at = 0
        self.start()

    def one_life(self, one: Round) -> None:
        journal = self.start()
        for step in one.steps:
            journal.prepare_next()
            if isinstance(step, Append):
                self.append(journal, step)
            else:
                self.truncate(journal, step)

    def start(self) -> Journal:
        journal, recovery = self.kind.open(self.disk, OPTIONS, IDENTITY, seconds=lambda: 0.0)
        self.compare(recovery)
        return journal

    def append(self, journal: Journal, step: Append) -> None:
        records: list[Record] = []
        for shard in step.shards:
            self.index[shard] += 1
            payload = Random(self.index[shard]).randbytes(step.size)
            records.append(Record(RecordType.ENTRY, shard, 1, self.index[shard], payload))
        self.history += records
        journal.append(records)
        self.acked = len(self.history)

    def truncate(self, journal: Journal, step: Truncate) -> None:
        acked: dict[int, int] = {}
        for record in self.history[: self.acked]:
            acked[record.shard] = record.index
        for shard, index in acked.items():
            self.durable[shard] = max(self.durable[shard], index - step.lag)
        journal.truncate_through(self.durable)

    def compare(self, recovery: Recovery) -> None:
        """Find where what came back begins in the history; then it must be that history, long enough."""
        found = list(recovery.records())
        begin = self._begin(found)
        if found != self.history[begin : begin + len(found)]:
            raise Lost("a record came back that was not written there")
        if begin + len(found) < self.acked:
            raise Lost(f"{self.acked - begin - len(found)} acknowledged records are lost")
        for record in self.history[:begin]:
            if record.index > self.durable[record.shard]:
                raise Lost(f"{record.shard}:{record.index} went before it was durable")
        del self.history[begin + len(found) :]
        self.acked = len(self.history)
        for shard in self.index:
            mine = [record.index for record in self.history if record.shard == shard]
            self.index[shard] = mine[-1] if mine else 0

    def _begin(self, found: list[Record]) -> int:
        if not found:
            return self.acked  # a torn first batch leaves a header alone, and all before it may go
        for begin, record in enumerate(self.history):
            if record[:4] == found[0][:4]:
                return begin
        raise Lost("a record came back that was never written")


@given(rounds=ROUNDS, seed=st.integers(0, 1 << 32))
def test_no_power_cut_loses_what_was_acknowledged(rounds: list[Round], seed: int) -> None:
    Run(SimDisk(Random(seed)), Journal).play(rounds)


def random_rounds(rng: Random) -> list[Round]:
    rounds: list[Round] = []
    for _ in range(4):
        steps: list[Append | Truncate] = []
        for _ in range(rng.randrange(12)):
            shards = [rng.randrange(SHARDS) for _ in range(rng.randint(1, 12))]
            some = rng.random() < 0.8
            steps.append(
                Append(shards, rng.randint(1, 700)) if some else Truncate(rng.randrange(10))
            )
        rounds.append(Round(steps, rng.randint(1, 50)))
    return rounds


def faults(disk: type[SimDisk], kind: type[Journal], seeds: int) -> int:
    """In how many runs the check finds something."""
    found = 0
    for seed in range(seeds):
        try:
            Run(disk(Random(seed)), kind).play(random_rounds(Random(seed)))
        except (Lost, WalRot):
            found += 1
    return found


def test_many_runs_find_nothing() -> None:
    assert faults(SimDisk, Journal, 1000) == 0


# --- planted faults --------------------------------------------------------------------------


class UnsyncedHandle(SimHandle):
    """Says that it synced."""

    def fdatasync(self) -> None:
        self._disk.step()


class WithoutFdatasync(SimDisk):
    """What a journal that forgot its fdatasync does to the disk."""

    def open(self, name: str) -> SimHandle:
        return UnsyncedHandle(self, name)


class WithoutDirectorySync(SimDisk):
    """What a journal does to the disk that unlinks and goes on."""

    def sync_directory(self) -> None:
        self.step()


class TruncatesCommitted(Journal):
    """Takes an entry that is committed for one that is durable in the store."""

    def truncate_through(self, durable: Mapping[int, int]) -> list[str]:
        return super().truncate_through({n: mark.last_index for n, mark in self.shards.items()})


class LazyHandle(SimHandle):
    """Syncs before every second write only: two batches are under way at once."""

    def fdatasync(self) -> None:
        self._disk.step()
        if self._disk.syncs % 2:
            self._disk.sync_file(self._file)
        self._disk.syncs += 1


class TwoBatchesUnderWay(SimDisk):
    """What a journal does to the disk that writes a batch before the last one is synced."""

    def open(self, name: str) -> SimHandle:
        return LazyHandle(self, name)


@pytest.mark.parametrize(
    ("disk", "kind"),
    [
        (WithoutFdatasync, Journal),
        (WithoutDirectorySync, Journal),
        (TwoBatchesUnderWay, Journal),
        (SimDisk, TruncatesCommitted),
    ],
)
def test_the_check_finds_planted_faults(disk: type[SimDisk], kind: type[Journal]) -> None:
    assert faults(disk, kind, 300) > 0


def test_the_check_finds_a_judgement_that_takes_lost_sectors_for_rot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object) -> bool:
        return False

    monkeypatch.setattr("tickwheel.server.record.lost_sector", never)
    assert faults(SimDisk, Journal, 300) > 0
