"""Snapshots of a shard: whole, of one entry of the log, and refused when anything of them is not as it was taken."""

import asyncio
import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import pytest
from tests.unit.store_samples import DAY_0, NOW, Changed, execution, execution_columns, job

from tickwheel.server.errors import FailedPrecondition, ResourceExhausted
from tickwheel.server.model import MS_PER_DAY, ExecutionState
from tickwheel.server.query import Applied, ExecutionQuery, JobQuery
from tickwheel.server.store import ShardStore, StoreOptions, StoreThreads
from tickwheel.server.store import snapshot as snapshots
from tickwheel.server.store.compare import hashing, scrubbing, state_hash
from tickwheel.server.store.install import drop, install, settle, stage
from tickwheel.server.store.snapshot import (
    MANIFEST,
    Slices,
    Snapshot,
    SnapshotFile,
    in_turns,
    load_manifest,
    take,
    verify,
    whole,
)

SHARD = 3
OPTIONS = StoreOptions(execution_columns)
ENDED = ExecutionState.SUCCEEDED
T = TypeVar("T")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "shards"
    path.mkdir()
    return path


@pytest.fixture
def store(home: Path) -> Iterator[ShardStore]:
    opened = ShardStore.open(home, SHARD, OPTIONS)
    fill(opened)
    yield opened
    opened.close()


def fill(store: ShardStore) -> None:
    ended = {
        11: execution(1, "a", state=ENDED, create_ms=DAY_0),
        12: execution(2, "b", state=ENDED, create_ms=DAY_0 + MS_PER_DAY),
    }
    jobs = {1: job("a", labels={"team": "x"}), 2: job("b", namespace="other", body=b"\0" * 9_000)}
    store.flush(Changed(jobs=jobs, live={10: execution(1, "a")}), Applied(5, 2, 13, NOW))
    store.flush(Changed(ended=ended), Applied(6, 2, 13, NOW + 1))


def content(store: ShardStore) -> tuple[object, ...]:
    jobs = store.list_jobs(JobQuery(namespace="")), store.list_jobs(JobQuery(namespace="acme"))
    executions = [
        store.list_executions(ExecutionQuery(namespace=name)) for name in ("acme", "other")
    ]
    return (
        store.applied,
        jobs,
        executions,
        store.jobs([1, 2, 3]),
        store.live([10]),
        store.due(0, 1 << 60, 99),
    )


