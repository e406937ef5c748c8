"""Making a backup step by step: what it leaves when it ends early is nothing, and only one is made at a time."""

import asyncio
import errno
from collections.abc import AsyncGenerator
from contextlib import aclosing, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.unit.store_samples import NOW, Changed, execution_columns, job

from tickwheel.server import backup as room
from tickwheel.server.api.admin import create_backup
from tickwheel.server.backup import Backups, Origin, Progress
from tickwheel.server.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
)
from tickwheel.server.query import Applied
from tickwheel.server.store import InlineStore, ShardStore, StoreOptions
from tickwheel.server.store.backup import load_backup, shard_directory
from tickwheel.server.store.snapshot import load_manifest, verify
from tickwheel.v1 import admin_service_pb2 as pb

SHARDS = 3


class FakeKeeper:
    """Says when it flushed."""

    config = SimpleNamespace(shards=SHARDS)

    async def flush_for_reading(self) -> int:
        await asyncio.sleep(0)
        return NOW


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    path = tmp_path / "shards"
    path.mkdir()
    for number in range(SHARDS):
        with closing(ShardStore.open(path, number, StoreOptions(execution_columns))) as store:
            store.flush(Changed(jobs={1: job(f"j{number}")}), Applied(number + 1, 1, 2, NOW))
    return path


def backups(root: Path | None, shards: Path) -> Backups:
    runner = SimpleNamespace(
        store=InlineStore(asyncio.get_running_loop()),
        slots=dict.fromkeys(range(SHARDS)),
        clock=SimpleNamespace(now_ms=lambda: NOW + 5),
    )
    origin = Origin("ab", "cd", "0.1")
    return Backups(
        root, shards, origin, runner=cast("Any", runner), keeper=cast("Any", FakeKeeper())
    )


async def finish(steps: AsyncGenerator[Progress, None]) -> list[Progress]:
    return [step async for step in steps]


async def test_it_is_whole_when_it_has_its_name(shards: Path, tmp_path: Path) -> None:
    root = tmp_path / "deep" / "backups"
    steps = await finish(backups(root, shards).create("one"))
    assert [step.done_count for step in steps] == [0, 1, 2, 3]
    assert [step.complete for step in steps] == [False, False, False, True]
    assert {(step.directory, step.shard_count) for step in steps} == {(str(root / "one"), 3)}
    found = load_backup(root / "one")
    assert (found.shards, found.start_ms, found.end_ms) == (3, NOW, NOW + 5)
    assert (found.version, found.cluster, found.store) == ("0.1", "ab", "cd")
    size_bytes = 0
    for number in range(SHARDS):
        snapshot = load_manifest(shard_directory(root / "one", number))
        verify(shard_directory(root / "one", number), snapshot)
        assert snapshot.index == number + 1
        size_bytes += snapshot.size_bytes
    assert steps[-1].size_bytes == size_bytes
    assert names(root) == ["one"]


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


async def test_a_caller_who_goes_leaves_nothing(shards: Path, tmp_path: Path) -> None:
    maker = backups(tmp_path / "backups", shards)
    async with aclosing(maker.create("one")) as steps:
        async for step in steps:
            if step.done_count == 2:
                break
    assert names(tmp_path / "backups") == []
    (tmp_path / "backups" / ".one.partial" / "of a crash").mkdir(parents=True)
    await finish(maker.create("one"))
    assert names(tmp_path / "backups") == ["one"]


async def test_one_at_a_time(shards: Path, tmp_path: Path) -> None:
    maker = backups(tmp_path / "backups", shards)
    async with aclosing(maker.create("one")) as steps:
        await anext(steps)
        with pytest.raises(FailedPrecondition) as caught:
            await finish(maker.create("two"))
        assert caught.value.reason == "BACKUP_UNDER_WAY"
        await finish(steps)
    with pytest.raises(AlreadyExists):
        await finish(maker.create("one"))
    done = await finish(maker.create(""))
    assert Path(done[-1].directory).name == "backup-20241004-100000"
    assert names(tmp_path / "backups") == ["backup-20241004-100000", "one"]


async def test_no_place_no_room_no_disk(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FailedPrecondition, match="--backup-dir"):
        await finish(backups(None, shards).create("one"))
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match="no backup was made"):
        await finish(backups(tmp_path / "file", shards).create("one"))

    def full(*_: object) -> None:
        raise ResourceExhausted("full", reason="SNAPSHOT_NO_ROOM")

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    for name, failing, kind in (
        ("want_room", full, ResourceExhausted),
        ("take", full, ResourceExhausted),
        ("write_manifest", broken, FailedPrecondition),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(room, name, failing)
            with pytest.raises(kind):
                await finish(backups(tmp_path / "backups", shards).create("one"))
        assert names(tmp_path / "backups") == []


async def test_a_node_that_holds_some_shards_only_makes_none(shards: Path, tmp_path: Path) -> None:
    maker = backups(tmp_path / "backups", shards)
    del maker._runner.slots[1]
    with pytest.raises(FailedPrecondition, match="2 of 3 shards") as caught:
        await finish(maker.create("one"))
    assert caught.value.reason == "BACKUP_PARTIAL"
    assert names(tmp_path / "backups") == []


class Exchange:
    """Keeps what is written; fails at one of them."""

    def __init__(self, fails_at: int = 100) -> None:
        self.messages: list[pb.CreateBackupResponse] = []
        self._fails_at = fails_at

    async def write(self, message: pb.CreateBackupResponse, /) -> None:
        self.messages.append(message)
        if len(self.messages) > self._fails_at:
            raise asyncio.CancelledError


async def test_the_door_tells_each_step(shards: Path, tmp_path: Path) -> None:
    maker = backups(tmp_path / "backups", shards)
    exchange = Exchange()
    await create_backup(maker, pb.CreateBackupRequest(backup_id="one"), exchange)
    assert [message.done_count for message in exchange.messages] == [0, 1, 2, 3]
    last = exchange.messages[-1]
    assert (last.complete, last.shard_count, last.size_bytes > 0) == (True, 3, True)
    assert last.directory.endswith("/backups/one")
    with pytest.raises(asyncio.CancelledError):
        await create_backup(maker, pb.CreateBackupRequest(backup_id="two"), Exchange(fails_at=1))
    assert names(tmp_path / "backups") == ["one"]
    for bad in ("../up", "a/b", ".hidden", "Big", "x" * 129):
        with pytest.raises(InvalidArgument) as caught:
            await create_backup(maker, pb.CreateBackupRequest(backup_id=bad), exchange)
        assert caught.value.reason == "BACKUP_ID_INVALID"
