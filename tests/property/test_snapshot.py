"""Installing and dropping, stopped anywhere: the next start finds the old shard or the new one, whole, and no third.

Two ways to stop. A process that dies keeps the names that it changed; a power cut takes back, last first, some of the
changes since the last sync of a directory.
"""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.store_samples import DAY_0, NOW, Changed, execution, execution_columns, job

from tickwheel.server.model import MS_PER_DAY, ExecutionState
from tickwheel.server.query import Applied
from tickwheel.server.store import ShardStore, StoreOptions
from tickwheel.server.store.compare import state_hash
from tickwheel.server.store.install import OsDisk, drop, install, settle, stage
from tickwheel.server.store.snapshot import take, verify

SHARD = 3
OPTIONS = StoreOptions(execution_columns)
ENDED = ExecutionState.SUCCEEDED

Tree = dict[str, bytes | None]
"""Every path below a directory; a directory has no bytes."""


class Stop(BaseException):
    """The process dies here."""


class StoppingDisk(OsDisk):
    """Stops before its `steps`-th change, and remembers what a power cut could leave."""

    def __init__(self, home: Path, steps: int) -> None:
        self._home = home
        self._steps = steps
        self.possible: list[Tree] = [tree(home)]

    def _step(self, change: Callable[[], None], *, synced: bool = False) -> None:
        if not self._steps:
            raise Stop
        self._steps -= 1
        change()
        if synced:
            self.possible.clear()
        self.possible.append(tree(self._home))

    def write(self, path: Path, data: bytes) -> None:
        self._step(lambda: super(StoppingDisk, self).write(path, data))

    def sync(self, directory: Path) -> None:
        self._step(lambda: super(StoppingDisk, self).sync(directory), synced=True)

    def rename(self, path: Path, to: Path) -> None:
        self._step(lambda: super(StoppingDisk, self).rename(path, to))

    def unlink(self, path: Path) -> None:
        self._step(lambda: super(StoppingDisk, self).unlink(path))

    def rmdir(self, path: Path) -> None:
        self._step(lambda: super(StoppingDisk, self).rmdir(path))


def tree(home: Path) -> Tree:
    return {
        str(path.relative_to(home)): path.read_bytes() if path.is_file() else None
        for path in home.rglob("*")
    }


def plant(home: Path, wanted: Tree) -> None:
    shutil.rmtree(home)
    home.mkdir()
    for name in sorted(wanted):
        data = wanted[name]
        if data is None:
            (home / name).mkdir()
        else:
            (home / name).write_bytes(data)


def make(home: Path, jobs: int, days: set[int], index: int, *, crashed: bool) -> None:
    """A shard with so many jobs and one ended execution a day; one that crashed leaves its journals."""
    store = ShardStore.open(home, SHARD, OPTIONS)
    rows = {row: job(f"j{row}", body=bytes([index])) for row in range(1, jobs + 1)}
    ended = {
        100 + day: execution(1, "j1", state=ENDED, create_ms=DAY_0 + day * MS_PER_DAY)
        for day in days
    }
    store.flush(Changed(jobs=rows, ended=ended), Applied(index, 1, 200, NOW))
    if crashed:
        left = tree(home)
        store.close()
        plant(home, left)
    else:
        store.close()


def settled(home: Path) -> Tree:
    """What a start finds, after a stop within its own settling too."""
    before = tree(home)
    for steps in range(3):
        with suppress(Stop):
            settle(home, StoppingDisk(home, steps))
    settle(home)
    found = tree(home)
    plant(home, before)
    settle(home)
    assert tree(home) == found
    assert settle(home) == []
    return found


def stops(
    work: Callable[[StoppingDisk], None], home: Path, reset: Callable[[], None], backs: list[int]
) -> list[Tree]:
    """What a start finds after a stop at every step in turn; the last one is without a stop."""
    found: list[Tree] = []
    for steps in range(1_000):
        reset()
        disk = StoppingDisk(home, steps)
        try:
            work(disk)
        except Stop:
            back = backs[steps % len(backs)] % len(disk.possible)
            plant(home, disk.possible[-1 - back])
            found.append(settled(home))
        else:
            return [*found, settled(home)]
    raise AssertionError("it never came to an end")


DAYS = st.sets(st.integers(0, 3), max_size=3)
BACKS = st.lists(st.integers(0, 6), min_size=1, max_size=5)


@settings(max_examples=12, deadline=None)
@given(DAYS, DAYS, st.booleans(), st.integers(0, 3), BACKS)
def test_an_install_that_is_stopped_anywhere(
    old_days: set[int], new_days: set[int], crashed: bool, old_jobs: int, backs: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        home, source, copy = Path(scratch, "home"), Path(scratch, "source"), Path(scratch, "copy")
        home.mkdir()
        source.mkdir()
        make(source, 5, new_days, 9, crashed=False)
        hashed = state_hash(source, SHARD)
        taken = take(source, SHARD, copy)
        new = {file.name: (copy / file.name).read_bytes() for file in taken.files}
        if old_jobs:
            make(home, old_jobs, old_days, 4, crashed=crashed)
        other = ShardStore.open(home, 4, OPTIONS)
        other.close()
        neighbour = {"shard-0004.db": (home / "shard-0004.db").read_bytes()}
        old = tree(home)

        def reset() -> None:
            plant(home, old)
            incoming = stage(home, SHARD)
            for file in taken.files:
                shutil.copy(copy / file.name, incoming)
            verify(incoming, taken)

        found = stops(
            lambda disk: install(home / "shard-0003.new", home, taken, disk), home, reset, backs
        )
        news = [tree == {**new, **neighbour} for tree in found]
        olds = [tree == old for tree in found]
        assert all(is_new != is_old for is_new, is_old in zip(news, olds, strict=True))
        assert olds[0]
        assert news[-1]
        plant(home, found[-1])
        with closing(ShardStore.open(home, SHARD, OPTIONS)) as store:
            assert store.applied == Applied(9, 1, 200, NOW)
            assert state_hash(home, SHARD) == hashed


@settings(max_examples=6, deadline=None)
@given(DAYS, st.booleans(), BACKS)
def test_a_drop_that_is_stopped_anywhere(days: set[int], crashed: bool, backs: list[int]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch, "home")
        home.mkdir()
        make(home, 2, days, 4, crashed=crashed)
        old = tree(home)
        found = stops(lambda disk: drop(home, SHARD, disk), home, lambda: plant(home, old), backs)
        assert all(tree in ({}, old) for tree in found)
        assert found[0] == old
        assert found[-1] == {}