def test_a_snapshot_is_the_store_as_of_one_entry(
    store: ShardStore, home: Path, tmp_path: Path
) -> None:
    before = content(store)
    taken = take(home, SHARD, tmp_path / "copy")
    store.flush(
        Changed(jobs={3: job("late")}, ended={10: execution(1, "a", state=ENDED)}),
        Applied(7, 2, 14, NOW + 2),
    )
    verify(tmp_path / "copy", taken)
    assert (taken.shard, taken.index, taken.epoch, taken.next_row, taken.time_ms) == (
        SHARD,
        6,
        2,
        13,
        NOW + 1,
    )
    assert [file.name for file in taken.files] == [
        "shard-0003.db", f"shard-0003-day-{DAY_0 // MS_PER_DAY + 1}.db", f"shard-0003-day-{DAY_0 // MS_PER_DAY}.db",
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == sorted(
        [MANIFEST, *(file.name for file in taken.files)]
    )
    assert load_manifest(tmp_path / "copy") == taken
    assert taken.size_bytes == sum(file.size_bytes for file in taken.files)
    other = tmp_path / "other"
    other.mkdir()
    install(tmp_path / "copy", other, taken)
    assert not (tmp_path / "copy").exists()
    with closing(ShardStore.open(other, SHARD, OPTIONS)) as installed:
        assert content(installed) == before
        assert store.applied.index == 7


def test_an_empty_store_has_a_snapshot(tmp_path: Path) -> None:
    ShardStore.open(tmp_path, SHARD, OPTIONS).close()
    taken = take(tmp_path, SHARD, tmp_path / "copy")
    assert (taken.index, taken.epoch, taken.next_row, len(taken.files)) == (0, 0, 1, 1)
    verify(tmp_path / "copy", taken)


def test_a_snapshot_is_consistent_while_flushes_go_on(home: Path, tmp_path: Path) -> None:
    """Entry n makes job n and ends execution n: whatever entry a snapshot is of, exactly those are in it."""
    store = ShardStore.open(home, SHARD, OPTIONS)
    stop = threading.Event()
    flushed = threading.Event()

    def flush_on() -> None:
        for n in range(1, 100_000):
            ended = {2 * n: execution(2 * n - 1, f"j{n}", state=ENDED, create_ms=DAY_0 + n)}
            jobs = {2 * n - 1: job(f"j{n}", body=bytes(5_000))}
            store.flush(Changed(jobs=jobs, ended=ended), Applied(n, 1, 2 * n + 1, NOW + n))
            if n % 7 == 0:
                store.checkpoint()
            if n == 20:
                flushed.set()
            if stop.is_set():
                return

    writer = threading.Thread(target=flush_on)
    writer.start()
    try:
        assert flushed.wait(30)
        taken = [take(home, SHARD, tmp_path / str(k)) for k in range(5)]
    finally:
        stop.set()
        writer.join()
        store.close()
    for k, snapshot in enumerate(taken):
        verify(tmp_path / str(k), snapshot)
        install(tmp_path / str(k), home, snapshot)
        with closing(ShardStore.open(home, SHARD, OPTIONS)) as opened:
            rows = range(1, 2 * snapshot.index + 4)
            assert len(opened.jobs(rows)) == snapshot.index == opened.applied.index
            assert opened.sizes().jobs == snapshot.index
            lacking = [n for n in range(1, snapshot.index + 1) if opened.execution(2 * n) is None]
            assert lacking == []


def test_a_checkpoint_waits_for_a_snapshot_and_nothing_else_does(
    store: ShardStore, home: Path
) -> None:
    slices = hashing(home, SHARD)
    next(slices)
    store.flush(Changed(jobs={4: job("d")}), Applied(7, 2, 15, NOW))
    assert not store.checkpoint()
    slices.close()
    assert store.checkpoint()
    assert store.durable.index == 7


def test_a_day_that_retention_took_is_left_out(
    store: ShardStore, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = snapshots._days

    def with_one_gone(store: Path, shard: int) -> list[Path]:
        return [*found(store, shard), store / "shard-0003-day-1.db"]

    monkeypatch.setattr(snapshots, "_days", with_one_gone)
    taken = take(home, SHARD, tmp_path / "copy")
    assert len(taken.files) == 3
    assert store.applied.index == taken.index


# --- what is refused -------------------------------------------------------------------------


def test_too_little_room_is_refused_and_nothing_is_left(
    store: ShardStore, home: Path, tmp_path: Path
) -> None:
    with pytest.raises(ResourceExhausted, match="bytes free") as caught:
        take(home, SHARD, tmp_path / "copy", keep_free_bytes=1 << 60)
    assert caught.value.reason == "SNAPSHOT_NO_ROOM"
    assert list((tmp_path / "copy").iterdir()) == []
    assert store.applied.index == 6


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "SNAPSHOT_NO_ROOM"),
        (OSError(5, "Input/output error"), "SNAPSHOT_FAILED"),
    ],
)
def test_a_failing_disk_of_the_copy_is_no_failing_store(
    store: ShardStore, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, reason: str
) -> None:  # fmt: skip
    def fails(_descriptor: int) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises((ResourceExhausted, FailedPrecondition)) as caught:
            take(home, SHARD, tmp_path / "copy")
    assert caught.value.reason == reason
    assert list((tmp_path / "copy").iterdir()) == []
    assert store.applied.index == 6


def test_a_full_disk_within_sqlite_is_no_failing_store(
    store: ShardStore, home: Path, tmp_path: Path
) -> None:
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    assert snapshots.reported(full, tmp_path).reason == "SNAPSHOT_NO_ROOM"
    assert store.applied.index == 6
    assert home.exists()


def test_a_directory_in_use_is_refused(store: ShardStore, home: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FailedPrecondition, match="not empty"):
        take(home, SHARD, tmp_path)
    assert (tmp_path / "note.txt").exists()
    with pytest.raises(FailedPrecondition, match="no snapshot was taken"):
        take(home, SHARD, tmp_path / "note.txt" / "below")
    with pytest.raises(FailedPrecondition, match="no snapshot was taken"):
        take(home, SHARD + 1, tmp_path / "none")
    store.checkpoint()
    (tmp_path / "renamed").mkdir()
    shutil.copy(home / "shard-0003.db", tmp_path / "renamed" / "shard-0009.db")
    with pytest.raises(FailedPrecondition, match="holds shard 3"):
        take(tmp_path / "renamed", 9, tmp_path / "foreign")
    assert store.applied.index == 6


def flip(path: Path, at: int = 5_000) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def flip_last(path: Path) -> None:
    flip(path, path.stat().st_size - 1)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4096])


def replace(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


@pytest.mark.parametrize("which", [0, 2])
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(flip, id="a flipped bit"),
        pytest.param(flip_last, id="a flipped bit at the end"),
        pytest.param(truncate, id="a page less"),
        pytest.param(Path.unlink, id="missing"),
        pytest.param(replace, id="a link"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused(
    store: ShardStore, home: Path, tmp_path: Path, damage: Callable[[Path], None], which: int
) -> None:
    taken = take(home, SHARD, tmp_path / "copy")
    damage(tmp_path / "copy" / taken.files[which].name)
    with pytest.raises(FailedPrecondition) as caught:
        verify(tmp_path / "copy", taken)
    assert caught.value.reason == "SNAPSHOT_DAMAGED"
    assert store.applied.index == 6


def resigned(directory: Path, taken: Snapshot, **changes: int) -> Snapshot:
    """A manifest that vouches for the files as they are now, with other claims."""
    files: list[SnapshotFile] = []
    for file in taken.files:
        data = (directory / file.name).read_bytes()
        files.append(SnapshotFile(file.name, len(data), sha256(data).hexdigest()))
    fields = {"index": taken.index, "epoch": taken.epoch, **changes}
    return Snapshot(
        SHARD, fields["index"], fields["epoch"], taken.next_row, taken.time_ms, tuple(files)
    )


def test_what_the_manifest_vouches_for_is_looked_into(
    store: ShardStore, home: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    taken = take(home, SHARD, copy)
    for claim in ({"index": 7}, {"epoch": 3}):
        with pytest.raises(FailedPrecondition, match="its manifest says"):
            verify(copy, resigned(copy, taken, **claim))
    with closing(sqlite3.connect(copy / taken.files[0].name)) as db:
        db.execute("PRAGMA journal_mode = DELETE").fetchone()
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(FailedPrecondition, match="has format 99"):
        verify(copy, resigned(copy, taken))
    (copy / taken.files[0].name).write_bytes(b"no database" * 1000)
    with pytest.raises(FailedPrecondition, match="not a database"):
        verify(copy, resigned(copy, taken))
    assert store.applied.index == 6


def test_rot_that_has_a_good_digest_is_found(store: ShardStore, home: Path, tmp_path: Path) -> None:
    """The digest says that nothing changed on the way; whether the source was sound is SQLite's to say."""
    copy = tmp_path / "copy"
    taken = take(home, SHARD, copy)
    with closing(sqlite3.connect(copy / taken.files[0].name)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'job_key'").fetchone()
    data = bytearray((copy / taken.files[0].name).read_bytes())
    data[(page - 1) * 4096 : (page - 1) * 4096 + 200] = bytes(200)
    (copy / taken.files[0].name).write_bytes(data)
    with pytest.raises(FailedPrecondition):
        verify(copy, resigned(copy, taken))
    assert store.applied.index == 6


GOOD = {"format": 1, "shard": SHARD, "index": 1, "epoch": 1, "next_row": 1, "time_ms": 1}


@pytest.mark.parametrize(
    "manifest",
    [
        b"\xff",
        b"[]",
        b"{}",
        json.dumps({**GOOD, "files": [{"name": "shard-0003.db", "size_bytes": "1", "sha256": ""}]}).encode(),
        *(
            json.dumps({**GOOD, **changed, "files": [{"name": n, "size_bytes": 1, "sha256": "ab"} for n in names]}).encode()
            for names, changed in (
                (["../shard-0003.db"], {}),
                (["shard-0004.db"], {}),
                (["shard-00003.db"], {}),
                (["shard-0003-day-1.db"], {}),
                (["shard-0003.db", "shard-0003.db"], {}),
                (["shard-0003.db", "manifest.json"], {}),
                (["shard-0003.db"], {"format": 2}),
                (["shard-0003.db"], {"index": -1}),
                (["shard-0003.db"], {"index": True}),
                (["shard-0003.db"], {"epoch": "1"}),
                (["shard-70000.db"], {"shard": 70_000}),
            )
        ),
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, manifest: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(manifest)
    with pytest.raises(FailedPrecondition) as caught:
        load_manifest(tmp_path)
    assert caught.value.reason == "SNAPSHOT_DAMAGED"


def test_no_manifest_is_no_snapshot(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="never finished"):
        load_manifest(tmp_path)
    (tmp_path / MANIFEST).write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(FailedPrecondition, match="longer"):
        load_manifest(tmp_path)
    empty = Snapshot(SHARD, 0, 0, 1, 0, ())
    with pytest.raises(FailedPrecondition, match="no files"):
        verify(tmp_path, empty)
    with pytest.raises(FailedPrecondition, match="no files"):
        install(tmp_path, tmp_path, empty)


# --- dropping, settling ----------------------------------------------------------------------


def test_drop_removes_one_shard(tmp_path: Path) -> None:
    for shard in (SHARD, 4):
        opened = ShardStore.open(tmp_path, shard, OPTIONS)
        fill(opened)
        opened.close()
    (tmp_path / "shard-0003.db-wal").write_bytes(b"left behind")
    others = sorted(path.name for path in tmp_path.glob("shard-0004*"))
    drop(tmp_path, SHARD)
    assert sorted(path.name for path in tmp_path.iterdir()) == others
    drop(tmp_path, SHARD)
    assert settle(tmp_path) == []


def test_settle_refuses_what_a_hand_left(tmp_path: Path) -> None:
    half = stage(tmp_path, SHARD)
    (half / "shard-0003.db").write_bytes(b"half")
    half = stage(tmp_path, SHARD)
    assert list(half.iterdir()) == []
    assert settle(tmp_path) == ["shard-0003.new: removed, it was never finished"]
    ready = tmp_path / "shard-0003.ready"
    ready.mkdir()
    (ready / "shard-0003.db").write_bytes(b"whose?")
    with pytest.raises(FailedPrecondition, match="a hand was here"):
        settle(tmp_path)
    (ready / MANIFEST).write_bytes(Snapshot(4, 0, 0, 1, 0, ()).to_json())
    with pytest.raises(FailedPrecondition, match="holds shard 4"):
        settle(tmp_path)


def test_an_install_finishes_the_one_before(store: ShardStore, home: Path, tmp_path: Path) -> None:
    """Nothing was opened in between, so the later one decides."""
    (tmp_path / "other").mkdir()
    taken = take(home, SHARD, tmp_path / "copy")
    install(tmp_path / "copy", tmp_path / "other", taken)
    ready = stage(tmp_path / "other", SHARD).rename(tmp_path / "other" / "shard-0003.ready")
    (ready / MANIFEST).write_bytes(Snapshot(SHARD, 0, 0, 1, 0, ()).to_json())
    (ready / "manifest.json.new").write_bytes(b"")
    taken = take(home, SHARD, tmp_path / "copy")
    install(tmp_path / "copy", tmp_path / "other", taken)
    verify(tmp_path / "other", taken)
    assert len(list((tmp_path / "other").iterdir())) == 3
    assert store.applied.index == 6


def test_install_wants_the_files(store: ShardStore, home: Path, tmp_path: Path) -> None:
    taken = take(home, SHARD, tmp_path / "copy")
    truncate(tmp_path / "copy" / taken.files[1].name)
    with pytest.raises(FailedPrecondition, match="missing"):
        install(tmp_path / "copy", home, taken)
    assert store.jobs([1]) == {1: job("a", labels={"team": "x"})}


# --- comparing -------------------------------------------------------------------------------


def test_the_hash_is_of_jobs_and_live_executions(
    store: ShardStore, home: Path, tmp_path: Path
) -> None:
    first = state_hash(home, SHARD)
    assert (first.index, first.epoch, first.jobs, first.live, len(first.digest)) == (6, 2, 2, 1, 16)
    store.flush(Changed(ended={13: execution(1, "a", state=ENDED)}), Applied(7, 2, 14, NOW))
    assert state_hash(home, SHARD).digest == first.digest
    store.flush(Changed(statuses={1: job("a", due_ms=NOW + 9).status}), Applied(8, 2, 14, NOW))
    second = state_hash(home, SHARD)
    assert second.digest != first.digest
    store.flush(Changed(live={10: execution(1, "a", attempt=2)}), Applied(9, 2, 14, NOW))
    third = state_hash(home, SHARD)
    assert third.digest not in {first.digest, second.digest}
    taken = take(home, SHARD, tmp_path / "copy")
    assert state_hash(tmp_path / "copy", SHARD) == third
    assert taken.index == third.index


def test_the_hash_does_not_depend_on_how_it_was_flushed(tmp_path: Path) -> None:
    """Replicas flush at different moments: namespaces get other numbers, rows are written once or twice."""
    digests: set[bytes] = set()
    for name, sets in {
        "once": [[2, 1, 3]],
        "in order": [[1], [2], [3]],
        "late": [[3], [2, 1]],
    }.items():
        (tmp_path / name).mkdir()
        with closing(ShardStore.open(tmp_path / name, SHARD, OPTIONS)) as opened:
            for index, rows in enumerate(sets, start=1):
                jobs = {row: job(f"j{row}", namespace=f"n{row}") for row in rows}
                opened.flush(Changed(jobs=jobs), Applied(index))
            digests.add(state_hash(tmp_path / name, SHARD).digest)
    assert len(digests) == 1


async def test_slices_end_in_their_thread_when_nobody_waits_any_more() -> None:
    threads = StoreThreads(asyncio.get_running_loop())
    names: list[str] = []

    def endless() -> Slices[None]:
        try:
            while True:
                yield
        finally:
            names.append(threading.current_thread().name)

    task = asyncio.create_task(in_turns(threads.query, endless()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await threads.close()
    assert names == ["store-queries"]


async def test_hash_and_scrub_leave_room_for_others(
    store: ShardStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tickwheel.server.store.compare.SLICE_ROWS", 1)
    threads = StoreThreads(asyncio.get_running_loop())
    try:
        expected = state_hash(home, SHARD)
        slices = 0

        def counted(work: Callable[[], T], /) -> Awaitable[T]:
            nonlocal slices
            slices += 1
            return threads.query(work)

        assert await in_turns(counted, hashing(home, SHARD)) == expected
        assert slices == 4
        assert await in_turns(threads.query, scrubbing(home, SHARD)) == []
    finally:
        await threads.close()
    assert store.applied.index == 6


def test_scrub_tells_of_rot(tmp_path: Path) -> None:
    opened = ShardStore.open(tmp_path, SHARD, OPTIONS)
    fill(opened)
    opened.close()
    path = tmp_path / "shard-0003.db"
    with closing(sqlite3.connect(path)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'job_key'").fetchone()
    data = bytearray(path.read_bytes())
    data[(page - 1) * 4096 + 3 : (page - 1) * 4096 + 5] = bytes(
        2
    )  # the index says that it has no rows
    path.write_bytes(data)
    assert any("job" in line for line in whole(scrubbing(tmp_path, SHARD)))
